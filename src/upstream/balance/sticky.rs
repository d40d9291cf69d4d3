//! The cookie of an endpoint.
//!
//! Its value is an HMAC of the address, made once for each endpoint. So a request costs one look-up in a table and no
//! cryptography: a value that is in the table can only have come from whoever knows the secret. It tells nothing about
//! the address, and a client cannot make one for another endpoint.

use super::config::StickyConfig;
use super::key::cookie;
use crate::value::Secret;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, HeaderValue};
use ring::hmac;
use std::net::SocketAddr;

/// The shortest secret, in bytes.
pub const SECRET_MIN: usize = 16;

/// How cookies are made and found.
pub struct Sticky {
    name: Box<str>,
    attributes: Box<str>,
    key: hmac::Key,
}

impl std::fmt::Debug for Sticky {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sticky").field("name", &self.name).finish_non_exhaustive()
    }
}

/// What an endpoint's clients are given.
#[derive(Debug, Clone)]
pub struct EndpointCookie {
    pub value: Box<str>,
    /// `Set-Cookie` for http and for https, where the cookie must not leave it.
    pub plain: HeaderValue,
    pub secure: HeaderValue,
}

impl Sticky {
    /// `None` if the secret is shorter than [`SECRET_MIN`].
    pub fn new(config: &StickyConfig, upstream: &str, secret: &Secret) -> Option<Self> {
        let name =
            config.cookie.as_ref().map_or_else(|| format!("gatewright_endpoint_{upstream}"), |cookie| cookie.value.clone());
        let bytes = secret.expose().as_bytes();
        let age = config.max_age.as_ref().map(|age| format!("; Max-Age={}", age.get().as_secs()));
        (bytes.len() >= SECRET_MIN).then(|| Sticky {
            name: name.into(),
            attributes: format!("; Path=/; HttpOnly; SameSite={}{}", config.same_site.as_str(), age.unwrap_or_default()).into(),
            key: hmac::Key::new(hmac::HMAC_SHA256, bytes),
        })
    }

    /// The cookie of an endpoint; `None` only if header values could not be made of it, which the checked name excludes.
    pub fn cookie_of(&self, upstream: &str, address: SocketAddr) -> Option<EndpointCookie> {
        let signed = hmac::sign(&self.key, format!("gatewright endpoint {upstream} {address}").as_bytes());
        // 128 bits are more than anybody can guess.
        let value = URL_SAFE_NO_PAD.encode(signed.as_ref().get(..16)?);
        let plain = format!("{}={value}{}", self.name, self.attributes);
        Some(EndpointCookie { secure: format!("{plain}; Secure").parse().ok()?, plain: plain.parse().ok()?, value: value.into() })
    }

    /// The value that a request has.
    pub fn find<'a>(&self, headers: &'a HeaderMap) -> Option<&'a str> {
        cookie(headers, &self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sticky(secret: &str) -> Option<Sticky> {
        let text = "secret = { env = 'X' }\ncookie = 'srv'\nmax_age = '1h'\nsame_site = 'strict'";
        Sticky::new(&toml::from_str(text).unwrap(), "orders", &Secret::new(secret))
    }

    #[test]
    fn a_value_depends_on_secret_upstream_and_address() {
        let (one, other) = (sticky("0123456789abcdef").unwrap(), sticky("0123456789abcdeX").unwrap());
        let [a, b] = ["127.0.0.1:1", "127.0.0.1:2"].map(|address| address.parse().unwrap());
        let value = one.cookie_of("orders", a).unwrap().value;
        assert_eq!(value, one.cookie_of("orders", a).unwrap().value);
        for another in [one.cookie_of("orders", b), one.cookie_of("users", a), other.cookie_of("orders", a)] {
            assert_ne!(value, another.unwrap().value);
        }
        assert!(value.len() == 22 && !value.contains("127"), "{value}");
        assert!(sticky("short").is_none());
    }

    #[test]
    fn the_header_has_its_attributes() {
        let cookie = sticky("0123456789abcdef").unwrap().cookie_of("orders", "127.0.0.1:1".parse().unwrap()).unwrap();
        let plain = format!("srv={}; Path=/; HttpOnly; SameSite=Strict; Max-Age=3600", cookie.value);
        assert_eq!((cookie.plain.to_str().unwrap(), cookie.secure.to_str().unwrap()), (&*plain, &*format!("{plain}; Secure")));
    }

    #[test]
    fn upstreams_have_cookies_of_their_own_unless_they_are_named() {
        let of = |upstream| {
            let config = toml::from_str("secret = { env = 'X' }").unwrap();
            let sticky = Sticky::new(&config, upstream, &Secret::new("0123456789abcdef")).unwrap();
            let cookie = sticky.cookie_of(upstream, "127.0.0.1:1".parse().unwrap()).unwrap();
            cookie.plain.to_str().unwrap().split('=').next().unwrap().to_owned()
        };
        assert_eq!(["orders", "users.v2"].map(of), ["gatewright_endpoint_orders", "gatewright_endpoint_users.v2"]);
    }
}
