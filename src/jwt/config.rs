//! `[jwt.NAME]`: one issuer of tokens.

use super::claims::ClaimPath;
use super::keys::{Algorithm, KeyKind};
use crate::diagnostic::{Diagnostics, Span};
use crate::fetch::Endpoint;
use crate::value::{Duration, Located, SecretSource};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// The most entries of each list.
const LIST_MAX: usize = 64;
/// The most verified tokens that are remembered.
const CACHE_MAX: u32 = 1 << 20;

/// Who issues tokens, with which keys, and what must hold for a token to count. The keys come from exactly one of `secret`,
/// `public_key` and `jwks`; never from a token.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct IssuerConfig {
    /// What the claim `iss` must be, exactly. Without it `iss` is not checked, and the issuer cannot share a filter with
    /// others, because they are told apart by it.
    pub issuer: Option<Located<String>>,
    /// Of which the claim `aud`, a text or a list, must name at least one, exactly; up to 64. Without it `aud` is not checked,
    /// and a token that was issued for another service is accepted.
    #[serde(default)]
    pub audience: Vec<Located<String>>,
    /// The algorithms that count. Each is used only with keys of its kind; one that fits none of the keys is an error.
    /// ES512 is not among them: the library that verifies has no P-521.
    pub algorithms: Located<Vec<Located<Algorithm>>>,
    /// The shared secret of HS256, HS384 and HS512; at least as long as the output of the hash: 32, 48 or 64 bytes.
    pub secret: Option<Located<SecretSource>>,
    /// How the secret is written. Default `"text"`.
    #[serde(default)]
    pub secret_encoding: SecretEncoding,
    /// A file with one public key in PEM, relative to this file: RSA of 2048 to 8192 bits, P-256, P-384 or Ed25519. Read at each
    /// start and reload.
    pub public_key: Option<Located<String>>,
    /// A set of JSON Web Keys, from a file or a URL.
    pub jwks: Option<Located<JwksConfig>>,
    /// How far the issuer's clock may be off, for `exp`, `nbf` and `iat`. Up to 10m, default 30s.
    #[serde(default = "leeway")]
    pub leeway: Located<Duration>,
    /// Whether a token must have `exp`. One that is there always counts. Default `true`.
    #[serde(default = "yes")]
    pub require_expiry: bool,
    /// The longest time from `iat` to `exp`; both must be there then. Default: none.
    pub max_lifetime: Option<Located<Duration>>,
    /// Which `typ` a token must have, without regard to case, `application/` may be left out; up to 64. Default: `JWT`, `at+jwt`, or
    /// none.
    pub types: Option<Vec<Located<String>>>,
    /// Claims that must be there, whatever they say, written as in `claims`; up to 64. Default: none.
    #[serde(default)]
    pub required_claims: Vec<Located<String>>,
    /// Which claims say who the caller is.
    #[serde(default)]
    pub claims: ClaimsConfig,
    /// Whether only tokens of a configured consumer count. Default `false`: a token without one stands for its subject.
    #[serde(default)]
    pub require_consumer: bool,
    /// Whether tokens can be withdrawn before they expire, through Redis; needs `[consumer_source]`. With its prefix, the key
    /// `PREFIX:denied:NAME:jti:ID` withdraws the token with that `jti`, and `PREFIX:denied:NAME:sub:SUBJECT` those of that `sub`: all of
    /// them, or, where the value is a time in seconds since 1970, those that were issued up to then. `NAME` is that of this section.
    /// Give the key a time to live as long as that of the tokens. While Redis is away, tokens whose standing is not known are
    /// answered with 503 `credentials_unavailable`. Default `false`.
    #[serde(default)]
    pub deny_list: Located<bool>,
    /// How many verified tokens are remembered, so that the next request with one costs a hash and no signature; each until it
    /// expires or the keys change. Rounded up to a power of two; when it is full, one makes room. Up to 1048576, default
    /// 8192, 0 is off. A remembered token takes about three times its size.
    #[serde(default = "cache")]
    #[schemars(range(min = 0, max = 1_048_576))]
    pub cache: Located<u32>,
}

/// How a secret is written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum SecretEncoding {
    /// Its bytes as they are.
    #[default]
    Text,
    /// In base64url without padding, as in the `k` of a JWK.
    Base64url,
}

