//! Arguments in, exit code out.

use bitnetd::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    match cli::run(std::env::args_os()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("bitnetd: {}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}
