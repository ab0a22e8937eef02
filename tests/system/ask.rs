//! `bitnetd ask` as a shell script uses it.

use crate::daemon::{Daemon, Ended, run, run_with_input};
use crate::{Folder, cases, endless, text};
use serde_json::{Value, json};

async fn ask(daemon: &Daemon, args: &[&str]) -> Ended {
    run(&[&["ask", "--socket", text(&daemon.socket)], args].concat()).await
}

#[tokio::test]
async fn the_answer_is_printed_as_one_line_of_text() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let case = &cases()[0];
    for args in [&[case.prompt.as_str()][..], &["--no-stream", &case.prompt]] {
        let ended = ask(&daemon, args).await;
        assert_eq!(
            (ended.code, ended.out, ended.err),
            (Some(0), format!("{}\n", case.answer), String::new())
        );
    }
}

#[tokio::test]
async fn the_prompt_may_come_on_standard_input() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let case = &cases()[1];
    let socket = text(&daemon.socket);
    for args in [&["ask", "--socket", socket, "-"][..], &["ask", "--socket", socket]] {
        let ended = run_with_input(args, &format!("{}\n", case.prompt)).await;
        assert_eq!((ended.code, ended.out), (Some(0), format!("{}\n", case.answer)));
    }
}

#[tokio::test]
async fn json_prints_the_events_a_line_each() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let ended = ask(&daemon, &["--json", "--max-tokens", "4", "turn on the light"]).await;
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let events: Vec<Value> =
        ended.out.lines().map(|line| serde_json::from_str(line).expect("an event")).collect();
    let (done, tokens) = events.split_last().expect("some events");
    assert!(!tokens.is_empty() && tokens.iter().all(|event| event["event"] == "token"), "{ended:?}");
    let streamed: String = tokens.iter().filter_map(|event| event["text"].as_str()).collect();
    assert_eq!((&done["text"], &done["finish_reason"]), (&json!(streamed), &json!("length")));
    let whole = ask(&daemon, &["--json", "--no-stream", "turn on the light"]).await;
    assert_eq!((whole.json()["event"].as_str(), whole.out.lines().count()), (Some("done"), 1));
}

#[tokio::test]
async fn several_words_and_a_file_are_one_prompt() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let case = &cases()[0];
    let words: Vec<&str> = case.prompt.split(' ').collect();
    assert!(words.len() > 1);
    let file = folder.write("prompt", &format!("{}\n", case.prompt));
    for args in [&words[..], &["--file", text(&file)]] {
        let ended = ask(&daemon, args).await;
        assert_eq!((ended.code, ended.out), (Some(0), format!("{}\n", case.answer)));
    }
}

#[tokio::test]
async fn an_answer_that_is_cut_off_says_so_and_is_exit_code_5() {
    let folder = Folder::new();
    let settings = format!("{}[queue]\ntimeout_ms = 1500\n", endless());
    let daemon = Daemon::start(&folder, &settings).await;
    let ended = ask(&daemon, &["--max-tokens", "3", "go"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert_eq!((ended.error_line(), ended.out.is_empty()), ("bitnetd: [cut off: max_tokens of 3]", false));
    let ended = ask(&daemon, &["go"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    // On a machine that is slow it takes longer.
    assert!(ended.error_line().starts_with("bitnetd: [cut off: time limit of "), "{ended:?}");
}

#[tokio::test]
async fn sampling_and_system_text_reach_the_daemon() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let with = async |more: &[&str]| {
        let ended =
            ask(&daemon, &[&["--json", "--no-stream", "--max-tokens", "8"], more, &["go"]].concat()).await;
        let done: Value = serde_json::from_str(ended.out.trim()).expect("an event");
        (done["text"].to_string(), done["usage"]["prompt_tokens"].as_u64())
    };
    let hot =
        ["--temperature", "10", "--top-p", "1", "--top-k", "0", "--min-p", "0", "--repetition-penalty", "1"];
    let (one, same, other) = (
        with(&[&hot[..], &["--seed", "1"]].concat()).await,
        with(&[&hot[..], &["--seed", "1"]].concat()).await,
        with(&[&hot[..], &["--seed", "2"]].concat()).await,
    );
    assert_eq!(one, same);
    assert_ne!(one, other);
    assert!(with(&["--system", "Be brief."]).await.1 > one.1);
}

#[tokio::test]
async fn wrong_usage_is_exit_code_2() {
    for args in [
        &["ask", "--nonsense", "x"][..],
        &["ask", "--max-tokens", "0", "x"],
        &["ask", "--temperature", "11", "x"],
        &["ask", " "],
    ] {
        let ended = run(args).await;
        assert_eq!(ended.code, Some(2), "{ended:?}");
        ended.error_line();
    }
}

#[tokio::test]
async fn no_daemon_is_exit_code_4_and_names_the_socket() {
    let folder = Folder::new();
    let socket = folder.path("nobody");
    let ended = run(&["ask", "--socket", text(&socket), "hello"]).await;
    assert_eq!(ended.code, Some(4), "{ended:?}");
    assert!(ended.error_line().contains(text(&socket)), "{ended:?}");
}

#[tokio::test]
async fn a_refusal_is_exit_code_5_with_its_code() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let ended = ask(&daemon, &[&"light ".repeat(600)]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.error_line().contains("context_exceeded"), "{ended:?}");
    assert_eq!(ended.out, "");
}

#[tokio::test]
async fn a_daemon_that_stops_refuses_with_exit_code_5() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &format!("{}[queue]\ndrain_ms = 600000\n", endless())).await;
    let mut busy = daemon.client().await;
    busy.keep_busy().await;
    daemon.process.terminate();
    daemon.says("stopping on SIGTERM").await;
    let ended = ask(&daemon, &["hello"]).await;
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.error_line().contains("shutting_down"), "{ended:?}");
}

#[tokio::test]
async fn a_daemon_that_is_killed_over_an_answer_is_exit_code_4() {
    let folder = Folder::new();
    let mut daemon = Daemon::start(&folder, &format!("{}[log]\nlevel = \"debug\"\n", endless())).await;
    let socket = daemon.socket.clone();
    let args = ["ask", "--no-stream", "--socket", text(&socket), "hello"];
    let killed = async {
        // Prompts are logged at this level as they are begun.
        daemon.says("prompt: ").await;
        daemon.process.kill();
    };
    let (ended, ()) = tokio::join!(run(&args), killed);
    assert_eq!((ended.code, ended.out.as_str()), (Some(4), ""), "{ended:?}");
    assert!(ended.error_line().contains(text(&socket)), "{ended:?}");
}
