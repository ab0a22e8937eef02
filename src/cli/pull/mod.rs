//! `bitnetd pull`: downloads a model, verifies it, and says how to use it.
//!
//! ```text
//! NAME, hf:…, URL ── source ──> address ── download ──> NAME.part ── verify ──> NAME ── set_path ──> [model] path
//! ```
//!
//! Plain blocking I/O on one thread. Ctrl-C ends the process; what came is kept, and the same command goes on from there.
//! Deliberately nothing of it runs inside the daemon, which opens no connection but that to its broker.

mod catalogue;
mod client;
mod download;
mod part;
mod progress;
mod set_path;
mod source;
mod tls;
mod verify;

use super::{Failure, host, print, serve};
use crate::config::{Config, DEFAULT_FILE};
use crate::protocol::text::for_terminal;
use client::{FileClient, RequestError};
use download::{Checks, Download, DownloadEnd};
use part::{Part, PartNote};
use progress::DownloadProgress;
use source::{ModelSource, RemoteFile};
use std::fs::{DirBuilder, Permissions, set_permissions};
use std::io::{self, BufRead, IsTerminal, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use verify::Beginning;

/// Download a model: checked, resumed, verified
///
/// A download that was interrupted goes on when the same command is given again. Proxies are taken from HTTPS_PROXY, HTTP_PROXY,
/// ALL_PROXY and NO_PROXY, a mirror of Hugging Face from BITNETD_MIRROR.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Pull {
    /// Show the models that have a name
    #[arg(long)]
    list: bool,
    /// The folder to write to [default: /var/lib/bitnetd/models as root, else $XDG_DATA_HOME/bitnetd/models]
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
    /// The SHA-256 that the file must have
    #[arg(long, value_name = "H", value_parser = checksum)]
    sha256: Option<String>,
    /// A mirror of Hugging Face, by its address
    #[arg(long, value_name = "MIRROR")]
    from: Option<String>,
    /// A file with the token of a private model, which only its owner may read
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Certificates of authorities to trust instead of the system's, in PEM form
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
    /// Set [model] path in this configuration file, whose memory budget counts
    #[arg(long, value_name = "FILE")]
    set_config: Option<PathBuf>,
    /// Replace another file of that name, and download what does not fit this machine's memory budget
    #[arg(long)]
    force: bool,
    /// Seconds without a byte after which the connection is given up
    #[arg(long, value_name = "S", default_value_t = 30, hide = true, value_parser = clap::value_parser!(u64).range(1..))]
    stall_seconds: u64,
    /// The first pause between two attempts
    #[arg(long, value_name = "MS", default_value_t = 1000, hide = true)]
    retry_ms: u64,
    /// A name of --list, an address, or a repository on Hugging Face
    #[arg(value_name = "NAME|URL|hf:OWNER/REPO[:FILE]", required_unless_present = "list")]
    model: Option<String>,
}

impl Pull {
    /// The configuration whose memory budget counts: the one that is edited, else that of this machine's daemon where this user
    /// can read it, else the defaults.
    fn planned_for(&self) -> Result<Config, Failure> {
        match self.set_config.as_deref().filter(|config| config.exists()) {
            Some(named) => serve::load(Some(named)),
            None => Ok(serve::load(None).unwrap_or_else(|_| Config::defaults(&host::host()))),
        }
    }
}

fn checksum(text: &str) -> Result<String, String> {
    let text = text.to_ascii_lowercase();
    if client::is_sha256(&text) { Ok(text) } else { Err("a SHA-256 has 64 hexadecimal digits".into()) }
}

