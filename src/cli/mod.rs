//! The command line: one file a command.
//!
//! Deliberately knows no exit by itself: a command returns, and `main` says how it went.

mod ask;
mod bench;
mod check_config;
mod client;
mod convert;
#[cfg(feature = "demo")]
mod demo;
mod doctor;
mod generate;
mod host;
mod inspect;
mod logits;
mod model;
mod perplexity;
mod serve;
mod tokenize;
mod top;

use crate::daemon;
use crate::engine::error::LoadError;
use crate::external_text::utf8;
use crate::protocol::text::for_terminal;
use clap::{Parser, Subcommand};
use std::borrow::Cow;
use std::ffi::OsString;
use std::io::{self, IsTerminal, Read, Write};

/// Why a command failed, in one line, and the exit code that says so to programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// 2 wrong usage or configuration, 3 the model cannot be used, 4 no daemon answers, 5 refused.
    pub code: u8,
    /// One line: the place, and the way out.
    pub message: String,
}

impl Failure {
    fn usage(message: impl Into<String>) -> Self {
        Failure { code: 2, message: message.into() }
    }

    /// Something the system refused us that no argument mends.
    fn system(message: impl Into<String>) -> Self {
        Failure { code: 1, message: message.into() }
    }
}

impl From<LoadError> for Failure {
    fn from(error: LoadError) -> Self {
        Failure { code: 3, message: error.to_string() }
    }
}

impl From<daemon::Failure> for Failure {
    fn from(failure: daemon::Failure) -> Self {
        let code = match failure {
            daemon::Failure::Model(_) | daemon::Failure::Budget(_) => 3,
            daemon::Failure::Socket(_) => 2,
            daemon::Failure::Setup(_) => 1,
        };
        Failure { code, message: failure.to_string() }
    }
}

/// A ternary language model as a service: answers over MQTT and a Unix socket
#[derive(Debug, Parser)]
#[command(name = "bitnetd", version)]
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
    Generate(generate::Generate),
    Bench(bench::Bench),
    Tokenize(tokenize::Tokenize),
    Inspect(inspect::Inspect),
    Logits(logits::Logits),
    Convert(convert::Convert),
    Perplexity(perplexity::Perplexity),
    Doctor(doctor::Doctor),
    Top(top::Top),
    CheckConfig(check_config::CheckConfig),
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
        Command::Generate(args) => generate::run(args),
        Command::Bench(args) => bench::run(args),
        Command::Tokenize(args) => tokenize::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Logits(args) => logits::run(args),
        Command::Convert(args) => convert::run(args),
        Command::Perplexity(args) => perplexity::run(args),
        Command::Doctor(args) => doctor::run(args),
        Command::Top(args) => top::run(args),
        Command::CheckConfig(args) => check_config::run(args),
    }
}

/// Help and version go to standard output; a mistake becomes one line.
fn usage(error: &clap::Error) -> Result<(), Failure> {
    if !error.use_stderr() {
        return print(error.to_string().as_bytes());
    }
    let text = error.to_string();
    if text.starts_with("error:") {
        // The library tells the mistake, tips and usage in paragraphs of their own.
        let told = text.trim_start_matches("error:").split("\n\n").next().unwrap_or_default();
        let told = told.split_whitespace().collect::<Vec<_>>().join(" ");
        return Err(Failure::usage(format!("{told}; see bitnetd --help")));
    }
    Err(Failure::usage("no command given; see bitnetd --help"))
}

/// Writes to standard output; nobody reading any more, as with `| head`, is no failure. A terminal gets nothing that it
/// would obey; a file or a pipe gets the bytes as they are.
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
    let text = text_as_it_is(argument.as_deref())?;
    let text = utf8(text.as_bytes()).map_err(|wrong| Failure::usage(format!("the text: {wrong}")))?;
    Ok(text.to_owned())
}

/// The same, nothing left out: for what shows the text's own characters.
fn text_as_it_is(argument: Option<&str>) -> Result<String, Failure> {
    if let Some(text) = argument.filter(|text| *text != "-") {
        return Ok(text.to_owned());
    }
    let failed = |said: String| Failure::usage(format!("standard input: {said}"));
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(|error| failed(error.to_string()))?;
    // Its message names UTF-16 too.
    if let Err(wrong) = utf8(&bytes) {
        return Err(failed(wrong));
    }
    Ok(String::from_utf8(bytes).expect("it was just checked"))
}
