//! `Cache-Control` and its targeted forms, read once into plain fields.
//!
//! A directive that decides about storing is taken at its strictest reading, one that grants freshness only when it is
//! well-formed: RFC 9111 §4.2.1 lets a cache treat invalid or contradictory freshness as stale, and a stale answer costs a round
//! trip while a wrongly fresh one is wrong for its whole life.

use http::{HeaderMap, HeaderName, HeaderValue, header};

/// A number of seconds as some directive gives it (RFC 9111 §1.2.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seconds {
    #[default]
    Absent,
    Given(u32),
    /// There, but not a number: whatever it should have granted, it does not.
    Invalid,
}

impl Seconds {
    pub fn given(self) -> Option<u32> {
        match self {
            Seconds::Given(seconds) => Some(seconds),
            _ => None,
        }
    }

    /// The strictest of several occurrences.
    fn narrow(&mut self, value: Option<&[u8]>) {
        let next = value.and_then(seconds);
        *self = match (*self, next) {
            (_, None) | (Seconds::Invalid, _) => Seconds::Invalid,
            (Seconds::Absent, Some(next)) => Seconds::Given(next),
            (Seconds::Given(known), Some(next)) => Seconds::Given(known.min(next)),
        };
    }
}

/// Digits only. A number that is too large is the largest (RFC 9111 §1.2.2): 2^31 - 1 seconds are 68 years.
pub fn seconds(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let number = text.iter().try_fold(0_u32, |sum, digit| sum.checked_mul(10)?.checked_add(u32::from(digit.wrapping_sub(b'0'))));
    Some(number.unwrap_or(u32::MAX).min(0x7fff_ffff))
}

/// The directives of a response (RFC 9111 §5.2.2, RFC 5861, RFC 8246).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ResponseControl {
    pub no_store: bool,
    pub no_cache: bool,
    pub private: bool,
    pub public: bool,
    pub must_revalidate: bool,
    pub proxy_revalidate: bool,
    pub must_understand: bool,
    pub immutable: bool,
    pub no_transform: bool,
    pub max_age: Seconds,
    pub s_maxage: Seconds,
    pub stale_while_revalidate: Seconds,
    pub stale_if_error: Seconds,
    /// Fields that `private="..."` and `no-cache="..."` name: not to be stored.
    pub fields: Vec<HeaderName>,
}

impl ResponseControl {
    /// Reads `Cache-Control`.
    pub fn of(headers: &HeaderMap) -> Self {
        Self::read(headers, &header::CACHE_CONTROL)
    }

    fn read(headers: &HeaderMap, name: &HeaderName) -> Self {
        let mut control = ResponseControl::default();
        for value in headers.get_all(name) {
            each(value.as_bytes(), |name, value| control.take(name, value));
        }
        control
    }

    fn take(&mut self, name: &[u8], value: Option<&[u8]>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("no-store") => self.no_store = true,
            () if is("no-cache") => self.qualified(value, |control| &mut control.no_cache),
            () if is("private") => self.qualified(value, |control| &mut control.private),
            () if is("public") => self.public = true,
            () if is("must-revalidate") => self.must_revalidate = true,
            () if is("proxy-revalidate") => self.proxy_revalidate = true,
            () if is("must-understand") => self.must_understand = true,
            () if is("immutable") => self.immutable = true,
            () if is("no-transform") => self.no_transform = true,
            () if is("max-age") => self.max_age.narrow(value),
            () if is("s-maxage") => self.s_maxage.narrow(value),
            () if is("stale-while-revalidate") => self.stale_while_revalidate.narrow(value),
            () if is("stale-if-error") => self.stale_if_error.narrow(value),
            () => {}
        }
    }

    /// `private` and `no-cache` hold for the whole response, or, with a list of fields, for those (§5.2.2.4, §5.2.2.7).
    fn qualified(&mut self, value: Option<&[u8]>, whole: impl Fn(&mut Self) -> &mut bool) {
        let Some(list) = value.filter(|list| !list.is_empty()) else {
            *whole(self) = true;
            return;
        };
        for name in list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
            match HeaderName::from_bytes(name) {
                Ok(name) => self.fields.push(name),
                Err(_) => *whole(self) = true,
            }
        }
    }

    /// The first of `targets` that the response carries and that is valid takes the place of `Cache-Control` and `Expires`
    /// (RFC 9213 §2.2). A targeted field is a dictionary of structured fields; one that does not parse, or that is empty, is
    /// ignored as a whole (§2.1).
    pub fn targeted(headers: &HeaderMap, targets: &[HeaderName]) -> Option<Self> {
        targets.iter().find_map(|target| {
            let mut lines = headers.get_all(target).iter();
            let first = lines.next()?;
            if *target == SURROGATE_CONTROL {
                return Some(Self::read(headers, target));
            }
            let mut joined = first.as_bytes().to_vec();
            for line in lines {
                joined.extend_from_slice(b", ");
                joined.extend_from_slice(line.as_bytes());
            }
            let dictionary = sfv::Parser::new(&joined).parse::<sfv::Dictionary>().ok()?;
            if dictionary.is_empty() {
                return None;
            }
            let mut control = ResponseControl::default();
            for (name, value) in &dictionary {
                control.take_structured(name.as_str(), value);
            }
            Some(control)
        })
    }

    /// As [`ResponseControl::take`] for a parsed value; one of another type is as if it were not there (RFC 9213 §2.1).
    fn take_structured(&mut self, name: &str, value: &sfv::ListEntry) {
        let sfv::ListEntry::Item(item) = value else { return };
        match &item.bare_item {
            sfv::BareItem::Boolean(true) => self.take(name.as_bytes(), None),
            sfv::BareItem::Integer(number) => {
                let number = i64::from(*number);
                if number >= 0 {
                    let mut buffer = [0_u8; 20];
                    self.take(name.as_bytes(), Some(digits(number.unsigned_abs(), &mut buffer)));
                }
            }
            sfv::BareItem::String(text) if matches!(name, "private" | "no-cache") => {
                self.take(name.as_bytes(), Some(text.as_str().as_bytes()));
            }
            _ => {}
        }
    }
}