pub(super) fn run(args: Pull) -> Result<(), Failure> {
    let Some(model) = args.model.as_deref().filter(|_| !args.list) else {
        return print(catalogue::table().as_bytes());
    };
    let client = FileClient::new(
        args.ca_file.as_deref(),
        args.token_file.as_deref(),
        Duration::from_secs(args.stall_seconds),
    )?;
    let remote = remote_file(&args, model, &client)?;
    let target = folder(&args)?.join(&remote.saved_as);
    let place = target.display().to_string();
    if let Some(known) = remote.known {
        eprint(&format!("{}: {}, licence {}", known.name, known.about, known.licence));
    }
    let is_there = match &remote.sha256 {
        Some(sha256) => is_already_there(&target, Some(sha256), None, args.force)?,
        None => false,
    };
    let verified = if is_there { remote.sha256.clone() } else { fetch(&args, &client, &remote, &target)? };
    let sum = verified.map_or_else(|| NO_CHECKSUM.to_owned(), |sha256| format!("SHA-256 {sha256}"));
    print(for_terminal(&format!("{place}: {sum}\n")).as_bytes())?;
    offer(&args, &target)
}

/// Bytes whose checksum takes a small board more than a second or two.
const WORTH_A_WORD: u64 = 64 << 20;
const NO_CHECKSUM: &str = "no checksum is known; its length is right, and it is a sound model";

/// The file to download. Of a repository the only model file is meant, or the only I2_S one.
fn remote_file(args: &Pull, model: &str, client: &FileClient) -> Result<RemoteFile, Failure> {
    let mirror = args.from.clone().or_else(host::mirror);
    let remote = match ModelSource::parse(model, mirror.as_deref(), args.from.is_some())? {
        ModelSource::File(remote) => remote,
        ModelSource::Repository { hub, name } => {
            let list = client.text(&format!("{hub}/api/models/{name}")).map_err(|error| match error {
                RequestError::Final(failure) => failure,
                RequestError::Passing { message, .. } => Failure::system(message),
            })?;
            RemoteFile::in_repository(&hub, &name, &only_model(&list, &name)?)?
        }
    };
    if let (Some(given), Some(known)) = (&args.sha256, &remote.sha256)
        && given != known
    {
        return Err(Failure::usage(format!("--sha256: {model} has {known}; leave it out")));
    }
    Ok(RemoteFile { sha256: args.sha256.clone().or(remote.sha256.clone()), ..remote })
}

/// The model file of a repository, by the list of its files.
fn only_model(list: &str, name: &str) -> Result<String, Failure> {
    let list: serde_json::Value = serde_json::from_str(list).map_err(|_| {
        Failure::system(format!(
            "hf:{name}: the list of its files is no JSON; is this a mirror of Hugging Face?"
        ))
    })?;
    let files =
        list["siblings"].as_array().into_iter().flatten().filter_map(|file| file["rfilename"].as_str());
    let models: Vec<&str> = files.filter(|file| file.to_ascii_lowercase().ends_with(".gguf")).collect();
    let of_i2s: Vec<&str> =
        models.iter().copied().filter(|file| file.to_ascii_lowercase().contains("i2_s")).collect();
    match (&models[..], &of_i2s[..]) {
        ([only], _) | (_, [only]) => Ok((*only).to_owned()),
        ([], _) => Err(Failure::usage(format!(
            "hf:{name}: holds no GGUF file; `bitnetd convert` makes one of a checkpoint"
        ))),
        (several, _) => Err(Failure::usage(format!(
            "hf:{name}: holds several models; name one: hf:{name}:FILE, with FILE one of {}",
            several.join(", ")
        ))),
    }
}

/// The folder, made where it is missing, for everybody to read.
fn folder(args: &Pull) -> Result<PathBuf, Failure> {
    let folder = args.to.clone().unwrap_or_else(host::model_dir);
    let failed = |error: io::Error| {
        Failure::system(format!("{}: {error}; name another folder with --to", folder.display()))
    };
    let missing: Vec<&Path> =
        folder.ancestors().take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists()).collect();
    for dir in missing.into_iter().rev() {
        DirBuilder::new().create(dir).map_err(failed)?;
        set_permissions(dir, Permissions::from_mode(0o755)).map_err(failed)?;
    }
    if !folder.is_dir() {
        return Err(Failure::usage(format!("--to {}: no folder", folder.display())));
    }
    Ok(folder)
}

