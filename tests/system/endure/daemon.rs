//! A daemon that is killed again and again, while prompts arrive without a pause.

use super::load::{Crowd, Memory, Tally};
use super::{House, chance, rounds, settings, tell};
use crate::daemon::{Daemon, bitnetd};
use crate::support::broker::Mosquitto;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// Longest life after it was ready: some answers, not all that wait.
const LIFE: Duration = Duration::from_millis(300);
/// Every so often it dies while it starts.
const STILLBORN: usize = 8;

#[tokio::test]
async fn no_prompt_is_lost_or_answered_twice_while_the_daemon_dies() {
    let mut houses = JoinSet::new();
    let rounds = rounds(5);
    for share in &rounds {
        houses.spawn(one_house(*share));
    }
    let tallies = houses.join_all().await;
    let tally = tallies.into_iter().fold(Tally::default(), Tally::and);
    tell("daemon killed -9", rounds.iter().sum(), &tally);
    tally.is_clean();
}

async fn one_house(rounds: usize) -> Tally {
    let broker = Mosquitto::start().await;
    let crowd = Crowd::at(broker.port, Memory::Kept).await;
    let mut house = House::open(broker, crowd).await;
    for round in 0..rounds {
        if (round + 1).is_multiple_of(STILLBORN) {
            sleep(Duration::from_millis(30).mul_f64(chance(round))).await;
        } else {
            house.daemon.ready().await;
            sleep(LIFE.mul_f64(chance(round))).await;
        }
        house.daemon.process.kill();
        let config = house.folder.config(&settings(house.broker.port));
        house.daemon = Daemon::spawn(bitnetd().arg("serve").arg("--config").arg(config), &house.folder);
    }
    let tally = house.tally().await;
    house.daemon.ready().await;
    house.daemon.process.terminate();
    house.daemon.ends_well().await;
    tally
}
