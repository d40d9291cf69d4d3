//! `/limits`: how a key stands, forgetting it, and who is refused most. For operators: keys show who is counted.

use super::Admin;
use crate::consumer::{Consumer, Consumers, LONG};
use crate::identity::{Identity, Signed};
use crate::jwt::ClaimPath;
use crate::limit::top::Top;
use crate::request::{RequestCtx, Scheme};
use crate::snapshot::Route;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Instant;

/// The most keys of `/limits/top` without `count`.
const TOP: usize = 20;

/// The pairs of a query, decoded.
fn pairs(query: Option<&str>) -> Vec<(String, String)> {
    let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
    let pairs = query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap_or((pair, ""))).map(|(name, value)| (decode(name), decode(value))).collect()
}

/// The keys that were refused most often.
pub fn top(admin: &Admin, query: Option<&str>) -> Value {
    let count = pairs(query).iter().find(|(name, _)| name == "count").and_then(|(_, count)| count.parse().ok());
    let top = admin.state.get_or_create("limits", Top::default);
    let list = top.list(count.unwrap_or(TOP)).into_iter().map(|entry| {
        json!({
            "route": &*entry.route,
            "limit": &*entry.limit,
            "key": entry.key,
            "refused": entry.count,
            "of_which_maybe_others": entry.error,
        })
    });
    json!({ "refused": list.collect::<Vec<_>>() })
}

/// How the key of a request stands with each limit of its route: `route=NAME` and the facts that it is counted by.
pub async fn inspect(admin: &Admin, query: Option<&str>, reset: bool) -> (StatusCode, Value) {
    match facts(admin, &pairs(query)) {
        Err(why) => (StatusCode::BAD_REQUEST, json!({ "error": why })),
        Ok((route, ctx, headers, addressed)) => {
            let mut list = Vec::new();
            for limiter in route.chain.limiters() {
                if limiter.counts_addresses() && !addressed {
                    return (StatusCode::BAD_REQUEST, json!({ "error": "this route counts by address: give address=..." }));
                }
                list.push(limiter.inspect(&ctx, &headers, reset).await);
            }
            if list.is_empty() {
                return (StatusCode::BAD_REQUEST, json!({ "error": format!("route `{}` has no limits", route.name) }));
            }
            (StatusCode::OK, json!({ "route": &*route.name, "limits": list }))
        }
    }
}

/// A request that would have these facts.
fn facts(admin: &Admin, pairs: &[(String, String)]) -> Result<(Arc<Route>, RequestCtx, HeaderMap, bool), String> {
    let snapshot = admin.gateway.snapshot();
    let mut route = None;
    let mut ctx = RequestCtx::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), Scheme::Http, Instant::now());
    let mut headers = HeaderMap::new();
    let mut addressed = false;
    let (mut consumer, mut subject, mut credential, mut tier, mut claims) = (None, None, None, None, Map::new());
    for (name, value) in pairs {
        let text: Arc<str> = value.as_str().into();
        match (name.as_str(), name.split_once(':')) {
            ("route", _) => {
                let found = snapshot.routes().find(|route| *route.name == **value);
                route = Some(Arc::clone(found.ok_or_else(|| format!("there is no route `{value}`"))?));
            }
            ("address", _) => {
                ctx.client = value.parse().map_err(|_| format!("`{value}` is not an address"))?;
                addressed = true;
            }
            ("consumer", _) => consumer = Some(text),
            ("subject", _) => subject = Some(Subject::parse(value)?),
            ("credential", _) => credential = Some(counted(&snapshot.consumers, text)?),
            ("tier", _) => tier = Some(text),
            (_, Some(("header", header))) => {
                let header = HeaderName::from_bytes(header.to_ascii_lowercase().as_bytes());
                let header = header.map_err(|_| format!("`{name}` is not a header"))?;
                headers
                    .append(header, HeaderValue::from_str(value).map_err(|_| format!("`{value}` is not the value of a header"))?);
            }
            (_, Some(("claim", claim))) => {
                let (claim, value) = claim_of(claim, value)?;
                claim.put(&mut claims, value);
            }
            _ => {
                return Err(format!(
                    "`{name}` is no fact: give address, consumer, subject, credential, tier, header:NAME, claim:NAME or claim:NAME: with JSON"
                ));
            }
        }
    }
    let route = route.ok_or_else(|| "which route? give route=NAME".to_owned())?;
    ctx.route = Some(Arc::clone(&route.name));
    // One that is not in the configuration may be in Redis.
    let other = |name: &Arc<str>| Arc::new(Consumer { name: Arc::clone(name), enabled: true, ..Consumer::default() });
    let known = consumer.as_ref().map(|name| snapshot.consumers.get(name).cloned().unwrap_or_else(|| other(name)));
    if known.is_some() || subject.is_some() || credential.is_some() || tier.is_some() || !claims.is_empty() {
        let Subject { method, issuer, name } = subject.unwrap_or_default();
        let own = known.as_ref().and_then(|known| known.tier.as_ref()).map(|tier| Arc::clone(&tier.name));
        ctx.identity = Some(Arc::new(Identity {
            consumer: known,
            name: consumer.unwrap_or(name),
            credential: credential.unwrap_or_default(),
            counted: None,
            method,
            issuer,
            roles: Arc::default(),
            scopes: Arc::default(),
            tier: tier.or(own),
            claims: Some(Arc::new(claims)),
            signed: Signed::default(),
        }));
    }
    Ok((route, ctx, headers, addressed))
}

