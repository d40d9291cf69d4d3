//! The id of a request, by which logs, traces and the answer itself are found together.

use crate::arena::with_arena;
use crate::fields::Name;
use crate::request::REQUEST_ID_MAX;
use arrayvec::ArrayString;
use http::{HeaderName, HeaderValue};
use uuid::{NoContext, Timestamp, Uuid};

pub static X_REQUEST_ID: Name = Name { name: HeaderName::from_static("x-request-id"), spelled: "X-Request-Id" };

/// The id that a trusted peer sent, if it is 1 to 128 characters of `A-Za-z0-9._~+/=-`; otherwise a new UUID of version 7
/// (RFC 9562 §5.7), which sorts by time. An untrusted peer chooses no id: it could have two requests found under one.
pub fn request_id(incoming: Option<&HeaderValue>, peer_trusted: bool) -> ArrayString<REQUEST_ID_MAX> {
    let taken = incoming.filter(|_| peer_trusted).and_then(|value| sane(value.as_bytes()));
    taken.unwrap_or_else(|| {
        // Random bits instead of a counter shared by all threads, which would need a lock: ids made in one millisecond
        // have no order among themselves.
        let id = Uuid::new_v7(Timestamp::now(NoContext));
        let mut buffer = Uuid::encode_buffer();
        ArrayString::from(id.as_hyphenated().encode_lower(&mut buffer)).unwrap_or_default()
    })
}

fn sane(value: &[u8]) -> Option<ArrayString<REQUEST_ID_MAX>> {
    let fine = !value.is_empty() && value.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._~+/=-".contains(byte));
    let text = std::str::from_utf8(value).ok().filter(|_| fine)?;
    ArrayString::from(text).ok()
}

/// An id as a header value, without an allocation of its own. `None` only for bytes that [`request_id`] never gives.
pub fn id_value(id: &str) -> Option<HeaderValue> {
    HeaderValue::from_maybe_shared(with_arena(|out| out.extend_from_slice(id.as_bytes()))).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str, trusted: bool) -> String {
        request_id(Some(&HeaderValue::from_bytes(text.as_bytes()).expect("a value")), trusted).to_string()
    }

    #[test]
    fn only_a_sane_id_of_a_trusted_peer_is_taken() {
        let longest = "x".repeat(REQUEST_ID_MAX);
        for sane in ["a", "0192f0c1-7a3b-7cc0-8f00-1a2b3c4d5e6f", "Root=1-67891233-abc~._+/", &longest] {
            assert_eq!(id(sane, true), sane);
            assert_ne!(id(sane, false), sane);
        }
        let too_long = "x".repeat(REQUEST_ID_MAX + 1);
        for other in ["", "a b", "a,b", "a\"b", "a;b", "a{b}", "ü", "a\tb", &too_long] {
            assert_ne!(id(other, true), other);
            assert_eq!(id(other, true).len(), 36);
        }
    }

    #[test]
    fn a_new_id_is_a_uuid_of_version_7_and_its_own() {
        let ids: std::collections::HashSet<String> = (0..10_000).map(|_| request_id(None, true).to_string()).collect();
        assert_eq!(ids.len(), 10_000);
        for id in ids {
            assert_eq!(Uuid::parse_str(&id).expect("a UUID").get_version_num(), 7);
            assert_eq!(id, id.to_lowercase());
        }
    }
}