/// A set of JSON Web Keys (RFC 7517): exactly one of `file` and `url`. Members that are not for verifying signatures, or of an
/// unknown kind, are left out.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JwksConfig {
    /// A file, relative to this one. Read at each start and reload.
    pub file: Option<Located<String>>,
    /// An `https` or `http` URL. It is fetched in the background, with ETag, of at most 256KiB; redirects are not followed. Secrets
    /// in it are left out. A token with an unknown `kid` has it fetched again, see `cooldown`. Until it has been fetched once,
    /// requests are rejected with `keys_unavailable`.
    pub url: Option<Located<String>>,
    /// How often it is fetched, from 1s to 24h; earlier where its `Cache-Control` has a shorter `max-age`. Default 10m. Shortened
    /// or prolonged by up to 10% at random. After a failure it is tried again after one second, then two, four, ... up to a
    /// minute.
    #[serde(default = "refresh")]
    pub refresh: Located<Duration>,
    /// How long the last keys count when it cannot be fetched, up to 30d and not shorter than `refresh`. Default 24h. After that,
    /// requests are rejected with `keys_unavailable`. An answer without any key that can be used, such as `{"keys":[]}`, counts as a
    /// failure too, so that a mistake of the identity provider locks nobody out: keys that leaked are withdrawn by a set that has at
    /// least one other.
    #[serde(default = "max_stale")]
    pub max_stale: Located<Duration>,
    /// How long one attempt may take, from 100ms to 60s. Default 5s.
    #[serde(default = "timeout")]
    pub timeout: Located<Duration>,
    /// The shortest time from one attempt to another that a token with an unknown `kid` can cause, from 1s to 10m. Default 10s.
    /// However many such tokens come, they cause one attempt.
    #[serde(default = "cooldown")]
    pub cooldown: Located<Duration>,
    /// A file with the certificates in PEM that an `https` URL is trusted by, relative to this file. Default: those of the system.
    pub ca: Option<Located<String>>,
}

/// Names of claims. `realm_access.roles` is the member `roles` of the claim `realm_access`; a name that begins with `https://` or
/// `http://` is one claim, dots and all. A claim of the wrong type makes the token invalid.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct ClaimsConfig {
    /// Names the caller. Where a consumer has this name, the token is the consumer's: write it only for issuers that may vouch for
    /// each of them. Default: `sub` names the caller, but only a consumer with the credential `{ jwt = { subject = "..." } }` is
    /// found by it. A token without it is refused.
    pub consumer: Option<Located<String>>,
    /// The roles, a list or a text with spaces between them, in addition to those of the consumer. Default: none.
    pub roles: Option<Located<String>>,
    /// The only roles that `roles` may bring; others are left out. With it, a filter that requires a role that neither this
    /// issuer nor a consumer can have is an error. Default: any.
    pub allowed_roles: Option<Vec<Located<String>>>,
    /// The scopes, a list or a text with spaces between them. Default: `scope`, and if it is not there `scp`.
    pub scopes: Option<Located<String>>,
    /// The tier, in place of that of the consumer. Default: none.
    pub tier: Option<Located<String>>,
}

fn yes() -> bool {
    true
}
fn leeway() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(30))
}
fn cache() -> Located<u32> {
    Located::nowhere(8192)
}
fn refresh() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(600))
}
fn max_stale() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(86_400))
}
fn timeout() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(5))
}
fn cooldown() -> Located<Duration> {
    Located::nowhere(Duration::from_secs(10))
}

impl IssuerConfig {
    /// Everything that can be said without reading keys. `name` is where the section's name is written.
    pub fn check(&self, name: &Located<String>, d: &mut Diagnostics) {
        self.check_source(name.span.clone(), d);
        self.check_algorithms(d);
        self.leeway.within(seconds(0, 600), d);
        if let Some(most) = &self.max_lifetime {
            most.within(seconds(1, 3_153_600_000), d);
        }
        if self.cache.value > CACHE_MAX {
            d.error(self.cache.span.clone(), format!("`{}` is more than {CACHE_MAX}", self.cache.value));
        }
        let types = self.types.iter().flatten();
        for text in self.issuer.iter().chain(&self.audience).chain(types) {
            if text.is_empty() {
                d.error(text.span.clone(), "this is empty, and no token can have it");
            }
        }
        if let Some(types) = &self.types
            && types.is_empty()
        {
            d.error(name.span.clone(), "`types` is empty, so no token can have one of them")
                .help("leave it out for the usual ones, or name them");
        }
        for list in [&self.audience, &self.required_claims].into_iter().chain(&self.types) {
            if let Some(beyond) = list.get(LIST_MAX) {
                d.error(beyond.span.clone(), format!("this list has {} entries, and the most is {LIST_MAX}", list.len()));
            }
        }
        if let (Some(allowed), None) = (&self.claims.allowed_roles, &self.claims.roles) {
            let span = allowed.first().and_then(|role| role.span.clone()).or_else(|| name.span.clone());
            d.error(span, "`allowed_roles` without `roles`: no claim brings any").help("say which claim has the roles");
        }
        for claim in self.required_claims.iter().chain(self.claims.all()) {
            if let Err(why) = ClaimPath::parse(claim) {
                d.error(claim.span.clone(), why).help("write `sub`, or `realm_access.roles` for a member of an object");
            }
        }
        if let Some(jwks) = &self.jwks {
            jwks.value.check(jwks.span.clone(), d);
        }
    }

