//! What must hold whatever process is killed: a prompt that the broker has accepted gets its answer, all copies of an
//! answer are the same, and the daemon connects at most once a second. The real binary, a real mosquitto, and the
//! built-in model. Deliberately knows nothing of the library: it sees what clients and the broker see.
//!
//! Each test repeats its fault a few times; `BITNETD_ENDURE=100` repeats it so often, and
//! `tests/endure` does that for the figures in docs/reliability.md.

mod broker;
mod daemon;
mod load;
mod network;
mod odd;
mod proxy;

use crate::daemon::{Daemon, is_emulated};
use crate::support::broker::Mosquitto;
use crate::{Folder, linked};
pub use load::Line;
use load::{LoadClients, Tally};
use std::time::Duration;

/// The daemon's name at the broker.
const CLIENT: &str = "bitnetd-cellar";

/// Number of deployments that a long run uses at once: most of a round is waiting.
const DEPLOYMENTS: usize = 4;

/// How many requests the daemon of each deployment answers at the same time. With few of them some prompts wait, with 16
/// all run.
const PARALLEL: [usize; DEPLOYMENTS] = [4, 16, 1, 16];

/// How often a fault occurs in each deployment: in all as `BITNETD_ENDURE` says, else `few` times in one deployment,
/// under an emulator once.
fn rounds(few: usize) -> Vec<usize> {
    let asked = std::env::var("BITNETD_ENDURE").ok();
    match asked.map(|text| text.parse::<usize>().expect("BITNETD_ENDURE is a number")) {
        Some(all) => vec![all.div_ceil(DEPLOYMENTS); DEPLOYMENTS],
        None => vec![if is_emulated() { 1 } else { few }],
    }
}

/// Whether this is the long run, with time for what takes minutes.
fn is_long() -> bool {
    std::env::var_os("BITNETD_ENDURE").is_some()
}

/// A number from 0 to 1 that differs from round to round, and is the same in each run.
fn chance(round: usize) -> f64 {
    // The golden ratio spreads any number of draws evenly.
    (round as f64 * 0.618_033_988_749_895).fract()
}

/// Settings of the daemon of a deployment.
fn settings(port: u16, number: usize) -> String {
    format!("{}[budget]\nthreads = 1\nparallel = {}\n", linked(port), PARALLEL[number])
}

/// A broker, a daemon, and clients that send prompts without a pause.
struct Deployment {
    /// Which of those that run at once it is.
    number: usize,
    folder: Folder,
    broker: Mosquitto,
    daemon: Daemon,
    clients: LoadClients,
}

impl Deployment {
    async fn open(number: usize, broker: Mosquitto, clients: LoadClients) -> Self {
        let folder = Folder::new();
        let daemon = Daemon::start(&folder, &settings(broker.port, number)).await;
        let mut deployment = Deployment { number, folder, broker, daemon, clients };
        deployment.clients.hears(1).await;
        deployment
    }

    /// Stops the clients, waits for the outstanding answers, and returns the outcome.
    async fn tally(&mut self) -> Tally {
        let tally = self.clients.finish().await;
        Tally { calls_in_a_second: most_in_a_second(&self.broker), ..tally }
    }
}

/// A row of the table that `tests/endure` prints.
fn tell(what: &str, rounds: usize, tally: &Tally) {
    println!("endure | {what} | {rounds} | {tally} |");
}

/// The most connections of the daemon within one second of the broker's log.
fn most_in_a_second(broker: &Mosquitto) -> usize {
    let times = broker.connect_times(CLIENT);
    times.iter().map(|time| times.iter().filter(|other| *other == time).count()).max().unwrap_or(0)
}

/// Longest wait for all answers to come in.
fn patience() -> Duration {
    crate::PATIENCE * if is_long() { 2 } else { 1 }
}
