//! The tokens of the demo: anybody gets one. The key is made when the process starts and kept nowhere.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

const KEY_ID: &str = "demo-1";
/// How long a token counts, in seconds.
const LIFETIME: u64 = 3600;

/// `None` if the system has no random numbers.
fn key() -> Option<&'static Ed25519KeyPair> {
    static KEY: OnceLock<Option<Ed25519KeyPair>> = OnceLock::new();
    let make = || Ed25519KeyPair::from_pkcs8(Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).ok()?.as_ref()).ok();
    KEY.get_or_init(make).as_ref()
}

/// What `[jwt.demo]` fetches (RFC 7517, RFC 8037).
pub fn jwks() -> String {
    let keys = key().map(|key| {
        let x = URL_SAFE_NO_PAD.encode(key.public_key().as_ref());
        json!({ "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "kid": KEY_ID, "x": x })
    });
    json!({ "keys": keys.into_iter().collect::<Vec<_>>() }).to_string()
}

/// A token for `alice`.
pub fn token() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let part = |value: serde_json::Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let head = part(json!({ "alg": "EdDSA", "typ": "JWT", "kid": KEY_ID }));
    let body = part(json!({ "iss": "demo", "sub": "alice", "iat": now, "exp": now.saturating_add(LIFETIME) }));
    let signed = format!("{head}.{body}");
    let signature = key().map(|key| URL_SAFE_NO_PAD.encode(key.sign(signed.as_bytes()).as_ref())).unwrap_or_default();
    format!("{signed}.{signature}")
}