/// `NAME` has a text; `NAME:`, which operators write as `claim:NAME:=JSON`, has any value.
fn claim_of(name: &str, value: &str) -> Result<(ClaimPath, Value), String> {
    let Some(name) = name.strip_suffix(':') else { return Ok((ClaimPath::parse(name)?, Value::from(value))) };
    let json = serde_json::from_str(value);
    Ok((ClaimPath::parse(name)?, json.map_err(|why| format!("`{value}` is not JSON: {why}; for a text give claim:{name}=..."))?))
}

/// A credential as limits count it. Of an API key, whoever has seen it in a log or in `key list` knows only the first digits.
fn counted(consumers: &Consumers, text: Arc<str>) -> Result<Arc<str>, String> {
    let Some(digits) = text.strip_prefix("api_key:").map(str::to_ascii_lowercase) else { return Ok(text) };
    if let Some(long) = digits.get(..LONG) {
        return Ok(format!("api_key:{long}").into());
    }
    let mut like = consumers.api_keys_like(&digits);
    match (like.next(), like.next()) {
        (Some(one), None) => Ok(one.identity.counted().into()),
        // It may be the key itself, so it is not repeated.
        (Some(_), Some(_)) => Err("several API keys begin like that: give more of the hash".to_owned()),
        (None, _) => Err(format!(
            "no API key of the configuration begins like that: of one that was issued, give the first {LONG} digits of its SHA-256"
        )),
    }
}

/// Who is no consumer, as an identity has it.
#[derive(Default)]
struct Subject {
    method: &'static str,
    issuer: Option<Arc<str>>,
    name: Arc<str>,
}

impl Subject {
    /// `METHOD:NAME`, and `jwt:ISSUER:NAME`.
    fn parse(text: &str) -> Result<Subject, String> {
        let wrong = || format!("`{text}` is no subject: give jwt:ISSUER:NAME, mtls:NAME or forward_auth:NAME");
        let (method, rest) = text.split_once(':').ok_or_else(wrong)?;
        let method = ["jwt", "mtls", "forward_auth"].into_iter().find(|known| *known == method).ok_or_else(wrong)?;
        let (issuer, name) = match method {
            "jwt" => rest.split_once(':').map(|(issuer, name)| (Some(issuer.into()), name)).ok_or_else(wrong)?,
            _ => (None, rest),
        };
        Ok(Subject { method, issuer, name: name.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn queries_are_decoded() {
        let found = pairs(Some("route=a&header:x-key=1%262&flag&address=2001%3Adb8%3A%3A1"));
        let wanted = [("route", "a"), ("header:x-key", "1&2"), ("flag", ""), ("address", "2001:db8::1")];
        assert_eq!(found.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect::<Vec<_>>(), wanted);
        assert!(pairs(None).is_empty());
    }

    #[test]
    fn a_claim_is_a_text_unless_it_is_written_as_json() {
        let read = |name: &str, value: &str| claim_of(name, value).map(|(_, value)| value);
        assert_eq!(read("tenant", "7").unwrap(), json!("7"));
        for (written, value) in [("7", json!(7)), ("true", json!(true)), ("[1,\"a\"]", json!([1, "a"])), ("\"7\"", json!("7"))] {
            assert_eq!(read("tenant:", written).unwrap(), value);
        }
        assert_eq!(claim_of("a.b:", "7").unwrap().0, ClaimPath::parse("a.b").unwrap());
        assert!(read("tenant:", "acme").unwrap_err().contains("for a text give claim:tenant="));
        assert!(read(":", "7").unwrap_err().contains("is not the name of a claim"));
    }

    #[test]
    fn a_subject_is_named_with_who_vouches_for_it() {
        let read =
            |text: &str| Subject::parse(text).map(|is| (is.method, is.issuer.map(|is| is.to_string()), is.name.to_string()));
        assert_eq!(read("jwt:main:a:b").unwrap(), ("jwt", Some("main".to_owned()), "a:b".to_owned()));
        assert_eq!(read("mtls:spiffe://example/a").unwrap(), ("mtls", None, "spiffe://example/a".to_owned()));
        for wrong in ["acme", "jwt:acme", "api_key:acme", ""] {
            assert!(read(wrong).unwrap_err().contains("is no subject"), "{wrong}");
        }
    }
}