/// Downloads and verifies the file. Returns the checksum that was compared; `None` where none is known.
fn fetch(
    args: &Pull,
    client: &FileClient,
    remote: &RemoteFile,
    target: &Path,
) -> Result<Option<String>, Failure> {
    let unwritten =
        |error: io::Error| Failure::system(format!("{}: {error}", part::path_of(target).display()));
    let config = args.planned_for()?;
    let there = std::fs::metadata(part::path_of(target)).map_or(0, |about| about.len());
    if there > WORTH_A_WORD {
        eprint(&format!("checking the {} MiB that are there", there >> 20));
    }
    let mut part = Part::open(target, &remote.url, remote.sha256.as_deref()).map_err(unwritten)?;
    if part.length() > 0 {
        eprint(&format!("goes on after {} MiB", part.length() >> 20));
    }
    let checks = TargetChecks { target, force: args.force, config, is_planned: false };
    let mut download = Download::new(client, remote, checks, Duration::from_millis(args.retry_ms));
    let ended = download.run(&mut part);
    download.progress.clear();
    match ended {
        Ok(DownloadEnd::Complete) => {}
        Ok(DownloadEnd::NotNeeded) => {
            let sha256 = part.note().sha256.clone();
            part.discard().map_err(unwritten)?;
            return Ok(sha256);
        }
        Err(failure) => {
            // What no attempt can make a model of this machine, and what has not begun, leaves nothing behind.
            if failure.code == 3 || part.length() == 0 {
                part.discard().map_err(unwritten)?;
            }
            return Err(failure);
        }
    }
    finish(part, &download.checks)
}

/// Verifies a file that is complete, and gives it its name.
fn finish(part: Part, checks: &TargetChecks<'_>) -> Result<Option<String>, Failure> {
    let target = checks.target;
    let place = target.display().to_string();
    let unwritten = |error: io::Error| Failure::system(format!("{place}: {error}"));
    let (wanted, found) = (part.note().sha256.clone(), part.sha256());
    let problem = match &wanted {
        Some(wanted) if *wanted != found => {
            let why = format!(
                "has the SHA-256 {found}, and {wanted} is expected: damaged on the way, or another file"
            );
            Some(Failure::system(format!("{place}: {why}; it is removed, give the command again")))
        }
        _ => {
            let magic = part.first_bytes().map_err(unwritten)?;
            verify::check_magic(&magic, &place).and_then(|()| verify::of_whole(part.path(), &place)).err()
        }
    };
    if let Some(failure) = problem {
        part.discard().map_err(unwritten)?;
        return Err(failure);
    }
    if !checks.is_planned
        && let Some(too_large) = verify::too_large(part.path(), &checks.config)
        && let Err(failure) = check_plan(too_large, checks.force)
    {
        part.discard().map_err(unwritten)?;
        return Err(failure);
    }
    // The download may have been complete before, so that nothing has looked at the target yet.
    if is_already_there(target, wanted.as_deref(), Some(part.length()), checks.force)? {
        part.discard().map_err(unwritten)?;
        return Ok(wanted);
    }
    part.finish(target).map_err(unwritten)?;
    Ok(wanted)
}

/// What is checked of one target while it is downloaded.
struct TargetChecks<'a> {
    target: &'a Path,
    force: bool,
    /// The configuration with the memory budget.
    config: Config,
    /// Whether the memory plan was made of the beginning.
    is_planned: bool,
}

impl Checks for TargetChecks<'_> {
    fn before(&mut self, part: &Part, note: &PartNote, _: &mut DownloadProgress) -> Result<bool, Failure> {
        if is_already_there(self.target, note.sha256.as_deref(), note.length, self.force)? {
            return Ok(false);
        }
        let Some(total) = note.length else { return Ok(true) };
        let folder = self.target.parent().unwrap_or(Path::new("."));
        // A file system that does not say how much is free is no reason to stop.
        let Ok(disk) = rustix::fs::statvfs(folder) else { return Ok(true) };
        let (wanted, free) =
            (total.saturating_sub(part.length()), disk.f_bavail.saturating_mul(disk.f_frsize));
        if wanted > free {
            let figures = format!("{} MiB are wanted and {} MiB free", wanted.div_ceil(1 << 20), free >> 20);
            return Err(Failure::system(format!(
                "{}: {figures}; free some space, or name another disk with --to",
                folder.display()
            )));
        }
        Ok(true)
    }

    fn beginning(&mut self, part: &Part, progress: &mut DownloadProgress) -> Result<bool, Failure> {
        let place = self.target.display().to_string();
        let magic = part.first_bytes().map_err(|error| Failure::system(format!("{place}: {error}")))?;
        verify::check_magic(&magic, &place)?;
        let Some(total) = part.note().length else { return Ok(true) };
        match verify::of_beginning(part.path(), part.length(), total, &place, &self.config)? {
            Beginning::TooShort => return Ok(false),
            Beginning::Fits => {}
            Beginning::TooLarge(failure) => {
                progress.clear();
                check_plan(failure, self.force)?;
            }
        }
        self.is_planned = true;
        Ok(true)
    }
}

