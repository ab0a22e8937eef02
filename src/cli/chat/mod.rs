//! `bitnetd chat`: a conversation, with a running daemon or with a model in this process.
//!
//! On a terminal lines are edited and Ctrl-C stops an answer; from a file or a pipe each line is a message, and only answers
//! are printed. Deliberately keeps nothing on disk but what `/save` writes.

mod conversation;
mod in_process;
mod input;
mod interrupt;
mod over_socket;

use super::model_args::ModelArgs;
use super::sampling_args::SamplingArgs;
use super::{Failure, daemon_socket, print};
use crate::protocol::text::{for_terminal, one_line};
use conversation::ChatHistory;
use in_process::LocalModel;
use input::{InputLine, UserInput};
use interrupt::Interrupt;
use over_socket::DaemonModel;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};

/// Talk with a running daemon, or with a model in this process
///
/// Each line is a message, and a line that begins with / is a command: /help lists them. Ctrl-C stops an answer, Ctrl-D ends.
/// From a pipe or a file the lines are answered one after the other.
#[derive(Debug, Clone, clap::Args)]
pub(super) struct Chat {
    /// The daemon's socket [default: the user's own daemon, else the system's]
    #[arg(long, value_name = "PATH", conflicts_with = "model")]
    socket: Option<PathBuf>,
    /// Instructions to the model before the first message
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,
    #[command(flatten)]
    sampling: SamplingArgs,
    #[command(flatten)]
    model: ModelArgs,
}

/// `--model` with this value is the model inside the binary.
const BUILT_IN: &str = "built-in";

const HELP: &str = "\
/system TEXT  instructions to the model before the first message; without TEXT none
/reset        forgets the conversation, but not the system text
/save FILE    writes the conversation as JSON, in a new file that only you may read
/help         this list
/quit         ends, as Ctrl-D does
//TEXT        a message that begins with /
Ctrl-C stops an answer. All earlier turns are part of each question, so a long conversation fills the context.
";

/// Who answers.
trait Responder {
    /// Answers the conversation and calls `print` for each piece of text, until it ends or is interrupted.
    fn answer(
        &mut self,
        conversation: &ChatHistory,
        interrupt: &Interrupt,
        print: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> Result<ChatAnswer, AnswerError>;
}

/// An answer as far as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
struct ChatAnswer {
    text: String,
    /// Why it is not whole.
    cut_off: Option<String>,
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum AnswerError {
    /// The conversation can go on.
    Refused(Failure),
    /// Nothing more can be printed, or the model file is damaged.
    Ended(Failure),
}

pub(super) fn run(args: Chat) -> Result<(), Failure> {
    let is_terminal = io::stdin().is_terminal() && io::stdout().is_terminal();
    let conversation = ChatHistory::new(args.system.clone());
    let Some(path) = &args.model.model else {
        let path = args.socket.clone().unwrap_or_else(daemon_socket::default_socket);
        let responder = DaemonModel::new(path, args.sampling.clone())?;
        return Chatting::new(conversation, responder, is_terminal)?.run();
    };
    let is_built_in = path == Path::new(BUILT_IN);
    let model = args.model.model.clone().filter(|_| !is_built_in);
    if is_terminal && !is_built_in {
        // Repacking a large model takes some seconds.
        note(&format!("loading {}", path.display()));
    }
    let engine = ModelArgs { model, ..args.model.clone() }.load()?;
    Chatting::new(conversation, LocalModel::new(&engine, &args.sampling), is_terminal)?.run()
}

/// A conversation that goes on.
struct Chatting<R> {
    conversation: ChatHistory,
    responder: R,
    input: UserInput,
    interrupt: Interrupt,
    is_terminal: bool,
}

impl<R: Responder> Chatting<R> {
    fn new(conversation: ChatHistory, responder: R, is_terminal: bool) -> Result<Self, Failure> {
        // Without a terminal Ctrl-C ends the process, as it ends any filter.
        let interrupt = if is_terminal { Interrupt::catch()? } else { Interrupt::never() };
        let input = UserInput::new(is_terminal)?;
        Ok(Chatting { conversation, responder, input, interrupt, is_terminal })
    }

    fn run(mut self) -> Result<(), Failure> {
        if self.is_terminal {
            note("/help lists the commands; Ctrl-D ends");
        }
        loop {
            let line = match self.input.next()? {
                InputLine::Text(line) => line,
                InputLine::Dropped => continue,
                InputLine::End => return Ok(()),
            };
            let line = line.trim();
            match line.strip_prefix('/') {
                _ if line.is_empty() => {}
                Some(command) if !command.starts_with('/') => {
                    if !self.obey(command)? {
                        return Ok(());
                    }
                }
                message => self.say(message.unwrap_or(line))?,
            }
        }
    }

    /// A command; `false` ends the conversation.
    fn obey(&mut self, command: &str) -> Result<bool, Failure> {
        let (name, value) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let value = value.trim();
        match name {
            "quit" | "exit" => return Ok(false),
            "help" => print(HELP.as_bytes())?,
            "reset" => {
                self.conversation.reset();
                self.confirm("the conversation begins anew");
            }
            "system" => {
                self.conversation.set_system(value);
                self.confirm(if value.is_empty() { "no system text" } else { "the system text is set" });
            }
            "save" => match self.conversation.save(value) {
                Ok(()) => self.confirm(&format!("written to {value}")),
                Err(failure) => self.wrong(failure)?,
            },
            _ => self.wrong(Failure::usage(format!("/{name}: no such command; /help lists them")))?,
        }
        Ok(true)
    }

    /// A message, and its answer.
    fn say(&mut self, message: &str) -> Result<(), Failure> {
        self.conversation.ask(message);
        self.interrupt.clear();
        let mut last = None;
        let mut show = |text: &str| {
            last = text.chars().next_back().or(last);
            print(text.as_bytes())
        };
        let answered = self.responder.answer(&self.conversation, &self.interrupt, &mut show);
        if last.is_some_and(|last| last != '\n') {
            print(b"\n")?;
        }
        match answered {
            Ok(answer) => {
                answer.cut_off.iter().for_each(|why| note(why));
                self.conversation.answered(answer.text);
                Ok(())
            }
            Err(AnswerError::Refused(failure)) => {
                self.conversation.take_back();
                self.wrong(failure)
            }
            Err(AnswerError::Ended(failure)) => Err(failure),
        }
    }

    /// Something that people correct and scripts end with.
    fn wrong(&self, failure: Failure) -> Result<(), Failure> {
        if !self.is_terminal {
            return Err(failure);
        }
        note(&one_line(&failure.message));
        Ok(())
    }

    fn confirm(&self, text: &str) {
        if self.is_terminal {
            note(text);
        }
    }
}

/// A line beside the conversation. An error is ignored, since it is not essential.
fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{}", for_terminal(text));
}
