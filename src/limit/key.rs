//! What is counted by: which facts of a request make the key of a bucket.
//!
//! A key is text, so that it reads well in Redis, and two requests have the same text only if all their facts are the same:
//! values are escaped and told apart from absent ones. A fact that a request does not have is a value of its own, so that all
//! such requests share one bucket: whoever leaves a header out is not exempt.
//!
//! Keys are seen in Redis and by operators, so a header that holds credentials stands in them by its hash only.

use crate::identity::Identity;
use crate::jwt::ClaimPath;
use crate::request::RequestCtx;
use crate::text::put_ip;
use arrayvec::ArrayVec;
use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, header};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde_json::Value;
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::io::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

thread_local! {
    /// Where keys are written, so that a request needs no buffer of its own.
    static KEY: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The most facts of one key.
pub const FACTS_MAX: usize = 8;
/// The longest name of a claim, in bytes.
const CLAIM_MAX: usize = 128;
/// A longer value is not copied into the key but stands in it as a 128-bit hash, in bytes.
const VALUE_MAX: usize = 128;

/// What holds a credential whether or not a filter looks for it there: the upstream may.
const CREDENTIAL_HEADERS: [HeaderName; 6] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
    HeaderName::from_static("x-auth-token"),
    HeaderName::from_static("x-access-token"),
];

/// One fact of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    Address,
    Consumer,
    Credential,
    Header(HeaderName),
    /// A header with a credential.
    Credentials(HeaderName),
    Claim(ClaimPath),
    Route,
}

impl FromStr for By {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(name) = text.strip_prefix("header:") {
            return match HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()) {
                Ok(name) => Ok(By::Header(name)),
                Err(_) => Err(format!("`{name}` is not the name of a header")),
            };
        }
        match (text, text.strip_prefix("claim:")) {
            (_, Some(claim)) if claim.len() <= CLAIM_MAX => {
                let help = "write claim:sub, or claim:realm_access.org for a member of an object";
                ClaimPath::parse(claim).map(By::Claim).map_err(|why| format!("{why}: {help}"))
            }
            (_, Some(claim)) => {
                Err(format!("`{claim}` is longer than the {CLAIM_MAX} bytes that the name of a claim may have here"))
            }
            ("address", _) => Ok(By::Address),
            ("consumer", _) => Ok(By::Consumer),
            ("credential", _) => Ok(By::Credential),
            ("route", _) => Ok(By::Route),
            _ => Err(format!(
                "`{text}` is nothing to count by: use address, consumer, credential, header:NAME, claim:NAME or route"
            )),
        }
    }
}

/// One fact or a list of them, as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByConfig(pub Vec<By>);

struct ByVisitor;

impl<'de> Visitor<'de> for ByVisitor {
    type Value = ByConfig;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string such as \"address\", or a list of such strings")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<ByConfig, E> {
        text.parse().map(|by| ByConfig(vec![by])).map_err(E::custom)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<ByConfig, A::Error> {
        let mut facts = Vec::new();
        while let Some(text) = list.next_element::<String>()? {
            let by = text.parse().map_err(de::Error::custom)?;
            if facts.contains(&by) {
                return Err(de::Error::custom(format!("`{text}` stands twice")));
            }
            facts.push(by);
        }
        if facts.is_empty() || facts.len() > FACTS_MAX {
            return Err(de::Error::custom(format!("a key is made of 1 to {FACTS_MAX} facts")));
        }
        Ok(ByConfig(facts))
    }
}

impl<'de> Deserialize<'de> for ByConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ByVisitor)
    }
}

impl JsonSchema for ByConfig {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "By".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let one = json_schema!({ "type": "string", "pattern": "^(address|consumer|credential|route|header:.+|claim:.+)$" });
        json_schema!({ "title": "fact or list of facts", "anyOf": [one, { "type": "array", "items": one, "minItems": 1, "maxItems": FACTS_MAX }] })
    }
}

/// Hands out the buffer of this thread, empty.
pub fn scratch<T>(work: impl FnOnce(&mut Vec<u8>) -> T) -> T {
    KEY.with_borrow_mut(|key| {
        key.clear();
        work(key)
    })
}

/// How a filter makes keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    pub facts: Box<[By]>,
    /// How many leading bits of an IPv6 address tell one client from another, up to 128.
    pub ipv6_prefix: u8,
}

impl Keys {
    /// `credential_headers`: those in which the filters of the route look for credentials.
    pub fn new(by: ByConfig, ipv6_prefix: u8, credential_headers: &[HeaderName]) -> Self {
        let hidden = |name: &HeaderName| CREDENTIAL_HEADERS.contains(name) || credential_headers.contains(name);
        let facts = by.0.into_iter().map(|by| match by {
            By::Header(name) if hidden(&name) => By::Credentials(name),
            by => by,
        });
        Keys { facts: facts.collect(), ipv6_prefix }
    }

