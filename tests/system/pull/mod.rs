//! `bitnetd pull` against a web server over TLS that does what servers and networks do.

mod server;

use crate::daemon::{Ended, Process, bitnetd, finish};
use crate::{Folder, data, text, until};
use rustix::process::Signal;
use server::{Answer, End, Server, proxy};
use sha2::{Digest, Sha256};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

const ETAG: &str = "\"one\"";
/// Retry pauses that cost no time.
const AT_ONCE: &[&str] = &["--retry-ms", "1"];

/// A model of 1.4 MB.
fn model() -> Vec<u8> {
    std::fs::read(data("reference/b158-tiny.i2_s.gguf")).expect("test data")
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The command without the settings of this machine. It writes to the folder `to`.
fn command(folder: &Folder, server: &Server, args: &[&str]) -> Command {
    let mut command = bitnetd();
    for name in ["HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY", "BITNETD_MIRROR"] {
        command.env_remove(name).env_remove(name.to_lowercase());
    }
    command
        .args(["pull", "--ca-file", server.ca_file(), "--to", text(&folder.path("to"))])
        .args(AT_ONCE)
        .args(args);
    command
}

async fn pull(folder: &Folder, server: &Server, args: &[&str]) -> Ended {
    finish(&mut command(folder, server, args), "").await
}

/// The names in the folder of models.
fn files(folder: &Folder) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(folder.path("to")) else { return Vec::new() };
    let mut names: Vec<String> =
        entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn downloaded(folder: &Folder) -> Vec<u8> {
    std::fs::read(folder.path("to/m.gguf")).expect("a model")
}

#[tokio::test]
async fn a_model_is_downloaded_and_everybody_may_read_it() {
    let folder = Folder::new();
    let server = Server::start(&folder, |_, request| Answer::file(request, &model(), ETAG));
    let ended = pull(&folder, &server, &[&server.url("/x/m.gguf?download=true")]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(downloaded(&folder) == model());
    let mode = |path: &Path| std::fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
    assert_eq!((mode(&folder.path("to")), mode(&folder.path("to/m.gguf"))), (0o755, 0o644));
    assert_eq!(files(&folder), ["m.gguf"]);
    let path = folder.path("to/m.gguf");
    assert!(ended.out.contains("no checksum is known"), "{ended:?}");
    assert!(ended.out.contains(&format!("[model]\npath = {path:?}\n")), "{ended:?}");
}

#[tokio::test]
async fn a_cut_is_resumed_where_it_happened() {
    let folder = Folder::new();
    let server = Server::start(&folder, |number, request| {
        let whole = Answer::file(request, &model(), ETAG);
        if number < 2 { whole.ending(End::Cut(300_000)) } else { whole }
    });
    let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(downloaded(&folder) == model());
    let requests = server.requests();
    let starts: Vec<usize> = requests.iter().map(|request| request.start()).collect();
    assert!(starts.len() == 3 && starts[0] == 0 && starts[1] > 0 && starts[2] > starts[1], "{starts:?}");
    assert_eq!((requests[0].header("if-range"), requests[1].header("if-range")), (None, Some(ETAG)));
}

#[tokio::test]
async fn two_versions_of_a_file_are_never_joined() {
    let other = std::fs::read(data("reference/b158-tiny.i2_s-64.gguf")).expect("test data");
    // The second server pays no attention to If-Range and sends the rest of another file.
    for is_honest in [true, false] {
        let (folder, second) = (Folder::new(), other.clone());
        let server = Server::start(&folder, move |number, request| match number {
            0 => Answer::file(request, &model(), ETAG).ending(End::Cut(700_000)),
            _ if is_honest => Answer::file(request, &second, "\"two\""),
            _ => {
                let mut careless = request.clone();
                careless.headers.retain(|(name, _)| name != "if-range");
                Answer::file(&careless, &second, "\"two\"")
            }
        });
        let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(downloaded(&folder) == other, "{ended:?}");
        assert!(ended.err.contains("another version"), "{ended:?}");
    }
}

#[tokio::test]
async fn a_server_that_sends_nothing_more_is_left_and_asked_again() {
    let folder = Folder::new();
    let server = Server::start(&folder, |number, request| {
        let whole = Answer::file(request, &model(), ETAG);
        if number == 0 { whole.ending(End::Stall(500_000)) } else { whole }
    });
    let ended = pull(&folder, &server, &["--stall-seconds", "2", &server.url("/m.gguf")]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(downloaded(&folder) == model());
    assert!(server.requests().len() > 1, "{ended:?}");
}

#[tokio::test]
async fn a_length_that_is_not_kept_is_an_error() {
    // More than it sends, and always so.
    let folder = Folder::new();
    let server = Server::start(&folder, |_, request| {
        let start = request.start();
        let rest = Answer::file(request, &model(), ETAG);
        let range = format!("bytes {start}-{}/{}", model().len() + 99, model().len() + 100);
        let lie = rest.with("Content-Length", (model().len() + 100 - start).to_string());
        if start > 0 { lie.with("Content-Range", range) } else { lie }
    });
    let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.err.contains("6 times in a row"), "{ended:?}");
    assert_eq!(files(&folder), ["m.gguf.part", "m.gguf.part.json"]);
    // Another one than the server itself named.
    let folder = Folder::new();
    let server =
        Server::start(&folder, |_, request| Answer::file(request, &model(), ETAG).with("X-Linked-Size", "7"));
    let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error_line().contains("and 7 it named itself"), "{ended:?}");
    assert_eq!(files(&folder), [""; 0]);
}

#[tokio::test]
async fn a_redirect_is_followed_and_takes_no_token_to_another_host() {
    let folder = Folder::new();
    let token = folder.write("token", "hf_secret\n");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("a file");
    let far = Server::start(&folder, |_, request| Answer::file(request, &model(), ETAG));
    let to = far.url("/blob?signature=1");
    let near = Server::start(&folder, move |number, _| {
        let location = if number == 0 { "/second/m.gguf".to_owned() } else { to.clone() };
        Answer::status("302 Found").with("Location", location)
    });
    let ended = pull(&folder, &near, &["--token-file", text(&token), &near.url("/m.gguf")]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(downloaded(&folder) == model());
    let tokens = |server: &Server| -> Vec<Option<String>> {
        server.requests().iter().map(|request| request.header("authorization").map(str::to_owned)).collect()
    };
    assert_eq!((tokens(&near), tokens(&far)), (vec![Some("Bearer hf_secret".into()); 2], vec![None]));
    assert!(!format!("{ended:?}").contains("hf_secret"), "{ended:?}");
}

#[tokio::test]
async fn a_redirect_in_a_circle_or_out_of_tls_is_not_followed() {
    for (location, expected) in [("/m.gguf", "in a circle"), ("http://127.0.0.1/m.gguf", "not followed")] {
        let folder = Folder::new();
        let server =
            Server::start(&folder, move |_, _| Answer::status("302 Found").with("Location", location));
        let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
        assert_eq!((ended.code, files(&folder)), (Some(1), vec![]), "{ended:?}");
        assert!(ended.error_line().contains(expected), "{ended:?}");
    }
}

#[tokio::test]
async fn a_busy_server_is_asked_again_when_it_wants_to_be() {
    let folder = Folder::new();
    let server = Server::start(&folder, |number, request| match number {
        0 => Answer::status("429 Too Many Requests").with("Retry-After", "1"),
        1 => Answer::status("503 Service Unavailable"),
        _ => Answer::file(request, &model(), ETAG),
    });
    let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.err.contains("HTTP 429; trying again in 1 s"), "{ended:?}");
    let folder = Folder::new();
    let server =
        Server::start(&folder, |_, _| Answer::status("429 Too Many Requests").with("Retry-After", "9999"));
    let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
    assert_eq!((ended.code, server.requests().len()), (Some(1), 1), "{ended:?}");
    assert!(ended.error_line().contains("9999 s"), "{ended:?}");
}

#[tokio::test]
async fn a_range_beyond_the_end_means_that_all_of_it_is_there() {
    // The length is not known before, and the connection is cut after the last byte.
    let folder = Folder::new();
    let server = Server::start(&folder, |number, request| match number {
        0 => {
            let mut body = format!("{:x}\r\n", model().len()).into_bytes();
            body.extend(model());
            let sent = body.len();
            let chunked = Answer { body, ..Answer::status("200 OK") };
            let headers = vec![("Transfer-Encoding", "chunked".to_owned()), ("ETag", ETAG.to_owned())];
            Answer { headers, ..chunked }.ending(End::Cut(sent))
        }
        _ => {
            assert_eq!(request.start(), model().len());
            Answer::status("416 Range Not Satisfiable")
                .with("Content-Range", format!("bytes */{}", model().len()))
        }
    });
    let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
    assert_eq!((ended.code, server.requests().len()), (Some(0), 2), "{ended:?}");
    assert!(downloaded(&folder) == model());
}

#[tokio::test]
async fn a_file_with_another_checksum_is_removed() {
    let folder = Folder::new();
    let server = Server::start(&folder, |_, request| Answer::file(request, &model(), ETAG));
    let wrong = "0".repeat(64);
    let ended = pull(&folder, &server, &["--sha256", &wrong, &server.url("/m.gguf")]).await;
    assert_eq!((ended.code, files(&folder)), (Some(1), vec![]), "{ended:?}");
    assert!(ended.error_line().contains(&sha256(&model())), "{ended:?}");
    // A server that names another one is believed before the first byte.
    let server = Server::start(&folder, |_, request| {
        Answer::file(request, &model(), ETAG).with("X-Linked-ETag", format!("\"{}\"", sha256(&model())))
    });
    let ended = pull(&folder, &server, &["--sha256", &wrong, &server.url("/m.gguf")]).await;
    assert_eq!((ended.code, files(&folder)), (Some(1), vec![]), "{ended:?}");
    assert!(ended.error_line().contains("is expected; it is not downloaded"), "{ended:?}");
}

#[tokio::test]
async fn what_is_no_model_is_exit_code_3_and_leaves_nothing_behind() {
    let mut other = model();
    let name = b"bitnet-b1.58";
    let at = other.windows(name.len()).position(|at| at == name).expect("its architecture");
    other[at..at + name.len()].copy_from_slice(b"mamba2-b1.58");
    for (bytes, expected) in [(b"<!doctype html>".to_vec(), "an HTML page"), (other, "m.gguf: ")] {
        let folder = Folder::new();
        let server = Server::start(&folder, move |_, request| Answer::file(request, &bytes, ETAG));
        let ended = pull(&folder, &server, &[&server.url("/m.gguf")]).await;
        assert_eq!((ended.code, files(&folder)), (Some(3), vec![]), "{ended:?}");
        assert!(ended.error_line().contains(expected), "{ended:?}");
        assert!(!ended.err.contains(".part"), "{ended:?}");
    }
}

#[tokio::test]
async fn a_file_that_is_there_is_not_downloaded_again() {
    let folder = Folder::new();
    let server = Server::start(&folder, |_, request| Answer::file(request, &model(), ETAG));
    let url = server.url("/m.gguf");
    let sum = sha256(&model());
    assert_eq!(pull(&folder, &server, &["--sha256", &sum, &url]).await.code, Some(0));
    let before = server.requests().len();
    let ended = pull(&folder, &server, &["--sha256", &sum, &url]).await;
    assert_eq!((ended.code, server.requests().len()), (Some(0), before), "{ended:?}");
    // Without a checksum the server has to say how long the file is.
    let ended = pull(&folder, &server, &[&url]).await;
    assert_eq!((ended.code, files(&folder)), (Some(0), vec!["m.gguf".to_owned()]), "{ended:?}");
    assert!(ended.err.contains("it is there already"), "{ended:?}");
    // Another file is not replaced by itself.
    std::fs::write(folder.path("to/m.gguf"), "mine").expect("a folder");
    let ended = pull(&folder, &server, &[&url]).await;
    assert_eq!((ended.code, downloaded(&folder)), (Some(2), b"mine".to_vec()), "{ended:?}");
    let ended = pull(&folder, &server, &["--force", &url]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(downloaded(&folder) == model());
}

#[tokio::test]
async fn a_repository_of_a_mirror_is_asked_for_its_model_and_names_the_checksum() {
    let folder = Folder::new();
    let server = Server::start(&folder, |_, request| match request.path.as_str() {
        "/hf/api/models/owner/repo" => {
            let body = br#"{"siblings":[{"rfilename":"README.md"},{"rfilename":"m.gguf"}]}"#.to_vec();
            Answer { body: body.clone(), ..Answer::status("200 OK") }
                .with("Content-Length", body.len().to_string())
        }
        "/hf/owner/repo/resolve/main/m.gguf" => Answer::status("302 Found")
            .with("Location", "/blob")
            .with("X-Linked-Size", model().len().to_string())
            .with("X-Linked-ETag", format!("\"{}\"", sha256(&model()))),
        "/blob" => Answer::file(request, &model(), ETAG),
        _ => Answer::status("404 Not Found"),
    });
    let ended = pull(&folder, &server, &["--from", &server.url("/hf"), "hf:owner/repo"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.out.contains(&format!("SHA-256 {}", sha256(&model()))), "{ended:?}");
    let mut by_variable = command(&folder, &server, &["hf:owner/other:m.gguf"]);
    let ended = finish(by_variable.env("BITNETD_MIRROR", server.url("/hf")), "").await;
    assert_eq!(ended.code, Some(1), "{ended:?}");
    assert!(ended.error_line().contains("/hf/owner/other/resolve/main/m.gguf: HTTP 404"), "{ended:?}");
}

#[tokio::test]
async fn an_interrupted_command_goes_on_from_what_it_has() {
    let folder = Folder::new();
    let server = Server::start(&folder, |number, request| {
        let whole = Answer::file(request, &model(), ETAG).with("X-Linked-ETag", sha256(&model()));
        if number == 0 { whole.ending(End::Stall(500_000)) } else { whole }
    });
    let url = server.url("/m.gguf");
    let mut process =
        Process::start(command(&folder, &server, &[&url]).stdout(Stdio::null()).stderr(Stdio::null()));
    let part = folder.path("to/m.gguf.part");
    until("some of it is there", || std::fs::metadata(&part).is_ok_and(|part| part.len() > 0).then_some(()))
        .await;
    process.signal(Signal::INT);
    process.ended().await;
    let ended = pull(&folder, &server, &[&url]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(downloaded(&folder) == model());
    assert!(server.requests()[1].start() > 0, "{ended:?}");
    assert_eq!(files(&folder), ["m.gguf"]);
}

#[tokio::test]
async fn a_server_that_nobody_vouches_for_is_not_asked() {
    let (folder, stranger) = (Folder::new(), Folder::new());
    let server = Server::start(&stranger, |_, request| Answer::file(request, &model(), ETAG));
    let trusted = Server::start(&folder, |_, _| Answer::status("404 Not Found"));
    let ended = pull(&folder, &trusted, &[&server.url("/m.gguf")]).await;
    assert_eq!((ended.code, server.requests().len()), (Some(1), 0), "{ended:?}");
    assert!(ended.error_line().contains("--ca-file"), "{ended:?}");
}

#[tokio::test]
async fn a_proxy_of_the_environment_is_used() {
    let folder = Folder::new();
    let server = Server::start(&folder, |_, request| Answer::file(request, &model(), ETAG));
    let (proxy, count) = proxy();
    let ended =
        finish(command(&folder, &server, &[&server.url("/m.gguf")]).env("https_proxy", proxy), "").await;
    assert_eq!((ended.code, *count.lock().expect("no panic")), (Some(0), 1), "{ended:?}");
}

#[tokio::test]
async fn the_path_is_set_in_a_configuration_whose_budget_the_model_fits() {
    let folder = Folder::new();
    let server = Server::start(&folder, |_, request| Answer::file(request, &model(), ETAG));
    let config =
        folder.write("c.toml", "# mine\n[budget]\nmemory_mb = 16\n[model]\ncontext = 512 # enough\n");
    let args = ["--set-config", text(&config), &server.url("/m.gguf")];
    let ended = pull(&folder, &server, &args).await;
    assert_eq!((ended.code, files(&folder)), (Some(3), vec![]), "{ended:?}");
    assert!(ended.error_line().contains("does not fit"), "{ended:?}");
    std::fs::write(&config, "# mine\n[model]\ncontext = 512 # enough\n").expect("a temporary folder");
    let ended = pull(&folder, &server, &args).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let set = format!("# mine\n[model]\npath = {:?}\ncontext = 512 # enough\n", folder.path("to/m.gguf"));
    assert_eq!(std::fs::read_to_string(&config).expect("a file"), set);
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    let folder = Folder::new();
    let server = Server::start(&folder, |_, _| Answer::status("404 Not Found"));
    for args in [
        &[][..],
        &["no-such-model"],
        &["hf:x"],
        &["--sha256", "12", "bitnet-2b"],
        &["--token-file", "/dev/null", "bitnet-2b"],
    ] {
        let ended = pull(&folder, &server, args).await;
        assert_eq!((ended.code, files(&folder)), (Some(2), vec![]), "{ended:?}");
        ended.error_line();
    }
    let listed = pull(&folder, &server, &["--list"]).await;
    assert!(listed.code == Some(0) && listed.out.contains("bitnet-2b"), "{listed:?}");
}
