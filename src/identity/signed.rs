//! Who calls, in a token of the gateway's own: what a service can check that does not trust the network.
//!
//! Headers such as `X-Consumer-Name` are worth as much as the path between gateway and service. A short-lived JSON Web Token says
//! the same with a signature: that the request came through this gateway, and as whom. It is made once for each identity and
//! half of its life, so that a request costs a comparison and no signature.

use super::Identity;
use crate::diagnostic::Diagnostics;
use crate::value::{Duration, Located, SecretSource};
use arc_swap::ArcSwapOption;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The longest token that is sent, in bytes. A longer one is made again without roles and scopes.
const TOKEN_MAX: usize = 6 << 10;
const DEFAULT_HEADER: &str = "x-gateway-identity";

/// A token of the gateway's own on each request to an upstream, which says that the request came through this gateway, and who
/// calls: a JSON Web Token with `iss`, `aud`, `iat`, `exp` and, where somebody is known, `sub` (the consumer's name, or the subject
/// of a token), `consumer`, `credential`, `roles`, `scopes`, `tier`. Services verify it by the key set that the admin listener has
/// at `/jwks`. A client's header of that name is removed.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct IdentityConfig {
    /// The private key, in PEM (PKCS #8): Ed25519 (`openssl genpkey -algorithm ed25519`) or P-256. Default: no such token.
    pub key: Option<Located<SecretSource>>,
    /// The header that has the token. Default: `"x-gateway-identity"`.
    pub header: Option<Located<String>>,
    /// The claim `iss`.
    pub issuer: Located<String>,
    /// The claim `aud`; up to 16. Default: none.
    pub audience: Vec<Located<String>>,
    /// How long a token counts, from 10s to 1h. One is used for half of it.
    pub lifetime: Located<Duration>,
}

impl Default for IdentityConfig {
    fn default() -> Self {
        IdentityConfig {
            key: None,
            header: None,
            issuer: Located::nowhere("gatewright".to_owned()),
            audience: Vec::new(),
            lifetime: Located::nowhere(Duration::from_secs(60)),
        }
    }
}

impl IdentityConfig {
    /// Checks what serde cannot.
    pub fn check(&self, d: &mut Diagnostics) {
        let bounds = Duration::from_secs(10)..=Duration::from_secs(3600);
        if !bounds.contains(&self.lifetime.value) {
            let label = format!("must be from {} to {}", bounds.start(), bounds.end());
            d.error(self.lifetime.span.clone(), format!("`{}` is not possible here", self.lifetime.value)).label(label);
        }
        if let Some(beyond) = self.audience.get(16) {
            d.error(beyond.span.clone(), "the most audiences are 16");
        }
        if let Some(header) = &self.header
            && super::IdentityHeaders::wrong(std::slice::from_ref(header)).next().is_some()
        {
            d.error(header.span.clone(), format!("`{}` cannot be the header of a token", header.value));
        }
        let alone = [self.header.as_ref().map(|header| &header.span), self.audience.first().map(|audience| &audience.span)];
        if self.key.is_none()
            && let Some(span) = alone.into_iter().flatten().next()
        {
            d.error(span.clone(), "this says how identities are signed, and there is no `key`")
                .help("write key = { file = \"...\" }");
        }
    }

    /// The header that has the token, if there is one.
    pub fn header_name(&self) -> Option<&str> {
        self.key.as_ref()?;
        Some(self.header.as_ref().map_or(DEFAULT_HEADER, |header| header.as_str()))
    }
}

/// Where an identity keeps its token.
#[derive(Default)]
pub struct Signed(ArcSwapOption<Token>);

/// A token opens doors: it is not shown.
impl std::fmt::Debug for Signed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Signed")
    }
}

struct Token {
    value: HeaderValue,
    /// Who made it: another configuration makes others.
    signer: u64,
    /// Until when it is used, in seconds since 1970.
    until: u64,
}

enum Key {
    Ed25519(Box<Ed25519KeyPair>),
    P256(Box<EcdsaKeyPair>),
}

/// Makes the tokens.
pub struct IdentitySigner {
    key: Key,
    /// Header and a full stop, encoded.
    head: String,
    header: HeaderName,
    issuer: String,
    audience: Vec<String>,
    /// In seconds.
    lifetime: u64,
    jwks: String,
    number: u64,
    /// The token of a request that is nobody's.
    nobody: Signed,
}

impl std::fmt::Debug for IdentitySigner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "IdentitySigner({})", self.header)
    }
}

