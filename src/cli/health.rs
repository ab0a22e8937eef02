//! `bitnetd health`: the state of a running daemon, for people, scripts and supervisors.
//!
//! Plain blocking I/O over the socket, as any client can do it. Deliberately knows no engine.

use super::daemon_socket::{connection_lost, default_socket, no_daemon, not_bitnetd};
use super::{Failure, print};
use crate::protocol::text::{json_line, one_line};
use serde_json::{Value, json};
use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Say whether a running daemon is well
///
/// Exit code 0: it is ready. 1: it is degraded. 4: nobody answers. 5: it loads its model or stops, or with --ask, it did
/// not answer the question.
#[derive(Debug, Clone, clap::Args)]
#[command(verbatim_doc_comment)]
pub(super) struct HealthArgs {
    /// The daemon's socket [default: the user's own daemon, else the system's]
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    /// Also have the daemon generate ten tokens
    #[arg(long)]
    ask: bool,
}

/// Longest wait for the state.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for the ten tokens, the time in the queue included.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// How much longer the answer is waited for: the daemon itself ends it.
const GRACE: Duration = Duration::from_secs(10);
/// Tokens of the answer; fewer where the model ends it.
const TOKENS: u32 = 10;
/// The longest event that is read, in bytes.
const MAX_EVENT: u64 = 1 << 20;

pub(super) fn run(args: HealthArgs) -> Result<(), Failure> {
    let path = args.socket.unwrap_or_else(default_socket);
    let mut health = exchange(&path, &json!({ "health": true }), STATE_TIMEOUT)?;
    match health["event"].as_str() {
        Some("health") => {}
        // A daemon that stops refuses new connections with this.
        Some("error") if health["code"] == "shutting_down" => {
            health = json!({ "state": "draining", "reasons": [] });
        }
        Some("error") => return Err(refused(&health)),
        _ => return Err(not_bitnetd(&path)),
    }
    let is_serving = matches!(health["state"].as_str(), Some("ready" | "degraded"));
    if args.ask && is_serving {
        health["ask"] = ask(&path)?;
    }
    if let Some(keys) = health.as_object_mut() {
        keys.remove("event");
    }
    match args.json {
        true => print(json_line(&health).as_bytes())?,
        false => print(table(&health).as_bytes())?,
    }
    verdict(&health)
}

/// Sends one line, and reads the last event that comes back for it.
fn exchange(path: &Path, line: &Value, limit: Duration) -> Result<Value, Failure> {
    let mut stream = UnixStream::connect(path).map_err(|error| no_daemon(path, &error))?;
    let timeout = |error| Failure::system(format!("{}: {error}", path.display()));
    stream.set_read_timeout(Some(limit)).map_err(timeout)?;
    stream.set_write_timeout(Some(limit)).map_err(timeout)?;
    // A daemon that refuses the connection may have closed it already; its error event can still be read.
    let _ = stream.write_all(format!("{line}\n").as_bytes());
    let mut answer = String::new();
    match BufReader::new(stream.take(MAX_EVENT)).read_line(&mut answer) {
        Ok(length) if length > 0 => serde_json::from_str(&answer).map_err(|_| not_bitnetd(path)),
        _ => Err(connection_lost(path)),
    }
}

/// The outcome of a short question, as it is shown.
fn ask(path: &Path) -> Result<Value, Failure> {
    let question = json!({
        "prompt": "Name some colours.", "max_tokens": TOKENS, "cache": false,
        "timeout_ms": ANSWER_TIMEOUT.as_millis() as u64,
    });
    let event = exchange(path, &question, ANSWER_TIMEOUT + GRACE)?;
    Ok(match event["event"].as_str() {
        Some("done") if event["finish_reason"] != "timeout" => json!({
            "ok": true,
            "tokens": event["usage"]["completion_tokens"],
            "total_ms": event["timings"]["total_ms"],
            "tokens_per_second": event["timings"]["tokens_per_second"],
        }),
        Some("done") => json!({ "ok": false, "problem": "it was not answered in time" }),
        _ => json!({ "ok": false, "problem": refused(&event).message }),
    })
}

fn refused(event: &Value) -> Failure {
    let text = |key: &str| one_line(event[key].as_str().unwrap_or_default());
    Failure { code: 5, message: format!("refused ({}): {}", text("code"), text("message")) }
}

/// The exit code, by the state and the answer.
fn verdict(health: &Value) -> Result<(), Failure> {
    let failure = |code, message: String| Err(Failure { code, message });
    if health["ask"]["ok"] == false {
        let problem = one_line(health["ask"]["problem"].as_str().unwrap_or_default());
        return failure(5, format!("the question was not answered: {problem}"));
    }
    match health["state"].as_str() {
        Some("ready") => Ok(()),
        Some("degraded") => failure(1, format!("degraded: {}; the journal says more", reasons(health))),
        Some("loading") => failure(5, "the daemon loads its model; requests wait until then".into()),
        Some("draining") => failure(5, "the daemon stops; ask again when it is back".into()),
        _ => failure(5, "the state is not known to this version; compare `bitnetd --version`".into()),
    }
}

