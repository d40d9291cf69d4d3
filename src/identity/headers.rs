//! What the upstream is told about who calls, and what clients may not tell it.
//!
//! A service behind the gateway believes these fields, so a client's copies of them are removed at the very beginning, on
//! every route, with or without authentication. Ours are written when the upstream request is made, where a `Connection`
//! header of the client can no longer have them removed.

use super::Identity;
use crate::arena::with_arena;
use crate::consumer::is_role;
use crate::fields::alike;
use crate::value::Located;
use bytes::BufMut;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use std::sync::Arc;

const CONSUMER_NAME: HeaderName = HeaderName::from_static("x-consumer-name");
const CONSUMER_ROLES: HeaderName = HeaderName::from_static("x-consumer-roles");
const CONSUMER_TIER: HeaderName = HeaderName::from_static("x-consumer-tier");
const CREDENTIAL_ID: HeaderName = HeaderName::from_static("x-credential-id");

const OURS: [&str; 4] = ["x-consumer-name", "x-consumer-roles", "x-consumer-tier", "x-credential-id"];

/// The longest list of roles that is written, in bytes. What does not fit is left out: fewer roles permit less.
const ROLES_MAX: usize = 4 * 1024;

/// Writes `X-Consumer-Name` (only for a configured consumer), `X-Consumer-Roles` (separated by commas), `X-Consumer-Tier` and
/// `X-Credential-Id`. A part that the identity does not have, or that cannot stand in a header, is left out.
pub fn write(identity: &Identity, head: &mut RequestHeader) {
    // A subject that some issuer chose must not pass for the name of a consumer.
    if let Some(consumer) = &identity.consumer {
        set(head, CONSUMER_NAME, &consumer.name);
    }
    let roles = with_arena(|out| {
        // A role from a token may be any text; one with a comma in it would read as two.
        for role in identity.roles.iter().filter(|role| is_role(role)) {
            if out.len().saturating_add(role.len()).saturating_add(1) > ROLES_MAX {
                break;
            }
            if !out.is_empty() {
                out.put_u8(b',');
            }
            out.put_slice(role.as_bytes());
        }
    });
    if !roles.is_empty()
        && let Ok(roles) = HeaderValue::from_maybe_shared(roles)
    {
        let _ = head.insert_header(CONSUMER_ROLES, roles);
    }
    if let Some(tier) = &identity.tier {
        set(head, CONSUMER_TIER, tier);
    }
    set(head, CREDENTIAL_ID, &identity.credential);
}

fn set(head: &mut RequestHeader, name: HeaderName, text: &Arc<str>) {
    let value = with_arena(|out| out.put_slice(text.as_bytes()));
    // Only visible ASCII: services differ in how they read other bytes.
    if value.iter().all(|b| (b' '..=b'~').contains(b))
        && let Ok(value) = HeaderValue::from_maybe_shared(value)
    {
        // Fails only for a map of 32,768 fields; then nothing is said.
        let _ = head.insert_header(name, value);
    }
}

/// The fields that a client may not send, by name and by the beginning of names, in lower case with `-` for `_`.
#[derive(Debug, Clone, Default)]
pub struct IdentityHeaders {
    names: Box<[Box<str>]>,
    prefixes: Box<[Box<str>]>,
}

