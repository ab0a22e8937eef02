//! A daemon that is killed without a word, again and again, while prompts come without a pause.

use super::crowd::{Crowd, Memory};
use super::{House, chance, is_long, rounds, settings};
use crate::daemon::{Daemon, bitnetd};
use crate::support::broker::Mosquitto;
use std::time::Duration;
use tokio::time::sleep;

/// Longest life after it was ready: some answers, not all that wait.
const LIFE: Duration = Duration::from_millis(300);
/// Every so often it dies while it starts.
const STILLBORN: usize = 8;

#[tokio::test]
async fn no_prompt_is_lost_or_answered_twice_while_the_daemon_dies() {
    if !is_long() {
        return println!("skipped: answers are not kept on disk yet; BITNETD_ENDURE=5 runs it");
    }
    let rounds = rounds(5);
    let broker = Mosquitto::start().await;
    let crowd = Crowd::at(broker.port, Memory::Kept).await;
    let mut house = House::open(broker, crowd).await;
    for round in 0..rounds {
        if round % STILLBORN == STILLBORN - 1 {
            sleep(Duration::from_millis(30).mul_f64(chance(round))).await;
        } else {
            house.daemon.ready().await;
            sleep(LIFE.mul_f64(chance(round))).await;
        }
        house.daemon.process.kill();
        let config = house.folder.config(&settings(house.broker.port));
        house.daemon = Daemon::spawn(bitnetd().arg("serve").arg("--config").arg(config), &house.folder);
    }
    house.tally("daemon killed -9", rounds).await.is_clean();
    house.daemon.process.terminate();
    house.daemon.ends_well().await;
}
