//! Preconditions of a request against a stored response (RFC 9110 §13, RFC 9111 §4.3.2).
//!
//! `If-Match` and `If-Unmodified-Since` guard changes against an origin's current state, which a cache does not know: such
//! requests go to the origin and never come here.

use super::date;
use http::{HeaderMap, HeaderValue, header};

/// Whether a client that says what it holds has this response already.
pub fn not_modified(request: &HeaderMap, stored: &HeaderMap) -> bool {
    if request.contains_key(header::IF_NONE_MATCH) {
        let Some(etag) = stored.get(header::ETAG).map(|etag| opaque(etag.as_bytes())) else {
            // A representation there is, whatever its tag.
            return request.get_all(header::IF_NONE_MATCH).iter().any(|line| line.as_bytes().trim_ascii() == b"*");
        };
        return request.get_all(header::IF_NONE_MATCH).iter().any(|line| names(line.as_bytes(), etag));
    }
    let Some(since) = request.get(header::IF_MODIFIED_SINCE).and_then(date::read) else { return false };
    // Without Last-Modified it is Date that is compared (RFC 9111 §4.3.2).
    let modified = stored.get(header::LAST_MODIFIED).or_else(|| stored.get(header::DATE)).and_then(date::read);
    modified.is_some_and(|modified| modified <= since)
}

/// Whether `Range` is to be heeded (RFC 9110 §13.1.5): the client must hold a part of exactly this representation.
pub fn range_applies(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let Some(condition) = request.get(header::IF_RANGE) else { return true };
    let text = condition.as_bytes().trim_ascii();
    if text.starts_with(b"\"") {
        return stored.get(header::ETAG).is_some_and(|etag| etag.as_bytes().trim_ascii() == text);
    }
    if text.starts_with(b"W/") {
        return false;
    }
    // A date is strong when it is long enough before Date (§8.8.2.2).
    let strong = match (stored.get(header::LAST_MODIFIED).and_then(date::read), stored.get(header::DATE).and_then(date::read)) {
        (Some(modified), Some(at)) => at.duration_since(modified).is_ok_and(|gap| gap.as_secs() >= 1),
        _ => false,
    };
    strong && stored.get(header::LAST_MODIFIED).is_some_and(|modified| modified.as_bytes() == condition.as_bytes())
}

/// Whether the tag is one that says "the same bytes" (§8.8.1).
pub fn is_strong(etag: &HeaderValue) -> bool {
    let text = etag.as_bytes().trim_ascii();
    text.starts_with(b"\"") && text.len() >= 2
}

/// Whether two tags name the same representation, by the weak comparison (§8.8.3.2).
pub fn weakly_equal(a: &HeaderValue, b: &HeaderValue) -> bool {
    opaque(a.as_bytes()) == opaque(b.as_bytes())
}

/// The tag without `W/`, and without its quotes: some clients and origins forget them.
fn opaque(tag: &[u8]) -> &[u8] {
    let tag = tag.trim_ascii();
    let tag = tag.strip_prefix(b"W/").unwrap_or(tag);
    tag.strip_prefix(b"\"").and_then(|tag| tag.strip_suffix(b"\"")).unwrap_or(tag)
}

/// Whether a list of tags has this one. Commas within quotes separate nothing.
fn names(list: &[u8], etag: &[u8]) -> bool {
    if list.trim_ascii() == b"*" {
        return true;
    }
    let mut rest = list;
    while !rest.is_empty() {
        let mut quoted = false;
        let end = rest.iter().position(|byte| {
            quoted ^= *byte == b'"';
            *byte == b',' && !quoted
        });
        let (member, after) = rest.split_at_checked(end.unwrap_or(rest.len())).unwrap_or((rest, &[]));
        let member = member.trim_ascii();
        if !member.is_empty() && opaque(member) == etag {
            return true;
        }
        rest = after.strip_prefix(b",").unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderName;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn tags_are_compared_weakly() {
        let holds = |given: &str, stored: &str| not_modified(&map(&[("if-none-match", given)]), &map(&[("etag", stored)]));
        assert!(holds("\"a\"", "\"a\"") && holds("W/\"a\"", "\"a\"") && holds("\"a\"", "W/\"a\""));
        assert!(holds("\"x\", \"a\"", "\"a\"") && holds("\"x,y\",\"a\"", "\"x,y\"") && holds("*", "\"a\""));
        assert!(holds("a", "\"a\""), "without its quotes");
        assert!(!holds("\"b\"", "\"a\"") && !holds("\"a", "\"b\"") && !holds("", "\"a\""));
        let both = map(&[("if-none-match", "\"b\""), ("if-modified-since", "Sun, 06 Nov 2094 08:49:37 GMT")]);
        let stored = map(&[("etag", "\"a\""), ("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        assert!(!not_modified(&both, &stored), "the tag alone counts where there is one (§13.1.3)");
    }

    #[test]
    fn dates_are_compared_with_last_modified_or_date() {
        let since = |text: &str| map(&[("if-modified-since", text)]);
        let stored = map(&[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        assert!(not_modified(&since("Sun, 06 Nov 1994 08:49:37 GMT"), &stored));
        assert!(not_modified(&since("Sunday, 06-Nov-94 08:49:38 GMT"), &stored), "the format of RFC 850");
        assert!(!not_modified(&since("Sun, 06 Nov 1994 08:49:36 GMT"), &stored));
        assert!(!not_modified(&since("yesterday"), &stored));
        assert!(not_modified(&since("Sun, 06 Nov 1994 08:49:37 GMT"), &map(&[("date", "Sun, 06 Nov 1994 08:49:37 GMT")])));
    }

    #[test]
    fn if_range_wants_the_same_bytes() {
        let applies = |given: &str, stored: &HeaderMap| range_applies(&map(&[("if-range", given)]), stored);
        let tagged = map(&[("etag", "\"a\"")]);
        assert!(applies("\"a\"", &tagged) && !applies("\"b\"", &tagged) && !applies("W/\"a\"", &map(&[("etag", "W/\"a\"")])));
        let dated = map(&[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT"), ("date", "Sun, 06 Nov 1994 09:49:37 GMT")]);
        assert!(applies("Sun, 06 Nov 1994 08:49:37 GMT", &dated) && !applies("Sun, 06 Nov 1994 08:49:38 GMT", &dated));
        assert!(range_applies(&map(&[]), &tagged));
    }
}
