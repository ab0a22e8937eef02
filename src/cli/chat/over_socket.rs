//! Answers of a running daemon, each over a connection of its own, so that a conversation survives a restart of the daemon.
//! The conversation is sent anew each time: the daemon keeps none, and knows the beginning of a prompt again by itself.

use super::conversation::ChatHistory;
use super::{AnswerError, ChatAnswer, Interrupt, Responder};
use crate::cli::Failure;
use crate::cli::daemon_socket::{connection_lost, no_daemon, not_bitnetd};
use crate::cli::sampling_args::SamplingArgs;
use crate::cli::server_events::{ServerEvent, refused};
use serde_json::json;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// How often an answer looks whether it is to stop.
const LOOK: Duration = Duration::from_millis(100);
const ID: &str = "chat";

pub(super) struct DaemonModel {
    socket: PathBuf,
    sampling: SamplingArgs,
}

impl DaemonModel {
    /// Checks that somebody listens there.
    pub fn new(socket: PathBuf, sampling: SamplingArgs) -> Result<Self, Failure> {
        let model = DaemonModel { socket, sampling };
        model.connect().map(|_| model)
    }

    fn connect(&self) -> Result<UnixStream, Failure> {
        UnixStream::connect(&self.socket).map_err(|error| no_daemon(&self.socket, &error))
    }

    fn request(&self, conversation: &ChatHistory) -> Vec<u8> {
        let mut request = json!({ "id": ID, "messages": conversation.messages(), "stream": true });
        self.sampling.add_to(&mut request);
        format!("{request}\n").into_bytes()
    }

    /// The next event. `None` comes now and then while there is none.
    fn next(
        &self,
        events: &mut BufReader<UnixStream>,
        line: &mut Vec<u8>,
    ) -> Result<Option<ServerEvent>, AnswerError> {
        let lost = || AnswerError::Refused(connection_lost(&self.socket));
        match events.read_until(b'\n', line) {
            Ok(0) => Err(lost()),
            Ok(_) => {
                let event = serde_json::from_slice(line);
                line.clear();
                event.map(Some).map_err(|_| AnswerError::Refused(not_bitnetd(&self.socket)))
            }
            // What came of the line stays in it.
            Err(error)
                if matches!(
                    error.kind(),
                    ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                ) =>
            {
                Ok(None)
            }
            Err(_) => Err(lost()),
        }
    }
}

impl Responder for DaemonModel {
    fn answer(
        &mut self,
        conversation: &ChatHistory,
        interrupt: &Interrupt,
        print: &mut dyn FnMut(&str) -> Result<(), Failure>,
    ) -> Result<ChatAnswer, AnswerError> {
        let failed = |error: io::Error| AnswerError::Refused(no_daemon(&self.socket, &error));
        let mut stream = self.connect().map_err(AnswerError::Refused)?;
        stream.set_read_timeout(Some(LOOK)).map_err(failed)?;
        // A daemon that refuses the connection may have closed it already; its error event can still be read.
        let _ = stream.write_all(&self.request(conversation));
        let mut events = BufReader::new(stream.try_clone().map_err(failed)?);
        let (mut line, mut text, mut is_stopped) = (Vec::new(), String::new(), false);
        loop {
            if interrupt.is_set() && !is_stopped {
                is_stopped = true;
                let _ = stream.write_all(format!("{}\n", json!({ "cancel": ID })).as_bytes());
            }
            match self.next(&mut events, &mut line)? {
                None => {}
                Some(ServerEvent::Token { text: piece }) => {
                    print(&piece).map_err(AnswerError::Ended)?;
                    text.push_str(&piece);
                }
                Some(ServerEvent::Done(done)) => {
                    // From the cache in one piece.
                    if text.is_empty() && !done.text.is_empty() {
                        print(&done.text).map_err(AnswerError::Ended)?;
                    }
                    let why = done.cut_off(self.sampling.max_tokens);
                    let cut_off = why.map(|why| if is_stopped { "[stopped]".into() } else { why.message() });
                    return Ok(ChatAnswer { text: done.text, cut_off });
                }
                // It had not begun.
                Some(ServerEvent::Error { code, .. }) if is_stopped && code == "cancelled" => {
                    return Ok(ChatAnswer { text, cut_off: Some("[stopped]".into()) });
                }
                Some(ServerEvent::Error { code, message }) => {
                    let mut failure = refused(&code, &message);
                    if code == "context_exceeded" || code == "too_large" {
                        failure.message.push_str("; /reset begins anew");
                    }
                    return Err(AnswerError::Refused(failure));
                }
            }
        }
    }
}
