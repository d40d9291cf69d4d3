//! Signs tokens, good ones and others, with keys made on the spot.
//!
//! Straight on AWS-LC and not by the library that verifies them, so that a token can be as wrong as a test wants. The unit
//! tests and the benches include this file as well.

#![allow(dead_code, reason = "each of those who include it uses a part")]

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{self, EcdsaKeyPair, Ed25519KeyPair, KeyPair, RsaKeyPair};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};

/// One key, and the algorithm that it signs with.
pub struct Signer {
    pub algorithm: &'static str,
    pub kid: String,
    key: Key,
}

enum Key {
    Secret(Vec<u8>),
    Rsa(Box<RsaKeyPair>),
    Ec(EcdsaKeyPair),
    Ed(Ed25519KeyPair),
}

/// Base64url without padding.
pub fn part(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// A JWK set with the public halves of these; of secrets, the whole.
pub fn jwks(signers: &[&Signer]) -> String {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string()
}

impl Signer {
    pub fn hs256(kid: &str, secret: &[u8]) -> Signer {
        Signer { algorithm: "HS256", kid: kid.to_owned(), key: Key::Secret(secret.to_vec()) }
    }

    pub fn rs256(kid: &str) -> Signer {
        let key = RsaKeyPair::generate(KeySize::Rsa2048).unwrap();
        Signer { algorithm: "RS256", kid: kid.to_owned(), key: Key::Rsa(Box::new(key)) }
    }

    pub fn es256(kid: &str) -> Signer {
        let key = EcdsaKeyPair::generate(&signature::ECDSA_P256_SHA256_FIXED_SIGNING).unwrap();
        Signer { algorithm: "ES256", kid: kid.to_owned(), key: Key::Ec(key) }
    }

    pub fn eddsa(kid: &str) -> Signer {
        Signer { algorithm: "EdDSA", kid: kid.to_owned(), key: Key::Ed(Ed25519KeyPair::generate().unwrap()) }
    }

    /// A token with the usual header.
    pub fn token(&self, claims: &Value) -> String {
        self.with_header(&json!({ "alg": self.algorithm, "kid": self.kid, "typ": "JWT" }), claims)
    }

    /// A token with exactly this header, signed by this key with its own algorithm.
    pub fn with_header(&self, header: &Value, claims: &Value) -> String {
        self.raw(header.to_string().as_bytes(), claims.to_string().as_bytes())
    }

    /// Any bytes as header and payload, rightly encoded and signed.
    pub fn raw(&self, header: &[u8], payload: &[u8]) -> String {
        let message = format!("{}.{}", part(header), part(payload));
        let signature = part(self.sign(message.as_bytes()));
        format!("{message}.{signature}")
    }

    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let random = SystemRandom::new();
        match &self.key {
            Key::Secret(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
            Key::Rsa(key) => {
                let mut out = vec![0; key.public_modulus_len()];
                key.sign(&signature::RSA_PKCS1_SHA256, &random, message, &mut out).unwrap();
                out
            }
            Key::Ec(key) => key.sign(&random, message).unwrap().as_ref().to_vec(),
            Key::Ed(key) => key.sign(message).as_ref().to_vec(),
        }
    }

    pub fn jwk(&self) -> Value {
        let mut jwk = match &self.key {
            Key::Secret(secret) => json!({ "kty": "oct", "k": part(secret) }),
            Key::Rsa(key) => {
                let public = key.public_key();
                let (n, e) = (public.modulus(), public.exponent());
                json!({
                    "kty": "RSA",
                    "n": part(n.big_endian_without_leading_zero()),
                    "e": part(e.big_endian_without_leading_zero()),
                })
            }
            Key::Ec(key) => {
                let point = key.public_key().as_ref();
                json!({ "kty": "EC", "crv": "P-256", "x": part(&point[1..33]), "y": part(&point[33..]) })
            }
            Key::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": part(key.public_key().as_ref()) }),
        };
        jwk["kid"] = json!(self.kid);
        jwk["alg"] = json!(self.algorithm);
        jwk["use"] = json!("sig");
        jwk
    }

    /// The public key in PEM.
    pub fn pem(&self) -> String {
        let der: PublicKeyX509Der<'_> = match &self.key {
            Key::Secret(_) => panic!("a secret has no public half"),
            Key::Rsa(key) => key.public_key().as_der().unwrap(),
            Key::Ec(key) => key.public_key().as_der().unwrap(),
            Key::Ed(key) => key.public_key().as_der().unwrap(),
        };
        let text = STANDARD.encode(der.as_ref());
        let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).unwrap()).collect();
        format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
    }
}