    /// Whether a fact is of who is calling, so that without authentication everybody would share one count.
    pub fn need_identity(&self) -> bool {
        self.facts.iter().any(|by| matches!(by, By::Consumer | By::Credential | By::Claim(_)))
    }

    /// Appends the key of a request.
    pub fn write(&self, ctx: &RequestCtx, headers: &HeaderMap, out: &mut Vec<u8>) {
        for (number, by) in self.facts.iter().enumerate() {
            if number > 0 {
                out.push(b'|');
            }
            match by {
                By::Address => {
                    out.extend_from_slice(b"a:");
                    put_ip(out, self.network(ctx.client));
                }
                By::Consumer => match ctx.identity.as_deref() {
                    Some(identity) if identity.consumer.is_none() => self.subject(identity, out),
                    identity => self.value(b"c", identity.map(|identity| identity.name.as_bytes()), out),
                },
                By::Credential => self.value(b"k", ctx.identity.as_ref().map(|identity| identity.counted().as_bytes()), out),
                By::Route => self.value(b"r", ctx.route.as_ref().map(|route| route.as_bytes()), out),
                By::Claim(path) => {
                    let claims = ctx.identity.as_ref().and_then(|identity| identity.claims.as_ref());
                    match claims.and_then(|claims| path.find(claims)) {
                        Some(Value::String(text)) => self.value(b"t", Some(text.as_bytes()), out),
                        Some(other) => self.json(other, out),
                        None => self.value(b"t", None, out),
                    }
                }
                By::Header(name) => {
                    let mut values = headers.get_all(name).iter();
                    self.value(b"h", values.next().map(|value| value.as_bytes()), out);
                    // Further lines belong to the key too: else a client would choose which of them counts.
                    for more in values {
                        self.value(b",h", Some(more.as_bytes()), out);
                    }
                }
                By::Credentials(name) => {
                    let mut values = headers.get_all(name).iter().peekable();
                    if values.peek().is_none() {
                        self.value(b"h", None, out);
                    }
                    for (number, value) in values.enumerate() {
                        let kind = if number == 0 { "h" } else { ",h" };
                        let _ = write!(out, "{kind}#{:032x}", one_way(value.as_bytes()));
                    }
                }
            }
        }
    }

    /// Somebody who is no consumer, and may be called like one: whoever vouches for the name is part of the key.
    fn subject(&self, identity: &Identity, out: &mut Vec<u8>) {
        self.value(b"s", Some(identity.method.as_bytes()), out);
        if let Some(issuer) = &identity.issuer {
            self.value(b",i", Some(issuer.as_bytes()), out);
        }
        self.value(b",n", Some(identity.name.as_bytes()), out);
    }

    fn network(&self, address: IpAddr) -> IpAddr {
        match address.to_canonical() {
            IpAddr::V6(v6) => {
                let mask = u128::MAX.checked_shl(128_u32.saturating_sub(self.ipv6_prefix.into())).unwrap_or(0);
                IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & mask))
            }
            v4 => v4,
        }
    }

    /// A claim that is no text stands there as its JSON, which is written where the key is: a request needs no text for it.
    fn json(&self, claim: &Value, out: &mut Vec<u8>) {
        let start = out.len();
        // Cannot fail: the claim was read from JSON, and a vector takes what is written.
        let _ = serde_json::to_writer(&mut *out, claim);
        let written = out.get(start..).unwrap_or_default();
        let mut short = ArrayVec::<u8, VALUE_MAX>::new();
        let long = short.try_extend_from_slice(written).is_err().then(|| fnv128(written));
        out.truncate(start);
        match long {
            Some(hash) => {
                let _ = write!(out, "j#{hash:032x}");
            }
            None => self.value(b"j", Some(&short), out),
        }
    }

    fn value(&self, kind: &[u8], value: Option<&[u8]>, out: &mut Vec<u8>) {
        out.extend_from_slice(kind);
        let Some(value) = value else {
            out.push(b'-');
            return;
        };
        if value.len() > VALUE_MAX {
            let _ = write!(out, "#{:032x}", fnv128(value));
            return;
        }
        out.push(b':');
        for byte in value {
            match byte {
                // The separators of keys, and the braces that mean something to a Redis Cluster.
                b'%' | b'|' | b',' | b'{' | b'}' | ..=b' ' | 0x7f.. => {
                    let _ = write!(out, "%{byte:02x}");
                }
                plain => out.push(*plain),
            }
        }
    }
}