/// Not of RFC 9213 and older than it (Edge Architecture, 2001): its syntax is that of `Cache-Control`.
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

fn digits(number: u64, buffer: &mut [u8; 20]) -> &[u8] {
    use std::io::Write;
    let mut rest: &mut [u8] = buffer;
    // Twenty bytes hold every u64.
    let _ = write!(rest, "{number}");
    let left = rest.len();
    buffer.get(..20_usize.saturating_sub(left)).unwrap_or_default()
}

/// The directives of a request (RFC 9111 §5.2.1).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RequestControl {
    pub no_cache: bool,
    pub no_store: bool,
    pub only_if_cached: bool,
    pub max_age: Option<u32>,
    pub min_fresh: Option<u32>,
    /// `Some(u32::MAX)`: however stale.
    pub max_stale: Option<u32>,
    /// How stale it may be where the upstream fails (RFC 5861 §4).
    pub stale_if_error: Option<u32>,
    pub no_transform: bool,
}

impl RequestControl {
    pub fn of(headers: &HeaderMap) -> Self {
        let mut control = RequestControl::default();
        let mut present = false;
        for value in headers.get_all(header::CACHE_CONTROL) {
            present = true;
            each(value.as_bytes(), |name, value| control.take(name, value));
        }
        // HTTP/1.0 clients have nothing else (RFC 9111 §5.4).
        if !present {
            for pragma in headers.get_all(header::PRAGMA) {
                each(pragma.as_bytes(), |name, _| control.no_cache |= name.eq_ignore_ascii_case(b"no-cache"));
            }
        }
        control
    }

    fn take(&mut self, name: &[u8], value: Option<&[u8]>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        match () {
            () if is("no-cache") => self.no_cache = true,
            () if is("no-store") => self.no_store = true,
            () if is("only-if-cached") => self.only_if_cached = true,
            // An age that cannot be read is the strictest one.
            () if is("max-age") => self.max_age = Some(value.and_then(seconds).unwrap_or(0)),
            () if is("min-fresh") => self.min_fresh = value.and_then(seconds),
            () if is("stale-if-error") => self.stale_if_error = value.and_then(seconds),
            () if is("no-transform") => self.no_transform = true,
            () if is("max-stale") => {
                self.max_stale = match value {
                    None => Some(u32::MAX),
                    Some(value) => seconds(value),
                }
            }
            () => {}
        }
    }
}

