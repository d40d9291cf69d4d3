//! Who calls, in a token of the gateway's own: what a service can check that does not trust the network.
//!
//! Headers such as `X-Consumer-Name` are worth as much as the path between gateway and service. A short-lived JSON Web Token says
//! the same with a signature: that the request came through this gateway, and as whom. It is made once for each identity and
//! half of its life, so that a request costs a comparison and no signature.
//!
//! Services keep the key set for as long as they like, so a key must be published before the first token that it has signed, and
//! after the last one: the set holds more than the key that signs.

use super::Identity;
use super::keys::{Key, PublicKey};
use crate::diagnostic::Diagnostics;
use crate::value::{Duration, Located, SecretSource};
use arc_swap::ArcSwapOption;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

/// The most keys that are published besides the one that signs.
const PUBLISHED_MAX: usize = 8;
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
    /// Further keys in the key set, up to 8, in PEM: public keys, or private ones of which the public half is published. To rotate, publish
    /// the next key here and reload; when services have read the set again, make it the `key` and publish the old one here;
    /// take that out when `lifetime` has passed and services have read the set once more. Default: none.
    pub also_publish: Vec<Located<SecretSource>>,
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
            also_publish: Vec::new(),
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
        self.lifetime.within(Duration::from_secs(10)..=Duration::from_secs(3600), d);
        if let Some(beyond) = self.audience.get(16) {
            d.error(beyond.span.clone(), "the most audiences are 16");
        }
        if let Some(header) = &self.header
            && super::IdentityHeaders::wrong(std::slice::from_ref(header)).next().is_some()
        {
            d.error(header.span.clone(), format!("`{}` cannot be the header of a token", header.value));
        }
        if let Some(beyond) = self.also_publish.get(PUBLISHED_MAX) {
            d.error(beyond.span.clone(), format!("the most keys besides the one that signs are {PUBLISHED_MAX}"));
        }
        let alone = [
            self.header.as_ref().map(|header| &header.span),
            self.audience.first().map(|audience| &audience.span),
            self.also_publish.first().map(|source| &source.span),
        ];
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
        let key = read(source, Key::read, d);
        let further: Vec<_> = config.also_publish.iter().map(|source| read(source, PublicKey::read, d)).collect();
        let key = key?;
        let public = key.public();
        let mut published = vec![public.jwk()];
        for (source, further) in config.also_publish.iter().zip(further) {
            let jwk = further?.jwk();
            if published.contains(&jwk) {
                d.error(source.span.clone(), "this key is published already").help("take it out");
                return None;
            }
            published.push(jwk);
        }
        let head = json!({ "alg": public.algorithm(), "kid": published.first()?.get("kid"), "typ": "JWT" });
        Some(IdentitySigner {
            head: format!("{}.", URL_SAFE_NO_PAD.encode(head.to_string())),
            key,
            // What is wrong with it was told when the file was read.
            header: HeaderName::from_bytes(config.header_name()?.as_bytes()).ok()?,
            issuer: config.issuer.value.clone(),
            audience: config.audience.iter().map(|audience| audience.value.clone()).collect(),
            lifetime: config.lifetime.get().as_secs().max(1),
            jwks: format!("{}\n", json!({ "keys": published })),
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

/// What a source has; `None` when that is wrong, which is reported.
fn read<T>(source: &Located<SecretSource>, parse: impl Fn(&str) -> Result<T, String>, d: &mut Diagnostics) -> Option<T> {
    let file = source.span.as_ref().and_then(|span| d.source(span.file));
    let directory = file.and_then(|file| file.path.parent()).unwrap_or(Path::new("")).to_owned();
    match source.resolve(&directory).and_then(|pem| parse(pem.expose())) {
        Ok(read) => Some(read),
        Err(why) => {
            d.error(source.span.clone(), why);
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rand::SystemRandom;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair};
    use base64::engine::general_purpose::STANDARD;

    fn pem(der: &[u8]) -> String {
        format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der))
    }

    fn signer(pem: &str) -> IdentitySigner {
        publishing(pem, &[]).unwrap_or_else(|wrong| panic!("{wrong}"))
    }

    fn publishing(pem: &str, further: &[&str]) -> Result<IdentitySigner, String> {
        let directory = tempfile::tempdir().unwrap();
        let source = |name: &str, pem: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, pem).unwrap();
            Located::nowhere(SecretSource::File(path))
        };
        let config = IdentityConfig {
            key: Some(source("key.pem", pem)),
            also_publish: further.iter().enumerate().map(|(n, pem)| source(&n.to_string(), pem)).collect(),
            audience: vec![Located::nowhere("orders".to_owned())],
            ..IdentityConfig::default()
        };
        let mut d = Diagnostics::default();
        IdentitySigner::build(&config, &mut d).ok_or_else(|| d.render(false))
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
    fn the_set_holds_further_keys_by_their_public_halves() {
        let ([first, second], [third, _]) = (keys(), keys());
        let keys_of =
            |signer: &IdentitySigner| serde_json::from_str::<Value>(signer.jwks()).unwrap()["keys"].as_array().unwrap().clone();
        let own = |pem: &str| keys_of(&signer(pem)).remove(0);
        let all = keys_of(&publishing(&first, &[&second, &third]).unwrap());
        assert_eq!(all, [own(&first), own(&second), own(&third)], "the one that signs comes first");
        for twice in [&[first.as_str()][..], &[second.as_str(), second.as_str()]] {
            assert!(publishing(&first, twice).unwrap_err().contains("published already"));
        }
        assert!(publishing(&first, &["no"]).is_err());
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
}
