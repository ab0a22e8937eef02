//! What the daemon refuses to start with, how it says so, and who owns the socket.

use crate::daemon::{Daemon, Ended, bitnetd, run};
use crate::{Folder, data, text};
use serde_json::json;

/// Starts a daemon that does not start.
async fn refused(folder: &Folder, settings: &str) -> Ended {
    run(&["serve", "--config", text(&folder.config(settings))]).await
}

#[tokio::test]
async fn a_mistake_is_one_line_with_file_line_and_key() {
    let folder = Folder::new();
    for (settings, key) in [
        ("[queue]\ndepht = 3\n", "depht"),
        ("[queue]\ndepth = 0\n", "queue.depth"),
        ("[queue]\ndepth = \"many\"\n", "queue.depth"),
        ("[mqtt]\nhost = \"a\"\nversion = 4\n", "mqtt.version"),
        ("[queue\n", "toml"),
    ] {
        let file = folder.config(settings);
        let written = std::fs::read_to_string(&file).expect("just written");
        let last = written.lines().count();
        for command in [&["check-config", text(&file)][..], &["serve", "--config", text(&file)]] {
            let ended = run(command).await;
            assert_eq!(ended.code, Some(2), "{ended:?}");
            let place = format!("bitnetd: {}:{last}: ", file.display());
            assert!(ended.error_line().starts_with(&place), "{ended:?}");
            assert!(ended.error_line().contains(key), "{ended:?}");
        }
    }
}

#[tokio::test]
async fn the_check_suggests_keys_and_looks_at_the_files_that_are_named() {
    let folder = Folder::new();
    let config = |lines: &str| folder.write("bitnetd.toml", lines);
    let ended = run(&["check-config", text(&config("[model]\npaht = \"/m\"\n"))]).await;
    assert!(ended.error_line().ends_with("did you mean `path`?"), "{ended:?}");
    let model = folder.path("model.gguf");
    let file = config(&format!("[model]\npath = \"{}\"\n", text(&model)));
    let ended = run(&["check-config", text(&file)]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.error_line().contains(&format!("model.path: {}: ", text(&model))), "{ended:?}");
    // The folders of the tests are below a folder that the unit replaces by another.
    folder.write("model.gguf", "GGUF");
    let ended = run(&["check-config", text(&file)]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let is_hidden = ["/tmp", "/var/tmp", "/home", "/root"].iter().any(|folder| model.starts_with(folder));
    assert_eq!(ended.out.contains("\nnote: model.path: "), is_hidden, "{ended:?}");
    assert_eq!(run(&["check-config", text(&folder.path("none.toml"))]).await.code, Some(2));
}

#[tokio::test]
async fn a_configuration_that_is_not_there_is_exit_code_2() {
    let folder = Folder::new();
    let file = folder.path("none.toml");
    for command in [&["check-config", text(&file)][..], &["serve", "--config", text(&file)]] {
        let ended = run(command).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        assert!(ended.error_line().contains(text(&file)), "{ended:?}");
    }
}

#[tokio::test]
async fn a_sound_configuration_is_exit_code_0() {
    for example in ["bitnetd", "production"] {
        let path = format!("{}/config/{example}.toml", env!("CARGO_MANIFEST_DIR"));
        let ended = run(&["check-config", &path]).await;
        assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
        assert!(ended.out.contains("sound"), "{ended:?}");
    }
}

#[tokio::test]
async fn a_model_over_the_budget_is_refused_with_the_numbers() {
    let folder = Folder::new();
    let ended = refused(&folder, "[budget]\nmemory_mb = 8\n").await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    let said = ended.error_line();
    for word in ["budget.memory_mb", "weights", "KV cache", "8.0 MiB", "allow "] {
        assert!(said.contains(word), "{word}: {said}");
    }
    // What it advises is enough.
    let advised = said.rsplit("allow ").next().and_then(|rest| rest.split([',', ' ']).next());
    let settings = format!("[budget]\nthreads = 1\nmemory_mb = {}\n", advised.expect("a number"));
    Daemon::start(&folder, &settings).await.stop().await;
}

#[tokio::test]
async fn a_configured_context_that_does_not_fit_is_refused() {
    let folder = Folder::new();
    let ended = refused(&folder, "[model]\ncontext = 100000\n[budget]\nmemory_mb = 64\n").await;
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert!(ended.error_line().contains("model.context"), "{ended:?}");
}

#[tokio::test]
async fn a_model_that_cannot_be_used_is_exit_code_3_and_is_named() {
    let folder = Folder::new();
    let (missing, damaged) = (folder.path("none.gguf"), folder.write("damaged.gguf", "no model"));
    let config = folder.config("");
    for model in [&missing, &damaged] {
        for command in [
            &["serve", "--config", text(&config), "--model", text(model)][..],
            &["generate", "--model", text(model), "hello"],
            &["tokenize", "--model", text(model), "hello"],
        ] {
            let ended = run(command).await;
            assert_eq!(ended.code, Some(3), "{ended:?}");
            assert!(ended.error_line().contains(text(model)), "{ended:?}");
        }
    }
}

#[tokio::test]
async fn arguments_win_over_the_file() {
    let folder = Folder::new();
    let settings = "[model]\npath = \"/no/such/model\"\n";
    let written = std::fs::read_to_string(folder.config(settings)).expect("just written");
    let config = folder.write("bitnetd.toml", &written.replace("/s\"", "/elsewhere\""));
    let mut command = bitnetd();
    command.args(["serve", "--config", text(&config), "--socket", text(&folder.path("s"))]);
    command.arg("--model").arg(data("reference/b158-tiny.i2_s.gguf"));
    let mut daemon = Daemon::spawn(&mut command, &folder);
    daemon.ready().await;
    assert!(daemon.log().contains("b158-tiny"), "{}", daemon.log());
    assert!(!folder.path("elsewhere").exists());
}

#[tokio::test]
async fn a_socket_of_a_living_daemon_is_not_taken() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let second = refused(&folder, "").await;
    assert_eq!(second.code, Some(2), "{second:?}");
    let said = second.err.lines().last().unwrap_or_default();
    assert!(said.contains(text(&daemon.socket)) && said.contains("socket.path"), "{second:?}");
    let done = daemon.client().await.ask(json!({"prompt": "go"})).await;
    assert_eq!(done["event"], "done");
}

