//! The two ways in which brokers treat the Receive Maximum, for machines that have only one of them: Debian 12's
//! mosquitto (2.0.11) exceeds it after each PUBACK, Debian 13's (2.0.21) respects it.

use super::fake_broker::Broker;

/// The window of requests of the harness.
const RECEIVE_MAXIMUM: u16 = 4;
const PROMPTS: u16 = 40;

/// A backlog of prompts, `after_each` more of them at each acknowledgement.
async fn a_backlog_is_answered_once_each(after_each: u16) {
    let broker = Broker::new().await;
    let mut harness = broker.harness();
    let mut session = broker.session(false).await;
    let mut sent = 0;
    for settled in 0..PROMPTS {
        let allowed = PROMPTS.min(RECEIVE_MAXIMUM + settled * after_each);
        while sent < allowed {
            sent += 1;
            session.deliver(sent, false, &format!("prompt {sent}")).await;
        }
        let number = settled + 1;
        assert_eq!(harness.echo().await, format!("prompt {number}"));
        let reply = session.reply().await;
        let text = String::from_utf8_lossy(&reply.payload).into_owned();
        assert!(
            text.contains(r#""event":"done""#) && text.contains(&format!("\"prompt {number}\"")),
            "{text}"
        );
        session.acknowledge(&reply).await;
        session.is_acknowledged(number).await;
    }
    session.is_quiet().await;
    harness.is_quiet().await;
}

#[tokio::test]
async fn a_broker_that_keeps_to_the_receive_maximum_gets_one_answer_a_prompt() {
    a_backlog_is_answered_once_each(1).await;
}

#[tokio::test]
async fn a_broker_that_sends_beyond_the_receive_maximum_gets_one_answer_a_prompt() {
    a_backlog_is_answered_once_each(3).await;
}