impl IdentitySigner {
    /// `None` without a key, or when it is wrong, which is reported.
    pub fn build(config: &IdentityConfig, d: &mut Diagnostics) -> Option<Self> {
        static NUMBER: AtomicU64 = AtomicU64::new(1);
        let source = config.key.as_ref()?;
        let file = source.span.as_ref().and_then(|span| d.source(span.file));
        let directory = file.and_then(|file| file.path.parent()).unwrap_or(Path::new("")).to_owned();
        let key = source.resolve(&directory).and_then(|pem| Key::read(pem.expose()));
        let key = match key {
            Ok(key) => key,
            Err(why) => {
                d.error(source.span.clone(), why);
                return None;
            }
        };
        let jwk = key.jwk();
        let head = json!({ "alg": key.algorithm(), "kid": jwk.get("kid"), "typ": "JWT" });
        Some(IdentitySigner {
            head: format!("{}.", URL_SAFE_NO_PAD.encode(head.to_string())),
            key,
            // What is wrong with it was told when the file was read.
            header: HeaderName::from_bytes(config.header_name()?.as_bytes()).ok()?,
            issuer: config.issuer.value.clone(),
            audience: config.audience.iter().map(|audience| audience.value.clone()).collect(),
            lifetime: config.lifetime.get().as_secs().max(1),
            jwks: format!("{}\n", json!({ "keys": [jwk] })),
            number: NUMBER.fetch_add(1, Ordering::Relaxed),
            nobody: Signed::default(),
        })
    }

    /// The key set that tokens are verified by (RFC 7517 section 5).
    pub fn jwks(&self) -> &str {
        &self.jwks
    }

    /// Writes the token of whoever calls. What a client wrote there is gone in any case.
    pub fn write(&self, identity: Option<&Identity>, now: SystemTime, head: &mut RequestHeader) {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        match self.token(identity, now) {
            // Fails only when the map is full (32,768 fields).
            Some(value) => drop(head.insert_header(self.header.clone(), value)),
            None => drop(head.remove_header(&self.header)),
        }
    }

    fn token(&self, identity: Option<&Identity>, now: u64) -> Option<HeaderValue> {
        let place = &identity.map_or(&self.nobody, |identity| &identity.signed).0;
        let known = place.load();
        // A clock that was set back makes a new one, too.
        let good = |token: &&Arc<Token>| {
            token.signer == self.number && now < token.until && token.until.saturating_sub(now) <= self.lifetime
        };
        if let Some(token) = known.as_ref().filter(good) {
            return Some(token.value.clone());
        }
        let value = self.sign(&self.claims(identity, now, true))?;
        let value = if value.len() > TOKEN_MAX { self.sign(&self.claims(identity, now, false))? } else { value };
        let mut value = HeaderValue::from_str(&value).ok()?;
        value.set_sensitive(true);
        let until = now.saturating_add(self.lifetime.div_ceil(2));
        place.store(Some(Arc::new(Token { value: value.clone(), signer: self.number, until })));
        Some(value)
    }

    fn claims(&self, identity: Option<&Identity>, now: u64, lists: bool) -> Value {
        let mut claims = json!({ "iss": self.issuer, "iat": now, "exp": now.saturating_add(self.lifetime) });
        let mut add = |name: &str, value: Value| {
            if let Value::Object(members) = &mut claims {
                members.insert(name.to_owned(), value);
            }
        };
        match self.audience.as_slice() {
            [] => {}
            [one] => add("aud", json!(one)),
            several => add("aud", json!(several)),
        }
        if let Some(identity) = identity {
            add("sub", json!(&*identity.name));
            add("credential", json!(&*identity.credential));
            if let Some(consumer) = &identity.consumer {
                add("consumer", json!(&*consumer.name));
            }
            if let Some(tier) = &identity.tier {
                add("tier", json!(&**tier));
            }
            let texts = |list: &[Arc<str>]| list.iter().map(|text| Value::from(&**text)).collect::<Vec<_>>();
            if lists && !identity.roles.is_empty() {
                add("roles", texts(&identity.roles).into());
            }
            if lists && !identity.scopes.is_empty() {
                add("scope", identity.scopes.iter().map(|scope| &**scope).collect::<Vec<_>>().join(" ").into());
            }
        }
        claims
    }

    fn sign(&self, claims: &Value) -> Option<String> {
        let mut token = self.head.clone();
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature = self.key.sign(token.as_bytes())?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Some(token)
    }
}

impl Key {
    /// The error is a sentence without the key.
    fn read(pem: &str) -> Result<Self, String> {
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

    fn algorithm(&self) -> &'static str {
        match self {
            Key::Ed25519(_) => "EdDSA",
            Key::P256(_) => "ES256",
        }
    }