impl IdentityHeaders {
    /// Names, and beginnings of names with a `*` at the end. Those that the gateway writes are always among them.
    pub fn new<'a>(list: impl Iterator<Item = &'a str>) -> Self {
        let (mut names, mut prefixes) = (Vec::new(), Vec::new());
        for text in list.chain(OURS) {
            let folded = text.to_ascii_lowercase().replace('_', "-");
            match folded.strip_suffix('*') {
                Some(prefix) => prefixes.push(prefix.into()),
                None => names.push(folded.into()),
            }
        }
        IdentityHeaders { names: names.into(), prefixes: prefixes.into() }
    }

    /// Those of a list that are no names of header fields, or that would remove what requests are made of.
    pub fn wrong(list: &[Located<String>]) -> impl Iterator<Item = &Located<String>> {
        list.iter().filter(|text| {
            let name = text.strip_suffix('*').unwrap_or(text);
            let valid = HeaderName::from_bytes(name.as_bytes()).is_ok() && !name.contains('*');
            let all = IdentityHeaders::new(std::iter::once(text.as_str()));
            !valid
                || ["host", "content-length", "transfer-encoding", "connection", "authorization"].iter().any(|name| all.has(name))
        })
    }

    /// Removes every such field.
    pub fn remove(&self, head: &mut RequestHeader) {
        // Once for each; the head bounds their number. Few requests have any.
        while let Some(name) = head.headers.keys().find(|name| self.has(name.as_str())).cloned() {
            head.remove_header(&name);
        }
    }

    fn has(&self, name: &str) -> bool {
        // Names of fields are in lower case already.
        let begins = |prefix: &str| name.get(..prefix.len()).is_some_and(|start| alike(start, prefix));
        self.names.iter().any(|known| alike(name, known)) || self.prefixes.iter().any(|prefix| begins(prefix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::consumer::{Consumer, Tier};

    fn lines(head: &RequestHeader) -> Vec<String> {
        let mut lines: Vec<_> = head.headers.iter().map(|(name, value)| format!("{name}: {}", value.to_str().unwrap())).collect();
        lines.sort();
        lines
    }

    fn head(lines: &[(&'static str, &str)]) -> RequestHeader {
        let mut head = RequestHeader::build("GET", b"/", None).unwrap();
        lines.iter().for_each(|(name, value)| head.append_header(*name, *value).map(|_| ()).unwrap());
        head
    }

    #[test]
    fn no_spelling_of_an_identity_header_comes_from_a_client() {
        let all = IdentityHeaders::new(["x-user-*", "Remote_User"].into_iter());
        let mut head = head(&[
            ("X-Consumer-Name", "admin"),
            ("x_consumer_name", "admin"),
            ("X-CONSUMER_ROLES", "admin"),
            ("x-credential-id", "1"),
            ("x-user-id", "1"),
            ("X_USER_anything", "1"),
            ("remote-user", "root"),
            ("x-user", "stays"),
            ("x-consumer-name-of-mine", "stays"),
        ]);
        all.remove(&mut head);
        assert_eq!(lines(&head), ["x-consumer-name-of-mine: stays", "x-user: stays"]);
    }

    #[test]
    fn a_token_can_neither_be_a_consumer_nor_join_roles() {
        let consumer = Arc::new(Consumer {
            name: "acme".into(),
            tier: Some(Arc::new(Tier { name: "gold".into(), share: 100 })),
            roles: ["a", "b,admin", "c\r\nx: y", "d:e"].iter().map(|role| Arc::from(*role)).collect(),
            ..Consumer::default()
        });
        let mut identity = Identity::of(&consumer, "jwt", "jwt:main:sub".into());
        let mut upstream = head(&[]);
        write(&identity, &mut upstream);
        let roles = "x-consumer-roles: a,d:e";
        assert_eq!(lines(&upstream), ["x-consumer-name: acme", roles, "x-consumer-tier: gold", "x-credential-id: jwt:main:sub"]);
        identity.consumer = None;
        identity.tier = None;
        identity.credential = "jwt:main:é\r\n".into();
        let mut upstream = head(&[]);
        write(&identity, &mut upstream);
        assert_eq!(lines(&upstream), [roles]);
    }

    #[test]
    fn what_requests_are_made_of_cannot_be_an_identity_header() {
        let list = ["x-user-*", "*", "ho*", "authorization", "a b", "x-*-y", ""].map(|text| Located::nowhere(text.to_owned()));
        let wrong: Vec<_> = IdentityHeaders::wrong(&list).map(|text| text.value.as_str()).collect();
        assert_eq!(wrong, ["*", "ho*", "authorization", "a b", "x-*-y", ""]);
    }
}
