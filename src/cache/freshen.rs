//! What a later answer says anew of a stored one: a 304, the answer to a HEAD, another part (RFC 9111 §3.2, §3.4, §4.3.4, §4.3.5).
//!
//! What must not be stored of it (`private="..."`, `no-cache="..."`) goes to the one who asked, and to nobody else.

use super::entry::{self, Entry};
use super::freshness::Received;
use super::policy::{Asked, Policy, Refusal, Terms};
use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;

/// Fields of an answer that are for the one who asked only.
pub type Own = Vec<(HeaderName, HeaderValue)>;

/// A stored head as it is from now on.
pub struct Freshened {
    /// Where it may not be stored: all of it, for the one who asked.
    pub head: ResponseHeader,
    pub own: Own,
    pub terms: Result<Terms, Refusal>,
}

pub fn freshened(policy: &Policy, known: &Entry, update: &ResponseHeader, asked: Asked, received: &Received) -> Freshened {
    let mut head = entry::merged_head(&known.head, update, received);
    // The age is that of the update, and is not stored.
    if let Some(age) = update.headers.get(header::AGE) {
        // A name and a value of a header map.
        let _ = head.insert_header(header::AGE, age.clone());
    }
    let mut fields = Vec::new();
    let terms = policy.judge(known.head.status.as_u16(), &head.headers, asked, received, &mut fields);
    head.remove_header(&header::AGE);
    for name in &fields {
        head.remove_header(name);
    }
    Freshened { head, own: own(&update.headers, &fields), terms }
}

/// The fields of these names.
pub fn own(headers: &HeaderMap, fields: &[HeaderName]) -> Own {
    fields.iter().flat_map(|name| headers.get_all(name).iter().map(|value| (name.clone(), value.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::{entry, received};
    use super::super::policy::tests::policy;
    use super::*;

    #[test]
    fn what_is_private_in_an_update_goes_to_the_one_who_asked() {
        let mut update = ResponseHeader::build(304, None).unwrap();
        for (name, value) in [("cache-control", "max-age=9, private=\"x-own\""), ("x-own", "a"), ("x-new", "b"), ("age", "4")] {
            update.append_header(name, value).unwrap();
        }
        let fresh = freshened(&policy(), &entry(1, &[]), &update, Asked::default(), &received());
        assert_eq!(fresh.own, [(HeaderName::from_static("x-own"), HeaderValue::from_static("a"))]);
        let names = ["x-own", "x-new", "age"].map(|name| fresh.head.headers.contains_key(name));
        assert_eq!((names, fresh.terms.unwrap().initial_age.as_secs()), ([false, true, false], 4));
    }

    #[test]
    fn an_update_that_may_not_be_stored_is_whole() {
        let mut update = ResponseHeader::build(304, None).unwrap();
        update.append_header("cache-control", "no-store").unwrap();
        update.append_header("set-cookie", "a=b").unwrap();
        let fresh = freshened(&policy(), &entry(1, &[]), &update, Asked::default(), &received());
        assert_eq!((fresh.terms, fresh.head.headers.contains_key("set-cookie")), (Err(Refusal::NoStore), true));
    }
}
