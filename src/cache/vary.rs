//! Which of several stored responses a request may get (RFC 9111 §4.1).
//!
//! The fields that `Vary` names are compared after a normalisation that cannot change what they mean: lines are joined, white
//! space goes, and in lists of preferences the order of equal members and the case go too. Without it every browser version would be
//! a variant of its own.
//!
//! What is stored goes to a Redis that others read, and any field may hold a credential. So only fields that everybody has much the
//! same are kept as they are, and the others by their SHA-256.

use aws_lc_rs::digest::{SHA256, digest};
use http::{HeaderMap, HeaderName, header};
use std::fmt::Write;

/// The request fields that select a stored response, with what they were when it was stored.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Selecting {
    pub fields: Box<[(HeaderName, Box<str>)]>,
}

/// Fields that hold no credential.
const PLAIN: [HeaderName; 6] = [
    header::ACCEPT,
    header::ACCEPT_CHARSET,
    header::ACCEPT_ENCODING,
    header::ACCEPT_LANGUAGE,
    header::ORIGIN,
    header::USER_AGENT,
];

/// Why a response cannot be selected for any other request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VariesByAll;

impl Selecting {
    /// Reads `Vary` of a response to a request with these fields.
    pub fn of(response: &HeaderMap, request: &HeaderMap) -> Result<Self, VariesByAll> {
        let mut names: Vec<HeaderName> = Vec::new();
        for line in response.get_all(header::VARY) {
            for name in line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii).filter(|name| !name.is_empty()) {
                // `*` and what is no name of a field cannot be matched.
                let name = HeaderName::from_bytes(name).map_err(|_| VariesByAll)?;
                if name == "*" {
                    return Err(VariesByAll);
                }
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names.sort_by(|a, b| a.as_str().cmp(b.as_str()));
        let fields = names.into_iter().map(|name| {
            let value = normalised(&name, request).into_boxed_str();
            (name, value)
        });
        Ok(Selecting { fields: fields.collect() })
    }

    /// The field is the same in all requests that the upstream gets.
    pub fn ignore(&mut self, name: &HeaderName) {
        if self.fields.iter().any(|(known, _)| known == name) {
            self.fields = std::mem::take(&mut self.fields).into_iter().filter(|(known, _)| known != name).collect();
        }
    }

    /// Whether the response may be selected for a request with these fields.
    pub fn matches(&self, request: &HeaderMap) -> bool {
        self.fields.iter().all(|(name, stored)| {
            // Most requests say exactly what is stored, and most fields have one line.
            let mut lines = request.get_all(name).iter();
            match (lines.next(), lines.next()) {
                // Normalising what is normal already changes nothing.
                (Some(line), None) if stored.as_bytes().strip_prefix(b"=") == Some(line.as_bytes()) => true,
                _ => *normalised(name, request) == **stored,
            }
        })
    }

    pub fn bytes(&self) -> usize {
        self.fields.iter().map(|(_, value)| value.len().saturating_add(48)).sum()
    }
}

/// Whether the values of a field may be stored as they are.
pub fn is_plain(name: &HeaderName) -> bool {
    PLAIN.contains(name)
}

/// A field in the form in which it is compared; a field that is not there differs from one that is empty, and a hash from a value
/// that looks like it.
pub fn normalised(name: &HeaderName, request: &HeaderMap) -> String {
    let mut members: Vec<String> = Vec::new();
    let mut there = false;
    let preferences = matches!(name.as_str(), "accept" | "accept-language" | "accept-encoding" | "accept-charset");
    for line in request.get_all(name) {
        there = true;
        let text = line.as_bytes();
        // A comma within quotes, or bytes beyond ASCII: compared as they are. So is what looks like one of these in its escaped form.
        if text.contains(&b'"') || text.contains(&b'\\') || !text.is_ascii() {
            members.push(escaped(text));
            continue;
        }
        let text = std::str::from_utf8(text).unwrap_or_default();
        for member in text.split(',').map(str::trim).filter(|member| !member.is_empty()) {
            members.push(if preferences { preference(member) } else { member.to_owned() });
        }
    }
    if preferences {
        // The order of members says nothing where each has its weight (RFC 9110 §12.4.2).
        members.sort_unstable();
        members.dedup();
    }
    match members.join(",") {
        _ if !there => String::new(),
        value if is_plain(name) => format!("={value}"),
        value => digest(&SHA256, value.as_bytes()).as_ref().iter().fold(String::from("#"), |mut out, byte| {
            // Writing to a String cannot fail.
            let _ = write!(out, "{byte:02x}");
            out
        }),
    }
}

/// `text/html; q=1.0` is `text/html`, `q=0.50` is `q=0.5`; case and white space mean nothing.
fn preference(member: &str) -> String {
    let mut out = String::with_capacity(member.len());
    for part in member.split(';').map(str::trim) {
        let mut part = part.to_ascii_lowercase();
        if part.starts_with("q=") && part.contains('.') {
            part.truncate(part.trim_end_matches('0').trim_end_matches('.').len());
        }
        if matches!(part.as_str(), "q=1" | "") {
            continue;
        }
        if !out.is_empty() {
            out.push(';');
        }
        out.push_str(&part);
    }
    out
}

fn escaped(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text {
        if (byte.is_ascii_graphic() || *byte == b' ') && *byte != b'\\' {
            out.push(char::from(*byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(out, "\\x{byte:02x}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;

    fn map(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(n, v)| (HeaderName::from_static(n), HeaderValue::from_str(v).unwrap())).collect()
    }

    #[test]
    fn requests_that_mean_the_same_share_a_response() {
        let same = |name: &'static str, a: &[&str], b: &[&str]| {
            let lines =
                |list: &[&str]| list.iter().map(|v| (HeaderName::from_static(name), v.parse().unwrap())).collect::<HeaderMap>();
            Selecting::of(&map(&[("vary", name)]), &lines(a)).unwrap().matches(&lines(b))
        };
        assert!(same("foo", &["1"], &["1"]) && !same("foo", &["1"], &["2"]));
        assert!(same("foo", &["1, 2"], &["1,2"]) && same("foo", &["1", "2"], &["1, 2"]));
        assert!(!same("foo", &["1,2"], &["2,1"]), "order may mean something");
        assert!(!same("foo", &[], &[""]), "absent is not empty");
        assert!(same("foo", &[], &[]));
        assert!(same("accept-language", &["en, de;q=0.5"], &["DE; q=0.5,EN"]));
        assert!(!same("accept-language", &["en, de;q=0.5"], &["en, de;q=0.6"]));
        assert!(same("accept-language", &["en, de;q=0.5, fr;q=0"], &["de;q=0.50, en;q=1.000, fr;q=0.000"]));
        assert!(!same("accept-language", &["de;q=0.05"], &["de;q=0.5"]));
        assert!(same("accept-encoding", &["gzip, br"], &["br;q=1.0, gzip"]));
        assert!(!same("foo", &["\"a,b\""], &["\"a, b\""]), "within quotes everything counts");
    }

    #[test]
    fn what_may_be_a_credential_is_kept_by_its_hash() {
        let of = |name: &'static str, value: &str| {
            let request = map(&[(name, value)]);
            (Selecting::of(&map(&[("vary", name)]), &request).unwrap(), request)
        };
        for name in ["cookie", "authorization", "x-api-key", "x-anything"] {
            let (selecting, request) = of(name, "secret");
            let [(_, stored)] = &*selecting.fields else { panic!("{selecting:?}") };
            // printf secret | sha256sum
            assert_eq!(&**stored, "#2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b");
            assert!(selecting.matches(&request) && !selecting.matches(&map(&[(name, "secret2")])));
            // Whoever knows the hash does not have the value.
            assert!(!selecting.matches(&map(&[(name, &stored[1..])])) && !selecting.matches(&map(&[(name, stored)])));
        }
        assert_eq!(&*of("accept-language", "en").0.fields[0].1, "=en");
    }

    #[test]
    fn a_star_matches_nothing() {
        for vary in ["*", "a, *", "*, *", "a b"] {
            assert_eq!(Selecting::of(&map(&[("vary", vary)]), &map(&[])), Err(VariesByAll), "{vary}");
        }
        assert_eq!(Selecting::of(&map(&[("vary", " , ")]), &map(&[])).unwrap().fields.len(), 0);
    }
}
