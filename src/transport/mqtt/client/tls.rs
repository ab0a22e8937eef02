//! TLS for the link: which authorities are trusted, which certificate the daemon presents, and what an error means.
//!
//! Deliberately without an option to disable verification: an owner without a certificate from a public authority
//! names his own authority in `mqtt.ca_file`.

use super::credentials;
use crate::config::{ClientCertificate, Tls};
use crate::transport::mqtt::link::Disconnect;
use rumqttc::TlsConfiguration;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{AlertDescription, CertificateError, ClientConfig, Error, RootCertStore};
use std::io;
use std::path::Path;
use std::sync::Arc;

/// The TLS configuration of the next connection. Reads the files again.
pub fn configuration(tls: &Tls, credentials: Option<&Path>) -> Result<TlsConfiguration, Disconnect> {
    let roots = match &tls.ca_file {
        Some(path) => ca_file_roots(path)?,
        None => system_roots()?,
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
            builder.with_client_auth_cert(chain, key).map_err(|error| key_error(client, &error))?
        }
    };
    Ok(TlsConfiguration::Rustls(Arc::new(config)))
}

fn ca_file_roots(path: &Path) -> Result<RootCertStore, Disconnect> {
    const KEY: &str = "mqtt.ca_file";
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path, KEY)? {
        roots.add(certificate).map_err(|error| credentials::file_error(path, KEY, error))?;
    }
    Ok(roots)
}

/// The system's store may contain certificates too old to be parsed; the others are used.
fn system_roots() -> Result<RootCertStore, Disconnect> {
    let mut roots = RootCertStore::empty();
    let (added, _) = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if added > 0 {
        return Ok(roots);
    }
    let message = "this system has no certificates of authorities; install its package ca-certificates, or \
                name the broker's authority in mqtt.ca_file";
    Err(Disconnect { kind: "no authorities".into(), text: message.into(), unreadable: false })
}

fn certificates(path: &Path, key: &str) -> Result<Vec<CertificateDer<'static>>, Disconnect> {
    let bytes = credentials::read(path, key)?;
    let read = CertificateDer::pem_slice_iter(&bytes).collect::<Result<Vec<_>, _>>();
    match read {
        Ok(all) if !all.is_empty() => Ok(all),
        _ => Err(credentials::file_error(path, key, "it holds no certificate in PEM form")),
    }
}

fn private_key(
    client: &ClientCertificate,
    credentials: Option<&Path>,
) -> Result<PrivateKeyDer<'static>, Disconnect> {
    const KEY: &str = "mqtt.key_file";
    let bytes = credentials::read_secret(&client.key_file, KEY, credentials)?;
    PrivateKeyDer::from_pem_slice(&bytes).map_err(|_| {
        credentials::file_error(
            &client.key_file,
            KEY,
            "it holds no private key in PEM form without a passphrase",
        )
    })
}

fn key_error(client: &ClientCertificate, error: &Error) -> Disconnect {
    let text = match error {
        Error::InconsistentKeys(_) => "its key does not belong to the certificate in mqtt.cert_file".into(),
        error => error.to_string(),
    };
    credentials::file_error(&client.key_file, "mqtt.key_file", text)
}

/// The TLS error inside an I/O error.
pub fn tls_error_in(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What the error means, and what to do. `certified`: the daemon presented a certificate.
pub fn explain(error: &Error, certified: bool) -> String {
    match error {
        Error::InvalidCertificate(error) => format!("the broker's certificate {}", certificate_hint(error)),
        Error::AlertReceived(alert) => alert_hint(*alert, certified),
        Error::InvalidMessage(_) => {
            "the broker does not speak TLS on this port; set mqtt.port to its TLS port, or tls = false".into()
        }
        error => format!("TLS: {error}"),
    }
}

fn certificate_hint(error: &CertificateError) -> String {
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
        // rustls has no variant for it, and self-signed brokers are common.
        other if format!("{other:?}").contains("CaUsedAsEndEntity") => {
            "is an authority's; have the authority sign one for the broker, and keep its own for mqtt.ca_file"
                .into()
        }
        other => format!("cannot be used: {other}"),
    }
}

fn alert_hint(alert: AlertDescription, certified: bool) -> String {
    use AlertDescription as Alert;
    match alert {
        // TLS 1.2 has no better alert for a missing certificate.
        Alert::CertificateRequired | Alert::HandshakeFailure if !certified => {
            "the broker asks for a client certificate; set mqtt.cert_file and mqtt.key_file".into()
        }
        Alert::ProtocolVersion => "the broker speaks neither TLS 1.2 nor 1.3".into(),
        _ if certified => {
            format!("the broker refused our certificate ({alert:?}); see mqtt.cert_file and the broker's log")
        }
        _ => format!("the broker refused TLS ({alert:?}); see its log"),
    }
}
