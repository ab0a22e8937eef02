//! TLS for the link: what is trusted, what we show, and what it means when the two sides do not agree.
//!
//! Deliberately without a switch that turns the checks off: whoever has no certificate from a public authority
//! names his own in `mqtt.ca_file`.

use super::credentials;
use crate::config::{ClientCertificate, Tls};
use crate::transport::mqtt::link::Loss;
use rumqttc::TlsConfiguration;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// What the next connection trusts and shows. Reads the files anew.
pub fn configuration(tls: &Tls, credentials: Option<&Path>) -> Result<TlsConfiguration, Loss> {
    let roots = match &tls.ca_file {
        Some(path) => named_authorities(path)?,
        None => system_authorities()?,
    };
    let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("the provider has suites for TLS 1.2 and 1.3")
        .with_root_certificates(roots);
    let config = match &tls.client {
        None => builder.with_no_client_auth(),
        Some(client) => {
            let chain = certificates(&client.cert_file, "mqtt.cert_file")?;
            let key = private_key(client, credentials)?;
            builder.with_client_auth_cert(chain, key).map_err(|error| unfit(client, &error))?
        }
    };
    Ok(TlsConfiguration::Rustls(Arc::new(config)))
}

fn named_authorities(path: &Path) -> Result<RootCertStore, Loss> {
    const KEY: &str = "mqtt.ca_file";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, KEY)? {
        roots.add(certificate).map_err(|error| credentials::wrong(path, KEY, error))?;
    }
    Ok(roots)
}

/// The system's store may hold what is too old for us; the rest is of use.
fn system_authorities() -> Result<RootCertStore, Loss> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added > 0 {
        return Ok(roots);
    }
    let said = "this system has no certificates of authorities; install its package ca-certificates, or \
                name the broker's authority in mqtt.ca_file";
    Err(Loss { kind: "no authorities".into(), text: said.into(), unreadable: false })
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, Loss> {
    let bytes = credentials::read(path, key)?;
    let read = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(credentials::wrong(path, key, "it holds no certificate in PEM form")),
    }
}

fn private_key(
    client: &ClientCertificate,
    credentials: Option<&Path>,
) -> Result<PrivateKeyDer<'static>, Loss> {
    const KEY: &str = "mqtt.key_file";
    let bytes = credentials::read_secret(&client.key_file, KEY, credentials)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        credentials::wrong(&client.key_file, KEY, "it holds no private key in PEM form without a passphrase")
    })
}

fn unfit(client: &ClientCertificate, error: &Error) -> Loss {
    let said = match error {
        Error::InconsistentKeys(_) => "its key does not belong to the certificate in mqtt.cert_file".into(),
        error => error.to_string(),
    };
    credentials::wrong(&client.key_file, "mqtt.key_file", said)
}

/// The error of TLS within one of I/O.
pub fn inside(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What it means, and the way out. `certified`: we showed a certificate of our own.
pub fn complaint(error: &Error, certified: bool) -> String {
    match error {
        Error::InvalidCertificate(error) => format!("the broker's certificate {}", distrust(error)),
        Error::AlertReceived(alert) => alarm(*alert, certified),
        Error::InvalidMessage(_) => {
            "the broker does not speak TLS on this port; set mqtt.port to its TLS port, or tls = false".into()
        }
        error => format!("TLS: {error}"),
    }
}

fn distrust(error: &CertificateError) -> String {
    use CertificateError as Wrong;
    match error {
        Wrong::UnknownIssuer => {
            "is signed by nobody we trust; name its authority's certificate in mqtt.ca_file".into()
        }
        Wrong::NotValidForName => "is for another name; set mqtt.host to a name in it".into(),
        Wrong::NotValidForNameContext { presented, .. } => {
            let names = presented.join(", ");
            format!("is for another name ({names}); set mqtt.host to a name in it")
        }
        Wrong::Expired | Wrong::ExpiredContext { .. } => {
            "has expired; renew it, or set this machine's clock".into()
        }
        Wrong::NotValidYet | Wrong::NotValidYetContext { .. } => {
            "is not valid yet; is this machine's clock right?".into()
        }
        // rustls has no word of its own for it, and self-signed brokers are common.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "is an authority's; have the authority sign one for the broker, and keep its own for mqtt.ca_file"
                .into()
        }
        other => format!("cannot be used: {other}"),
    }
}

fn alarm(alert: AlertDescription, certified: bool) -> String {
    use AlertDescription as Alert;
    match alert {
        // TLS 1.2 has no better word for a certificate that is missing.
        Alert::CertificateRequired | Alert::HandshakeFailure if !certified => {
            "the broker asks for a certificate of ours; set mqtt.cert_file and mqtt.key_file".into()
        }
        Alert::ProtocolVersion => "the broker speaks neither TLS 1.2 nor 1.3".into(),
        _ if certified => {
            format!("the broker refused our certificate ({alert:?}); see mqtt.cert_file and the broker's log")
        }
        _ => format!("the broker refused TLS ({alert:?}); see its log"),
    }
}