fn reasons(health: &Value) -> String {
    let all = health["reasons"].as_array().map(Vec::as_slice).unwrap_or_default();
    one_line(&all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "))
}

/// The state for people; what is not known is left out.
fn table(health: &Value) -> String {
    let text = |path: &str| health.pointer(path).and_then(Value::as_str).map(one_line);
    let number = |path: &str| health.pointer(path).and_then(Value::as_f64);
    let count = |path: &str| number(path).unwrap_or_default();
    let mib = |path: &str| number(path).map(|bytes| (bytes / f64::from(1 << 20)).round());
    let state = text("/state").map(|state| match reasons(health) {
        reasons if reasons.is_empty() => state,
        reasons => format!("{state}: {reasons}"),
    });
    let answer = number("/last_answer/total_ms").map(|total| {
        let (first, ended) = (count("/last_answer/ttft_ms"), text("/last_answer/time").unwrap_or_default());
        format!("{total:.0} ms, the first token after {first:.0} ms; {ended}")
    });
    let queue = number("/queue/depth").map(|depth| {
        format!("{} running, {} waiting of {depth}", count("/queue/running"), count("/queue/waiting"))
    });
    let memory = mib("/memory/planned_bytes").zip(mib("/memory/budget_bytes")).map(|(planned, budget)| {
        let held = mib("/memory/process_bytes").map(|held| format!("{held} MiB, ")).unwrap_or_default();
        format!("{held}planned {planned}, budget {budget}")
    });
    let broker = health["broker"]["connected"].as_bool().map(|connected| {
        let problem = text("/broker/problem").map(|problem| format!(": {problem}")).unwrap_or_default();
        format!("{}{problem}", if connected { "connected" } else { "away" })
    });
    let outcome = |ok: bool, problem: &str| match ok {
        true => "ok".to_owned(),
        false => format!("FAILED: {}", text(problem).unwrap_or_default()),
    };
    let test = health["self_test"]["ok"].as_bool().map(|ok| {
        let (kernel, time) = (text("/self_test/kernel"), text("/self_test/time"));
        let outcome = outcome(ok, "/self_test/problem");
        format!("{outcome}; {}, {}", kernel.unwrap_or_default(), time.unwrap_or_default())
    });
    let asked = health["ask"]["ok"].as_bool().map(|ok| match ok {
        true => format!("{} tokens in {:.0} ms", count("/ask/tokens"), count("/ask/total_ms")),
        false => outcome(false, "/ask/problem"),
    });
    let rows = [
        ("state", state),
        ("model", text("/model")),
        ("last answer", answer),
        ("queue", queue),
        ("memory", memory),
        ("broker", broker),
        ("self-test", test),
        ("asked", asked),
    ];
    let mut out = String::new();
    for (name, row) in rows.into_iter().filter_map(|(name, row)| Some((name, row?))) {
        writeln!(out, "{name:<12} {row}").expect("into a string");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(health: &Value) -> u8 {
        verdict(health).map_or_else(|failure| failure.code, |()| 0)
    }

    #[test]
    fn the_exit_code_tells_ready_degraded_and_not_answering_apart() {
        let state = |state: &str| json!({ "state": state, "reasons": ["storage"] });
        let codes = ["ready", "degraded", "loading", "draining", "odd"].map(|name| code(&state(name)));
        assert_eq!(codes, [0, 1, 5, 5, 5]);
        let failure = verdict(&state("degraded")).expect_err("degraded");
        assert_eq!(failure.message, "degraded: storage; the journal says more");
        let mut asked = state("degraded");
        asked["ask"] = json!({ "ok": false, "problem": "refused (queue_full): a\nb" });
        assert_eq!(code(&asked), 5, "an unanswered question counts more");
        asked["ask"]["ok"] = true.into();
        assert_eq!(code(&asked), 1);
    }

    #[test]
    fn what_is_known_is_shown_and_the_rest_left_out() {
        let health = json!({
            "state": "degraded", "reasons": ["broker_link"], "model": "m", "last_answer": null,
            "queue": {"waiting": 1, "running": 2, "depth": 16},
            "memory": {"process_bytes": null, "planned_bytes": 2 << 20, "budget_bytes": 64 << 20},
            "broker": {"connected": false, "problem": "refused"},
            "self_test": {"time": "T", "kernel": "scalar", "ok": false, "problem": "row 1"},
        });
        let expected = "state        degraded: broker_link\nmodel        m\nqueue        2 running, 1 waiting of 16\n\
                        memory       planned 2, budget 64\nbroker       away: refused\n\
                        self-test    FAILED: row 1; scalar, T\n";
        assert_eq!(table(&health), expected);
    }
}
