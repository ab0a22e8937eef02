//! The MQTT transport against a real mosquitto, used as clients use it. Deliberately knows no engine: the
//! tests answer the prompts themselves.

mod alerts;
mod crash_recovery;
mod fake_broker;
mod harness;
mod home_names;
mod homeassistant;
mod last_answers;
mod misconfiguration;
mod receive_maximum;
mod response_topics;
mod shared_subscription;
mod tls;
mod v311;

use crate::support::broker::Mosquitto;
use crate::support::certificates::keep_private;
use bitnetd::config::{Login, Mqtt, MqttVersion};
use bitnetd::protocol::json::MAX_REQUEST;
use bitnetd::protocol::{FinishReason, Refusal};
use bitnetd::transport::mqtt::probe;
use harness::{Client, Harness, QUIET_PERIOD, answer, config, end, prompt};
use rumqttc::v5::mqttbytes::v5::PublishProperties;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{sleep, timeout};

const PROMPT: &str = "bitnetd/cellar/prompt";

fn none() -> PublishProperties {
    PublishProperties::default()
}

fn answered_to(topic: &str) -> PublishProperties {
    PublishProperties { response_topic: Some(topic.into()), ..none() }
}

#[tokio::test]
async fn a_prompt_is_answered_on_the_topic_of_its_id() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let reply = broker.subscribe(&["-t", "bitnetd/cellar/reply/a", "-C", "1", "-W", "20"]).await;
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", r#"{"id":"a","prompt":"hi"}"#]).await;
    let inbound = harness.request().await;
    assert_eq!((inbound.client.as_str(), inbound.request.stream), ("mqtt:-", false));
    answer(inbound, "hello");
    let text = reply.output().await;
    assert!(text.starts_with(r#"{"event":"done","id":"a","text":"hello""#), "{text}");
}

#[tokio::test]
async fn an_id_that_is_a_number_comes_back_as_it_came() {
    for version in [MqttVersion::V5, MqttVersion::V311] {
        let broker = Mosquitto::start().await;
        let mut harness = Harness::with(Mqtt { version, ..config(broker.port) }, |_| {});
        harness.until(|state| state.subscribed).await;
        let mut client = Client::listening(&broker, "bitnetd/cellar/reply/#").await;
        for (number, level) in [("1", "1"), ("1732.0", "1732.0"), ("1e+3", "1e%2B3")] {
            client.publish(PROMPT, format!(r#"{{"id":{number},"prompt":"hi"}}"#).as_bytes(), none()).await;
            harness.echo().await;
            let reply = client.next().await;
            assert_eq!(String::from_utf8_lossy(&reply.topic), format!("bitnetd/cellar/reply/{level}"));
            let text = String::from_utf8_lossy(&reply.payload).into_owned();
            assert!(text.starts_with(&format!(r#"{{"event":"done","id":{number},"text":"hi""#)), "{text}");
        }
        // The same number again is the same request; as a text it is another one, with an answer of its own.
        client.publish(PROMPT, br#"{"id":1,"prompt":"hi"}"#, none()).await;
        assert!(client.text().await.contains(r#""id":1,"#));
        harness.is_quiet().await;
        client.publish(PROMPT, br#"{"id":"1","prompt":"hi"}"#, none()).await;
        harness.echo().await;
        assert!(client.text().await.contains(r#""id":"1","#));
        client.publish(PROMPT, br#"{"id":5,"prompt":"hi"}"#, none()).await;
        let inbound = harness.request().await;
        client.publish("bitnetd/cellar/cancel", br#"{"id":5}"#, none()).await;
        while !inbound.cancel.is_raised() {
            sleep(Duration::from_millis(10)).await;
        }
    }
}

#[tokio::test]
async fn plain_text_goes_to_the_response_topic_with_its_correlation_data() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let format = "%t %D %C %F %p";
    let reply = broker.subscribe(&["-t", "home/answer", "-C", "1", "-W", "20", "-F", format]).await;
    broker
        .publish(&[
            "-q",
            "1",
            "-t",
            "bitnetd/cellar/prompt/hall",
            "-m",
            "turn on the light",
            "-D",
            "publish",
            "response-topic",
            "home/answer",
            "-D",
            "publish",
            "correlation-data",
            "c-7",
        ])
        .await;
    let inbound = harness.request().await;
    assert_eq!((inbound.client.as_str(), prompt(&inbound).as_str()), ("mqtt:hall", "turn on the light"));
    answer(inbound, "done");
    let text = reply.output().await;
    assert!(text.starts_with("home/answer c-7 application/json 1 {\"event\":\"done\""), "{text}");
}

#[tokio::test]
async fn tokens_come_in_order_before_the_last_event() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, br#"{"id":"a","prompt":"hi","stream":true}"#, none()).await;
    let inbound = harness.request().await;
    for n in 0..100 {
        inbound.reply.token(format!("{n} ")).expect("room");
    }
    answer(inbound, "all");
    for n in 0..100 {
        assert_eq!(client.text().await, format!(r#"{{"event":"token","id":"a","text":"{n} "}}"#));
    }
    assert!(client.text().await.contains("\"done\""));
}

#[tokio::test]
async fn a_bad_request_gets_one_error_under_its_id_or_one_of_ours() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, br#"{"id":"a","promt":"hi"}"#, none()).await;
    client.publish(PROMPT, br#"{"prompt":"#, none()).await;
    let text = client.text().await;
    assert!(text.contains(r#""id":"a","code":"invalid_request""#) && text.contains("promt"), "{text}");
    let message = client.next().await;
    let topic = String::from_utf8_lossy(&message.topic).into_owned();
    let id = topic.rsplit('/').next().expect("an id");
    assert!(String::from_utf8_lossy(&message.payload).contains(&format!(r#""id":"{id}""#)));
    client.is_quiet().await;
    harness.is_quiet().await;
}

#[tokio::test]
async fn an_id_with_a_slash_is_escaped_in_the_reply_topic_only() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, br#"{"id":"a/#","prompt":"hi"}"#, none()).await;
    harness.echo().await;
    let message = client.next().await;
    assert_eq!(&message.topic[..], b"bitnetd/cellar/reply/a%2F%23");
    assert!(String::from_utf8_lossy(&message.payload).contains(r#""id":"a/#""#));
}

#[tokio::test]
async fn a_response_topic_that_would_loop_is_refused_on_the_reply_topic() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, br#"{"id":"a","prompt":"hi"}"#, answered_to(PROMPT)).await;
    assert!(client.text().await.contains("Response Topic"));
    harness.is_quiet().await;
}

#[tokio::test]
async fn a_cancellation_reaches_the_running_prompt() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", r#"{"id":"a","prompt":"hi"}"#]).await;
    let inbound = harness.request().await;
    broker.publish(&["-t", "bitnetd/cellar/cancel", "-m", r#"{"id":"b"}"#]).await;
    sleep(QUIET_PERIOD).await;
    assert!(!inbound.cancel.is_raised());
    broker.publish(&["-t", "bitnetd/cellar/cancel", "-m", r#"{"id":"a"}"#]).await;
    while !inbound.cancel.is_raised() {
        sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test]
async fn a_cancellation_is_not_held_back_behind_a_full_window() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    for id in ["a", "b", "c", "d", "e"] {
        let text = format!(r#"{{"id":"{id}","prompt":"hi"}}"#);
        broker.publish(&["-q", "1", "-t", &format!("{PROMPT}/{id}"), "-m", &text]).await;
    }
    let mut held = Vec::new();
    for _ in 0..4 {
        held.push(harness.request().await);
    }
    harness.is_quiet().await;
    broker.publish(&["-q", "1", "-t", "bitnetd/cellar/cancel", "-m", r#"{"id":"a"}"#]).await;
    let raised = async {
        while !held[0].cancel.is_raised() {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(120), raised).await.expect("raised");
}

#[tokio::test]
async fn a_retained_prompt_is_refused_and_not_asked_again_later() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/a").await;
    let text = r#"{"id":"a","prompt":"hi"}"#;
    broker.publish(&["-q", "1", "-r", "-t", PROMPT, "-m", text]).await;
    let message = client.text().await;
    assert!(message.contains("invalid_request") && message.contains("retain"), "{message}");
    harness.is_quiet().await;
    harness.close().await;
    let mut harness = Harness::open(broker.port).await;
    harness.is_quiet().await;
    client.is_quiet().await;
}

#[tokio::test]
async fn availability_says_online_then_offline_on_a_clean_stop() {
    let broker = Mosquitto::start().await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/availability").await;
    let harness = Harness::open(broker.port).await;
    assert_eq!(client.text().await, "online");
    harness.close().await;
    assert_eq!(client.text().await, "offline");
    client.is_quiet().await;
    let mut late = Client::listening(&broker, "bitnetd/+/availability").await;
    let saved = late.next().await;
    assert!(saved.retain && &saved.payload[..] == b"offline");
}

#[tokio::test]
async fn availability_says_offline_when_the_daemon_dies() {
    let broker = Mosquitto::start().await;
    let harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/availability").await;
    assert_eq!(client.text().await, "online");
    harness.kill().await;
    assert_eq!(client.text().await, "offline");
}

#[tokio::test]
async fn info_is_retained_for_later_subscribers() {
    let broker = Mosquitto::start().await;
    let harness = Harness::open(broker.port).await;
    sleep(QUIET_PERIOD).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/info").await;
    let saved = client.next().await;
    assert!(saved.retain && &saved.payload[..] == br#"{"version":"test"}"#);
    harness.close().await;
}

#[tokio::test]
async fn telemetry_goes_out_as_it_comes_and_expires() {
    let broker = Mosquitto::start().await;
    let harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/telemetry").await;
    harness.telemetry.send_replace(Some(Arc::new(b"{\"n\":1}".to_vec())));
    let message = client.next().await;
    assert_eq!((&message.payload[..], message.retain), (&b"{\"n\":1}"[..], false));
    let expiry = message.properties.and_then(|p| p.message_expiry_interval);
    assert!(expiry.is_some_and(|seconds| (1..=10).contains(&seconds)), "{expiry:?}");
}

#[tokio::test]
async fn the_message_expiry_of_a_prompt_is_its_deadline_and_its_reply_s() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/a").await;
    let properties = PublishProperties { message_expiry_interval: Some(60), ..none() };
    client.publish(PROMPT, br#"{"id":"a","prompt":"hi"}"#, properties).await;
    let inbound = harness.request().await;
    assert!(inbound.request.timeout.is_some_and(|t| t <= Duration::from_secs(60)));
    answer(inbound, "x");
    let expiry = client.next().await.properties.and_then(|p| p.message_expiry_interval);
    assert!(expiry.is_some_and(|seconds| (30..=60).contains(&seconds)), "{expiry:?}");
}

#[tokio::test]
async fn a_prompt_that_a_client_sends_again_gets_an_answer_each_time() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    let text = br#"{"id":"a","prompt":"hi"}"#;
    client.publish(PROMPT, text, none()).await;
    answer(harness.request().await, "x");
    let first = client.text().await;
    for _ in 0..3 {
        client.publish(PROMPT, text, none()).await;
        assert_eq!(client.text().await, first, "the stored answer");
    }
    harness.is_quiet().await;
    let counts = (harness.state.borrow().duplicates, harness.state.borrow().resent);
    assert_eq!(counts, (0, 3), "none of them was a redelivery");
}

#[tokio::test]
async fn a_prompt_that_is_sent_again_while_it_is_answered_is_computed_once_and_answered_twice() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    let text = br#"{"id":"a","prompt":"hi"}"#;
    client.publish(PROMPT, text, none()).await;
    let inbound = harness.request().await;
    client.publish(PROMPT, text, none()).await;
    harness.is_quiet().await;
    answer(inbound, "x");
    let first = client.text().await;
    assert_eq!(client.text().await, first);
    harness.is_quiet().await;
}

#[tokio::test]
async fn two_clients_with_one_id_and_one_text_each_get_their_answer() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut one = Client::listening(&broker, "home/one").await;
    let mut two = Client::listening(&broker, "home/number-two").await;
    let text = br#"{"id":"1","prompt":"hi"}"#;
    one.publish(PROMPT, text, answered_to("home/one")).await;
    answer(harness.request().await, "x");
    assert!(one.text().await.contains("\"x\""));
    two.publish(PROMPT, text, answered_to("home/number-two")).await;
    answer(harness.request().await, "y");
    assert!(two.text().await.contains("\"y\""), "computed for this client");
}

#[tokio::test]
async fn clients_take_turns_whoever_sends_more() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let flooder = Client::listening(&broker, "a").await;
    for number in 0..12 {
        let text = format!("flood {number}");
        flooder.publish("bitnetd/cellar/prompt/flood", text.as_bytes(), none()).await;
    }
    let held = [harness.request().await, harness.request().await];
    harness.is_quiet().await;
    let other = Client::listening(&broker, "ab").await;
    other.publish("bitnetd/cellar/prompt/other", b"hello", none()).await;
    assert_eq!(prompt(&harness.request().await), "hello", "handed on at once, beside the two of the flood");
    drop(held);
}

#[tokio::test]
async fn a_prompt_not_yet_answered_survives_the_daemon() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, br#"{"id":"a","prompt":"hi"}"#, none()).await;
    let lost = harness.request().await;
    harness.kill().await;
    drop(lost);
    client.publish(PROMPT, br#"{"id":"b","prompt":"ho"}"#, none()).await;
    let mut harness = Harness::open(broker.port).await;
    let asked = [harness.echo().await, harness.echo().await];
    assert_eq!(asked, ["hi", "ho"]);
    harness.is_quiet().await;
    harness.close().await;
    let mut harness = Harness::open(broker.port).await;
    harness.is_quiet().await;
}

#[tokio::test]
async fn an_answer_made_while_the_broker_is_away_is_delivered_once() {
    let mut broker = Mosquitto::persistent().await;
    let mut harness = Harness::open(broker.port).await;
    let first = broker.subscribe(&["-i", "asker", "-c", "-x", "99", "-q", "1", "-t", "r", "-E"]).await;
    first.output().await;
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", "hi", "-D", "publish", "response-topic", "r"]).await;
    let inbound = harness.request().await;
    sleep(Duration::from_secs(2)).await;
    broker.kill();
    harness.until(|state| !state.connected).await;
    assert!(!inbound.cancel.is_raised(), "a lost link cancels nothing");
    answer(inbound, "hello");
    harness.until(|state| state.outbox == 1).await;
    broker.restart().await;
    harness.until(|state| state.connected && state.outbox == 0).await;
    let reply = broker
        .subscribe(&["-i", "asker", "-c", "-x", "99", "-q", "1", "-t", "r", "-W", "2", "-F", "%p"])
        .await;
    let text = reply.output().await;
    assert_eq!(text.matches("\"done\"").count(), 1, "{text}");
    harness.is_quiet().await;
    let state = harness.state.borrow().clone();
    assert_eq!((state.connects, state.sessions_lost), (2, 0), "{state:?}");
}

#[tokio::test]
async fn a_broker_that_forgot_everything_is_subscribed_anew() {
    let mut broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    broker.kill();
    harness.until(|state| !state.connected).await;
    broker.restart().await;
    harness.until(|state| state.subscribed).await;
    assert_eq!(harness.state.borrow().sessions_lost, 1);
    let mut client = Client::listening(&broker, "bitnetd/cellar/#").await;
    let mut saved: Vec<String> = Vec::new();
    // Its health and its alerts are retained too.
    while !(saved.contains(&"online".into()) && saved.iter().any(|text| text.contains("version"))) {
        saved.push(client.text().await);
    }
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", "hi"]).await;
    assert_eq!(harness.echo().await, "hi");
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_answered_and_ends_no_connection() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "r").await;
    let long = vec![b'x'; MAX_REQUEST + 1];
    for _ in 0..6 {
        client.publish(PROMPT, &long, answered_to("r")).await;
        let text = client.text().await;
        assert!(text.contains("too_large"), "{text}");
    }
    client.publish(PROMPT, b"hi", answered_to("r")).await;
    assert_eq!(harness.echo().await, "hi");
    assert_eq!(broker.connects("bitnetd-cellar"), 1);
}

#[tokio::test]
async fn an_answer_that_the_broker_does_not_take_becomes_an_error_and_ends_no_connection() {
    let broker = Mosquitto::with("max_packet_size 2000\n").await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    for id in ["a", "b", "c", "d", "e", "f"] {
        client.publish(PROMPT, format!(r#"{{"id":"{id}","prompt":"hi"}}"#).as_bytes(), none()).await;
        answer(harness.request().await, &"x".repeat(5_000));
        let text = client.text().await;
        assert!(text.contains(&format!(r#""id":"{id}","code":"too_large""#)), "{text}");
    }
    assert_eq!(broker.connects("bitnetd-cellar"), 1);
}

#[tokio::test]
async fn while_draining_new_prompts_are_left_to_the_broker_and_running_ones_answered() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, br#"{"id":"a","prompt":"hi"}"#, none()).await;
    let inbound = harness.request().await;
    harness.draining.cancel();
    broker.publish(&["-q", "1", "-t", PROMPT, "-m", r#"{"id":"b","prompt":"ho"}"#]).await;
    // At QoS 0 the broker stores nothing, so the client gets a refusal. By then the daemon has received the other one.
    broker.publish(&["-q", "0", "-t", PROMPT, "-m", r#"{"id":"c","prompt":"hu"}"#]).await;
    let refused = client.text().await;
    assert!(refused.contains(r#""id":"c","code":"shutting_down""#), "{refused}");
    harness.close_after(async { answer(inbound, "late") }).await;
    assert!(client.text().await.contains("late"));
    let mut harness = Harness::open(broker.port).await;
    assert_eq!(harness.echo().await, "ho");
    assert!(client.text().await.contains(r#""done","id":"b""#));
    harness.is_quiet().await;
}

#[tokio::test]
async fn a_prompt_ended_by_shutdown_is_left_to_the_broker_without_an_error() {
    let broker = Mosquitto::start().await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "bitnetd/cellar/reply/+").await;
    client.publish(PROMPT, br#"{"id":"runs","prompt":"hi"}"#, none()).await;
    client.publish(PROMPT, br#"{"id":"waits","prompt":"ho"}"#, none()).await;
    let (runs, waits) = (harness.request().await, harness.request().await);
    harness.draining.cancel();
    end(runs, "hal", FinishReason::Cancelled);
    waits.reply.refuse(Refusal::shutting_down());
    harness.close().await;
    let mut harness = Harness::open(broker.port).await;
    assert_eq!([harness.echo().await, harness.echo().await], ["hi", "ho"]);
    for id in ["runs", "waits"] {
        let text = client.text().await;
        assert!(text.contains(&format!(r#""done","id":"{id}""#)), "{text}");
    }
    client.is_quiet().await;
}

#[tokio::test]
async fn a_password_is_read_again_at_each_connect() {
    let broker = Mosquitto::with_user("bitnetd", "right").await;
    let file = broker.path("secret");
    std::fs::write(&file, "wrong\n").expect("a temporary folder");
    keep_private(&file);
    let login = Login { username: "bitnetd".into(), password_file: Some(file.clone()) };
    let config = bitnetd::config::Mqtt { login: Some(login), ..config(broker.port) };
    let refused = probe(&config, "cellar", Duration::from_secs(5)).await.expect_err("wrong");
    assert!(refused.contains("mqtt.password_file") && !refused.contains('\n'), "{refused}");
    let mut harness = Harness::with(config, |_| {});
    harness.until(|state| state.problem.is_some()).await;
    std::fs::write(&file, "right\n").expect("a temporary folder");
    harness.until(|state| state.subscribed).await;
}

#[tokio::test]
async fn a_probe_tells_what_the_broker_allows() {
    let broker = Mosquitto::with("max_packet_size 5000\nretain_available false\n").await;
    let reported = probe(&config(broker.port), "cellar", Duration::from_secs(5)).await.expect("up");
    let reported = reported.limits.expect("MQTT 5");
    assert_eq!((reported.max_packet_size, reported.retained_messages), (Some(5000), false));
    assert_eq!((reported.max_qos, reported.shared_subscriptions), (2, true));
}

#[tokio::test]
async fn a_probe_of_nothing_names_the_place() {
    let port = crate::support::broker::free_port();
    let text = probe(&config(port), "cellar", Duration::from_secs(5)).await.expect_err("nothing");
    assert!(text.starts_with(&format!("mqtt 127.0.0.1:{port}: ")), "{text}");
}

#[tokio::test]
async fn a_broker_that_keeps_nothing_still_gets_answers() {
    let broker = Mosquitto::with("retain_available false\n").await;
    let mut harness = Harness::open(broker.port).await;
    let mut client = Client::listening(&broker, "r").await;
    client.publish(PROMPT, b"hi", answered_to("r")).await;
    harness.echo().await;
    assert!(client.text().await.contains("\"done\""));
}
