//! Keys, and which algorithm each may be used with.
//!
//! A key has one kind, settled when it is read, and an algorithm works with one kind of key. So a public RSA key is never
//! a secret for HS256, whatever a token asks for (RFC 8725 section 3.1). Keys are checked when they are read: curve points
//! lie on their curve, RSA moduli have 2048 to 8192 bits, secrets are as long as the output of their hash.

use aws_lc_rs::signature::{self as aws, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{AlgorithmFamily, DecodingKey, DecodingKeyKind};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;
use std::fmt;

/// The most keys of one set.
pub(super) const KEYS_MAX: usize = 128;
/// The most keys that are tried for a token that does not say which one signed it.
const TRIES_MAX: usize = 8;

/// A signature algorithm of RFC 7518 section 3.1 or RFC 8037.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[schemars(inline)]
pub enum Algorithm {
    HS256,
    HS384,
    HS512,
    RS256,
    RS384,
    RS512,
    PS256,
    PS384,
    PS512,
    ES256,
    ES384,
    #[serde(rename = "EdDSA")]
    EdDsa,
}

/// What a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyKind {
    Secret,
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl Algorithm {
    pub const ALL: [Algorithm; 12] = [
        Algorithm::HS256,
        Algorithm::HS384,
        Algorithm::HS512,
        Algorithm::RS256,
        Algorithm::RS384,
        Algorithm::RS512,
        Algorithm::PS256,
        Algorithm::PS384,
        Algorithm::PS512,
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::EdDsa,
    ];

    /// The one with exactly this name; names are case-sensitive (RFC 7515 section 4.1.1).
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|algorithm| algorithm.name() == name)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Algorithm::HS256 => "HS256",
            Algorithm::HS384 => "HS384",
            Algorithm::HS512 => "HS512",
            Algorithm::RS256 => "RS256",
            Algorithm::RS384 => "RS384",
            Algorithm::RS512 => "RS512",
            Algorithm::PS256 => "PS256",
            Algorithm::PS384 => "PS384",
            Algorithm::PS512 => "PS512",
            Algorithm::ES256 => "ES256",
            Algorithm::ES384 => "ES384",
            Algorithm::EdDsa => "EdDSA",
        }
    }

    /// The only kind of key that it may be used with.
    pub const fn kind(self) -> KeyKind {
        match self {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => KeyKind::Secret,
            Algorithm::RS256 | Algorithm::RS384 | Algorithm::RS512 => KeyKind::Rsa,
            Algorithm::PS256 | Algorithm::PS384 | Algorithm::PS512 => KeyKind::Rsa,
            Algorithm::ES256 => KeyKind::P256,
            Algorithm::ES384 => KeyKind::P384,
            Algorithm::EdDsa => KeyKind::Ed25519,
        }
    }

    /// The shortest secret, in bytes: the output of the hash (RFC 7518 section 3.2). 0 for what uses no secret.
    pub const fn secret_min(self) -> usize {
        match self {
            Algorithm::HS256 => 32,
            Algorithm::HS384 => 48,
            Algorithm::HS512 => 64,
            _ => 0,
        }
    }

    const fn library(self) -> jsonwebtoken::Algorithm {
        match self {
            Algorithm::HS256 => jsonwebtoken::Algorithm::HS256,
            Algorithm::HS384 => jsonwebtoken::Algorithm::HS384,
            Algorithm::HS512 => jsonwebtoken::Algorithm::HS512,
            Algorithm::RS256 => jsonwebtoken::Algorithm::RS256,
            Algorithm::RS384 => jsonwebtoken::Algorithm::RS384,
            Algorithm::RS512 => jsonwebtoken::Algorithm::RS512,
            Algorithm::PS256 => jsonwebtoken::Algorithm::PS256,
            Algorithm::PS384 => jsonwebtoken::Algorithm::PS384,
            Algorithm::PS512 => jsonwebtoken::Algorithm::PS512,
            Algorithm::ES256 => jsonwebtoken::Algorithm::ES256,
            Algorithm::ES384 => jsonwebtoken::Algorithm::ES384,
            Algorithm::EdDsa => jsonwebtoken::Algorithm::EdDSA,
        }
    }
}

impl fmt::Display for KeyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            KeyKind::Secret => "a secret",
            KeyKind::Rsa => "an RSA key",
            KeyKind::P256 => "a key on the curve P-256",
            KeyKind::P384 => "a key on the curve P-384",
            KeyKind::Ed25519 => "an Ed25519 key",
        })
    }
}

/// One key. Has no `Debug`, as it may be a secret.
pub struct Key {
    kind: KeyKind,
    /// The `kid` of its JWK.
    id: Option<Box<str>>,
    /// The `alg` of its JWK: then only this one.
    only: Option<Algorithm>,
    /// In bytes, of a secret.
    secret_len: usize,
    decoding: DecodingKey,
}

