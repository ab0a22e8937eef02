//! `bitnetd ask`: sends one prompt to a running daemon over its socket.
//!
//! Plain blocking I/O. Ctrl-C ends the process, which closes the connection and so cancels the request.
//! Deliberately knows no engine.

use super::activity::Activity;
use super::daemon_socket::{connection_lost, default_socket, no_daemon, not_bitnetd};
use super::prompt_args::PromptArgs;
use super::sampling_args::SamplingArgs;
use super::server_events::{ServerEvent, refused};
use super::{Failure, schema_file};
use crate::external_text::utf8;
use crate::protocol::json::MAX_REQUEST;
use crate::protocol::text::{escaped_json, for_terminal};
use std::borrow::Cow;
use std::io::{self, BufRead, BufReader, ErrorKind, IsTerminal, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

/// Ask a running daemon
///
/// An answer that is cut off, by a time limit or by max_tokens, is printed as far as it goes; standard error says why, and the
/// exit code is 5. With --json the last event says so, and the exit code is 0.
#[derive(Debug, Clone, Default, clap::Args)]
pub(super) struct Ask {
    /// The daemon's socket [default: the user's own daemon, else the system's]
    #[arg(long, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// Print the events as they come
    #[arg(long)]
    pub json: bool,
    /// Print the answer when it is complete
    #[arg(long)]
    pub no_stream: bool,
    /// A file with a JSON schema that the answer has to fit
    #[arg(long, value_name = "FILE")]
    pub schema: Option<PathBuf>,
    #[command(flatten)]
    pub sampling: SamplingArgs,
    #[command(flatten)]
    pub input: PromptArgs,
}

/// Why the answer stopped before its end.
enum StreamEnd {
    Failed(Failure),
    /// Standard output was closed, as with `| head`; no failure.
    Unread,
}

/// Sends the prompt, and prints the answer as it is generated.
pub(super) fn run(args: Ask) -> Result<(), Failure> {
    let prompt = args.input.prompt(|words| prompt(words, io::stdin()))?;
    let schema = args.schema.as_deref().map(schema_file::read).transpose()?;
    let path = args.socket.clone().unwrap_or_else(default_socket);
    let mut stream = UnixStream::connect(&path).map_err(|error| no_daemon(&path, &error))?;
    // A daemon that refuses the connection may have closed it already; its error event can still be read.
    let _ = stream.write_all(&request(&args, &prompt, schema));
    let mut printer = Printer {
        activity: Some(Activity::begin("waiting for the answer")),
        out: io::stdout().lock(),
        json: args.json,
        is_terminal: io::stdout().is_terminal(),
        printed: None,
        max_tokens: args.sampling.max_tokens,
    };
    match read_events(BufReader::new(stream), &mut printer, &path) {
        Ok(()) | Err(StreamEnd::Unread) => Ok(()),
        Err(StreamEnd::Failed(failure)) => Err(failure),
    }
}

fn prompt(given: Option<&str>, input: impl Read) -> Result<String, Failure> {
    let text = match given {
        Some(text) if text != "-" => {
            utf8(text.as_bytes()).map_err(|wrong| usage(&format!("PROMPT: {wrong}")))?.to_owned()
        }
        _ => read_prompt(input)?,
    };
    if text.trim().is_empty() {
        return Err(usage("the prompt is empty; give it as an argument or on standard input"));
    }
    Ok(text)
}

fn read_prompt(input: impl Read) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    // One byte more than the daemon would take shows that there is too much.
    let read = input.take(MAX_REQUEST as u64 + 1).read_to_end(&mut bytes);
    read.map_err(|error| usage(&format!("standard input: cannot be read: {error}")))?;
    if bytes.len() > MAX_REQUEST {
        let message = format!("standard input: longer than {MAX_REQUEST} bytes; ask less at once");
        return Err(Failure { code: 5, message });
    }
    let text = utf8(&bytes).map_err(|reason| usage(&format!("standard input: {reason}")))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

fn request(args: &Ask, prompt: &str, schema: Option<serde_json::Value>) -> Vec<u8> {
    let mut keys = serde_json::json!({ "stream": !args.no_stream });
    match &args.input.system {
        None => keys["prompt"] = prompt.into(),
        Some(system) => {
            let message = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
            keys["messages"] = serde_json::json!([message("system", system), message("user", prompt)]);
        }
    }
    args.sampling.add_to(&mut keys);
    if let Some(schema) = schema {
        keys["response_format"] =
            serde_json::json!({ "type": "json_schema", "json_schema": { "schema": schema } });
    }
    format!("{keys}\n").into_bytes()
}

/// Reads events to the last one of our request.
fn read_events(
    mut events: impl BufRead,
    printer: &mut Printer<impl Write>,
    path: &Path,
) -> Result<(), StreamEnd> {
    loop {
        let mut line = String::new();
        match events.read_line(&mut line) {
            Ok(length) if length > 0 => {}
            _ => return Err(printer.fail_on_new_line(connection_lost(path))),
        }
        printer.activity = None;
        let Ok(event) = serde_json::from_str(&line) else {
            return Err(printer.fail_on_new_line(not_bitnetd(path)));
        };
        printer.event(&line, &event)?;
        match event {
            ServerEvent::Token { .. } => {}
            ServerEvent::Done(done) => {
                let cut_off = done.cut_off(printer.max_tokens).filter(|_| !printer.json);
                return cut_off.map_or(Ok(()), |cut_off| Err(StreamEnd::Failed(cut_off.failure())));
            }
            ServerEvent::Error { code, message } => {
                return Err(printer.fail_on_new_line(refused(&code, &message)));
            }
        }
    }
}

/// Writes events to standard output, as text or as JSON.
struct Printer<W> {
    /// Shown until the first event.
    activity: Option<Activity>,
    out: W,
    json: bool,
    /// Whether control characters must be escaped.
    is_terminal: bool,
    /// The last character printed, to end with just one line break.
    printed: Option<char>,
    /// That of the request.
    max_tokens: Option<u32>,
}

impl<W: Write> Printer<W> {
    fn event(&mut self, line: &str, event: &ServerEvent) -> Result<(), StreamEnd> {
        match event {
            _ if self.json => self.print(&escaped_json(line)),
            ServerEvent::Token { text } => self.print(text),
            // Not streamed, or from the cache in one piece.
            ServerEvent::Done(done) if self.printed.is_none() => {
                self.print(&done.text)?;
                self.end_line()
            }
            ServerEvent::Done(_) => self.end_line(),
            ServerEvent::Error { .. } => Ok(()),
        }
    }

    fn print(&mut self, text: &str) -> Result<(), StreamEnd> {
        self.printed = text.chars().next_back().or(self.printed);
        let text = if self.is_terminal { Cow::from(for_terminal(text)) } else { Cow::from(text) };
        let written = self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush());
        written.map_err(|error| match error.kind() {
            ErrorKind::BrokenPipe => StreamEnd::Unread,
            _ => StreamEnd::Failed(Failure { code: 1, message: format!("standard output: {error}") }),
        })
    }

    fn end_line(&mut self) -> Result<(), StreamEnd> {
        if self.printed == Some('\n') { Ok(()) } else { self.print("\n") }
    }

    /// Ends the text printed so far, so that the error begins on a line of its own.
    fn fail_on_new_line(&mut self, failure: Failure) -> StreamEnd {
        match self.printed {
            Some(_) => self.end_line().err().unwrap_or(StreamEnd::Failed(failure)),
            None => StreamEnd::Failed(failure),
        }
    }
}

