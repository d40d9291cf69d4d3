//! The keys of the gateway's own tokens, and what is published of them.

use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ED25519, EcdsaKeyPair, Ed25519KeyPair, KeyPair, ParsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use serde_json::{Value, json};

/// What `SubjectPublicKeyInfo` has before the key itself: 12 bytes for Ed25519 (RFC 8410), 26 for P-256 (RFC 5480).
const ED25519_INFO: usize = 12;
const P256_INFO: usize = 26;

/// A key that signs.
pub enum Key {
    Ed25519(Box<Ed25519KeyPair>),
    P256(Box<EcdsaKeyPair>),
}

/// A key that verifies.
pub enum PublicKey {
    Ed25519(Vec<u8>),
    /// An uncompressed point without the four before it: two coordinates of 32 bytes.
    P256(Vec<u8>),
}

impl Key {
    /// The error is a sentence without the key.
    pub fn read(pem: &str) -> Result<Self, String> {
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| "it is not a private key in PEM (PKCS #8, `BEGIN PRIVATE KEY`)".to_owned())?;
        let der = der.secret_pkcs8_der();
        if let Ok(key) = Ed25519KeyPair::from_pkcs8_maybe_unchecked(der) {
            return Ok(Key::Ed25519(Box::new(key)));
        }
        match EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der) {
            Ok(key) => Ok(Key::P256(Box::new(key))),
            Err(_) => Err("it is neither an Ed25519 key nor one on the curve P-256".to_owned()),
        }
    }

    pub fn public(&self) -> PublicKey {
        match self {
            Key::Ed25519(key) => PublicKey::Ed25519(key.public_key().as_ref().to_vec()),
            Key::P256(key) => PublicKey::P256(key.public_key().as_ref().get(1..).unwrap_or_default().to_vec()),
        }
    }

    pub fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Key::Ed25519(key) => Some(key.sign(message).as_ref().to_vec()),
            Key::P256(key) => key.sign(&SystemRandom::new(), message).ok().map(|signature| signature.as_ref().to_vec()),
        }
    }
}

impl PublicKey {
    /// A public key, or the public half of a private one. The error is a sentence without the key.
    pub fn read(pem: &str) -> Result<Self, String> {
        let Ok(info) = SubjectPublicKeyInfoDer::from_pem_slice(pem.as_bytes()) else {
            return Key::read(pem).map(|key| key.public()).map_err(|why| match pem.contains("PRIVATE KEY") {
                true => why,
                false => "it is neither a public nor a private key in PEM".to_owned(),
            });
        };
        let info = info.as_ref();
        if ParsedPublicKey::new(&ED25519, info).is_ok() {
            return Ok(PublicKey::Ed25519(info.get(ED25519_INFO..).unwrap_or_default().to_vec()));
        }
        match (ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, info), info.get(P256_INFO..).and_then(<[u8]>::split_first)) {
            (Ok(_), Some((4, point))) if point.len() == 64 => Ok(PublicKey::P256(point.to_vec())),
            _ => Err("it is neither an Ed25519 key nor one on the curve P-256".to_owned()),
        }
    }

    /// As `alg` names it.
    pub fn algorithm(&self) -> &'static str {
        match self {
            PublicKey::Ed25519(_) => "EdDSA",
            PublicKey::P256(_) => "ES256",
        }
    }

    /// The key, named by its thumbprint (RFC 7638).
    pub fn jwk(&self) -> Value {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (mut jwk, thumbprint) = match self {
            PublicKey::Ed25519(key) => {
                let x = part(key);
                let thumbprint = format!("{{\"crv\":\"Ed25519\",\"kty\":\"OKP\",\"x\":\"{x}\"}}");
                (json!({ "kty": "OKP", "crv": "Ed25519", "x": x }), thumbprint)
            }
            PublicKey::P256(point) => {
                let (x, y) = point.split_at(point.len() / 2);
                let (x, y) = (part(x), part(y));
                let thumbprint = format!("{{\"crv\":\"P-256\",\"kty\":\"EC\",\"x\":\"{x}\",\"y\":\"{y}\"}}");
                (json!({ "kty": "EC", "crv": "P-256", "x": x, "y": y }), thumbprint)
            }
        };
        if let Value::Object(members) = &mut jwk {
            members.insert("kid".to_owned(), part(digest(&SHA256, thumbprint.as_bytes()).as_ref()).into());
            members.insert("alg".to_owned(), self.algorithm().into());
            members.insert("use".to_owned(), "sig".into());
        }
        jwk
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
    use base64::engine::general_purpose::STANDARD;

    fn pem(kind: &str, der: &[u8]) -> String {
        format!("-----BEGIN {kind} KEY-----\n{}\n-----END {kind} KEY-----\n", STANDARD.encode(der))
    }

    #[test]
    fn only_keys_of_known_kinds_are_read() {
        for wrong in ["", "no", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(Key::read(wrong).is_err() && PublicKey::read(wrong).is_err(), "{wrong}");
        }
        assert!(PublicKey::read(&pem("PUBLIC", &[0; 44])).is_err());
    }

    #[test]
    fn a_public_key_is_published_as_its_private_one_would_be() {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        for private in [ed.as_ref(), p256.as_ref()] {
            let private = pem("PRIVATE", private);
            let info: PublicKeyX509Der = match Key::read(&private).unwrap() {
                Key::Ed25519(key) => key.public_key().as_der().unwrap(),
                Key::P256(key) => key.public_key().as_der().unwrap(),
            };
            let from_public = PublicKey::read(&pem("PUBLIC", info.as_ref())).unwrap().jwk();
            assert_eq!(from_public, PublicKey::read(&private).unwrap().jwk());
            assert!(from_public.get("d").is_none());
        }
    }

    #[test]
    fn keys_are_named_by_their_thumbprints() {
        // RFC 8037, appendix A.3.
        let x = URL_SAFE_NO_PAD.decode("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo").unwrap();
        assert_eq!(PublicKey::Ed25519(x).jwk()["kid"], "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k");
    }
}
