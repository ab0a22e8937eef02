//! The MQTT transport over TLS: what is trusted, what is not, and what is reported to the owner.

use super::harness::{Client, Harness, config};
use crate::support::broker::{Mosquitto, free_port};
use crate::support::certificates::{Authority, Pair};
use bitnetd::config::{ClientCertificate, Mqtt, MqttVersion, Tls};
use bitnetd::transport::mqtt::probe;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A broker that speaks TLS on its port, and plain on another for the clients of the test.
struct TlsBroker {
    authority: Authority,
    ca: PathBuf,
    broker: Mosquitto,
    /// Its port without TLS.
    plain: u16,
}

impl TlsBroker {
    async fn new() -> Self {
        Self::with("127.0.0.1", "").await
    }

    /// Its broker's certificate is for this host.
    async fn with(host: &str, lines: &str) -> Self {
        Self::certified(lines, |authority, stem| authority.sign(host, stem)).await
    }

    async fn certified(lines: &str, certify: impl FnOnce(&Authority, &Path) -> Pair) -> Self {
        let authority = Authority::new("House");
        let (mut ca, plain) = (PathBuf::new(), free_port());
        let broker = Mosquitto::made(|folder| {
            ca = authority.write(&folder.join("ca.crt"));
            let pair = certify(&authority, &folder.join("broker"));
            format!(
                "allow_anonymous true\ncafile {}\ncertfile {}\nkeyfile {}\n{lines}\
                 listener {plain} 127.0.0.1\n",
                ca.display(),
                pair.cert.display(),
                pair.key.display()
            )
        });
        TlsBroker { broker: broker.await, authority, ca, plain }
    }

    /// The configuration of an owner who trusts this broker's authority.
    fn link(&self) -> Mqtt {
        let tls = Tls { ca_file: Some(self.ca.clone()), client: None };
        Mqtt { tls: Some(tls), ..config(self.broker.port) }
    }

    /// The same with a certificate of the daemon's own.
    fn certified_link(&self, pair: Pair) -> Mqtt {
        let client = Some(ClientCertificate { cert_file: pair.cert, key_file: pair.key });
        Mqtt { tls: Some(Tls { ca_file: Some(self.ca.clone()), client }), ..config(self.broker.port) }
    }
}

/// Why the link does not come about.
async fn refusal(link: &Mqtt) -> String {
    let text = probe(link, "cellar", Duration::from_secs(20)).await.expect_err("no link");
    assert!(text.starts_with("mqtt 127.0.0.1:") && !text.contains('\n'), "{text}");
    text
}

