//! PROXY protocol, versions 1 and 2 (<https://www.haproxy.org/download/3.2/doc/proxy-protocol.txt>): a load balancer in
//! front says whose connection it passes on.
//!
//! Strict, because the address decides about access: one form for each address, no space too many, and no version 2 header
//! that is shorter than the addresses that it says it has. Whether the sender may say so at all is decided before.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

/// How version 2 begins (§2.2).
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// The longest line of version 1 with its CRLF (§2.1).
const LINE_MAX: usize = 107;
/// The longest version 2 header after its fixed part. The length field allows 65535; real ones carry some TLVs of a few
/// hundred bytes.
const REST_MAX: usize = 4096;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
    /// This is whose connection it is.
    Client(SocketAddr),
    /// The sender speaks for itself (`LOCAL`), such as for a health check, or does not know (`UNKNOWN`).
    Sender,
}

/// Why a header is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Invalid(pub &'static str);

/// Reads the header that a connection begins with and not one byte more. The caller sets the deadline.
///
/// # Errors
/// [`io::ErrorKind::InvalidData`] for what is no header, or what the socket says.
pub async fn read(stream: &mut TcpStream) -> io::Result<Named> {
    let invalid = |_| io::Error::from(io::ErrorKind::InvalidData);
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await?;
    if first == SIGNATURE {
        let mut fixed = [0; 4];
        stream.read_exact(&mut fixed).await?;
        let (command, length) = parse_fixed(fixed).map_err(invalid)?;
        let mut rest = vec![0; length];
        stream.read_exact(&mut rest).await?;
        return parse_rest(command, &rest).map_err(invalid);
    }
    let mut line = first.to_vec();
    loop {
        // Looked at first, so that what follows the line stays in the socket. Waits until something new is there, because all
        // that was looked at is taken.
        let mut ahead = [0; LINE_MAX];
        let seen = stream.peek(&mut ahead).await?;
        let seen = ahead.get(..seen).unwrap_or_default();
        let take = memchr::memchr(b'\n', seen).map_or(seen.len(), |at| at.saturating_add(1));
        if take == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if line.len().saturating_add(take) > LINE_MAX {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let start = line.len();
        line.resize(start.saturating_add(take), 0);
        stream.read_exact(line.get_mut(start..).unwrap_or_default()).await?;
        if line.ends_with(b"\n") {
            return parse_line(&line).map_err(invalid);
        }
    }
}

/// Parses a whole version 1 line with its CRLF.
pub fn parse_line(line: &[u8]) -> Result<Named, Invalid> {
    if line.len() > LINE_MAX {
        return Err(Invalid("the line is longer than 107 bytes"));
    }
    let text = line.strip_suffix(b"\r\n").and_then(|line| std::str::from_utf8(line).ok()).ok_or(Invalid("no line of text"))?;
    let rest = text.strip_prefix("PROXY ").ok_or(Invalid("it does not begin with PROXY"))?;
    if rest == "UNKNOWN" || rest.starts_with("UNKNOWN ") {
        // The rest of the line is to be ignored (§2.1).
        return Ok(Named::Sender);
    }
    let mut words = rest.split(' ');
    let mut word = || words.next().ok_or(Invalid("a word is missing"));
    let (family, source, target, source_port, target_port) = (word()?, word()?, word()?, word()?, word()?);
    if words.next().is_some() {
        return Err(Invalid("there are words too many"));
    }
    let (source, _) = match family {
        "TCP4" => (IpAddr::V4(ipv4(source)?), IpAddr::V4(ipv4(target)?)),
        "TCP6" => (IpAddr::V6(ipv6(source)?), IpAddr::V6(ipv6(target)?)),
        _ => return Err(Invalid("the family is none of TCP4, TCP6 and UNKNOWN")),
    };
    port(target_port)?;
    Ok(Named::Client(SocketAddr::new(source, port(source_port)?)))
}

fn ipv4(text: &str) -> Result<Ipv4Addr, Invalid> {
    text.parse().map_err(|_| Invalid("not an IPv4 address"))
}

fn ipv6(text: &str) -> Result<Ipv6Addr, Invalid> {
    text.parse().map_err(|_| Invalid("not an IPv6 address"))
}

fn port(text: &str) -> Result<u16, Invalid> {
    // `u16::from_str` takes a sign and leading zeros.
    let plain = text.bytes().all(|byte| byte.is_ascii_digit()) && (text == "0" || !text.starts_with('0'));
    match text.parse() {
        Ok(port) if plain => Ok(port),
        _ => Err(Invalid("not a port")),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Local,
    /// With the family and protocol byte.
    Proxy(u8),
}

/// Parses what follows the signature of version 2 up to the length; the length is of what follows.
pub fn parse_fixed(fixed: [u8; 4]) -> Result<(Command, usize), Invalid> {
    let [version_command, family, high, low] = fixed;
    let command = match version_command {
        0x20 => Command::Local,
        0x21 => Command::Proxy(family),
        _ => return Err(Invalid("not version 2, or an unknown command")),
    };
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > REST_MAX { Err(Invalid("longer than 4096 bytes")) } else { Ok((command, length)) }
}

/// Parses the addresses of version 2. Type-length-values may follow them and are skipped.
pub fn parse_rest(command: Command, rest: &[u8]) -> Result<Named, Invalid> {
    const SHORT: Invalid = Invalid("shorter than its addresses");
    let family = match command {
        Command::Local => return Ok(Named::Sender),
        Command::Proxy(family) => family,
    };
    match family {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let [a, b, c, d, _, _, _, _, high, low, _, _] = *rest.first_chunk::<12>().ok_or(SHORT)?;
            Ok(Named::Client(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))))
        }
        0x21 => {
            let source = *rest.first_chunk::<16>().ok_or(SHORT)?;
            let ports = rest.get(32..).and_then(|ports| ports.first_chunk::<4>()).ok_or(SHORT)?;
            let [high, low, _, _] = *ports;
            Ok(Named::Client(SocketAddr::from((source, u16::from_be_bytes([high, low])))))
        }
        // UNSPEC: the sender does not know (§2.2).
        0x00 => Ok(Named::Sender),
        // Datagrams cannot have brought this connection, and unix sockets have no address that anything could be decided by.
        _ => Err(Invalid("neither TCP over IPv4 nor over IPv6")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn a_line_names_the_client() {
        let client = |text: &str| Ok(Named::Client(text.parse().unwrap()));
        for (line, named) in [
            ("PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\n", client("192.0.2.1:56324")),
            ("PROXY TCP6 2001:db8::1 2001:db8::2 0 65535\r\n", client("[2001:db8::1]:0")),
            ("PROXY UNKNOWN\r\n", Ok(Named::Sender)),
            ("PROXY UNKNOWN ffff::1 whatever\r\n", Ok(Named::Sender)),
        ] {
            assert_eq!(parse_line(line.as_bytes()), named, "{line}");
        }
    }

    #[test]
    fn another_reading_is_refused() {
        for line in [
            "",
            "PROXY\r\n",
            "PROXY \r\n",
            "proxy TCP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2 3\r\n",
            "PROXY TCP4  192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 1 2 \r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 01 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 +1 2\r\n",
            "PROXY TCP4 192.0.2.1 198.51.100.1 65536 2\r\n",
            "PROXY TCP4 192.0.2.01 198.51.100.1 1 2\r\n",
            "PROXY TCP4 192.0.2.1 nobody 1 2\r\n",
            "PROXY TCP4 2001:db8::1 2001:db8::2 1 2\r\n",
            "PROXY TCP6 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY UDP4 192.0.2.1 198.51.100.1 1 2\r\n",
            "PROXY UNKNOWNS\r\n",
        ] {
            assert!(parse_line(line.as_bytes()).is_err(), "{line:?}");
        }
    }

    #[test]
    fn version_2_names_the_client_and_may_carry_more() {
        let mut v4 = vec![192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 1, 187];
        let client = Named::Client("192.0.2.1:56324".parse().unwrap());
        assert_eq!(parse_rest(Command::Proxy(0x11), &v4), Ok(client));
        v4.extend([0x04, 0, 1, 0]);
        assert_eq!(parse_rest(Command::Proxy(0x11), &v4), Ok(client));
        assert!(parse_rest(Command::Proxy(0x11), &v4[..11]).is_err());
        assert!(parse_rest(Command::Proxy(0x21), &[0; 35]).is_err());
        assert_eq!(parse_rest(Command::Proxy(0x21), &[0; 36]), Ok(Named::Client("[::]:0".parse().unwrap())));
        assert_eq!(parse_rest(Command::Local, &[]), Ok(Named::Sender));
        assert_eq!(parse_rest(Command::Proxy(0), &[]), Ok(Named::Sender));
        for family in [0x12, 0x22, 0x31, 0x01, 0xff] {
            assert!(parse_rest(Command::Proxy(family), &[0; 300]).is_err(), "{family:#x}");
        }
        for fixed in [[0x11, 0x11, 0, 12], [0x22, 0x11, 0, 12], [0x21, 0x11, 0x10, 1]] {
            assert!(parse_fixed(fixed).is_err(), "{fixed:?}");
        }
    }

    /// What is written to one end of a connection, as it is read at the other, and what is left there.
    async fn exchange(bytes: Vec<u8>) -> (io::Result<Named>, Vec<u8>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let writer = tokio::spawn(async move {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.set_nodelay(true).unwrap();
            for piece in bytes.chunks(7) {
                stream.write_all(piece).await.unwrap();
                tokio::task::yield_now().await;
            }
        });
        let (mut stream, _) = listener.accept().await.unwrap();
        let named = read(&mut stream).await;
        let mut left = Vec::new();
        stream.read_to_end(&mut left).await.unwrap();
        writer.await.unwrap();
        (named, left)
    }

    #[tokio::test]
    async fn what_follows_a_header_stays_in_the_socket() {
        let client = Named::Client("192.0.2.1:56324".parse().unwrap());
        let (named, left) = exchange(b"PROXY TCP4 192.0.2.1 198.51.100.1 56324 443\r\nGET / HTTP/1.1\r\n".to_vec()).await;
        assert_eq!((named.unwrap(), left.as_slice()), (client, b"GET / HTTP/1.1\r\n".as_slice()));
        let header =
            [&SIGNATURE[..], &[0x21, 0x11, 0, 12, 192, 0, 2, 1, 198, 51, 100, 1, 0xdc, 0x04, 1, 187], b"\x16\x03"].concat();
        let (named, left) = exchange(header).await;
        assert_eq!((named.unwrap(), left.as_slice()), (client, b"\x16\x03".as_slice()));
        let (named, _) = exchange([b"PROXY ".as_slice(), &[b'x'; 200]].concat()).await;
        assert_eq!(named.unwrap_err().kind(), io::ErrorKind::InvalidData);
        let (named, _) = exchange(b"PROXY TCP4 1".to_vec()).await;
        assert_eq!(named.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    proptest! {
        #[test]
        fn any_bytes_get_a_verdict(line in proptest::collection::vec(any::<u8>(), 0..120), fixed in any::<[u8; 4]>()) {
            let _ = parse_line(&line);
            if let Ok((command, length)) = parse_fixed(fixed) {
                prop_assert!(length <= REST_MAX);
                let _ = parse_rest(command, &line);
            }
        }

        #[test]
        fn what_is_written_by_the_rules_is_read_back(source in any::<IpAddr>(), from in any::<u16>(), to in any::<u16>()) {
            let family = if source.is_ipv4() { "TCP4" } else { "TCP6" };
            let line = format!("PROXY {family} {source} {source} {from} {to}\r\n");
            let client = Named::Client(SocketAddr::new(source, from));
            prop_assert_eq!(parse_line(line.as_bytes()), Ok(client));
            let (byte, mut rest) = match source {
                IpAddr::V4(v4) => (0x11, v4.octets().repeat(2)),
                IpAddr::V6(v6) => (0x21, v6.octets().repeat(2)),
            };
            rest.extend(from.to_be_bytes().into_iter().chain(to.to_be_bytes()));
            prop_assert_eq!(parse_rest(Command::Proxy(byte), &rest), Ok(client));
        }
    }
}
