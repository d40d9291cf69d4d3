//! The address of an endpoint as written: `1.2.3.4:80`, `[::1]:80` or `orders.internal:8080`.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;
use std::sync::Arc;

/// Where an endpoint is. Names are in lower case.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    Socket(SocketAddr),
    Name { host: Arc<str>, port: u16 },
}

impl FromStr for Address {
    /// The reason, as it stands under a caret.
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.contains("://") {
            return Err("leave out the scheme: an address is a host and a port".to_owned());
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !(host.starts_with('[') && text.ends_with(']')) => (host, port),
            _ => return Err(format!("has no port: write it as {text}:8080")),
        };
        if text.parse::<IpAddr>().is_ok() || (host.contains(':') && !host.starts_with('[')) {
            return Err("an IPv6 address stands in brackets, such as [::1]:8080".to_owned());
        }
        let port = match port.parse::<u16>() {
            Ok(0) => return Err("port 0 cannot be connected to".to_owned()),
            Ok(number) if port.bytes().all(|b| b.is_ascii_digit()) => number,
            _ => return Err(format!("`{port}` is not a port from 1 to 65535")),
        };
        if host.starts_with('[') || host.parse::<IpAddr>().is_ok() {
            let address: SocketAddr = text.parse().map_err(|_| format!("`{host}` is not an IPv6 address"))?;
            if address.ip().is_unspecified() {
                return Err("stands for every address of a machine: write the one to connect to".to_owned());
            }
            return Ok(Address::Socket(address));
        }
        check_name(host)?;
        Ok(Address::Name { host: host.to_ascii_lowercase().into(), port })
    }
}

/// Names as resolvers take them: RFC 1123 §2.1, with the underscore that container platforms put into theirs.
fn check_name(host: &str) -> Result<(), String> {
    let name = host.strip_suffix('.').unwrap_or(host);
    if name.is_empty() {
        return Err("has no host".to_owned());
    }
    if name.len() > 253 {
        return Err("a name has at most 253 characters".to_owned());
    }
    for label in name.split('.') {
        let spelled = label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if label.is_empty() || label.len() > 63 || !spelled || label.starts_with('-') || label.ends_with('-') {
            return Err(format!("`{host}` is neither an address nor a name"));
        }
    }
    // A resolver would ask the root servers for `.400`: this is a mistyped address.
    if name.rsplit('.').next().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit())) {
        return Err(format!("`{host}` is not an IPv4 address"));
    }
    Ok(())
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Socket(address) => address.fmt(f),
            Address::Name { host, port } => write!(f, "{host}:{port}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_forms_are_understood() {
        for text in ["1.2.3.4:80", "[::1]:80", "orders.internal:8080", "localhost:1", "my_service:65535", "a.b.:80"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(text.to_owned()));
        }
        assert!(matches!("1.2.3.4:80".parse(), Ok(Address::Socket(_))));
        assert!(matches!("A.example:80".parse(), Ok(Address::Name { host, port: 80 }) if &*host == "a.example"));
    }

    #[test]
    fn each_mistake_has_its_reason() {
        for (text, reason) in [
            ("", "has no port"),
            ("orders", "has no port"),
            ("[::1]", "has no port"),
            ("::1", "brackets"),
            ("fe80::1:2:80", "brackets"),
            ("[::1:80", "not an IPv6 address"),
            ("[x]:80", "not an IPv6 address"),
            (":80", "has no host"),
            ("a:0", "port 0"),
            ("a:65536", "not a port"),
            ("a:+80", "not a port"),
            ("a:http", "not a port"),
            ("http://a:80", "scheme"),
            ("0.0.0.0:80", "every address"),
            ("[::]:80", "every address"),
            ("1.2.3.400:80", "not an IPv4 address"),
            ("-a:80", "neither"),
            ("a..b:80", "neither"),
            ("a b:80", "neither"),
            ("a/b:80", "neither"),
        ] {
            let why = text.parse::<Address>().unwrap_err();
            assert!(why.contains(reason), "{text}: {why}");
        }
    }
}