impl Key {
    /// A shared secret. How long it must be depends on the algorithms, see [`KeySet::fits`].
    pub fn secret(bytes: &[u8]) -> Self {
        let decoding = DecodingKey::from_secret(bytes);
        Key { kind: KeyKind::Secret, id: None, only: None, secret_len: bytes.len(), decoding }
    }

    /// A public key in PEM: `PUBLIC KEY` (RFC 5280) or `RSA PUBLIC KEY` (PKCS #1). The error is a sentence.
    pub fn pem(text: &str) -> Result<Self, String> {
        if text.contains("PRIVATE KEY-----") {
            return Err("it is a private key; verifying takes the public key alone".into());
        }
        if text.contains("BEGIN CERTIFICATE-----") {
            return Err("it is a certificate; extract its key with `openssl x509 -pubkey -noout`".into());
        }
        let bytes = text.as_bytes();
        let keys = [DecodingKey::from_rsa_pem(bytes), DecodingKey::from_ec_pem(bytes), DecodingKey::from_ed_pem(bytes)];
        let decoding = keys.into_iter().find_map(Result::ok).ok_or("it is not a public key of a kind that is known in PEM")?;
        Key::public(decoding)
    }

    fn public(decoding: DecodingKey) -> Result<Self, String> {
        let kind = match (decoding.family(), decoding.kind()) {
            (AlgorithmFamily::Rsa, DecodingKeyKind::RsaModulusExponent { n, .. }) => {
                check_modulus(n)?;
                KeyKind::Rsa
            }
            (AlgorithmFamily::Rsa, DecodingKeyKind::SecretOrDer(der)) => {
                let (n, _) = (DEFAULT_PROVIDER.key_utils.rsa_pub_components_from_public_key)(der)
                    .map_err(|_| "it is not a valid RSA key".to_owned())?;
                check_modulus(&n)?;
                KeyKind::Rsa
            }
            (AlgorithmFamily::Ec, DecodingKeyKind::SecretOrDer(point)) => match point.len() {
                65 => checked(&aws::ECDSA_P256_SHA256_FIXED, point, KeyKind::P256)?,
                97 => checked(&aws::ECDSA_P384_SHA384_FIXED, point, KeyKind::P384)?,
                _ => return Err("its curve is neither P-256 nor P-384".into()),
            },
            (AlgorithmFamily::Ed, DecodingKeyKind::SecretOrDer(point)) => checked(&aws::ED25519, point, KeyKind::Ed25519)?,
            _ => return Err("it is not a public key".into()),
        };
        Ok(Key { kind, id: None, only: None, secret_len: 0, decoding })
    }

    /// A JSON Web Key (RFC 7517). The error is a sentence.
    fn jwk(value: &Value) -> Result<Self, String> {
        let jwk = Jwk::deserialize(value).map_err(|_| "it is not a JWK".to_owned())?;
        if jwk.common.public_key_use.as_ref().is_some_and(|purpose| *purpose != PublicKeyUse::Signature) {
            return Err("its `use` is not `sig`".into());
        }
        let operations = jwk.common.key_operations.as_ref();
        if operations.is_some_and(|list| !list.contains(&KeyOperations::Verify)) {
            return Err("its `key_ops` do not have `verify`".into());
        }
        let only = match jwk.common.key_algorithm {
            None => None,
            Some(KeyAlgorithm::UNKNOWN_ALGORITHM) => return Err("its `alg` is not known".into()),
            Some(named) => Some(Algorithm::named(&named.to_string()).ok_or("its `alg` is not for signatures")?),
        };
        let decoding = || DecodingKey::from_jwk(&jwk).map_err(|_| "its members are not in base64url".to_owned());
        let mut key = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Key::public(decoding()?)?,
            AlgorithmParameters::EllipticCurve(parameters) => {
                let size = match parameters.curve {
                    EllipticCurve::P256 => 32,
                    EllipticCurve::P384 => 48,
                    _ => return Err("its curve is neither P-256 nor P-384".into()),
                };
                // Shorter ones would be taken for the coordinates of another point (RFC 7518 section 6.2.1.2).
                let whole = |text: &str| URL_SAFE_NO_PAD.decode(text).is_ok_and(|bytes| bytes.len() == size);
                if !whole(&parameters.x) || !whole(&parameters.y) {
                    return Err("its coordinates do not have the length of its curve".into());
                }
                Key::public(decoding()?)?
            }
            AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => {
                Key::public(decoding()?)?
            }
            AlgorithmParameters::OctetKey(parameters) => {
                let bytes = URL_SAFE_NO_PAD.decode(&parameters.value).map_err(|_| "its `k` is not in base64url".to_owned())?;
                Key::secret(&bytes)
            }
            _ => return Err("its kind is not known".into()),
        };
        if only.is_some_and(|algorithm| algorithm.kind() != key.kind) {
            return Err("its `alg` is not for keys of its kind".into());
        }
        key.only = only;
        key.id = jwk.common.key_id.map(Into::into);
        Ok(key)
    }

    /// Whether it may verify this algorithm at all.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        self.kind == algorithm.kind()
            && self.only.is_none_or(|only| only == algorithm)
            && (self.kind != KeyKind::Secret || self.secret_len >= algorithm.secret_min())
    }

    fn verifies(&self, algorithm: Algorithm, message: &[u8], signature: &Vec<u8>) -> bool {
        // The provider is named here, not looked up: with two of them compiled in, `jsonwebtoken`'s own look-up panics.
        let verifier = (DEFAULT_PROVIDER.verifier_factory)(&algorithm.library(), &self.decoding);
        verifier.is_ok_and(|verifier| verifier.verify(message, signature).is_ok())
    }
}

