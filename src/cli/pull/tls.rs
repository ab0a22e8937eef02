//! The TLS of a download: which authorities are trusted. The same library, provider and certificate store as the broker link's.
//! Deliberately without an option to disable verification.

use crate::cli::Failure;
use crate::transport::named_file;
use rustls::crypto::ring;
use std::io;
use std::path::Path;
use std::sync::Arc;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// The settings: the system's authorities, or those in `ca_file`.
pub(super) fn config(ca_file: Option<&Path>) -> Result<TlsConfig, Failure> {
    let roots = match ca_file {
        Some(path) => of_file(path)?,
        None => system()?,
    };
    let builder = TlsConfig::builder().root_certs(RootCerts::new_with_certs(&roots));
    Ok(builder.unversioned_rustls_crypto_provider(Arc::new(ring::default_provider())).build())
}

fn of_file(path: &Path) -> Result<Vec<Certificate<'static>>, Failure> {
    let failed = |why: String| Failure::usage(format!("--ca-file {}: {why}", path.display()));
    let pem = named_file::read(path).map_err(failed)?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    match certificates.is_empty() {
        true => Err(failed("it holds no certificate in PEM form".into())),
        false => Ok(certificates),
    }
}

fn system() -> Result<Vec<Certificate<'static>>, Failure> {
    let certificates = rustls_native_certs::load_native_certs().certs;
    if certificates.is_empty() {
        let message = "this system has no certificates of authorities; install its package ca-certificates, or name a file of \
                       them with --ca-file";
        return Err(Failure::system(message));
    }
    Ok(certificates.iter().map(|certificate| Certificate::from_der(certificate).to_owned()).collect())
}

/// What the TLS error inside an I/O error means; `None` where there is none.
pub(super) fn explain_inner(error: &io::Error) -> Option<String> {
    error.get_ref()?.downcast_ref().map(explain)
}

/// What a TLS error means, and what to do.
pub(super) fn explain(error: &rustls::Error) -> String {
    use rustls::{CertificateError as Wrong, Error};
    match error {
        // The second where an authority that we trust has the name of the one that signed.
        Error::InvalidCertificate(Wrong::UnknownIssuer | Wrong::BadSignature) => {
            "its certificate is signed by nobody we trust; for an authority of your own name its certificate with --ca-file".into()
        }
        Error::InvalidCertificate(Wrong::NotValidForName | Wrong::NotValidForNameContext { .. }) => {
            "its certificate is for another name".into()
        }
        Error::InvalidCertificate(
            Wrong::Expired | Wrong::ExpiredContext { .. } | Wrong::NotValidYet | Wrong::NotValidYetContext { .. },
        ) => "its certificate is not valid today; is this machine's clock right?".into(),
        error => format!("TLS: {error}"),
    }
}
