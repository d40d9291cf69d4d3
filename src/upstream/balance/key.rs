//! What of a request decides where it goes: for consistent hashing, and for splits that keep clients together.

use super::points::hash;
use crate::identity::Identity;
use http::{HeaderMap, HeaderName, header};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};
use std::borrow::Cow;
use std::net::IpAddr;
use std::str::FromStr;

/// What a request is told apart by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// The first header of this name.
    Header(HeaderName),
    Cookie(Box<str>),
    /// The parameter of the query, as it is written there.
    Query(Box<str>),
    /// The client's address.
    Address,
    Consumer,
}

impl FromStr for By {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let named = |name: &str| !name.is_empty() && name.len() <= 128 && name.bytes().all(|b| b.is_ascii_graphic());
        match text.split_once(':') {
            Some(("header", name)) => match HeaderName::from_bytes(name.to_ascii_lowercase().as_bytes()) {
                Ok(name) => Ok(By::Header(name)),
                Err(_) => Err(format!("`{name}` is not the name of a header")),
            },
            Some(("cookie", name)) if named(name) => Ok(By::Cookie(name.into())),
            Some(("query", name)) if named(name) => Ok(By::Query(name.into())),
            None if text == "address" => Ok(By::Address),
            None if text == "consumer" => Ok(By::Consumer),
            _ => Err(format!("`{text}` tells no requests apart: use header:NAME, cookie:NAME, query:NAME, address or consumer")),
        }
    }
}

impl<'de> Deserialize<'de> for By {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<'de, str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for By {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "fact".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string", "pattern": "^(address|consumer|header:.+|cookie:.+|query:.+)$", "title": "fact",
            "description": "A fact of a request: header:NAME, cookie:NAME, query:NAME, address, consumer"
        })
    }
}

/// The facts of one request.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    pub headers: &'a HeaderMap,
    pub query: Option<&'a str>,
    pub client: IpAddr,
    pub identity: Option<&'a Identity>,
}

impl Facts<'_> {
    /// The hash of the first fact that the request has.
    pub fn key(&self, by: &[By]) -> Option<u64> {
        by.iter().find_map(|by| match by {
            By::Header(name) => self.headers.get(name).map(|value| hash(value.as_bytes())),
            By::Cookie(name) => cookie(self.headers, name).map(|value| hash(value.as_bytes())),
            By::Query(name) => parameter(self.query?, name).map(|value| hash(value.as_bytes())),
            By::Address => Some(match self.client {
                IpAddr::V4(address) => hash(&address.octets()),
                IpAddr::V6(address) => hash(&address.octets()),
            }),
            By::Consumer => self.identity.map(|identity| hash(identity.name.as_bytes())),
        })
    }
}

/// The value of the first cookie of this name (RFC 6265 §5.4), without the quotes that some clients put around it.
pub fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    // Not as text before the one is found: another may hold bytes beyond ASCII.
    let lines = headers.get_all(header::COOKIE).iter().map(|line| line.as_bytes());
    lines.flat_map(|line| line.split(|byte| *byte == b';')).find_map(|pair| {
        let at = memchr::memchr(b'=', pair)?;
        let (key, value) = (pair.get(..at)?.trim_ascii(), pair.get(at.checked_add(1)?..)?.trim_ascii());
        let bare = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
        if key == name.as_bytes() && !bare.is_empty() { std::str::from_utf8(bare).ok() } else { None }
    })
}

fn parameter<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs.filter(|(key, value)| *key == name && !value.is_empty()).map(|(_, value)| value).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_is_found_beside_others_of_any_bytes() {
        let of = |line: &[u8]| {
            let value = http::HeaderValue::from_bytes(line).unwrap();
            let headers = HeaderMap::from_iter([(header::COOKIE, value)]);
            cookie(&headers, "u").map(ToOwned::to_owned)
        };
        assert_eq!(of("name=Zo\u{eb}; u = \"7\" ; v=8".as_bytes()).as_deref(), Some("7"));
        assert_eq!(of(b"name=Zo\xeb;u=7").as_deref(), Some("7"));
        assert_eq!(of(b"u=\xeb"), None, "not as text");
        assert_eq!((of(b"u="), of(b"xu=1; u"), of(b"")), (None, None, None));
    }

    fn headers(list: &[(&'static str, &'static str)]) -> HeaderMap {
        list.iter().map(|(name, value)| (HeaderName::from_static(name), value.parse().unwrap())).collect()
    }

    fn key(by: &[&str], list: &[(&'static str, &'static str)], query: Option<&str>) -> Option<u64> {
        let by: Vec<By> = by.iter().map(|by| by.parse().unwrap()).collect();
        let headers = headers(list);
        Facts { headers: &headers, query, client: IpAddr::from([192, 0, 2, 7]), identity: None }.key(&by)
    }

    #[test]
    fn each_fact_is_found_where_it_is() {
        let ada = Some(hash(b"ada"));
        assert_eq!(key(&["header:X-User"], &[("x-user", "ada")], None), ada);
        assert_eq!(key(&["cookie:u"], &[("cookie", "a=1; u=ada; uu=2")], None), ada);
        assert_eq!(key(&["cookie:u"], &[("cookie", "u=\"ada\"")], None), ada);
        assert_eq!(key(&["query:u"], &[], Some("uu=x&u=ada&u=eve")), ada);
        assert_eq!(key(&["address"], &[], None), Some(hash(&[192, 0, 2, 7])));
        assert_eq!(key(&["consumer"], &[], None), None);
    }

    #[test]
    fn the_first_fact_that_is_there_counts() {
        let by = ["header:x-user", "cookie:u", "address"];
        assert_eq!(key(&by, &[("cookie", "u=ada")], None), Some(hash(b"ada")));
        assert_eq!(key(&by, &[("cookie", "u=")], None), Some(hash(&[192, 0, 2, 7])), "an empty value is none");
    }

    #[test]
    fn what_tells_nobody_apart_is_refused() {
        for wrong in ["", "header:", "header:a b", "cookie:", "query:a b", "ip", "address:x"] {
            assert!(wrong.parse::<By>().is_err(), "{wrong}");
        }
    }
}
