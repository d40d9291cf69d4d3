//! `Via` (RFC 9110 §7.6.3): who a message passed, and whether it passes us in a circle.

use crate::fields::Name;
use http::Version;
use http::header::{HeaderMap, HeaderValue, VIA};

pub static VIA_HEADER: Name = Name { name: VIA, spelled: "Via" };

/// With more of its own names than this in `Via`, a request is in a loop. Not one, because a request may rightly pass
/// several gateways.
pub const VIA_HOPS_MAX: usize = 10;

/// The name under which this gateway stands in `Via`, with its field values prepared: one for each version in which a
/// message can be received.
#[derive(Debug, Clone)]
pub struct Via {
    pseudonym: Box<str>,
    http10: HeaderValue,
    http11: HeaderValue,
    http2: HeaderValue,
}

impl Via {
    /// `None` if the name cannot stand in a header.
    pub fn new(pseudonym: &str) -> Option<Self> {
        let value = |version: &str| HeaderValue::try_from(format!("{version} {pseudonym}")).ok();
        Some(Via { pseudonym: pseudonym.into(), http10: value("1.0")?, http11: value("1.1")?, http2: value("2")? })
    }

    /// What to append to a message that was received in this version.
    pub fn value(&self, received: Version) -> HeaderValue {
        match received {
            Version::HTTP_10 => self.http10.clone(),
            Version::HTTP_2 => self.http2.clone(),
            _ => self.http11.clone(),
        }
    }

    /// How many times the name stands in `Via` as a received-by. A comma in a comment counts as the end of an element: it can
    /// make this more, never less, and only by the hand of whoever wrote the comment.
    pub fn hops(&self, headers: &HeaderMap) -> usize {
        let elements = headers.get_all(VIA).into_iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
        let received_by = elements.filter_map(|element| {
            let mut words = element.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
            words.nth(1)
        });
        received_by.filter(|name| name.eq_ignore_ascii_case(self.pseudonym.as_bytes())).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_hops_are_counted_in_every_line_and_spelling() {
        let via = Via::new("gatewright").unwrap();
        for (lines, expected) in [
            (&[][..], 0),
            (&["1.1 gatewright"], 1),
            (&["1.1 gatewright, 2 varnish, 1.0 Gatewright (a comment)"], 2),
            (&["1.1 gatewright", "HTTP/1.1\t gatewright ,2 gatewright"], 3),
            (&["1.1 gatewright2, 1.1 not-gatewright, gatewright, 1.1 gatewright:80"], 0),
            (&["", ",,", " "], 0),
        ] {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(VIA, HeaderValue::from_static(line));
            }
            assert_eq!(via.hops(&headers), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_added_is_what_is_counted() {
        let via = Via::new("edge-1").unwrap();
        let mut headers = HeaderMap::new();
        headers.append(VIA, HeaderValue::from_static("1.1 other"));
        for (hops, version) in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2].into_iter().enumerate() {
            headers.append(VIA, via.value(version));
            assert_eq!(via.hops(&headers), hops + 1);
        }
        let all: Vec<_> = headers.get_all(VIA).iter().collect();
        assert_eq!(all, ["1.1 other", "1.0 edge-1", "1.1 edge-1", "2 edge-1"]);
        assert!(Via::new("two\nlines").is_none());
    }
}
