//! What the claims of a token must say (RFC 7519 section 4.1), and when.
//!
//! Times are compared in milliseconds since 1970 by the wall clock of the gateway, which is injected: `jsonwebtoken` would
//! ask the system's. A claim that is there counts even where nobody asked for it: a wrong type is a refusal.

use super::Refusal;
use super::claims::ClaimPath;
use super::token::Header;
use serde_json::{Map, Value};

/// The latest time that a claim may name: the end of the year 9999. Later ones are mistakes, often milliseconds.
const LATEST: u64 = 253_402_300_799;

pub(super) struct Rules {
    pub issuer: Option<Box<str>>,
    /// Empty: not checked.
    pub audience: Box<[Box<str>]>,
    /// In lower case, without `application/`. `None`: the usual ones, and tokens without one.
    pub types: Option<Box<[Box<str>]>>,
    /// In milliseconds.
    pub leeway: u64,
    pub require_expiry: bool,
    /// In milliseconds.
    pub max_lifetime: Option<u64>,
    pub required: Box<[ClaimPath]>,
}

/// When a token counts, in milliseconds since 1970, the leeway included: from the first, before the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Window {
    pub from: u64,
    pub until: u64,
}

impl Window {
    pub fn contains(&self, now: u64) -> bool {
        self.from <= now && now < self.until
    }
}

impl Rules {
    pub fn check(&self, header: &Header, claims: &Map<String, Value>, now: u64) -> Result<Window, Refusal> {
        self.check_type(header.typ.as_deref())?;
        // Types first: what is checked below must not depend on which of the claims is looked at.
        let times = [time(claims, "exp")?, time(claims, "nbf")?, time(claims, "iat")?];
        for name in ["iss", "sub", "jti"] {
            if claims.get(name).is_some_and(|value| !value.is_string()) {
                return Err(Refusal::WrongType);
            }
        }
        self.check_issuer(claims)?;
        self.check_audience(claims)?;
        if self.required.iter().any(|path| path.find(claims).is_none()) {
            return Err(Refusal::ClaimMissing);
        }
        self.check_times(times, now)
    }

    /// RFC 7515 section 4.1.9: compared as media types, so without case, and `application/` may be left out.
    fn check_type(&self, typ: Option<&str>) -> Result<(), Refusal> {
        let Some(typ) = typ else {
            return if self.types.is_some() { Err(Refusal::Type) } else { Ok(()) };
        };
        let typ = match typ.split_at_checked("application/".len()) {
            Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") => rest,
            _ => typ,
        };
        let allowed = match &self.types {
            Some(types) => types.iter().any(|allowed| allowed.eq_ignore_ascii_case(typ)),
            None => typ.eq_ignore_ascii_case("JWT") || typ.eq_ignore_ascii_case("at+jwt"),
        };
        if allowed { Ok(()) } else { Err(Refusal::Type) }
    }

    fn check_issuer(&self, claims: &Map<String, Value>) -> Result<(), Refusal> {
        match &self.issuer {
            None => Ok(()),
            Some(wanted) if claims.get("iss").and_then(Value::as_str) == Some(wanted) => Ok(()),
            Some(_) => Err(Refusal::WrongIssuer),
        }
    }

    fn check_audience(&self, claims: &Map<String, Value>) -> Result<(), Refusal> {
        let wanted = |audience: &str| self.audience.iter().any(|wanted| **wanted == *audience);
        let found = match claims.get("aud") {
            None => false,
            Some(Value::String(audience)) => wanted(audience),
            Some(Value::Array(list)) => {
                if list.iter().any(|entry| !entry.is_string()) {
                    return Err(Refusal::WrongType);
                }
                list.iter().filter_map(Value::as_str).any(wanted)
            }
            Some(_) => return Err(Refusal::WrongType),
        };
        if found || self.audience.is_empty() { Ok(()) } else { Err(Refusal::Audience) }
    }

    fn check_times(&self, [exp, nbf, iat]: [Option<u64>; 3], now: u64) -> Result<Window, Refusal> {
        if exp.is_none() && self.require_expiry {
            return Err(Refusal::ClaimMissing);
        }
        if let Some(most) = self.max_lifetime {
            let (Some(exp), Some(iat)) = (exp, iat) else { return Err(Refusal::ClaimMissing) };
            if exp.saturating_sub(iat) > most {
                return Err(Refusal::Lifetime);
            }
        }
        let from = nbf.max(iat).map_or(0, |start| start.saturating_sub(self.leeway));
        let until = exp.map_or(u64::MAX, |end| end.saturating_add(self.leeway));
        if now >= until {
            return Err(Refusal::Expired);
        }
        if now < from {
            return Err(Refusal::NotYet);
        }
        Ok(Window { from, until })
    }
}

