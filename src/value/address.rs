//! Where to listen: an IP address with a port, or a Unix socket.

use super::text_value;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

/// The longest path of a Unix socket, in bytes (`sun_path` of Linux less its NUL).
const UNIX_PATH_MAX: usize = 107;

/// `"127.0.0.1:8080"`, `"[::]:8080"` or `"unix:/run/gatewright/admin.sock"`. Port 0 asks the kernel for a free one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

text_value!(
    Address,
    "address",
    r"^(unix:/.+|[0-9.]+:[0-9]{1,5}|\[[0-9a-fA-F:.%]+\]:[0-9]{1,5})$",
    "An IP address and a port, or a Unix socket: 127.0.0.1:8080, [::]:8080, unix:/run/gatewright/admin.sock"
);

impl Address {
    /// Whether only processes on this machine can reach it.
    pub fn is_local(&self) -> bool {
        match self {
            Address::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Address::Unix(_) => true,
        }
    }
}

impl FromStr for Address {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            if !path.starts_with('/') {
                return Err(format!("`{text}` is not an address: the path of a Unix socket must be absolute"));
            }
            if path.len() > UNIX_PATH_MAX || path.contains('\0') {
                return Err(format!("the path of a Unix socket is at most {UNIX_PATH_MAX} bytes long"));
            }
            return Ok(Address::Unix(path.into()));
        }
        text.parse().map(Address::Tcp).map_err(|_| match text.strip_prefix(':').or_else(|| text.strip_prefix("*:")) {
            Some(port) if port.parse::<u16>().is_ok() => {
                format!("`{text}` is not an address: to listen on every one, write 0.0.0.0:{port} or [::]:{port}")
            }
            _ => format!(
                "`{text}` is not an address: write an IP address and a port, such as 127.0.0.1:8080 or [::]:8080, or unix:/path"
            ),
        })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => address.fmt(f),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_as_it_is_written() {
        for text in ["127.0.0.1:8080", "[::]:0", "unix:/run/gatewright/admin.sock"] {
            assert_eq!(text.parse::<Address>().unwrap().to_string(), text);
        }
        for wrong in
            ["", "8080", ":8080", "*:80", "localhost:8080", "127.0.0.1", "127.0.0.1:65536", "::1:80", "unix:run/x", "unix:"]
        {
            assert!(wrong.parse::<Address>().is_err(), "{wrong}");
        }
        assert!(":8080".parse::<Address>().unwrap_err().contains("0.0.0.0:8080"));
        assert!(format!("unix:/{}", "a".repeat(107)).parse::<Address>().is_err());
    }

    #[test]
    fn loopback_and_sockets_are_local() {
        for (text, local) in
            [("127.0.0.9:1", true), ("[::1]:1", true), ("[::ffff:127.0.0.1]:1", true), ("0.0.0.0:1", false), ("unix:/x", true)]
        {
            assert_eq!(text.parse::<Address>().unwrap().is_local(), local, "{text}");
        }
    }
}
