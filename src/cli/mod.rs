//! The command line: one file for each command, and `tools/` for those that a device does not need daily.
//!
//! Deliberately never exits the process: a command returns, and `main` sets the exit code.

mod activity;
mod ask;
mod board_fit;
mod chat;
mod check_config;
mod daemon_socket;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod generate;
mod health;
mod host;
mod inspect;
mod model_args;
mod prompt_args;
mod pull;
mod report;
mod sampling_args;
mod schema_file;
mod serve;
mod server_events;
mod tools;
mod top;
mod unit_sandbox;

use crate::daemon;
use crate::engine::error::LoadError;
use crate::external_text::utf8;
use crate::protocol::text::for_terminal;
use clap::{CommandFactory, Parser, Subcommand};
use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};
use tools::{bench, convert, eval, logits, perplexity, tokenize};

/// Why a command failed, in one line, and its exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// 1 the system refused something, or the daemon is degraded, 2 wrong usage or configuration, 3 the model cannot be used, 4 no daemon
    /// answers, 5 the request was refused.
    pub code: u8,
    /// One line that names the place and a remedy.
    pub message: String,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Failure { code: 2, message: message.into() }
    }

    /// An error of the system that no argument can avoid.
    fn system(message: impl Into<String>) -> Self {
        Failure { code: 1, message: message.into() }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Failure { code: 3, message: error.to_string() }
    }
}

impl From<daemon::DaemonError> for Failure {
    fn from(failure: daemon::DaemonError) -> Self {
        let code = match failure {
            daemon::DaemonError::Model(_) | daemon::DaemonError::Budget(_) => 3,
            daemon::DaemonError::Socket(_) => 2,
            daemon::DaemonError::Setup(_) => 1,
        };
        Failure { code, message: failure.to_string() }
    }
}

/// A ternary language model as a service: answers over MQTT and a Unix socket
#[derive(Debug, Parser)]
#[command(name = "bitnetd", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(serve::Serve),
    #[cfg(feature = "demo")]
    Demo(demo::Demo),
    Ask(ask::Ask),
    Chat(chat::Chat),
    Pull(pull::Pull),
    Generate(generate::Generate),
    Bench(bench::Bench),
    Tokenize(tokenize::Tokenize),
    Inspect(inspect::Inspect),
    Logits(logits::Logits),
    Convert(convert::Convert),
    Perplexity(perplexity::PerplexityArgs),
    Eval(eval::Eval),
    Doctor(doctor::Doctor),
    Top(top::Top),
    Report(report::ReportArgs),
    Health(health::HealthArgs),
    CheckConfig(check_config::CheckConfig),
}

/// The commands and their flags, for manual pages and completions.
pub fn command() -> clap::Command {
    Arguments::command()
}

/// Runs the command that `arguments` name, the program's own name first.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> Result<(), Failure> {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    match arguments.command {
        Command::Serve(args) => serve::run(args),
        #[cfg(feature = "demo")]
        Command::Demo(args) => demo::run(args),
        Command::Ask(args) => ask::run(args),
        Command::Chat(args) => chat::run(args),
        Command::Pull(args) => pull::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Top(args) => top::run(args),
        Command::Report(args) => report::run(args),
        Command::Health(args) => health::run(args),
        Command::CheckConfig(args) => check_config::run(args),
    }
}

/// Prints help and version to standard output; a usage error becomes one line.
fn usage(error: &clap::Error) -> Result<(), Failure> {
    if !error.use_stderr() {
        return print(error.to_string().as_bytes());
    }
    let text = error.to_string();
    if text.starts_with("error:") {
        // The library writes the error, hints and usage as separate paragraphs.
        let mut parts = text.trim_start_matches("error:").split("\n\n").map(|part| {
            let words: Vec<&str> = part.split_whitespace().collect();
            words.join(" ")
        });
        let mut mistake = parts.next().unwrap_or_default();
        // What it suggests instead, where something is similar.
        if let Some(tip) = parts.next().as_deref().and_then(|part| part.strip_prefix("tip: ")) {
            mistake += &format!("; {tip}");
        }
        return Err(Failure::usage(format!("{mistake}; see bitnetd --help")));
    }
    Err(Failure::usage("no command given; see bitnetd --help"))
}

/// Writes to standard output. A closed pipe, as with `| head`, is no failure. Command characters are escaped on a
/// terminal, and written unchanged to a file or a pipe.
fn print(bytes: &[u8]) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    let shown = match std::str::from_utf8(bytes) {
        Ok(text) if out.is_terminal() => Cow::from(for_terminal(text).into_bytes()),
        _ => Cow::from(bytes),
    };
    match out.write_all(&shown).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::system(format!("standard output: {error}")))
        }
        _ => Ok(()),
    }
}

/// The text of an argument, or standard input where it is left out or `-`; without a byte-order mark.
fn text(argument: Option<String>) -> Result<String, Failure> {
    let text = text_unchanged(argument.as_deref())?;
    let text = utf8(text.as_bytes()).map_err(|wrong| Failure::usage(format!("the text: {wrong}")))?;
    Ok(text.to_owned())
}

/// The same without removing the byte-order mark, for commands that work on the exact text.
fn text_unchanged(argument: Option<&str>) -> Result<String, Failure> {
    if let Some(text) = argument.filter(|text| *text != "-") {
        return Ok(text.to_owned());
    }
    let failed = |reason: String| Failure::usage(format!("standard input: {reason}"));
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    // Its message covers UTF-16 as well.
    if let Err(wrong) = utf8(&bytes) {
        return Err(failed(wrong));
    }
    Ok(String::from_utf8(bytes).expect("it was just checked"))
}
