//! Claims by name, and what the gateway makes of them.

use super::Refusal;
use serde_json::{Map, Value};
use std::sync::Arc;

/// Where a claim is found, compiled from text: `sub`, or `realm_access.roles` for a member of an object.
///
/// Names that begin with `https://` or `http://` are one claim, dots and all: that is how issuers name claims of their own
/// (RFC 7519 section 4.2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClaimPath {
    segments: Box<[Box<str>]>,
}

impl ClaimPath {
    /// The error is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let segments: Box<[Box<str>]> = if text.starts_with("https://") || text.starts_with("http://") {
            Box::new([text.into()])
        } else {
            text.split('.').map(Into::into).collect()
        };
        if segments.iter().any(|segment| segment.is_empty()) {
            return Err(format!("`{text}` is not the name of a claim"));
        }
        Ok(ClaimPath { segments })
    }

    /// The claim; `null` counts as absent.
    pub fn find<'a>(&self, claims: &'a Map<String, Value>) -> Option<&'a Value> {
        let (first, rest) = self.segments.split_first()?;
        let mut value = claims.get(&**first)?;
        for segment in rest {
            value = value.as_object()?.get(&**segment)?;
        }
        Some(value).filter(|value| !value.is_null())
    }

    /// Puts a claim where [`ClaimPath::find`] looks for it, in place of what is there.
    pub fn put(&self, claims: &mut Map<String, Value>, value: Value) {
        let Some((last, parents)) = self.segments.split_last() else { return };
        let mut map = claims;
        for segment in parents {
            let parent = map.entry(&**segment).or_insert(Value::Null);
            if !parent.is_object() {
                *parent = Map::new().into();
            }
            let Value::Object(members) = parent else { return };
            map = members;
        }
        map.insert(last.clone().into(), value);
    }
}

/// Which claims say who the caller is.
pub(super) struct Mapping {
    pub consumer: Option<ClaimPath>,
    pub roles: Option<ClaimPath>,
    pub scopes: Option<ClaimPath>,
    pub tier: Option<ClaimPath>,
}

/// What a token says about its bearer.
pub(super) struct Facts<'a> {
    /// The name that the operator's mapping gives, which may be that of a consumer.
    pub name: Option<&'a str>,
    pub roles: Vec<Arc<str>>,
    pub scopes: Vec<Arc<str>>,
    pub tier: Option<&'a str>,
}

impl Mapping {
    pub fn facts<'a>(&self, claims: &'a Map<String, Value>) -> Result<Facts<'a>, Refusal> {
        let name = match &self.consumer {
            Some(path) => Some(text(path.find(claims).ok_or(Refusal::ClaimMissing)?)?),
            None => None,
        };
        let scopes = match &self.scopes {
            Some(path) => path.find(claims),
            // RFC 8693 section 4.2, and what issuers used before it.
            None => claims.get("scope").or_else(|| claims.get("scp")),
        };
        Ok(Facts {
            name,
            roles: list(self.roles.as_ref().and_then(|path| path.find(claims)))?,
            scopes: list(scopes)?,
            tier: self.tier.as_ref().and_then(|path| path.find(claims)).map(text).transpose()?,
        })
    }
}

fn text(value: &Value) -> Result<&str, Refusal> {
    match value {
        Value::String(text) if !text.is_empty() => Ok(text),
        _ => Err(Refusal::WrongType),
    }
}

/// A list of strings, or one string with spaces between the entries; each once.
fn list(value: Option<&Value>) -> Result<Vec<Arc<str>>, Refusal> {
    let mut out: Vec<Arc<str>> = Vec::new();
    let mut add = |entry: &str| {
        if !entry.is_empty() && !out.iter().any(|known| **known == *entry) {
            out.push(entry.into());
        }
    };
    match value {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => text.split(' ').for_each(add),
        Some(Value::Array(list)) => {
            for entry in list {
                add(entry.as_str().ok_or(Refusal::WrongType)?);
            }
        }
        Some(_) => return Err(Refusal::WrongType),
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn claims(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn paths_lead_into_objects_and_urls_are_one_name() {
        let claims = claims(json!({
            "sub": "a", "realm_access": { "roles": ["x"] }, "https://example.com/roles": "y", "a.b": 1, "none": null,
        }));
        let find = |text: &str| ClaimPath::parse(text).unwrap().find(&claims).cloned();
        assert_eq!(find("sub"), Some(json!("a")));
        assert_eq!(find("realm_access.roles"), Some(json!(["x"])));
        assert_eq!(find("https://example.com/roles"), Some(json!("y")));
        for absent in ["a.b", "sub.a", "realm_access.roles.0", "none", "absent"] {
            assert_eq!(find(absent), None, "{absent}");
        }
        for wrong in ["", ".", "a.", ".a", "a..b"] {
            assert!(ClaimPath::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn lists_are_arrays_or_words_and_nothing_else() {
        let words = |value: Value| list(Some(&value)).map(|list| list.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(words(json!("a  b a")), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(words(json!(["a b", "c"])), Ok(vec!["a b".into(), "c".into()]));
        assert_eq!(words(json!([])), Ok(vec![]));
        for wrong in [json!(1), json!({ "a": 1 }), json!(["a", 1]), json!([["a"]]), json!(true)] {
            assert_eq!(words(wrong.clone()), Err(Refusal::WrongType), "{wrong}");
        }
    }

    #[test]
    fn a_name_that_is_asked_for_must_be_there_as_text() {
        let mapping = Mapping { consumer: ClaimPath::parse("org.id").ok(), roles: None, scopes: None, tier: None };
        let name = |value: Value| mapping.facts(&claims(value)).map(|facts| facts.name.map(str::to_owned));
        assert_eq!(name(json!({ "org": { "id": "acme" } })), Ok(Some("acme".into())));
        assert_eq!(name(json!({ "org": {} })), Err(Refusal::ClaimMissing));
        assert_eq!(name(json!({ "org": { "id": 7 } })), Err(Refusal::WrongType));
        assert_eq!(name(json!({ "org": { "id": "" } })), Err(Refusal::WrongType));
    }
}