/// Calls `take` for each directive of one line: `name`, `name=token`, `name="quoted"`. What is in quotes is never read as a
/// directive. White space around `=` makes a value that no directive accepts.
fn each(line: &[u8], mut take: impl FnMut(&[u8], Option<&[u8]>)) {
    let mut rest = line;
    while !rest.is_empty() {
        let end = rest.iter().position(|byte| matches!(byte, b',' | b'=')).unwrap_or(rest.len());
        let (name, after) = rest.split_at_checked(end).unwrap_or((rest, &[]));
        let spaced = name.last().is_some_and(u8::is_ascii_whitespace);
        let name = name.trim_ascii();
        let Some(value) = after.strip_prefix(b"=") else {
            if !name.is_empty() {
                take(name, None);
            }
            rest = after.strip_prefix(b",").unwrap_or_default();
            continue;
        };
        if let Some(quoted) = value.strip_prefix(b"\"") {
            let close = closing(quoted);
            let (text, after) = quoted.split_at_checked(close).unwrap_or((quoted, &[]));
            let after = after.strip_prefix(b"\"").unwrap_or_default();
            let next = after.iter().position(|byte| *byte == b',').unwrap_or(after.len());
            let (trailing, after) = after.split_at_checked(next).unwrap_or((after, &[]));
            let clean = !spaced && trailing.trim_ascii().is_empty();
            take(name, Some(if clean { text } else { b"\0" }));
            rest = after.strip_prefix(b",").unwrap_or_default();
        } else {
            let next = value.iter().position(|byte| *byte == b',').unwrap_or(value.len());
            let (text, after) = value.split_at_checked(next).unwrap_or((value, &[]));
            let clean = !spaced && !text.first().is_some_and(u8::is_ascii_whitespace);
            take(name, Some(if clean { text.trim_ascii_end() } else { b"\0" }));
            rest = after.strip_prefix(b",").unwrap_or_default();
        }
    }
}

/// Where a quoted string ends: at the first quote that is not escaped.
fn closing(quoted: &[u8]) -> usize {
    let mut escaped = false;
    for (at, byte) in quoted.iter().enumerate() {
        match byte {
            b'\\' if !escaped => escaped = true,
            b'"' if !escaped => return at,
            _ => escaped = false,
        }
    }
    quoted.len()
}

/// Whether a list field has `*` or this token.
pub fn list_has(value: &HeaderValue, token: &str) -> bool {
    value.as_bytes().split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(lines: &[&str]) -> ResponseControl {
        ResponseControl::of(&headers("cache-control", lines))
    }

    fn headers(name: &'static str, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (HeaderName::from_static(name), HeaderValue::from_str(line).unwrap())).collect()
    }

    #[test]
    fn freshness_counts_only_when_it_is_well_formed() {
        let age = |line: &str| response(&[line]).max_age;
        for good in ["max-age=60", "Max-Age=60", "max-age=0060", "a, max-age=60 ,b", "max-age=\"60\"", ",,max-age=60,,"] {
            assert_eq!(age(good), Seconds::Given(60), "{good}");
        }
        for bad in
            ["max-age =60", "max-age= 60", "max-age='60'", "max-age=6.0", "max-age=-1", "max-age", "max-age=", "max-age=60 s"]
        {
            assert_eq!(age(bad), Seconds::Invalid, "{bad}");
        }
        assert_eq!(age("max-age=99999999999999999999"), Seconds::Given(0x7fff_ffff));
        assert_eq!(age("x=\"max-age=60\""), Seconds::Absent);
        assert_eq!(age("x=\"a\\\", max-age=60\", max-age=1"), Seconds::Given(1));
        assert_eq!(response(&["max-age=60", "max-age=5"]).max_age, Seconds::Given(5), "the strictest");
    }

    #[test]
    fn qualified_directives_name_fields() {
        let control = response(&["private=\"x-a, X-B\", no-cache"]);
        assert!(!control.private && control.no_cache);
        assert_eq!(control.fields, ["x-a", "x-b"]);
        assert!(response(&["private=\"\""]).private, "nothing named: all of it");
    }

    #[test]
    fn a_targeted_field_is_a_structured_dictionary() {
        let cdn = HeaderName::from_static("cdn-cache-control");
        let read = |lines: &[&str]| ResponseControl::targeted(&headers("cdn-cache-control", lines), std::slice::from_ref(&cdn));
        assert_eq!(read(&["max-age=60, no-store"]).unwrap().max_age, Seconds::Given(60));
        assert!(read(&["max-age=60", "private"]).unwrap().private);
        for ignored in ["max-age =60", "max-age=60,,", "", "MAX-AGE=60", "&&"] {
            assert_eq!(read(&[ignored]), None, "{ignored}");
        }
        assert_eq!(read(&["max-age=6.5"]).unwrap().max_age, Seconds::Absent, "the wrong type");
    }

    #[test]
    fn requests_can_ask_for_less() {
        let read = |line: &str| RequestControl::of(&headers("cache-control", &[line]));
        assert_eq!(read("max-stale").max_stale, Some(u32::MAX));
        assert_eq!(read("max-stale=5, min-fresh=7").max_stale, Some(5));
        assert_eq!(read("max-age=x").max_age, Some(0));
        assert!(read("only-if-cached, no-store").only_if_cached);
        assert!(RequestControl::of(&headers("pragma", &["no-cache"])).no_cache);
    }
}