    /// The public half, named by its thumbprint (RFC 7638).
    fn jwk(&self) -> Value {
        let part = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (mut jwk, thumbprint) = match self {
            Key::Ed25519(key) => {
                let x = part(key.public_key().as_ref());
                let thumbprint = format!("{{\"crv\":\"Ed25519\",\"kty\":\"OKP\",\"x\":\"{x}\"}}");
                (json!({ "kty": "OKP", "crv": "Ed25519", "x": x }), thumbprint)
            }
            Key::P256(key) => {
                // An uncompressed point: a four, and two coordinates of 32 bytes.
                let point = key.public_key().as_ref();
                let (x, y) = point.split_first().map_or((&[][..], &[][..]), |(_, both)| both.split_at(both.len() / 2));
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

    fn sign(&self, message: &[u8]) -> Option<Vec<u8>> {
        match self {
            Key::Ed25519(key) => Some(key.sign(message).as_ref().to_vec()),
            Key::P256(key) => key.sign(&SystemRandom::new(), message).ok().map(|signature| signature.as_ref().to_vec()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
    use base64::engine::general_purpose::STANDARD;

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der))
    }

    fn signer(pem: &str) -> IdentitySigner {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key.pem");
        std::fs::write(&path, pem).unwrap();
        let config = IdentityConfig {
            key: Some(Located::nowhere(SecretSource::File(path))),
            audience: vec![Located::nowhere("orders".to_owned())],
            ..IdentityConfig::default()
        };
        let mut d = Diagnostics::default();
        IdentitySigner::build(&config, &mut d).unwrap_or_else(|| panic!("{}", d.render(false)))
    }

    fn keys() -> [String; 2] {
        let random = SystemRandom::new();
        let ed = Ed25519KeyPair::generate_pkcs8(&random).unwrap();
        let p256 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random).unwrap();
        [pem(ed.as_ref()), pem(p256.as_ref())]
    }

    fn claims(token: &HeaderValue) -> Value {
        let payload = token.to_str().unwrap().split('.').nth(1).unwrap();
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap()
    }

    #[test]
    fn a_token_says_who_calls_and_verifies_by_the_key_set() {
        for pem in keys() {
            let signer = signer(&pem);
            let jwks: Value = serde_json::from_str(signer.jwks()).unwrap();
            let jwk = &jwks["keys"][0];
            assert!(jwk.get("d").is_none(), "the private half is published");
            let token = signer.token(Some(&Identity::for_test("acme")), 1_000).unwrap();
            assert_eq!(
                claims(&token),
                json!({ "iss": "gatewright", "aud": "orders", "iat": 1_000, "exp": 1_060, "sub": "acme", "consumer": "acme",
                        "credential": "api_key:00000000" })
            );
            assert_eq!(claims(&signer.token(None, 1_000).unwrap()).get("sub"), None, "nobody has no name");
            let text = token.to_str().unwrap();
            let (message, signature) = text.rsplit_once('.').unwrap();
            let signature = URL_SAFE_NO_PAD.decode(signature).unwrap();
            let coordinate = |name: &str| URL_SAFE_NO_PAD.decode(jwk[name].as_str().unwrap()).unwrap();
            let verified = match jwk["alg"].as_str().unwrap() {
                "EdDSA" => UnparsedPublicKey::new(&ED25519, coordinate("x")).verify(message.as_bytes(), &signature),
                _ => {
                    let point = [vec![4], coordinate("x"), coordinate("y")].concat();
                    UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(message.as_bytes(), &signature)
                }
            };
            assert!(verified.is_ok());
            let head: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text.split('.').next().unwrap()).unwrap()).unwrap();
            assert_eq!((&head["kid"], &head["alg"]), (&jwk["kid"], &jwk["alg"]));
        }
    }

    #[test]
    fn a_token_serves_for_half_its_life_and_for_one_signer() {
        let [first, second] = keys().map(|pem| signer(&pem));
        let identity = Identity::for_test("acme");
        let issued = |signer: &IdentitySigner, now| claims(&signer.token(Some(&identity), now).unwrap())["iat"].as_u64().unwrap();
        assert_eq!((issued(&first, 1_000), issued(&first, 1_029), issued(&first, 1_030)), (1_000, 1_000, 1_030));
        assert_eq!(issued(&second, 1_031), 1_031, "another signer, another token");
        assert_eq!(issued(&first, 1_032), 1_032);
        assert_eq!(issued(&first, 500), 500, "the clock was set back");
    }

    #[test]
    fn a_client_cannot_bring_its_own() {
        let [pem, _] = keys();
        let signer = signer(&pem);
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        head.append_header("x-gateway-identity", "forged").unwrap();
        head.append_header("x-gateway-identity", "twice").unwrap();
        signer.write(None, SystemTime::UNIX_EPOCH, &mut head);
        let values: Vec<_> = head.headers.get_all("x-gateway-identity").iter().collect();
        assert!(values.len() == 1 && values[0] != "forged", "{values:?}");
    }

    #[test]
    fn a_token_that_would_be_too_long_says_less() {
        let [pem, _] = keys();
        let signer = signer(&pem);
        let mut identity = Identity::nobody();
        identity.name = "acme".into();
        identity.roles = (0..1_000).map(|number| format!("role:{number}").into()).collect();
        let token = signer.token(Some(&identity), 1_000).unwrap();
        assert!(token.len() < 1_000 && claims(&token)["sub"] == "acme" && claims(&token).get("roles").is_none());
    }

    #[test]
    fn only_private_keys_of_known_kinds_are_read() {
        for wrong in ["", "no", "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"] {
            assert!(Key::read(wrong).is_err(), "{wrong}");
        }
    }
}
