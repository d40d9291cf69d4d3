//! Signed requests (RFC 9421, HTTP Message Signatures): what was signed, by which key, and when.
//!
//! [`verify`] finds the signature of a key that is known, builds the signature base from the request as it arrived and
//! verifies it. Whatever is not understood makes the signature not count: an unknown component, an unknown component
//! parameter, a field that is not there. The body is bound by `Content-Digest` (RFC 9530), see [`digest`].

mod base;
pub mod digest;
mod key;
mod replay;
mod shared;
#[cfg(test)]
mod tests;

pub use base::RequestParts;
pub use key::{SignatureAlgorithm, VerifyKey};
pub use replay::{Replays, Seen};
pub use shared::SharedReplays;

use aws_lc_rs::digest as sha;
use http::HeaderMap;
use http::HeaderName;
use sfv::{BareItem, Dictionary, FieldType, InnerList, ListEntry, Parser};
use std::time::Duration;

pub const SIGNATURE: HeaderName = HeaderName::from_static("signature");
pub const SIGNATURE_INPUT: HeaderName = HeaderName::from_static("signature-input");

/// The longest `Signature-Input` and `Signature`, in bytes, all lines together.
const FIELD_MAX: usize = 16 << 10;
/// The most signatures of one request that are looked at.
const SIGNATURES_MAX: usize = 8;
/// The most components that one signature may cover.
const COMPONENTS_MAX: usize = 64;

/// Why a signature does not count. For logs and metrics; clients are told less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not a dictionary of structured fields as RFC 9421 section 4 describes.
    Malformed,
    /// No signature by a key that is known.
    UnknownKey,
    /// It covers something that is not in the request, or not in a way that is known here.
    Component,
    /// It does not cover what must be covered.
    Uncovered,
    /// It names another algorithm than that of the key, or another tag than the one asked for.
    Algorithm,
    /// `created` is missing, too old, or in the future; or `expires` has passed.
    Expired,
    NotYet,
    /// There is no `nonce`, and there must be one.
    Nonce,
    Signature,
}

/// What must hold besides a good signature.
#[derive(Debug, Clone)]
pub struct Rules {
    /// What must be covered, written as in `Signature-Input` without quotes.
    pub components: Box<[Box<str>]>,
    pub max_age: Duration,
    pub skew: Duration,
    pub nonce: bool,
    pub tag: Option<Box<str>>,
}

/// A signature that counts.
#[derive(Debug)]
pub struct Verified {
    /// Whether `content-digest` is covered.
    pub digest: bool,
    /// Tells this request from every other that the key has signed.
    pub fingerprint: [u8; 32],
    /// Until when it would count again, in seconds since 1970.
    pub until: u64,
}

/// Whether the request has a signature at all.
pub fn is_signed(headers: &HeaderMap) -> bool {
    headers.contains_key(&SIGNATURE_INPUT) || headers.contains_key(&SIGNATURE)
}

/// Verifies the first signature whose key `find` knows. `now` in seconds since 1970.
pub fn verify<'k, K>(
    parts: &RequestParts<'_>,
    rules: &Rules,
    now: u64,
    find: impl Fn(&str) -> Option<(&'k VerifyKey, K)>,
) -> Result<(Verified, K), Refusal> {
    let inputs = dictionary(parts.headers, &SIGNATURE_INPUT)?;
    let signatures = dictionary(parts.headers, &SIGNATURE)?;
    if inputs.len() > SIGNATURES_MAX {
        return Err(Refusal::Malformed);
    }
    for (label, input) in &inputs {
        let ListEntry::InnerList(input) = input else { return Err(Refusal::Malformed) };
        let Some(id) = text(input, "keyid") else { continue };
        let Some((key, found)) = find(id) else { continue };
        let Some(ListEntry::Item(signature)) = signatures.get(label) else { return Err(Refusal::Malformed) };
        let Some(signature) = signature.bare_item.as_byte_sequence() else { return Err(Refusal::Malformed) };
        let until = check(input, key, rules, now)?;
        let base = base::base(parts, input)?;
        if !key.verifies(base.as_bytes(), signature) {
            return Err(Refusal::Signature);
        }
        // Of what was signed and not of the signature: of some algorithms one message has many.
        let mut context = sha::Context::new(&sha::SHA256);
        context.update(id.as_bytes());
        context.update(&[0]);
        context.update(base.as_bytes());
        let mut fingerprint = [0; 32];
        fingerprint.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        return Ok((Verified { digest: covers(input, "content-digest"), fingerprint, until }, found));
    }
    Err(Refusal::UnknownKey)
}

/// Everything about a signature but the signature. Gives the time until which it counts.
fn check(input: &InnerList, key: &VerifyKey, rules: &Rules, now: u64) -> Result<u64, Refusal> {
    if input.items.len() > COMPONENTS_MAX {
        return Err(Refusal::Malformed);
    }
    let seconds = |name: &str| match input.params.get(name) {
        None => Ok(None),
        Some(BareItem::Integer(at)) => u64::try_from(i64::from(*at)).map(Some).map_err(|_| Refusal::Malformed),
        Some(_) => Err(Refusal::Malformed),
    };
    for name in ["alg", "nonce", "tag"] {
        if input.params.get(name).is_some_and(|value| value.as_string().is_none()) {
            return Err(Refusal::Malformed);
        }
    }
    let other = |wanted: Option<&str>, name: &str| wanted.is_some_and(|wanted| text(input, name) != Some(wanted));
    if text(input, "alg").is_some_and(|algorithm| algorithm != key.algorithm().name()) || other(rules.tag.as_deref(), "tag") {
        return Err(Refusal::Algorithm);
    }
    if rules.nonce && text(input, "nonce").is_none_or(str::is_empty) {
        return Err(Refusal::Nonce);
    }
    let created = seconds("created")?.ok_or(Refusal::Expired)?;
    let (skew, max_age) = (rules.skew.as_secs(), rules.max_age.as_secs());
    if created > now.saturating_add(skew) {
        return Err(Refusal::NotYet);
    }
    let until = created.saturating_add(max_age).saturating_add(skew);
    let until = seconds("expires")?.map_or(until, |expires| until.min(expires.saturating_add(skew)));
    if now >= until {
        return Err(Refusal::Expired);
    }
    if rules.components.iter().any(|component| !covers(input, component)) {
        return Err(Refusal::Uncovered);
    }
    Ok(until)
}

fn text<'a>(input: &'a InnerList, name: &str) -> Option<&'a str> {
    input.params.get(name)?.as_string().map(sfv::StringRef::as_str)
}

/// Whether a component is covered as a whole: without parameters that make it mean a part.
fn covers(input: &InnerList, component: &str) -> bool {
    let mut items = input.items.iter().filter(|item| item.params.is_empty());
    items.any(|item| item.bare_item.as_string().is_some_and(|name| name.as_str() == component))
}

/// A dictionary that may be spread over several lines.
fn dictionary(headers: &HeaderMap, name: &HeaderName) -> Result<Dictionary, Refusal> {
    let mut all = Vec::new();
    for line in headers.get_all(name) {
        if !all.is_empty() {
            all.extend_from_slice(b", ");
        }
        all.extend_from_slice(line.as_bytes());
    }
    if all.is_empty() || all.len() > FIELD_MAX {
        return Err(Refusal::Malformed);
    }
    Dictionary::parse(Parser::new(&all)).map_err(|_| Refusal::Malformed)
}