/// A NumericDate (RFC 7519 section 2): a number of seconds, with or without a fraction. In milliseconds.
fn time(claims: &Map<String, Value>, name: &str) -> Result<Option<u64>, Refusal> {
    let number = match claims.get(name) {
        None => return Ok(None),
        Some(Value::Number(number)) => number,
        Some(_) => return Err(Refusal::WrongType),
    };
    if let Some(seconds) = number.as_u64() {
        return if seconds <= LATEST { Ok(Some(seconds.saturating_mul(1000))) } else { Err(Refusal::WrongType) };
    }
    match number.as_f64() {
        // In this range the conversion is exact to the millisecond.
        Some(seconds) if (0.0..=LATEST as f64).contains(&seconds) => Ok(Some((seconds * 1000.0) as u64)),
        _ => Err(Refusal::WrongType),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jwt::keys::Algorithm;
    use serde_json::json;

    const NOW: u64 = 1_700_000_000_000;

    fn rules() -> Rules {
        Rules {
            issuer: None,
            audience: Box::new([]),
            types: None,
            leeway: 30_000,
            require_expiry: true,
            max_lifetime: None,
            required: Box::new([]),
        }
    }

    fn typed(rules: &Rules, typ: Option<&str>, claims: Value) -> Result<Window, Refusal> {
        let header = Header { algorithm: Algorithm::HS256, kid: None, typ: typ.map(str::to_owned) };
        rules.check(&header, claims.as_object().unwrap(), NOW)
    }

    fn check(rules: &Rules, claims: Value) -> Result<Window, Refusal> {
        typed(rules, None, claims)
    }

    #[test]
    fn times_count_with_leeway_to_the_millisecond() {
        let now = NOW / 1000;
        let rules = rules();
        assert_eq!(check(&rules, json!({})), Err(Refusal::ClaimMissing));
        assert_eq!(check(&rules, json!({ "exp": now - 30 })), Err(Refusal::Expired));
        assert_eq!(check(&rules, json!({ "exp": now - 29 })), Ok(Window { from: 0, until: NOW + 1_000 }));
        assert_eq!(check(&rules, json!({ "exp": (now - 30) as f64 + 0.001 })), Ok(Window { from: 0, until: NOW + 1 }));
        assert!(check(&rules, json!({ "exp": now + 9, "nbf": now + 30, "iat": now + 30 })).is_ok());
        assert_eq!(check(&rules, json!({ "exp": now + 9, "nbf": now + 31 })), Err(Refusal::NotYet));
        assert_eq!(check(&rules, json!({ "exp": now + 9, "iat": now + 31 })), Err(Refusal::NotYet));
        let eternal = Rules { require_expiry: false, ..rules };
        assert_eq!(check(&eternal, json!({})), Ok(Window { from: 0, until: u64::MAX }));
        assert_eq!(check(&eternal, json!({ "exp": 0 })), Err(Refusal::Expired), "an expiry counts where none is required");
    }

    #[test]
    fn wrong_types_refuse_whatever_is_checked() {
        let future = NOW / 1000 + 60;
        let rules = Rules { require_expiry: false, ..rules() };
        for name in ["exp", "nbf", "iat"] {
            for wrong in [json!("9999999999"), json!(null), json!(true), json!([future]), json!({}), json!(-1), json!(1e300)] {
                assert_eq!(check(&rules, json!({ name: wrong })), Err(Refusal::WrongType), "{name}: {wrong}");
            }
            assert_eq!(check(&rules, json!({ name: LATEST + 1 })), Err(Refusal::WrongType), "{name} in milliseconds");
        }
        for name in ["iss", "sub", "jti"] {
            assert_eq!(check(&rules, json!({ name: 1 })), Err(Refusal::WrongType), "{name}");
        }
        for wrong in [json!(1), json!({ "a": 1 }), json!(["a", 1]), json!([["a"]]), json!(null)] {
            assert_eq!(check(&rules, json!({ "aud": wrong })), Err(Refusal::WrongType), "{wrong}");
        }
    }

    #[test]
    fn the_audience_is_one_of_a_text_or_a_list_exactly() {
        let rules = Rules { audience: ["api".into(), "web".into()].into(), require_expiry: false, ..rules() };
        for good in [json!("api"), json!(["other", "web"])] {
            assert!(check(&rules, json!({ "aud": good })).is_ok(), "{good}");
        }
        for wrong in [
            json!("API"),
            json!("api "),
            json!("api,web"),
            json!("ap"),
            json!(""),
            json!([]),
            json!(["apis"]),
            json!(["api web"]),
        ] {
            assert_eq!(check(&rules, json!({ "aud": wrong })), Err(Refusal::Audience), "{wrong}");
        }
        assert_eq!(check(&rules, json!({})), Err(Refusal::Audience));
    }

    #[test]
    fn issuer_type_lifetime_and_required_claims() {
        let now = NOW / 1000;
        let strict = Rules {
            issuer: Some("https://id/".into()),
            types: Some(["at+jwt".into()].into()),
            max_lifetime: Some(60_000),
            required: ["sub", "org.id"].iter().map(|text| ClaimPath::parse(text).unwrap()).collect(),
            ..rules()
        };
        let good = json!({ "iss": "https://id/", "exp": now + 50, "iat": now - 10, "sub": "a", "org": { "id": 7 } });
        let with = |name: &str, value: Value| {
            let mut claims = good.clone();
            claims[name] = value;
            typed(&strict, Some("application/AT+JWT"), claims)
        };
        assert!(with("x", json!(1)).is_ok());
        assert_eq!(typed(&strict, Some("JWT"), good.clone()), Err(Refusal::Type));
        assert_eq!(typed(&strict, None, good.clone()), Err(Refusal::Type));
        assert_eq!(with("iss", json!("https://id")), Err(Refusal::WrongIssuer));
        assert_eq!(with("iat", json!(now - 11)), Err(Refusal::Lifetime));
        assert_eq!(with("org", json!({ "id": null })), Err(Refusal::ClaimMissing));
        for typ in ["JWT", "jwt", "application/jwt", "at+jwt"] {
            assert!(typed(&rules(), Some(typ), json!({ "exp": now })).is_ok(), "{typ}");
        }
        for typ in ["", "application/", "dpop+jwt", "logout+jwt", "application/application/jwt"] {
            assert_eq!(typed(&rules(), Some(typ), json!({ "exp": now })), Err(Refusal::Type), "{typ}");
        }
    }
}
