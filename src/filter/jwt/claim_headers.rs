//! Claims as headers for the upstream.

use super::super::header_edits::parse_name;
use super::Problem;
use crate::fields::remove_alike;
use crate::jwt::ClaimPath;
use crate::value::Located;
use bytes::Bytes;
use http::{HeaderName, HeaderValue};
use pingora::http::RequestHeader;
use serde_json::{Map, Value};
use std::collections::BTreeMap;

const HEADERS_MAX: usize = 32;
/// The longest value, in bytes.
const VALUE_MAX: usize = 2 << 10;

pub(super) struct ClaimHeaders {
    list: Box<[ClaimHeader]>,
}

struct ClaimHeader {
    name: HeaderName,
    /// As the operator wrote it, which is what HTTP/1 upstreams see.
    spelling: Bytes,
    claim: ClaimPath,
}

impl ClaimHeaders {
    pub fn compile(table: &BTreeMap<String, Located<String>>) -> Result<Self, Problem> {
        if table.len() > HEADERS_MAX {
            return Err(Problem::new(format!("`headers` has {} entries, and the most is {HEADERS_MAX}", table.len())));
        }
        let mut list: Vec<ClaimHeader> = Vec::new();
        for (text, claim) in table {
            let name = parse_name(text, claim)?;
            if list.iter().any(|known| known.name == name) {
                return Err(Problem::new(format!("`{name}` stands twice, in two spellings")).at(claim));
            }
            let path = ClaimPath::parse(claim).map_err(|why| Problem::new(why).at(claim))?;
            list.push(ClaimHeader { name, spelling: Bytes::copy_from_slice(text.as_bytes()), claim: path });
        }
        Ok(ClaimHeaders { list: list.into() })
    }

    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Without a claim the header is removed: what a client wrote there must not pass for the issuer's word.
    pub fn apply(&self, head: &mut RequestHeader, claims: Option<&Map<String, Value>>) {
        for header in &self.list {
            remove_alike(head, &header.name);
        }
        for header in &self.list {
            if let Some(value) = claims.and_then(|claims| header.claim.find(claims)).and_then(value) {
                // Fails only when the map is full (32,768 fields).
                let _ = head.insert_header(header.spelling.clone(), value);
            }
        }
    }
}

/// A claim as a header, if it can be one without being read as something else.
fn value(claim: &Value) -> Option<HeaderValue> {
    let text = match claim {
        Value::Array(list) => {
            let parts: Option<Vec<String>> = list.iter().map(|entry| plain(entry).filter(|text| !text.contains(','))).collect();
            parts?.join(",")
        }
        other => plain(other)?,
    };
    // Refuses control characters, line breaks above all.
    HeaderValue::from_bytes(text.as_bytes()).ok().filter(|_| text.len() <= VALUE_MAX)
}

fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(truth) => Some(truth.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_claim_becomes_a_header_only_if_it_reads_as_itself() {
        let text = |claim: Value| value(&claim).map(|value| String::from_utf8(value.as_bytes().to_vec()).unwrap());
        assert_eq!(text(json!("acme")).as_deref(), Some("acme"));
        assert_eq!(text(json!(7)).as_deref(), Some("7"));
        assert_eq!(text(json!(["a", "b c", 1, true])).as_deref(), Some("a,b c,1,true"));
        assert_eq!(text(json!("Zoë")).as_deref(), Some("Zoë"));
        for no in [
            json!(null),
            json!({}),
            json!([["a"]]),
            json!(["a,admin"]),
            json!("a\r\nx-admin: 1"),
            json!("a\0"),
            json!("x".repeat(VALUE_MAX + 1)),
        ] {
            assert_eq!(text(no.clone()), None, "{no}");
        }
    }
}