fn usage(message: &str) -> Failure {
    Failure { code: 2, message: message.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    const ANSWER: &str = "{\"event\":\"token\",\"id\":\"a\",\"text\":\"two \"}\n\
        {\"event\":\"token\",\"id\":\"a\",\"text\":\"words\"}\n\
        {\"event\":\"done\",\"id\":\"a\",\"text\":\"two words\",\"cached\":false}\n";

    fn conversation(events: &str, json: bool) -> (String, Result<(), Failure>) {
        let mut printer = Printer {
            activity: None,
            out: Vec::new(),
            json,
            is_terminal: false,
            printed: None,
            max_tokens: Some(2),
        };
        let ended = match read_events(events.as_bytes(), &mut printer, Path::new("/s")) {
            Ok(()) => Ok(()),
            Err(StreamEnd::Failed(failure)) => Err(failure),
            Err(StreamEnd::Unread) => panic!("a Vec takes everything"),
        };
        (String::from_utf8(printer.out).expect("text"), ended)
    }

    #[test]
    fn tokens_are_printed_as_text_and_end_in_one_line_break() {
        assert_eq!(conversation(ANSWER, false), ("two words\n".into(), Ok(())));
        let ended = ANSWER.replace("words", "words\\n");
        assert_eq!(conversation(&ended, false), ("two words\n".into(), Ok(())));
    }

    #[test]
    fn an_answer_that_was_cut_off_is_exit_code_5_except_for_programs() {
        let cut = ANSWER
            .replace("\"cached\":false", "\"finish_reason\":\"length\",\"usage\":{\"completion_tokens\":2}");
        let (out, ended) = conversation(&cut, false);
        let failure = Failure { code: 5, message: "[cut off: max_tokens of 2]".into() };
        assert_eq!((out.as_str(), ended), ("two words\n", Err(failure)));
        assert_eq!(conversation(&cut, true), (cut, Ok(())));
    }

    #[test]
    fn a_system_text_is_a_message_before_the_prompt() {
        let input = PromptArgs { system: Some("Be brief.".into()), ..PromptArgs::default() };
        let line = request(&Ask { input, ..Ask::default() }, "hi", None);
        let read = crate::protocol::json::request(&line).expect("sound");
        assert!(
            matches!(&read.input, crate::protocol::Input::Messages(all) if all.len() == 2),
            "{:?}",
            read.input
        );
    }

    #[test]
    fn an_answer_in_one_piece_is_printed_once() {
        let done = ANSWER.lines().last().expect("three lines");
        assert_eq!(conversation(done, false), ("two words\n".into(), Ok(())));
    }

    #[test]
    fn json_prints_the_events_as_they_came() {
        assert_eq!(conversation(ANSWER, true), (ANSWER.into(), Ok(())));
    }

    #[test]
    fn json_from_a_stranger_holds_nothing_that_a_terminal_obeys() {
        let event = "{\"event\":\"done\",\"id\":\"a\",\"text\":\"\u{9b}31m\u{202e}\"}\r\n";
        let (out, ended) = conversation(event, true);
        assert_eq!(
            (out.as_str(), ended),
            ("{\"event\":\"done\",\"id\":\"a\",\"text\":\"\\u009b31m\\u202e\"} \n", Ok(()))
        );
    }

    #[test]
    fn a_refusal_is_one_line_with_its_code_and_exit_code_5() {
        let events = "{\"event\":\"error\",\"id\":null,\"code\":\"queue_full\",\"message\":\"a\\nb\"}\n";
        let (out, ended) = conversation(events, false);
        let message = "refused (queue_full): a b".into();
        assert_eq!((out.as_str(), ended), ("", Err(Failure { code: 5, message })));
        assert_eq!(conversation(events, true).0, events);
        let long = "A".repeat(9000);
        let events =
            format!("{{\"event\":\"error\",\"id\":null,\"code\":\"{long}\",\"message\":\"{long}\"}}\n");
        let message = conversation(&events, false).1.expect_err("an error").message;
        assert!(message.len() < 450, "{}", message.len());
    }

    #[test]
    fn a_connection_that_ends_early_is_exit_code_4_on_a_line_of_its_own() {
        let first = ANSWER.lines().next().expect("three lines");
        let (out, ended) = conversation(&format!("{first}\n"), false);
        assert_eq!((out.as_str(), ended.expect_err("no end").code), ("two \n", 4));
        assert_eq!(conversation("HTTP/1.1 400\n", false).1.expect_err("no JSON").code, 4);
    }

    #[test]
    fn output_that_nobody_reads_is_no_failure() {
        let (reader, out) = std::io::pipe().expect("two descriptors");
        drop(reader);
        let mut printer = Printer {
            activity: None,
            out,
            json: false,
            is_terminal: false,
            printed: None,
            max_tokens: Some(2),
        };
        let ended = read_events(ANSWER.as_bytes(), &mut printer, Path::new("/s"));
        assert!(matches!(ended, Err(StreamEnd::Unread)));
    }

    #[test]
    fn the_prompt_is_the_argument_or_standard_input() {
        assert_eq!(prompt(Some("a"), &b"b"[..]), Ok("a".into()));
        assert_eq!(prompt(Some("-"), &b"b\r\n"[..]), Ok("b".into()));
        assert_eq!(prompt(None, &b"b\nc\n"[..]), Ok("b\nc".into()));
    }

    #[test]
    fn a_prompt_that_cannot_be_asked_is_refused_here() {
        let code = |given, input: &[u8]| prompt(given, input).expect_err("no prompt").code;
        assert_eq!(code(None, b"\n"), 2);
        assert_eq!(code(Some(" "), b""), 2);
        assert_eq!(code(None, b"\xff"), 2);
        assert_eq!(prompt(None, io::repeat(b'x')).expect_err("endless").code, 5);
    }

    #[test]
    fn the_request_is_one_the_daemon_reads() {
        let sampling = SamplingArgs { max_tokens: Some(5), ..SamplingArgs::default() };
        let args = Ask { sampling, ..Ask::default() };
        let line = request(&args, "say \"hi\"\n", Some(serde_json::json!({"type": "object"})));
        let read = crate::protocol::json::request(&line).expect("sound");
        assert_eq!((read.stream, read.max_tokens), (true, Some(5)));
        assert_eq!(read.input, crate::protocol::Input::Prompt("say \"hi\"\n".into()));
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_the_prompt() {
        let input = "\u{feff}turn it on\r\n";
        assert_eq!(prompt(Some("-"), input.as_bytes()).ok().as_deref(), Some("turn it on"));
        assert_eq!(prompt(Some("\u{feff}turn it on"), &b""[..]).ok().as_deref(), Some("turn it on"));
        for twice in
            [prompt(Some("\u{feff}\u{feff}a"), &b""[..]), prompt(None, "\u{feff}\u{feff}a".as_bytes())]
        {
            assert!(twice.is_err_and(|failure| failure.message.contains("second byte-order mark")));
        }
        assert!(prompt(None, &b"\xff\xfea\0"[..]).is_err_and(|failure| failure.message.contains("UTF-16")));
    }

    #[test]
    fn no_daemon_is_exit_code_4_and_names_the_socket() {
        let folder = tempfile::TempDir::with_prefix("bitnetd-").expect("a temporary folder");
        let path = folder.path().join("s");
        let ask = || {
            let input = PromptArgs { words: vec!["a".into()], ..PromptArgs::default() };
            let args = Ask { socket: Some(path.clone()), input, ..Ask::default() };
            run(args).expect_err("nobody answers")
        };
        let missing = ask();
        drop(UnixListener::bind(&path).expect("a free path"));
        let gone = ask();
        assert_eq!((missing.code, gone.code), (4, 4));
        assert!(missing.message.contains("bitnetd serve"), "{}", missing.message);
        assert!(gone.message.starts_with(path.to_str().expect("UTF-8")), "{}", gone.message);
    }
}
