//! A token as text, taken apart: RFC 7515 compact serialisation, read strictly.
//!
//! Base64url is accepted in its canonical form only: no padding, no other alphabet, no stray bits at the end. Otherwise one
//! signature would be good for several texts, and what is a cache key or a deny-list entry would not be one.

use super::Refusal;
use super::json;
use super::keys::Algorithm;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

/// The longest token, in bytes. Header fields are bounded too, but a route may take a token from elsewhere.
pub const TOKEN_MAX: usize = 8 << 10;

/// A token whose signature nobody has looked at yet.
pub(super) struct Token<'a> {
    pub header: Header,
    pub claims: Map<String, Value>,
    /// What is signed: the first two parts with the dot between them.
    pub message: &'a [u8],
    pub signature: Vec<u8>,
}

/// The members of the JOSE header that mean something here. `jku`, `jwk`, `x5u` and `x5c` do not: they are the token's own
/// word on how to verify it.
pub(super) struct Header {
    pub algorithm: Algorithm,
    pub kid: Option<String>,
    pub typ: Option<String>,
}

impl<'a> Token<'a> {
    pub fn parse(text: &'a [u8]) -> Result<Self, Refusal> {
        if text.len() > TOKEN_MAX {
            return Err(Refusal::TooLong);
        }
        let mut dots = memchr::memchr_iter(b'.', text);
        let (Some(first), Some(second), None) = (dots.next(), dots.next(), dots.next()) else {
            return Err(Refusal::Malformed);
        };
        let (Some(header), Some(payload)) = (text.get(..first), text.get(first.saturating_add(1)..second)) else {
            return Err(Refusal::Malformed);
        };
        let (Some(message), Some(signature)) = (text.get(..second), text.get(second.saturating_add(1)..)) else {
            return Err(Refusal::Malformed);
        };
        let header = Header::parse(&object(header)?)?;
        let signature = decode(signature)?;
        Ok(Token { header, claims: object(payload)?, message, signature })
    }
}

impl Header {
    fn parse(members: &Map<String, Value>) -> Result<Self, Refusal> {
        if members.contains_key("crit") {
            return Err(Refusal::Critical);
        }
        let text = |name: &str| match members.get(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(_) => Err(Refusal::WrongType),
        };
        let algorithm = text("alg")?.ok_or(Refusal::Malformed)?;
        Ok(Header {
            algorithm: Algorithm::named(algorithm).ok_or(Refusal::Algorithm)?,
            kid: text("kid")?.map(str::to_owned),
            typ: text("typ")?.map(str::to_owned),
        })
    }
}

fn object(part: &[u8]) -> Result<Map<String, Value>, Refusal> {
    json::object(&decode(part)?).ok_or(Refusal::Malformed)
}

fn decode(part: &[u8]) -> Result<Vec<u8>, Refusal> {
    match URL_SAFE_NO_PAD.decode(part) {
        Ok(bytes) if !bytes.is_empty() => Ok(bytes),
        _ => Err(Refusal::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    fn refusal(text: &str) -> Refusal {
        Token::parse(text.as_bytes()).err().unwrap_or_else(|| panic!("{text} parses"))
    }

    #[test]
    fn a_token_is_three_parts_in_canonical_base64url() {
        let (header, claims) = (part(r#"{"alg":"HS256","kid":"k","typ":"JWT"}"#), part(r#"{"sub":"a"}"#));
        let good = format!("{header}.{claims}.c2ln");
        let token = Token::parse(good.as_bytes()).ok().unwrap();
        assert_eq!((token.header.kid.as_deref(), token.header.typ.as_deref()), (Some("k"), Some("JWT")));
        assert_eq!(token.message, format!("{header}.{claims}").as_bytes());
        assert_eq!((token.claims["sub"].as_str(), token.signature.as_slice()), (Some("a"), &b"sig"[..]));
        for wrong in [
            String::new(),
            ".".into(),
            "..".into(),
            "...".into(),
            format!("{header}.{claims}"),
            format!("{header}.{claims}."),
            format!("{good}."),
            format!(".{good}"),
            format!("{good}.c2ln.c2ln"),
            format!("{header}..c2ln"),
            format!(" {good}"),
            format!("{good}\n"),
            format!("{header}.{claims}\n.c2ln"),
            format!("{header}.{claims}.c2 ln"),
            format!("{header}.{claims}.c2l="),
            format!("{header}.{claims}.c2lnZw=="),
            format!("{header}.{claims}.c2lnZx"),
            format!("{header}.{claims}.+/+/"),
            format!("{header}.{claims}.c2lnc"),
            format!("{}.{claims}.c2ln", part("[]")),
            format!("{header}.{}.c2ln", part("\"text\"")),
            format!("{header}.{}.c2ln", part(r#"{"a":1,"a":2}"#)),
            format!("{}.{claims}.c2ln", part(r#"{"alg":"none","alg":"HS256"}"#)),
            format!("{}.{claims}.c2ln", part("{}")),
        ] {
            assert_eq!(refusal(&wrong), Refusal::Malformed, "{wrong:?}");
        }
        assert_eq!(refusal(&"a".repeat(TOKEN_MAX + 1)), Refusal::TooLong);
    }

    #[test]
    fn headers_that_mean_trouble_are_refused_for_their_reason() {
        let with = |header: &str| refusal(&format!("{}.e30.c2ln", part(header)));
        for alg in ["none", "None", "NONE", "nOnE", "hs256", "HS256 ", "HS1", "ES512", "ES256K", "RSA-OAEP", "dir", "", "none\0"]
        {
            assert_eq!(with(&serde_json::json!({ "alg": alg }).to_string()), Refusal::Algorithm, "{alg:?}");
        }
        assert_eq!(with(r#"{"alg":"HS256","crit":["exp"]}"#), Refusal::Critical);
        assert_eq!(with(r#"{"alg":"HS256","crit":[]}"#), Refusal::Critical);
        assert_eq!(with(r#"{"alg":"HS256","b64":false,"crit":["b64"]}"#), Refusal::Critical);
        for wrong in [r#"{"alg":null}"#, r#"{"alg":["HS256"]}"#, r#"{"alg":"HS256","kid":1}"#, r#"{"alg":"HS256","typ":{}}"#] {
            assert_eq!(with(wrong), Refusal::WrongType, "{wrong}");
        }
    }
}