#[tokio::test]
async fn a_socket_where_there_is_no_folder_is_exit_code_2_and_makes_none() {
    let folder = Folder::new();
    let (config, missing) = (folder.config(""), folder.path("missing"));
    let socket = missing.join("s");
    let ended = run(&["serve", "--config", text(&config), "--socket", text(&socket)]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(ended.err.lines().last().is_some_and(|said| said.contains(text(&missing))), "{ended:?}");
    assert!(!missing.exists());
}

#[tokio::test]
async fn a_socket_left_by_a_killed_daemon_is_replaced() {
    let folder = Folder::new();
    let mut killed = Daemon::start(&folder, "").await;
    killed.process.kill();
    assert!(killed.socket.exists());
    let daemon = Daemon::start(&folder, "").await;
    assert_eq!(daemon.client().await.ask(json!({"prompt": "go"})).await["event"], "done");
    daemon.stop().await;
}

#[tokio::test]
async fn a_url_as_the_broker_s_host_is_refused_with_the_keys_to_write() {
    let folder = Folder::new();
    for (host, expected) in [
        ("mqtt://broker.home:1884", "write host = \"broker.home\", port = 1884"),
        ("ssl://user:s3cret@b", "write host = \"b\", tls = true, username = \"user\""),
        ("[::1]:1883", "write host = \"::1\", port = 1883"),
        ("broker.home/", "write host = \"broker.home\""),
    ] {
        let config = folder.write("bitnetd.toml", &format!("[mqtt]\nhost = \"{host}\"\n"));
        let ended = run(&["check-config", text(&config)]).await;
        assert_eq!(ended.code, Some(2), "{host}: {ended:?}");
        let said = ended.error_line();
        assert!(said.contains("bitnetd.toml:2: mqtt.host: ") && said.contains(expected), "{said}");
        assert!(!said.contains("s3cret"), "{said}");
    }
    let config = folder.write("bitnetd.toml", "[mqtt]\nhost = \"[::1]\"\nreply_topics = [\"a/#/b\"]\n");
    let ended = run(&["check-config", text(&config)]).await;
    assert!(ended.error_line().contains("bitnetd.toml:3: mqtt.reply_topics: \"a/#/b\" has #"), "{ended:?}");
}

#[tokio::test]
async fn a_profile_fills_what_the_file_leaves_out_and_is_explained_key_by_key() {
    let folder = Folder::new();
    let file =
        folder.write("a.toml", "profile = \"mobile\"\n[budget]\nmemory_mb = 300\n[log]\nlevel = \"warn\"\n");
    let ended = run(&["check-config", "--explain", text(&file)]).await;
    assert_eq!((ended.code, ended.err.as_str()), (Some(0), ""), "{ended:?}");
    let said: Vec<&str> = ended.out.lines().collect();
    for line in [
        "profile = \"mobile\"  # the file",
        "budget.memory_mb = 300  # the file",
        "queue.depth = 8  # profile mobile",
        "model.context = the model's own, at most 1024  # profile mobile",
        "budget.parallel = as many as fit, at most 1  # profile mobile",
        "queue.timeout_ms = 120000  # default",
        "mqtt.host = none  # default",
        "log.level = \"warn\"  # the file",
    ] {
        assert!(said.contains(&line), "{line}: {}", ended.out);
    }
    assert!(
        ended.out.contains("\nbudget.threads = ") && !ended.out.contains("budget.threads = none"),
        "{}",
        ended.out
    );
    let wrong = folder.write("b.toml", "# a comment\nprofile = \"huge\"\n");
    let ended = run(&["check-config", text(&wrong)]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
    assert!(
        ended
            .error_line()
            .starts_with(&format!("bitnetd: {}:2: profile: \"huge\" is none of", wrong.display())),
        "{ended:?}"
    );
}

#[tokio::test]
async fn the_plan_keeps_to_the_profile() {
    let folder = Folder::new();
    for (profile, parallel) in [("mobile", 1), ("edge", 2)] {
        let socket = folder.path("socket");
        let settings = format!("profile = \"{profile}\"\n[socket]\npath = {:?}\n", text(&socket));
        let file = folder.write("profile.toml", &settings);
        let mut daemon = Daemon::spawn(bitnetd().arg("serve").arg("--config").arg(&file), &folder);
        daemon.ready().await;
        assert_eq!(daemon.log().contains("(2 times "), parallel == 2, "{}", daemon.log());
        daemon.process.terminate();
        daemon.ends_well().await;
    }
}

/// The history has two MiB of the plan, and the daemon is worth more than a record of it.
#[tokio::test]
async fn where_only_the_history_does_not_fit_the_daemon_starts_without_it() {
    let folder = Folder::new();
    let budget = |mb: u32| format!("[budget]\nthreads = 1\nmemory_mb = {mb}\n");
    // The smallest budget that the plan takes.
    let mut command = bitnetd();
    command.arg("serve").arg("--config").arg(folder.config(&budget(20)));
    let mut refused = Daemon::spawn(&mut command, &folder);
    assert_eq!(refused.process.ended().await.code(), Some(3));
    let log = refused.log();
    let (_, least) = log.split_once("; allow ").expect("the refusal names the smallest budget");
    let least: u32 = least
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .and_then(|text| text.parse().ok())
        .expect("a number");
    drop(refused);
    let daemon = Daemon::start(&folder, &budget(least - 2)).await;
    daemon.says("no history is kept: with it the memory plan exceeds the budget").await;
    daemon.says("history 0.0").await;
    daemon.stop().await;
    let daemon = Daemon::start(&folder, &budget(least)).await;
    daemon.says("history 2.0").await;
    assert!(!daemon.log().contains("no history is kept"), "{}", daemon.log());
    daemon.stop().await;
}
