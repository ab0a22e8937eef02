//! `bitnetd chat` from a pipe, on a terminal, and with a model in its own process.

use crate::daemon::{Daemon, Ended, run, run_with_input};
use crate::terminal::Terminal;
use crate::{Folder, cases, data, endless, text, until};
use serde_json::Value;
use std::os::unix::fs::PermissionsExt;

async fn chat(daemon: &Daemon, args: &[&str], input: &str) -> Ended {
    run_with_input(&[&["chat", "--socket", text(&daemon.socket)], args].concat(), input).await
}

#[tokio::test]
async fn a_pipe_gets_answers_and_nothing_else() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let (one, two) = (&cases()[0], &cases()[1]);
    let input = format!("{}\n\n/reset\n{}", one.prompt, two.prompt);
    let expected = format!("{}\n{}\n", one.answer, two.answer);
    let over_socket = chat(&daemon, &[], &input).await;
    let here = run_with_input(&["chat", "--model", "built-in"], &input).await;
    for ended in [over_socket, here] {
        assert_eq!((ended.code, ended.out.as_str(), ended.err.as_str()), (Some(0), expected.as_str(), ""));
    }
}

#[tokio::test]
async fn a_conversation_remembers_what_was_said_and_is_saved() {
    let folder = Folder::new();
    let (first, second) = (folder.path("first.json"), folder.path("second.json"));
    let model = data("reference/b158-tiny.i2_s.gguf");
    let input = format!(
        "/system Be brief.\ngo\ngo\n/save {}\n/reset\n/system\n//go\n/save {}\n/quit\nnot reached\n",
        text(&first),
        text(&second)
    );
    let args = ["chat", "--model", text(&model), "--max-tokens", "3", "--temperature", "1", "--seed", "5"];
    let ended = run_with_input(&args, &input).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.err.matches("[cut off: max_tokens of 3]").count(), 3, "{ended:?}");
    let saved = |path| -> Vec<String> {
        let saved: Value = serde_json::from_slice(&std::fs::read(path).expect("saved")).expect("JSON");
        let messages = saved["messages"].as_array().expect("a list").clone();
        messages
            .iter()
            .filter(|turn| turn["role"] != "assistant")
            .map(|turn| turn["content"].to_string())
            .collect()
    };
    assert_eq!(saved(&first), [r#""Be brief.""#, r#""go""#, r#""go""#]);
    assert_eq!(saved(&second), [r#""/go""#]);
    assert_eq!(std::fs::metadata(&first).expect("saved").permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn the_first_error_ends_a_script_with_its_code() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let ended = chat(&daemon, &[], &format!("{}\nturn on the light\n", "light ".repeat(600))).await;
    assert_eq!((ended.code, ended.out.as_str()), (Some(5), ""), "{ended:?}");
    assert!(ended.error_line().contains("context_exceeded"), "{ended:?}");
    assert!(ended.error_line().contains("/reset"), "{ended:?}");
    for input in ["/fly\n", "/save\n"] {
        assert_eq!(chat(&daemon, &[], input).await.code, Some(2), "{input}");
    }
    let nobody = folder.path("nobody");
    let ended = run(&["chat", "--socket", text(&nobody)]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    let ended = run(&["chat", "--socket", text(&nobody), "--model", "built-in"]).await;
    assert_eq!(ended.code, Some(2), "{ended:?}");
}

#[tokio::test]
async fn on_a_terminal_ctrl_d_ends_and_a_mistake_does_not() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut terminal = Terminal::start(&["chat", "--socket", text(&daemon.socket)]);
    terminal.shows("> ").await;
    terminal.press("/fly\r");
    terminal.shows("no such command").await;
    terminal.shows("> ").await;
    // Ctrl-C drops the line that is being written.
    terminal.press("nonsense\x03");
    // A line ends, and the next one begins: what is typed in between, the terminal may treat as its own.
    terminal.shows("\n").await;
    terminal.shows("> ").await;
    terminal.press(&format!("{}\r", cases()[0].prompt));
    terminal.shows(&cases()[0].answer).await;
    terminal.shows("> ").await;
    terminal.press("\x04");
    assert_eq!(terminal.command.ended().await.code(), Some(0));
}

#[tokio::test]
async fn ctrl_c_stops_the_answer_and_not_the_conversation() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &format!("{}[log]\nlevel = \"debug\"\n", endless())).await;
    let mut terminal = Terminal::start(&["chat", "--socket", text(&daemon.socket)]);
    for round in 1..=2 {
        terminal.shows("> ").await;
        terminal.press("go\r");
        until("the answer is begun", || (daemon.log().matches("prompt: ").count() == round).then_some(()))
            .await;
        terminal.command.signal(rustix::process::Signal::INT);
        terminal.shows("[stopped]").await;
    }
    terminal.shows("> ").await;
    terminal.press("\x04");
    assert_eq!(terminal.command.ended().await.code(), Some(0));
}
