//! A broker that is killed again and again, while prompts arrive without a pause.

use super::load::{LoadClients, Memory, Tally};
use super::{Deployment, chance, is_long, rounds, tell};
use crate::support::broker::Mosquitto;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// After this long the daemon regards a connection as stable; its pauses grow while brokers are killed
/// earlier.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// One in so many brokers is killed earlier.
const EARLY_KILL_EVERY: usize = 3;

/// How long a broker runs after the first answers.
fn uptime(round: usize) -> Duration {
    let some = Duration::from_secs(1).mul_f64(chance(round));
    if is_long() && !round.is_multiple_of(EARLY_KILL_EVERY) { STABLE_AFTER + some } else { some / 4 }
}

/// The outcome of the prompts, and how often the broker was killed.
async fn killed(memory: Memory, what: &str) -> Tally {
    let mut deployments = JoinSet::new();
    let rounds = rounds(2);
    for (number, share) in rounds.iter().enumerate() {
        deployments.spawn(one_deployment(memory, number, *share));
    }
    let tallies = deployments.join_all().await;
    let tally = tallies.into_iter().fold(Tally::default(), Tally::and);
    tell(what, rounds.iter().sum(), &tally);
    tally
}

async fn one_deployment(memory: Memory, number: usize, rounds: usize) -> Tally {
    let broker = match memory {
        Memory::Kept => Mosquitto::persistent().await,
        Memory::Lost => Mosquitto::start().await,
    };
    let clients = LoadClients::at(broker.port, memory).await;
    let mut deployment = Deployment::open(number, broker, clients).await;
    for round in 0..rounds {
        sleep(uptime(round)).await;
        deployment.broker.kill();
        sleep(Duration::from_millis(300).mul_f64(chance(round + 7))).await;
        deployment.broker.restart().await;
        deployment.clients.hears(3).await;
    }
    let tally = deployment.tally().await;
    if memory == Memory::Lost {
        // Every connection after the first found the session gone, and the owner can see it. On a busy machine a
        // broker may be killed again before the daemon has reconnected.
        let seen = |what| deployment.clients.reported(what);
        let is_reported =
            || (seen("connects") > 1 && seen("sessions_lost") + 1 == seen("connects")).then_some(());
        crate::until("the report says so", is_reported).await;
    }
    deployment.daemon.process.terminate();
    deployment.daemon.ends_well().await;
    tally
}

#[tokio::test]
async fn no_prompt_is_lost_or_answered_twice_while_a_broker_with_a_memory_dies() {
    let tally = killed(Memory::Kept, "broker killed, with persistence").await;
    tally.is_clean();
    assert!(tally.calls_in_a_second <= 1);
}

#[tokio::test]
async fn a_broker_that_dies_and_forgets_everything_never_leaves_the_daemon_stuck() {
    let tally = killed(Memory::Lost, "broker killed, without persistence").await;
    tally.is_clean();
    assert!(tally.calls_in_a_second <= 1);
}