/// A model that does not fit is refused, or named.
fn check_plan(too_large: Failure, force: bool) -> Result<(), Failure> {
    if !force {
        let message =
            format!("{}; --force downloads it all the same, for another machine", too_large.message);
        return Err(Failure { message, ..too_large });
    }
    eprint(&too_large.message);
    Ok(())
}

/// Whether the file is there and whole. Another file of that name is an error, unless it may be replaced.
fn is_already_there(
    target: &Path,
    sha256: Option<&str>,
    length: Option<u64>,
    force: bool,
) -> Result<bool, Failure> {
    let Ok(about) = target.symlink_metadata() else { return Ok(false) };
    let place = target.display().to_string();
    if !about.is_file() {
        return Err(Failure::usage(format!("{place}: no regular file; name another folder with --to")));
    }
    let is_same = match (sha256, length) {
        (_, Some(length)) if about.len() != length => false,
        (Some(sha256), _) => {
            if about.len() > WORTH_A_WORD {
                eprint(&format!("checking {place}"));
            }
            part::sha256_of(target).map_err(|error| Failure::system(format!("{place}: {error}")))? == sha256
        }
        (None, Some(_)) => verify::of_whole(target, &place).is_ok(),
        (None, None) => false,
    };
    match is_same {
        true => eprint(&format!("{place}: it is there already")),
        false if force => {}
        false => {
            return Err(Failure::usage(format!(
                "{place}: another file of that name is there; --force replaces it"
            )));
        }
    }
    Ok(is_same)
}

/// Says how to use the model, and sets it where that is wanted.
fn offer(args: &Pull, target: &Path) -> Result<(), Failure> {
    let target = target.canonicalize().unwrap_or_else(|_| target.to_owned());
    if let Some(config) = &args.set_config {
        return set(config, &target);
    }
    let usual = Path::new(DEFAULT_FILE);
    print(
        for_terminal(&format!("to use it, in {DEFAULT_FILE}:\n[model]\npath = {:?}\n", target)).as_bytes(),
    )?;
    if ["/home", "/root", "/tmp", "/run/user"].iter().any(|hidden| target.starts_with(hidden)) {
        eprint(
            "the service of systemd sees neither home folders nor /tmp: for it give the command as root, without --to",
        );
    }
    let is_person = io::stdin().is_terminal() && io::stderr().is_terminal();
    let is_writable =
        || rustix::fs::access(usual.parent().unwrap_or(usual), rustix::fs::Access::WRITE_OK).is_ok();
    if is_person
        && usual.is_file()
        && is_writable()
        && confirms(&format!("set [model] path in {DEFAULT_FILE} now? [y/N] "))
    {
        return set(usual, &target);
    }
    Ok(())
}

fn set(config: &Path, target: &Path) -> Result<(), Failure> {
    set_path::set(config, target)?;
    let done =
        format!("{}: [model] path is set; restart the daemon: systemctl restart bitnetd\n", config.display());
    print(for_terminal(&done).as_bytes())
}

fn confirms(question: &str) -> bool {
    let mut answer = String::new();
    let _ = write!(io::stderr(), "{question}");
    io::stdin().lock().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes")
}

/// A line for people, apart from what scripts read. An error is ignored, since it is not essential.
fn eprint(text: &str) {
    let _ = writeln!(io::stderr(), "{}", for_terminal(text));
}
