//! `Via` (RFC 9110 §7.6.3): each message that passes says so, and a request that passes again and again is seen.

use http::Version;
use http::header::{HeaderMap, HeaderValue, VIA};
use pingora::http::{RequestHeader, ResponseHeader};

/// The name under which this gateway stands in `Via`.
pub const PSEUDONYM: &str = "gatewright";
/// With more of its own names than this in `Via`, a request is in a loop. Not one, because a request may rightly pass
/// several gateways.
pub const VIA_HOPS_MAX: usize = 10;

/// `1.1 gatewright`, with the version in which the message was received.
const fn via(received: Version) -> HeaderValue {
    match received {
        Version::HTTP_10 => HeaderValue::from_static("1.0 gatewright"),
        Version::HTTP_2 => HeaderValue::from_static("2 gatewright"),
        _ => HeaderValue::from_static("1.1 gatewright"),
    }
}

/// Adds this gateway to what the upstream sees. `received` is the version of the client's request.
pub fn add_via_request(head: &mut RequestHeader, received: Version) {
    // Cannot fail: name and value are valid constants.
    let _ = head.append_header("Via", via(received));
}

/// Adds this gateway to what the client sees. `received` is the version of the upstream's response.
pub fn add_via_response(head: &mut ResponseHeader, received: Version) {
    let _ = head.append_header("Via", via(received));
}

/// How many times `pseudonym` stands in `Via` as a received-by. A comma in a comment counts as the end of an element: it
/// can make this more, never less, and only by the hand of whoever wrote the comment.
pub fn via_hops(headers: &HeaderMap, pseudonym: &str) -> usize {
    let elements = headers.get_all(VIA).into_iter().flat_map(|line| line.as_bytes().split(|&byte| byte == b','));
    let received_by = elements.filter_map(|element| {
        let mut words = element.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
        words.nth(1)
    });
    received_by.filter(|name| name.eq_ignore_ascii_case(pseudonym.as_bytes())).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_hops_are_counted_in_every_line_and_spelling() {
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
            assert_eq!(via_hops(&headers, PSEUDONYM), expected, "{lines:?}");
        }
    }

    #[test]
    fn what_is_added_is_what_is_counted() {
        let mut request = RequestHeader::build("GET", b"/", None).expect("a request");
        let mut response = ResponseHeader::build(200, None).expect("a response");
        request.append_header("via", "1.1 other").expect("valid");
        for (hops, version) in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2].into_iter().enumerate() {
            add_via_request(&mut request, version);
            add_via_response(&mut response, version);
            assert_eq!(via_hops(&request.headers, PSEUDONYM), hops + 1);
            assert_eq!(via_hops(&response.headers, PSEUDONYM), hops + 1);
        }
        let all: Vec<_> = response.headers.get_all(VIA).iter().collect();
        assert_eq!(all, ["1.0 gatewright", "1.1 gatewright", "2 gatewright"]);
    }
}
