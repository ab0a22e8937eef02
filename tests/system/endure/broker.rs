//! A broker that is killed without a word, again and again, while prompts come without a pause.

use super::crowd::{Crowd, Memory, Tally};
use super::{House, chance, rounds};
use crate::support::broker::Mosquitto;
use std::time::Duration;
use tokio::time::sleep;

/// Longest time between two deaths. Longer than the ten seconds after which the daemon takes a
/// connection for a good one: its pauses grow while brokers die young.
const LIFE: Duration = Duration::from_secs(12);

/// The first deaths come as soon as it has answered again, so that the short run is short.
fn life(round: usize) -> Duration {
    if round < 3 { Duration::from_millis(200).mul_f64(chance(round)) } else { LIFE.mul_f64(chance(round)) }
}

async fn killed(broker: Mosquitto, memory: Memory, what: &str) -> (House, Tally) {
    let rounds = rounds(2);
    let crowd = Crowd::at(broker.port, memory).await;
    let mut house = House::open(broker, crowd).await;
    for round in 0..rounds {
        sleep(life(round)).await;
        house.broker.kill();
        sleep(Duration::from_millis(300).mul_f64(chance(round + 7))).await;
        house.broker.restart().await;
        house.crowd.hears(3).await;
    }
    let tally = house.tally(what, rounds).await;
    (house, tally)
}

#[tokio::test]
async fn no_prompt_is_lost_or_answered_twice_while_a_broker_with_a_memory_dies() {
    let broker = Mosquitto::persistent().await;
    let (house, tally) = killed(broker, Memory::Kept, "broker killed, with persistence").await;
    tally.is_clean();
    assert!(super::most_in_a_second(&house.broker) <= 1);
}

#[tokio::test]
async fn a_broker_that_dies_and_forgets_everything_never_leaves_the_daemon_stuck() {
    let broker = Mosquitto::start().await;
    let (mut house, tally) = killed(broker, Memory::Lost, "broker killed, without persistence").await;
    tally.is_clean();
    assert!(super::most_in_a_second(&house.broker) <= 1);
    // Every death cost the session, and the owner can see it.
    let lost = rounds(2) as u64;
    crate::until("the report says so", || (house.crowd.reported("sessions_lost") >= lost).then_some(()))
        .await;
    house.daemon.process.terminate();
    house.daemon.ends_well().await;
}