fn checked(algorithm: &'static dyn VerificationAlgorithm, point: &[u8], kind: KeyKind) -> Result<KeyKind, String> {
    ParsedPublicKey::new(algorithm, point).map(|_| kind).map_err(|_| "it is not a point of its curve".into())
}

fn check_modulus(n: &[u8]) -> Result<(), String> {
    let significant = n.iter().skip_while(|byte| **byte == 0).count();
    let leading = n.iter().find(|byte| **byte != 0).map_or(0, |byte| byte.leading_zeros());
    let bits = significant.saturating_mul(8).saturating_sub(usize::try_from(leading).unwrap_or(0));
    if (2048..=8192).contains(&bits) {
        Ok(())
    } else {
        Err(format!("its modulus has {bits} bits, and 2048 to 8192 are possible"))
    }
}

/// The keys of one issuer at one time.
pub struct KeySet {
    keys: Box<[Key]>,
    /// What was left out of a JWK set, and why; for the log.
    pub skipped: Vec<String>,
}

/// What a set says about a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Good,
    Bad,
    /// No key has the id of the token, and those without an id, which may have any, do not verify it.
    Unnamed,
    /// No key has the id of the token, or none fits its algorithm.
    NoKey,
}

impl KeySet {
    pub fn single(key: Key) -> Self {
        KeySet { keys: Box::new([key]), skipped: Vec::new() }
    }

    /// A JWK set (RFC 7517 section 5). Members that cannot be used are left out, as the RFC asks; a set without any that can
    /// is an error. With `public_only` secrets cannot be used: what anybody may fetch is none.
    pub fn jwks(text: &[u8], public_only: bool) -> Result<Self, String> {
        let document: Value = serde_json::from_slice(text).map_err(|error| format!("it is not JSON: {error}"))?;
        let list = document.get("keys").and_then(Value::as_array).ok_or("it is not a JWK set: it has no list `keys`")?;
        if list.len() > KEYS_MAX {
            return Err(format!("it has {} keys, and the most is {KEYS_MAX}", list.len()));
        }
        let (mut keys, mut skipped) = (Vec::new(), Vec::new());
        for (index, value) in list.iter().enumerate() {
            match Key::jwk(value) {
                Ok(key) if public_only && key.kind == KeyKind::Secret => skipped.push(format!("key {index}: it is a secret")),
                Ok(key) => keys.push(key),
                Err(why) => skipped.push(format!("key {index}: {why}")),
            }
        }
        if keys.is_empty() {
            let why = if skipped.is_empty() { "it is empty".to_owned() } else { skipped.join("; ") };
            return Err(format!("it has no key that can be used: {why}"));
        }
        Ok(KeySet { keys: keys.into(), skipped })
    }

    pub fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// Whether some key may verify this algorithm.
    pub fn fits(&self, algorithm: Algorithm) -> bool {
        self.keys.iter().any(|key| key.fits(algorithm))
    }

    /// Tries the keys with the token's `kid` and then those without one; without a `kid`, all. At most eight.
    pub fn verify(&self, algorithm: Algorithm, kid: Option<&str>, message: &[u8], signature: &Vec<u8>) -> Verdict {
        let fitting = self.keys.iter().filter(|key| key.fits(algorithm));
        let named = fitting.clone().filter(|key| kid.is_some() && key.id.as_deref() == kid);
        let others = fitting.filter(|key| kid.is_none() || key.id.is_none());
        let mut keys = named.clone().chain(others).take(TRIES_MAX).peekable();
        if keys.peek().is_none() {
            return Verdict::NoKey;
        }
        match keys.any(|key| key.verifies(algorithm, message, signature)) {
            true => Verdict::Good,
            false if kid.is_some() && named.clone().next().is_none() => Verdict::Unnamed,
            false => Verdict::Bad,
        }
    }
}

impl Key {
    pub fn kind(&self) -> KeyKind {
        self.kind
    }

    /// In bytes; 0 if it is no secret.
    pub fn secret_len(&self) -> usize {
        self.secret_len
    }
}
