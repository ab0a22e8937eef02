//! `bitnetd serve`: runs the daemon. Deliberately knows only the configuration and the runtime; all else is in
//! `daemon`.

use super::{Failure, host, unit_sandbox};
use crate::config::{Config, DEFAULT_FILE, Host};
use crate::daemon;
use crate::telemetry;
use std::path::{Path, PathBuf};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

/// Run the daemon
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Serve {
    /// The configuration [default: /etc/bitnetd/bitnetd.toml if it is there, else built-in defaults]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A GGUF file, instead of the configured one
    #[arg(long, value_name = "FILE")]
    model: Option<PathBuf>,
    /// The socket, instead of the configured one
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(super) fn run(args: Serve) -> Result<(), Failure> {
    // Examined once: a reload is for changes of the owner, not of the machine.
    let host = host::host();
    let file = config_file(args.config.as_deref());
    let config = settings(&args, file.as_deref(), &host)?;
    telemetry::log::init(config.log.level, telemetry::log::under_journald());
    make_default_dir(&config.socket.path);
    let reread = Box::new(move || settings(&args, file.as_deref(), &host).map_err(|failure| failure.message));
    let model = config.model.path.clone();
    let (ready, _) = oneshot::channel();
    let ended = block_on(daemon::run(config, reread, CancellationToken::new(), ready))?;
    ended.map_err(|error| with_sandbox(error.into(), model.as_deref()))
}

/// Under systemd a model may be out of sight although it is there, or be readable by others only.
fn with_sandbox(failure: Failure, model: Option<&Path>) -> Failure {
    let is_service = std::env::var_os("INVOCATION_ID").is_some();
    let Some(model) = model.filter(|_| failure.code == 3 && is_service) else { return failure };
    match unit_sandbox::hidden(model).or_else(|| unit_sandbox::unreadable(model)) {
        Some(why) => Failure { message: format!("{}; {why}", failure.message), ..failure },
        None => failure,
    }
}

/// The configuration, overridden by the command line.
fn settings(args: &Serve, file: Option<&Path>, host: &Host) -> Result<Config, Failure> {
    let mut config = read(file, host)?;
    config.model.path = args.model.clone().or(config.model.path);
    config.socket.path = args.socket.clone().unwrap_or(config.socket.path);
    Ok(config)
}

/// The named configuration, else the system's, else the defaults.
pub(super) fn load(named: Option<&Path>) -> Result<Config, Failure> {
    read(config_file(named).as_deref(), &host::host())
}

/// The file to read, also at a reload: a file that is missing then is an error, and the defaults are not used.
fn config_file(named: Option<&Path>) -> Option<PathBuf> {
    let default = Path::new(DEFAULT_FILE);
    // A file whose existence cannot be checked is reported when it is read.
    let is_there = || default.try_exists().unwrap_or(true);
    named.or_else(|| is_there().then_some(default)).map(Path::to_owned)
}

fn read(file: Option<&Path>, host: &Host) -> Result<Config, Failure> {
    let Some(path) = file else { return Ok(Config::defaults(host)) };
    Config::load(path, host).map_err(|error| Failure::usage(error.to_string()))
}

/// Runs a future to its end, on one thread for asynchronous work and one for name look-ups and the disk, which
/// block. With the compute threads that makes `budget.threads + 2`.
pub(super) fn block_on<F: Future>(work: F) -> Result<F::Output, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(1)
        .build()
        .map_err(|error| Failure::system(format!("the runtime cannot be started: {error}")))?;
    let output = runtime.block_on(work);
    // Does not wait for a look-up or a disk that hangs.
    runtime.shutdown_background();
    Ok(output)
}

/// Without systemd `/run/bitnetd` does not exist yet; a failure is reported when the socket is opened.
fn make_default_dir(socket: &Path) {
    if let Some(dir) = socket.parent().filter(|dir| *dir == Path::new("/run/bitnetd")) {
        let _ = std::fs::create_dir(dir);
    }
}
