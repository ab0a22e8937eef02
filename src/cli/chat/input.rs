//! The lines of the user: edited on a terminal, as they come from a pipe. Deliberately writes no history to disk.

use crate::cli::Failure;
use crate::external_text::utf8;
use rustyline::error::ReadlineError;
use rustyline::history::MemHistory;
use rustyline::{Config, Editor};
use std::io::{self, BufRead, Read};

const PROMPT: &str = "> ";
/// The longest line that is read from a pipe.
const MAX_LINE: u64 = 1 << 20;

pub(super) enum InputLine {
    Text(String),
    /// Ctrl-C while it was written.
    Dropped,
    End,
}

pub(super) enum UserInput {
    Terminal(Box<Editor<(), MemHistory>>),
    Pipe,
}

impl UserInput {
    pub fn new(is_terminal: bool) -> Result<Self, Failure> {
        if !is_terminal {
            return Ok(UserInput::Pipe);
        }
        let config = Config::builder().auto_add_history(true).build();
        let history = MemHistory::with_config(&config);
        let editor = Editor::with_history(config, history).map_err(|error| failed(&error))?;
        Ok(UserInput::Terminal(Box::new(editor)))
    }

    pub fn next(&mut self) -> Result<InputLine, Failure> {
        match self {
            UserInput::Terminal(editor) => match editor.readline(PROMPT) {
                Ok(line) => Ok(InputLine::Text(line)),
                Err(ReadlineError::Interrupted) => Ok(InputLine::Dropped),
                Err(ReadlineError::Eof) => Ok(InputLine::End),
                Err(error) => Err(failed(&error)),
            },
            UserInput::Pipe => from_pipe(&mut io::stdin().lock()),
        }
    }
}

fn failed(error: &dyn std::fmt::Display) -> Failure {
    Failure::system(format!("standard input: {error}"))
}

fn from_pipe(input: &mut dyn BufRead) -> Result<InputLine, Failure> {
    let mut line = Vec::new();
    input.take(MAX_LINE).read_until(b'\n', &mut line).map_err(|error| failed(&error))?;
    if line.is_empty() {
        return Ok(InputLine::End);
    }
    if line.len() as u64 == MAX_LINE {
        return Err(Failure::usage("standard input: a line of more than 1 MiB; say less at once"));
    }
    let line = utf8(&line).map_err(|why| Failure::usage(format!("standard input: {why}")))?;
    Ok(InputLine::Text(line.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pipe_is_read_line_by_line_to_its_end() {
        let mut input = &b"a\nb"[..];
        let mut next = || match from_pipe(&mut input) {
            Ok(InputLine::Text(line)) => line,
            Ok(InputLine::Dropped) => panic!("no terminal"),
            Ok(InputLine::End) => "end".into(),
            Err(failure) => failure.message,
        };
        assert_eq!([next(), next(), next()], ["a\n", "b", "end"]);
        assert_eq!(from_pipe(&mut &b"\xff\n"[..]).err().map(|failure| failure.code), Some(2));
        let mut endless = io::BufReader::new(io::repeat(b'x'));
        assert_eq!(from_pipe(&mut endless).err().map(|failure| failure.code), Some(2));
    }
}