/// Half of SHA-256: the same in every gateway, and nothing that the value can be found from, unless it can be guessed.
fn one_way(value: &[u8]) -> u128 {
    let digest = digest(&SHA256, value);
    digest.as_ref().iter().take(16).fold(0, |half, byte| half << 8 | u128::from(*byte))
}

/// FNV-1a over 128 bits: the same in every gateway of every version. Who makes two values collide shares a bucket with
/// themselves.
pub(super) fn fnv128(bytes: &[u8]) -> u128 {
    bytes.iter().fold(0x6c62_272e_07bb_0142_62b8_2175_6295_c58d, |hash: u128, byte| {
        (hash ^ u128::from(*byte)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::Arc;

    fn key(facts: &[&str], ctx: &RequestCtx, headers: &[(&'static str, &str)]) -> String {
        let by = ByConfig(facts.iter().map(|text| text.parse().unwrap()).collect());
        let keys = Keys::new(by, 64, &[HeaderName::from_static("x-key-of-ours")]);
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        let mut out = Vec::new();
        keys.write(ctx, &map, &mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn keys_are_read_as_they_are_configured() {
        let mut ctx = RequestCtx::for_test();
        assert_eq!(key(&["address"], &ctx, &[]), "a:192.0.2.7");
        ctx.client = "2001:db8:1:2:3:4:5:6".parse().unwrap();
        assert_eq!(key(&["address"], &ctx, &[]), "a:2001:db8:1:2::");
        ctx.client = "::ffff:192.0.2.9".parse().unwrap();
        assert_eq!(key(&["address"], &ctx, &[]), "a:192.0.2.9");
        assert_eq!(key(&["consumer", "route", "header:X-Key", "claim:org"], &ctx, &[]), "c-|r-|h-|t-");
        ctx.identity = Some(Identity::for_test("acme"));
        ctx.route = Some("orders".into());
        assert_eq!(key(&["consumer", "route", "header:x-key"], &ctx, &[("x-key", "v")]), "c:acme|r:orders|h:v");
        assert_eq!(key(&["credential"], &ctx, &[]), "k:api_key:00000000");
    }

    #[test]
    fn nobody_is_counted_as_the_consumer_whose_name_they_have() {
        let of = |identity: Identity| {
            let mut ctx = RequestCtx::for_test();
            ctx.identity = Some(Arc::new(identity));
            key(&["consumer"], &ctx, &[])
        };
        let subject = |method: &'static str, issuer: Option<&str>, name: &str| {
            of(Identity { method, issuer: issuer.map(Arc::from), name: name.into(), ..Identity::nobody() })
        };
        assert_eq!(subject("jwt", Some("main"), "acme"), "s:jwt,i:main,n:acme");
        assert_eq!(subject("mtls", None, "acme"), "s:mtls,n:acme");
        let keys = [
            key(&["consumer"], &RequestCtx { identity: Some(Identity::for_test("acme")), ..RequestCtx::for_test() }, &[]),
            subject("jwt", Some("main"), "acme"),
            subject("jwt", Some("main"), "zenith"),
            subject("jwt", Some("other"), "acme"),
            subject("jwt", Some("other,n:acme"), ""),
            subject("mtls", None, "acme"),
            subject("forward_auth", None, "acme"),
        ];
        assert_eq!(keys[0], "c:acme");
        let unique: std::collections::HashSet<&String> = keys.iter().collect();
        assert_eq!(unique.len(), keys.len(), "{keys:#?}");
    }

    #[test]
    fn an_ipv6_client_is_known_by_as_many_bits_as_are_configured() {
        let mut ctx = RequestCtx::for_test();
        let mut of = |address: &str, prefix| {
            ctx.client = address.parse().unwrap();
            let keys = Keys::new(ByConfig(vec![By::Address]), prefix, &[]);
            let mut out = Vec::new();
            keys.write(&ctx, &HeaderMap::new(), &mut out);
            String::from_utf8(out).unwrap()
        };
        for (prefix, key) in [
            (128, "a:2001:db8:1:2ff:3:4:5:7"),
            (127, "a:2001:db8:1:2ff:3:4:5:6"),
            (65, "a:2001:db8:1:2ff::"),
            (56, "a:2001:db8:1:200::"),
            (48, "a:2001:db8:1::"),
            (47, "a:2001:db8::"),
            (1, "a:::"),
            (0, "a:::"),
        ] {
            assert_eq!(of("2001:db8:1:2ff:3:4:5:7", prefix), key, "/{prefix}");
            // An address of the other kind is one client, however it came.
            for v4 in ["192.0.2.9", "::ffff:192.0.2.9"] {
                assert_eq!(of(v4, prefix), "a:192.0.2.9", "/{prefix}");
            }
        }
        assert_eq!(of("f001:db8::", 1), "a:8000::");
    }

    #[test]
    fn claims_are_found_by_the_paths_that_issuers_have_them_under() {
        let of = |claims: Value| {
            let mut ctx = RequestCtx::for_test();
            let claims = Some(Arc::new(claims.as_object().unwrap().clone()));
            ctx.identity = Some(Arc::new(Identity { claims, ..Identity::nobody() }));
            key(&["claim:realm_access.org", "claim:https://example.com/plan", "claim:seats"], &ctx, &[])
        };
        let org = |org: Value| of(json!({ "realm_access": { "org": org } }));
        assert_eq!(org(json!("acme")), "t:acme|t-|t-");
        assert_eq!(org(json!("zenith")), "t:zenith|t-|t-");
        assert_eq!(of(json!({ "https://example.com/plan": "gold", "seats": 7 })), "t-|t:gold|j:7");
        // Text and a number that read alike are two values.
        assert_eq!((org(json!(7)), org(json!("7"))), ("j:7|t-|t-".into(), "t:7|t-|t-".into()));
        assert_eq!(org(json!({ "id": [true, 1.5] })), "j:%7b\"id\":[true%2c1.5]%7d|t-|t-");
        let (long, longer) = (org(json!(["x".repeat(200)])), org(json!(["x".repeat(201)])));
        assert!(long.starts_with("j#") && long.len() == "j#|t-|t-".len() + 32, "{long}");
        assert_ne!(long, longer);
        // Nothing of these is there: neither a claim whose name has a dot in it, nor a member of what has none.
        for absent in
            [json!({}), json!({ "realm_access.org": "acme" }), json!({ "realm_access": "org" }), json!({ "realm_access": {} })]
        {
            assert_eq!(of(absent.clone()), "t-|t-|t-", "{absent}");
        }
        assert_eq!(org(Value::Null), "t-|t-|t-");
    }

    #[test]
    fn what_names_no_claim_is_refused() {
        let long = format!("claim:{}", "x".repeat(CLAIM_MAX + 1));
        for (text, why) in [
            ("claim:", "`` is not the name of a claim"),
            ("claim:realm_access..org", "`realm_access..org` is not the name of a claim: write claim:sub, or"),
            ("claim:.org", "`.org` is not the name of a claim"),
            (&long, "longer than the 128 bytes"),
            ("claims:org", "`claims:org` is nothing to count by"),
        ] {
            let said = text.parse::<By>().unwrap_err();
            assert!(said.contains(why), "{text}: {said}");
        }
    }

    #[test]
    fn credentials_stand_in_keys_by_their_hash_alone() {
        let ctx = RequestCtx::for_test();
        for name in ["authorization", "cookie", "x-api-key", "x-key-of-ours"] {
            let of = |values: &[(&'static str, &str)]| key(&[&format!("header:{name}"), "address"], &ctx, values);
            assert_eq!(of(&[]), "h-|a:192.0.2.7");
            let (one, other) = (of(&[(name, "secret")]), of(&[(name, "secret2")]));
            // printf secret | sha256sum
            assert_eq!(one, "h#2bb80d537b1da3e38bd30361aa855686|a:192.0.2.7");
            assert_ne!(one, other);
            let two = of(&[(name, "secret"), (name, "secret2")]);
            assert!(two.starts_with("h#2bb80d537b1da3e38bd30361aa855686,h#") && !two.contains("secret"), "{two}");
        }
    }

    #[test]
    fn no_value_can_look_like_another_key() {
        let ctx = RequestCtx::for_test();
        let of = |values: &[(&'static str, &str)]| key(&["header:x-a", "header:x-b"], &ctx, values);
        let long = "x".repeat(500);
        let keys = [
            of(&[]),
            of(&[("x-a", "")]),
            of(&[("x-a", "-")]),
            of(&[("x-a", "1|h:2")]),
            of(&[("x-a", "1"), ("x-b", "2")]),
            of(&[("x-a", "1"), ("x-a", "2")]),
            of(&[("x-a", "1,h:2")]),
            of(&[("x-a", &long)]),
            of(&[("x-a", &format!("{long}y"))]),
            of(&[("x-a", "{b}")]),
        ];
        let unique: std::collections::HashSet<&String> = keys.iter().collect();
        assert_eq!(unique.len(), keys.len(), "{keys:#?}");
        assert!(keys.iter().all(|key| key.len() < 200 && !key.contains(['{', '}'])), "{keys:#?}");
    }
}