    fn check_source(&self, span: Option<Span>, d: &mut Diagnostics) {
        let sources = [
            ("secret", self.secret.as_ref().map(|value| &value.span)),
            ("public_key", self.public_key.as_ref().map(|value| &value.span)),
            ("jwks", self.jwks.as_ref().map(|value| &value.span)),
        ];
        let mut written = sources.iter().filter_map(|(name, place)| place.map(|place| (name, place)));
        match (written.next(), written.next()) {
            (None, _) => {
                d.error(span, "this issuer has no keys")
                    .help("add `secret = { file = \"...\" }`, `public_key = \"...\"` or `jwks = { url = \"...\" }`");
            }
            (Some((first, place)), Some((second, other))) => {
                let found = d.error(other.clone(), format!("this issuer has both `{first}` and `{second}`"));
                found.help("keys come from one place; to change them over, use `jwks`, which holds several");
                if let Some(place) = place {
                    found.related(place.clone(), "the other keys");
                }
            }
            (Some(_), None) => {}
        }
    }

    fn check_algorithms(&self, d: &mut Diagnostics) {
        if self.algorithms.is_empty() {
            d.error(self.algorithms.span.clone(), "without algorithms no token can be verified");
        }
        for (index, algorithm) in self.algorithms.iter().enumerate() {
            if self.algorithms.iter().take(index).any(|known| known.value == algorithm.value) {
                d.error(algorithm.span.clone(), format!("`{}` stands twice", algorithm.name()));
            }
            let secret = algorithm.kind() == KeyKind::Secret;
            if let (true, Some(url)) = (secret, self.jwks.as_ref().and_then(|jwks| jwks.url.as_ref())) {
                let found = d.error(algorithm.span.clone(), format!("{} needs a shared secret", algorithm.name()));
                found.help("a secret that can be fetched from a URL is none: use `secret`");
                if let Some(span) = &url.span {
                    found.related(span.clone(), "the keys are public");
                }
            }
        }
    }
}

impl JwksConfig {
    fn check(&self, span: Option<Span>, d: &mut Diagnostics) {
        if self.file.is_some() == self.url.is_some() {
            d.error(span, "a key set has either `file` or `url`");
        }
        self.refresh.within(seconds(1, 86_400), d);
        self.max_stale.within(seconds(1, 30 * 86_400), d);
        self.cooldown.within(seconds(1, 600), d);
        self.timeout.within(Duration::from_millis(100)..=Duration::from_secs(60), d);
        if self.max_stale.value < self.refresh.value {
            d.error(self.max_stale.span.clone(), format!("`max_stale` is shorter than `refresh` ({})", self.refresh.value))
                .help("the keys would be too old before they are fetched again");
        }
        if let Some(ca) = &self.ca
            && !self.url.as_ref().is_some_and(|url| url.starts_with("https://"))
        {
            d.error(ca.span.clone(), "`ca` is for an `https` URL");
        }
        let Some(url) = &self.url else { return };
        match Endpoint::parse(url) {
            Err(why) => {
                d.error(url.span.clone(), why);
            }
            Ok(endpoint) if !endpoint.https && !endpoint.is_local() => {
                d.warning(url.span.clone(), "keys that are fetched over plain HTTP can be replaced by anyone on the way")
                    .help("use https");
            }
            Ok(_) => {}
        }
    }
}

impl ClaimsConfig {
    fn all(&self) -> impl Iterator<Item = &Located<String>> {
        [&self.consumer, &self.roles, &self.scopes, &self.tier].into_iter().flatten()
    }
}

fn seconds(from: u64, to: u64) -> RangeInclusive<Duration> {
    Duration::from_secs(from)..=Duration::from_secs(to)
}
