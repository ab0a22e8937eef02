//! Certificates generated for tests: a private authority, and the certificates that it signs.

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A certificate authority with its own certificate.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// Where a certificate and its key were written.
#[derive(Debug, Clone)]
pub struct Pair {
    /// The certificate, PEM.
    pub cert: PathBuf,
    /// Its key, PEM, which only its owner may read.
    pub key: PathBuf,
}

impl Authority {
    /// A new one.
    pub fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().expect("a key");
        let pem = params.self_signed(&key).expect("sound parameters").pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    /// Writes its own certificate.
    pub fn write(&self, path: &Path) -> PathBuf {
        std::fs::write(path, &self.pem).expect("a temporary folder");
        path.to_owned()
    }

    /// Writes a certificate for this host name or address and its key: `stem.crt` and `stem.key`.
    pub fn sign(&self, host: &str, stem: &Path) -> Pair {
        self.sign_with(host, stem, |_| {})
    }

    /// The same, changed.
    pub fn sign_with(&self, host: &str, stem: &Path, change: impl FnOnce(&mut CertificateParams)) -> Pair {
        let mut params = CertificateParams::new([host.to_owned()]).expect("a name");
        params.distinguished_name.push(DnType::CommonName, host);
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let signed = params.signed_by(&key, &self.issuer).expect("sound parameters");
        let pair = Pair { cert: stem.with_extension("crt"), key: stem.with_extension("key") };
        std::fs::write(&pair.cert, signed.pem()).expect("a temporary folder");
        std::fs::write(&pair.key, key.serialize_pem()).expect("a temporary folder");
        keep_private(&pair.key);
        pair
    }
}

/// Makes a file readable by its owner only.
pub fn keep_private(path: &Path) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("a file of ours");
}