#[tokio::test]
async fn a_prompt_is_answered_over_tls_in_both_versions() {
    let broker = TlsBroker::new().await;
    for version in [MqttVersion::V5, MqttVersion::V311] {
        let mut harness = Harness::with(Mqtt { version, ..broker.link() }, |_| {});
        harness.until(|state| state.subscribed).await;
        let mut client = Client::at(broker.plain, "bitnetd/cellar/reply/a").await;
        client.publish("bitnetd/cellar/prompt", br#"{"id":"a","prompt":"hi"}"#, Default::default()).await;
        assert_eq!(harness.echo().await, "hi");
        assert!(client.text().await.contains("\"done\""));
        harness.close().await;
    }
}

#[tokio::test]
async fn a_broker_certificate_of_an_unknown_authority_is_refused() {
    let broker = TlsBroker::new().await;
    let elsewhere = Authority::new("Elsewhere").write(&broker.broker.path("elsewhere.crt"));
    let tls = Tls { ca_file: Some(elsewhere), client: None };
    let text = refusal(&Mqtt { tls: Some(tls), ..broker.link() }).await;
    assert!(text.contains("signed by nobody we trust") && text.contains("mqtt.ca_file"), "{text}");
}

#[tokio::test]
async fn a_broker_of_another_name_is_refused() {
    let broker = TlsBroker::with("broker.example", "").await;
    let text = refusal(&broker.link()).await;
    assert!(text.contains("broker.example") && text.contains("mqtt.host"), "{text}");
}

#[tokio::test]
async fn a_certificate_out_of_its_time_is_refused_with_a_look_at_the_clock() {
    for (from, to, word) in [(2001, 2002, "expired"), (2400, 2401, "not valid yet")] {
        let certify = |authority: &Authority, stem: &Path| {
            authority.sign_with("127.0.0.1", stem, |params| {
                params.not_before = rcgen::date_time_ymd(from, 1, 1);
                params.not_after = rcgen::date_time_ymd(to, 1, 1);
            })
        };
        let text = refusal(&TlsBroker::certified("", certify).await.link()).await;
        assert!(text.contains(word) && text.contains("clock"), "{text}");
    }
}

#[tokio::test]
async fn an_authority_that_poses_as_a_broker_is_refused_with_the_way_out() {
    let certify = |authority: &Authority, stem: &Path| {
        authority.sign_with("127.0.0.1", stem, |params| {
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        })
    };
    let text = refusal(&TlsBroker::certified("", certify).await.link()).await;
    assert!(text.contains("authority's") && text.contains("mqtt.ca_file"), "{text}");
}

#[tokio::test]
async fn a_broker_that_asks_for_a_certificate_gets_the_right_one_or_the_owner_an_error() {
    let broker = TlsBroker::with("127.0.0.1", "require_certificate true\n").await;
    let text = refusal(&broker.link()).await;
    assert!(text.contains("mqtt.cert_file") && text.contains("mqtt.key_file"), "{text}");

    let stranger = Authority::new("Elsewhere").sign("cellar", &broker.broker.path("stranger"));
    let text = refusal(&broker.certified_link(stranger)).await;
    assert!(text.contains("refused our certificate") && text.contains("mqtt.cert_file"), "{text}");

    let ours = broker.authority.sign("cellar", &broker.broker.path("cellar"));
    let mut harness = Harness::with(broker.certified_link(ours), |_| {});
    harness.until(|state| state.subscribed).await;
}

#[tokio::test]
async fn a_broker_of_tls_1_2_is_understood_too() {
    let broker = TlsBroker::with("127.0.0.1", "tls_version tlsv1.2\nrequire_certificate true\n").await;
    let text = refusal(&broker.link()).await;
    assert!(text.contains("mqtt.cert_file"), "{text}");
    let ours = broker.authority.sign("cellar", &broker.broker.path("cellar"));
    probe(&broker.certified_link(ours), "cellar", Duration::from_secs(20)).await.expect("a link");
}

#[tokio::test]
async fn tls_on_a_plain_port_and_plain_on_a_tls_port_are_named_in_the_log() {
    let broker = TlsBroker::new().await;
    let text = refusal(&Mqtt { tls: None, ..broker.link() }).await;
    assert!(text.contains("tls = false") && text.contains("mqtt.port"), "{text}");
    let text = refusal(&Mqtt { port: broker.plain, ..broker.link() }).await;
    assert!(text.contains("tls = ") && text.contains("mqtt.port"), "{text}");
}

#[tokio::test]
async fn files_that_cannot_be_used_are_named_with_their_key() {
    let broker = TlsBroker::new().await;
    let path = |name: &str| broker.broker.path(name);
    let (one, other) = (broker.authority.sign("a", &path("one")), broker.authority.sign("b", &path("other")));
    let tls = |ca_file| Mqtt { tls: Some(Tls { ca_file: Some(ca_file), client: None }), ..broker.link() };
    std::fs::write(path("empty"), "nothing\n").expect("a temporary folder");
    let open = Pair { cert: one.cert.clone(), key: one.cert.clone() };
    let mixed = Pair { cert: one.cert.clone(), key: other.key };
    let keyless = Pair { cert: one.cert.clone(), key: path("empty") };
    crate::support::certificates::keep_private(&path("empty"));
    for (link, key, word) in [
        (tls(path("missing")), "mqtt.ca_file", "No such file"),
        (tls(path("empty")), "mqtt.ca_file", "PEM"),
        (broker.certified_link(open), "mqtt.key_file", "chmod 600"),
        (broker.certified_link(mixed), "mqtt.key_file", "does not belong"),
        (broker.certified_link(keyless), "mqtt.key_file", "private key"),
    ] {
        let text = refusal(&link).await;
        assert!(text.contains(key) && text.contains(word), "{word}: {text}");
    }
}

#[tokio::test]
async fn files_are_read_again_at_each_connect() {
    let broker = TlsBroker::new().await;
    let ca = Authority::new("Elsewhere").write(&broker.broker.path("trusted.crt"));
    let tls = Tls { ca_file: Some(ca.clone()), client: None };
    let mut harness = Harness::with(Mqtt { tls: Some(tls), ..broker.link() }, |_| {});
    harness.until(|state| state.problem.as_ref().is_some_and(|text| text.contains("mqtt.ca_file"))).await;
    broker.authority.write(&ca);
    harness.until(|state| state.subscribed).await;
}
