//! Speculation in a running daemon: it changes no answer, a request or the configuration leaves it out, and it is counted.

use crate::daemon::{Client, Daemon};
use crate::{Folder, endless};
use rustix::process::Signal;
use serde_json::{Value, json};

/// The tokens that were proposed, and those that were accepted.
async fn counts(client: &mut Client) -> (u64, u64) {
    let report = client.ask(json!({"telemetry": true})).await;
    let count = |key: &str| report["decoding"][key].as_u64().expect("a count");
    (count("proposed_tokens"), count("accepted_tokens"))
}

#[tokio::test]
async fn a_predicted_answer_is_verified_and_counted_and_changes_no_answer() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, "").await;
    let mut client = daemon.client().await;
    let request = json!({"prompt": "set the thermostat in the living room to 21 degrees", "cache": false, "stream": false});
    let without = client.ask(request.clone()).await;
    assert_eq!((&without["event"], &without["prediction"]), (&json!("done"), &Value::Null), "{without}");
    let answer = without["text"].as_str().expect("a text").to_owned();
    let mut ask = async |prediction: &str, speculate: bool| {
        let mut request = request.clone();
        (request["prediction"], request["speculate"]) = (json!(prediction), json!(speculate));
        let done = client.ask(request).await;
        assert_eq!((&done["text"], &done["usage"]), (&without["text"], &without["usage"]), "{done}");
        let count = |key: &str| done["prediction"][key].as_u64().expect("a count");
        (count("accepted_tokens"), count("rejected_tokens"))
    };
    let (accepted, rejected) = ask(&answer, true).await;
    assert!(accepted >= 10 && rejected <= 7, "{accepted}, {rejected}");
    let (accepted, rejected) = ask(&answer.replace("21", "35"), true).await;
    assert!(accepted >= 5 && rejected > 0, "{accepted}, {rejected}");
    assert_eq!(ask(&answer, false).await, (0, 0));
    daemon.stop().await;
}

#[tokio::test]
async fn it_changes_no_answer_and_is_left_out_where_it_is_not_wanted() {
    let folder = Folder::new();
    let daemon = Daemon::start(&folder, &endless()).await;
    let mut client = daemon.client().await;
    let ask = |speculate: Value| json!({"prompt": "a b c d a b c d", "max_tokens": 60, "cache": false, "speculate": speculate});
    let without = client.ask(ask(json!(false))).await;
    assert_eq!((&without["event"], counts(&mut client).await), (&json!("done"), (0, 0)), "{without}");
    let with = client.ask(ask(Value::Null)).await;
    assert_eq!(with["text"], without["text"]);
    assert_eq!(with["usage"]["completion_tokens"], without["usage"]["completion_tokens"]);
    let (proposed, accepted) = counts(&mut client).await;
    assert!(accepted > 0 && accepted <= proposed, "{accepted} of {proposed}");
    let metrics = client.ask(json!({"metrics": true})).await;
    let metrics = metrics["text"].as_str().expect("a text").to_owned();
    assert!(metrics.contains(&format!("\nbitnetd_proposed_tokens_total {proposed}\n")), "{metrics}");
    assert!(metrics.contains(&format!("\nbitnetd_accepted_tokens_total {accepted}\n")), "{metrics}");
    // The configuration decides where a request says nothing, and changes at once.
    folder.config(&format!("{}[defaults]\nspeculate = false\n", endless()));
    daemon.process.signal(Signal::HUP);
    daemon.says("changed: defaults.speculate").await;
    assert_eq!(client.ask(ask(Value::Null)).await["text"], without["text"]);
    assert_eq!(counts(&mut client).await, (proposed, accepted));
    assert_eq!(client.ask(ask(json!(true))).await["text"], without["text"]);
    assert!(counts(&mut client).await.1 > accepted);
    daemon.stop().await;
}
