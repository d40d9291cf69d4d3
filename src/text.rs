//! Addresses as text, for the request path. `std::fmt` costs about a microsecond a line of log there, because each part goes
//! through padding and alignment that nobody asked for; an IPv4 address is four numbers below 256.

use bytes::BufMut;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Appends an address as its `Display` would.
pub fn put_ip(out: &mut impl BufMut, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let [first, rest @ ..] = v4.octets();
            put_small(out, first.into());
            for octet in rest {
                out.put_u8(b'.');
                put_small(out, octet.into());
            }
        }
        IpAddr::V6(v6) => put_v6(out, v6),
    }
}

/// Appends an address with its port as its `Display` would.
pub fn put_socket(out: &mut impl BufMut, address: SocketAddr) {
    match address {
        SocketAddr::V4(v4) => put_ip(out, IpAddr::V4(*v4.ip())),
        SocketAddr::V6(v6) => {
            out.put_u8(b'[');
            put_v6(out, *v6.ip());
            out.put_u8(b']');
        }
    }
    out.put_u8(b':');
    put_small(out, address.port().into());
}

/// The zeros that IPv6 leaves out are a matter of rules (RFC 5952), which std has.
fn put_v6(out: &mut impl BufMut, address: Ipv6Addr) {
    let mut text = arrayvec::ArrayString::<45>::new();
    // 45 characters are the longest address there is.
    let _ = std::fmt::Write::write_fmt(&mut text, format_args!("{address}"));
    out.put_slice(text.as_bytes());
}

/// Up to five digits.
fn put_small(out: &mut impl BufMut, number: u32) {
    let mut digits = [b'0'; 5];
    let mut rest = number;
    let mut first = digits.len();
    for (at, digit) in digits.iter_mut().enumerate().rev() {
        *digit = b'0'.wrapping_add((rest % 10) as u8);
        rest /= 10;
        first = at;
        if rest == 0 {
            break;
        }
    }
    out.put_slice(digits.get(first..).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_what_display_says(v4: u32, v6: u128, port: u16) {
            for ip in [IpAddr::V4(v4.into()), IpAddr::V6(v6.into())] {
                let (mut text, mut socket) = (Vec::new(), Vec::new());
                put_ip(&mut text, ip);
                prop_assert_eq!(String::from_utf8(text).unwrap(), ip.to_string());
                let address = SocketAddr::new(ip, port);
                put_socket(&mut socket, address);
                prop_assert_eq!(String::from_utf8(socket).unwrap(), address.to_string());
            }
        }
    }
}
