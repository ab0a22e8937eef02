//! A broker that is killed again and again, while prompts arrive without a pause.

use super::load::{Crowd, Memory, Tally};
use super::{House, chance, is_long, rounds, tell};
use crate::support::broker::Mosquitto;
use std::time::Duration;
use tokio::task::JoinSet;
use tokio::time::sleep;

/// After this long the daemon takes a connection for a good one; its pauses grow while brokers die
/// younger.
const GOOD: Duration = Duration::from_secs(10);
/// Every so many deaths one comes earlier.
const YOUNG: usize = 3;

/// How long a broker lives after the first answers.
fn life(round: usize) -> Duration {
    let some = Duration::from_secs(1).mul_f64(chance(round));
    if is_long() && !round.is_multiple_of(YOUNG) { GOOD + some } else { some / 4 }
}

/// What became of the prompts, and the deaths in all.
async fn killed(memory: Memory, what: &str) -> Tally {
    let mut houses = JoinSet::new();
    let rounds = rounds(2);
    for share in &rounds {
        houses.spawn(one_house(memory, *share));
    }
    let tallies = houses.join_all().await;
    let tally = tallies.into_iter().fold(Tally::default(), Tally::and);
    tell(what, rounds.iter().sum(), &tally);
    tally
}

async fn one_house(memory: Memory, rounds: usize) -> Tally {
    let broker = match memory {
        Memory::Kept => Mosquitto::persistent().await,
        Memory::Lost => Mosquitto::start().await,
    };
    let crowd = Crowd::at(broker.port, memory).await;
    let mut house = House::open(broker, crowd).await;
    for round in 0..rounds {
        sleep(life(round)).await;
        house.broker.kill();
        sleep(Duration::from_millis(300).mul_f64(chance(round + 7))).await;
        house.broker.restart().await;
        house.crowd.hears(3).await;
    }
    let tally = house.tally().await;
    if memory == Memory::Lost {
        // Every connection after the first found the session gone, and the owner can see it. On a busy machine a
        // broker may die again before the daemon has come back.
        let seen = |what| house.crowd.reported(what);
        let told = || (seen("connects") > 1 && seen("sessions_lost") + 1 == seen("connects")).then_some(());
        crate::until("the report says so", told).await;
    }
    house.daemon.process.terminate();
    house.daemon.ends_well().await;
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
