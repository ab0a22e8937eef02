//! The status line that `systemctl status` shows for a running daemon.
//!
//! Formatting only. Deliberately knows no socket and no time.

use crate::protocol::MqttLink;
use std::fmt;

/// The values of the status line.
#[derive(Debug)]
pub(super) struct StatusLine<'a> {
    pub model: &'a str,
    pub waiting: usize,
    pub running: usize,
    /// `None` before the first answer.
    pub tokens_per_second: Option<f64>,
    /// Names of the raised alerts.
    pub alerts: Vec<String>,
    /// `None` where no broker is configured.
    pub link: Option<&'a MqttLink>,
    /// Where clients reach the daemon.
    pub addresses: &'a str,
}

impl fmt::Display for StatusLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "answering with {}: {} running, {} waiting", self.model, self.running, self.waiting)?;
        if let Some(speed) = self.tokens_per_second {
            write!(f, ", {speed:.1} tokens/s")?;
        }
        if !self.alerts.is_empty() {
            write!(f, ", alert: {}", self.alerts.join(", "))?;
        }
        match self.link {
            None => {}
            Some(MqttLink { connected: true, subscribed: true, .. }) => write!(f, ", broker connected")?,
            Some(MqttLink { connected: true, problem: Some(problem), .. }) => {
                write!(f, ", broker connected, but {problem}")?
            }
            Some(MqttLink { problem: Some(problem), .. }) => write!(f, ", no broker: {problem}")?,
            Some(_) => write!(f, ", connecting to the broker")?,
        }
        write!(f, "; {}", self.addresses)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IDLE: StatusLine = StatusLine {
        model: "home-intents",
        waiting: 0,
        running: 0,
        tokens_per_second: None,
        alerts: Vec::new(),
        link: None,
        addresses: "socket /s",
    };

    /// The line without where the daemon is reached, which stands at its end.
    fn shown(line: &StatusLine<'_>) -> String {
        line.to_string().strip_suffix("; socket /s").expect("the end of the line").to_owned()
    }

    #[test]
    fn without_a_broker_it_shows_what_waits_and_what_runs() {
        assert_eq!(IDLE.to_string(), "answering with home-intents: 0 running, 0 waiting; socket /s");
        let busy = StatusLine { waiting: 2, running: 1, tokens_per_second: Some(8.04), ..IDLE };
        assert_eq!(shown(&busy), "answering with home-intents: 1 running, 2 waiting, 8.0 tokens/s");
    }

    #[test]
    fn alerts_that_are_raised_are_named() {
        let alerts = vec!["temperature".to_owned(), "queue".to_owned()];
        let message = shown(&StatusLine { alerts, ..IDLE });
        assert!(message.ends_with("0 waiting, alert: temperature, queue"), "{message}");
    }

    #[test]
    fn a_broker_is_connected_or_the_reason_is_shown() {
        let message = |link: MqttLink| shown(&StatusLine { link: Some(&link), ..IDLE });
        let problem = Some("mqtt b:1883: connection refused".to_owned());
        assert!(message(MqttLink::default()).ends_with(", connecting to the broker"));
        let online = MqttLink { connected: true, subscribed: true, ..MqttLink::default() };
        assert!(message(online).ends_with(", broker connected"));
        let away = message(MqttLink { problem: problem.clone(), ..MqttLink::default() });
        assert!(away.ends_with(", no broker: mqtt b:1883: connection refused"), "{away}");
        let deaf = message(MqttLink { connected: true, problem, ..MqttLink::default() });
        assert!(deaf.ends_with(", broker connected, but mqtt b:1883: connection refused"), "{deaf}");
    }

    #[test]
    fn an_old_problem_is_not_shown_once_the_link_is_up() {
        let link = MqttLink {
            connected: true,
            subscribed: true,
            problem: Some("old".into()),
            ..MqttLink::default()
        };
        assert!(!StatusLine { link: Some(&link), ..IDLE }.to_string().contains("old"));
    }
}
