//! A daemon that is killed again and again, while prompts arrive without a pause.

use super::load::{LoadClients, Memory, Tally};
use super::{Deployment, chance, rounds, settings, tell};
use crate::daemon::{Daemon, bitnetd};
use crate::support::broker::Mosquitto;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Longest time from ready to the kill: enough for some answers, not for all that wait.
const MAX_UPTIME: Duration = Duration::from_millis(300);
/// One in so many daemons is killed while it starts.
const KILL_DURING_START_EVERY: usize = 8;

#[tokio::test]
async fn no_prompt_is_lost_or_answered_twice_while_the_daemon_dies() {
    let mut deployments = JoinSet::new();
    let rounds = rounds(5);
    for (number, share) in rounds.iter().enumerate() {
        deployments.spawn(one_deployment(number, *share));
    }
    let tallies = deployments.join_all().await;
    let tally = tallies.into_iter().fold(Tally::default(), Tally::and);
    tell("daemon killed -9", rounds.iter().sum(), &tally);
    tally.is_clean();
}

async fn one_deployment(number: usize, rounds: usize) -> Tally {
    let broker = Mosquitto::start().await;
    let clients = LoadClients::at(broker.port, Memory::Kept).await;
    let mut deployment = Deployment::open(number, broker, clients).await;
    for round in 0..rounds {
        if (round + 1).is_multiple_of(KILL_DURING_START_EVERY) {
            sleep(Duration::from_millis(30).mul_f64(chance(round))).await;
        } else {
            deployment.daemon.ready().await;
            sleep(MAX_UPTIME.mul_f64(chance(round))).await;
        }
        deployment.daemon.process.kill();
        let settings = settings(deployment.broker.port, deployment.number);
        let config = deployment.folder.config(&settings);
        deployment.daemon =
            Daemon::spawn(bitnetd().arg("serve").arg("--config").arg(config), &deployment.folder);
    }
    let tally = deployment.tally().await;
    if !tally.lost.is_empty() {
        println!("{}\n{}", deployment.daemon.log(), deployment.broker.log());
    }
    deployment.daemon.ready().await;
    deployment.daemon.process.terminate();
    deployment.daemon.ends_well().await;
    tally
}
