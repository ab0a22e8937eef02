//! How a client appears in logs and reports: as the first characters of a keyed hash, so that whoever reads them can tell
//! clients apart without learning who they are, not even by trying all names.

use sha2::{Digest, Sha256};

/// The length of the key in bytes.
pub const CLIENT_KEY_BYTES: usize = 32;
/// Bytes of the hash that are shown, as two characters each.
const SHOWN_BYTES: usize = 4;
/// Bytes of a block of SHA-256.
const BLOCK: usize = 64;

/// The 8 characters of a client: the beginning of HMAC-SHA-256 (RFC 2104) in hexadecimal digits.
pub(super) fn client_id(key: &[u8; CLIENT_KEY_BYTES], client: &str) -> String {
    let padded = |pad: u8| -> [u8; BLOCK] { std::array::from_fn(|at| key.get(at).unwrap_or(&0) ^ pad) };
    let inner = Sha256::new().chain_update(padded(0x36)).chain_update(client).finalize();
    let outer = Sha256::new().chain_update(padded(0x5c)).chain_update(inner).finalize();
    outer.iter().take(SHOWN_BYTES).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_beginning_of_hmac_sha_256() {
        // By Python: hmac.new(bytes([7] * 32), b"unix:uid=1000", "sha256").hexdigest()[:8]
        let key = [7; CLIENT_KEY_BYTES];
        assert_eq!(client_id(&key, "unix:uid=1000"), "0167b960");
        assert_ne!(client_id(&key, "unix:uid=1001"), client_id(&key, "unix:uid=1000"));
        assert_ne!(client_id(&[8; CLIENT_KEY_BYTES], "unix:uid=1000"), client_id(&key, "unix:uid=1000"));
    }
}
