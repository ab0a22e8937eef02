//! The binary: passes the arguments to `cli`, and turns its result into an exit code.

use bitnetd::cli;
use bitnetd::protocol::text::one_line;
use bitnetd::telemetry::log;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            log::last_line(&format!("bitnetd: {}", one_line(&failure.message)));
            ExitCode::from(failure.code)
        }
    }
}
