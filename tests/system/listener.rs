//! What a broker sends to one subscription, message by message.

use crate::PATIENCE;
use crate::support::broker::{Mosquitto, Subscriber};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::sync::mpsc;

/// One message.
#[derive(Debug)]
pub struct Message {
    pub topic: String,
    pub retained: bool,
    pub correlation: String,
    pub payload: String,
}

impl Message {
    fn read(line: &str) -> Self {
        let mut parts = line.splitn(4, '|').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_else(|| panic!("four parts: {line}"));
        let (topic, retained) = (next(), next() == "1");
        Message { topic, retained, correlation: next(), payload: next() }
    }

    pub fn json(&self) -> Value {
        serde_json::from_str(&self.payload).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// A running `mosquitto_sub`; killed when dropped.
pub struct Listener {
    subscriber: Subscriber,
    messages: mpsc::Receiver<Message>,
}

impl Listener {
    /// Listens on a topic, from now on.
    pub async fn on(broker: &Mosquitto, filter: &str) -> Self {
        Self::with(broker, filter, &[]).await
    }

    /// The same with a session that the broker keeps: messages are stored until somebody subscribes again.
    pub async fn kept(broker: &Mosquitto, filter: &str) -> Self {
        Self::with(broker, filter, &["-c", "-x", "3600", "-i", "listener"]).await
    }

    async fn with(broker: &Mosquitto, filter: &str, session: &[&str]) -> Self {
        let args = [&["-q", "1", "-t", filter, "-F", "%t|%r|%D|%p"], session].concat();
        let mut subscriber = broker.subscribe(&args).await;
        let lines = BufReader::new(subscriber.0.stdout.take().expect("piped")).lines();
        let (sender, messages) = mpsc::channel();
        // Ends with the program's output.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if sender.send(Message::read(&line)).is_err() {
                    return;
                }
            }
        });
        Listener { subscriber, messages }
    }

    /// Waits until the daemon says that it reads prompts: one that is published before is lost.
    pub async fn hears_online(broker: &Mosquitto) {
        let mut said = Listener::on(broker, "bitnetd/cellar/availability").await;
        said.wait(|message| message.payload == "online").await;
    }

    /// The next message.
    pub async fn next(&mut self) -> Message {
        crate::until("a message", || self.messages.try_recv().ok()).await
    }

    /// The first message that is as wanted; the others are skipped.
    pub async fn wait(&mut self, wanted: impl Fn(&Message) -> bool) -> Message {
        let waiting = async {
            loop {
                let message = self.next().await;
                if wanted(&message) {
                    return message;
                }
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("the wanted message in time")
    }

    /// The next event that ends a request.
    pub async fn end(&mut self) -> Value {
        self.wait(|message| message.json()["event"] != "token").await.json()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.subscriber.0.kill();
        let _ = self.subscriber.0.wait();
    }
}
