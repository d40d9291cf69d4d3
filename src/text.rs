//! Addresses and numbers as text, for the request path. `std::fmt` costs about a microsecond a line of log there, because each part goes
//! through padding and alignment that nobody asked for; an IPv4 address is four numbers below 256.

use arrayvec::{ArrayString, ArrayVec};
use bytes::BufMut;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The text of an IPv4 address with its port: `255.255.255.255:65535`.
const V4_MAX: usize = 21;
/// The digits of the largest `u64`.
const U64_MAX: usize = 20;

/// Appends an address as its `Display` would.
pub fn put_ip(out: &mut impl BufMut, address: IpAddr) {
    match address {
        IpAddr::V4(v4) => {
            let mut text = ArrayVec::new();
            push_v4(&mut text, v4);
            out.put_slice(&text);
        }
        IpAddr::V6(v6) => put_v6(out, v6),
    }
}

/// Appends an address with its port as its `Display` would.
pub fn put_socket(out: &mut impl BufMut, address: SocketAddr) {
    let mut text = ArrayVec::new();
    match address {
        SocketAddr::V4(v4) => push_v4(&mut text, *v4.ip()),
        SocketAddr::V6(v6) => {
            out.put_u8(b'[');
            put_v6(out, *v6.ip());
            out.put_u8(b']');
        }
    }
    push(&mut text, b':');
    push_number(&mut text, address.port());
    out.put_slice(&text);
}

/// Appends a number as its `Display` would.
pub fn put_number(out: &mut impl BufMut, number: u64) {
    // The lowest digit first, from the end of the room.
    let mut text = [0; U64_MAX];
    let mut rest = number;
    let mut begin = U64_MAX;
    for (at, digit) in text.iter_mut().enumerate().rev() {
        *digit = b'0'.wrapping_add((rest % 10) as u8);
        (rest, begin) = (rest / 10, at);
        if rest == 0 {
            break;
        }
    }
    out.put_slice(text.get(begin..).unwrap_or_default());
}

/// Written on the stack and copied at once: each byte that goes to a buffer asks it for room.
fn push_v4(text: &mut ArrayVec<u8, V4_MAX>, address: Ipv4Addr) {
    let [first, rest @ ..] = address.octets();
    push_number(text, first.into());
    for octet in rest {
        push(text, b'.');
        push_number(text, octet.into());
    }
}

fn push_number(text: &mut ArrayVec<u8, V4_MAX>, number: u16) {
    let digit = |divisor: u16| b'0'.wrapping_add((number / divisor % 10) as u8);
    for (least, divisor) in [(10_000, 10_000), (1_000, 1_000), (100, 100), (10, 10), (0, 1)] {
        if number >= least {
            push(text, digit(divisor));
        }
    }
}

/// What is pushed here fits: see [`V4_MAX`].
fn push(text: &mut ArrayVec<u8, V4_MAX>, byte: u8) {
    let _ = text.try_push(byte);
}

/// The zeros that IPv6 leaves out are a matter of rules (RFC 5952), which std has.
fn put_v6(out: &mut impl BufMut, address: Ipv6Addr) {
    let mut text = ArrayString::<45>::new();
    // 45 characters are the longest address there is.
    let _ = write!(text, "{address}");
    out.put_slice(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_are_what_display_says(number: u64, shift in 0_u32..64) {
            for number in [number >> shift, 0, u64::MAX] {
                let mut text = Vec::new();
                put_number(&mut text, number);
                prop_assert_eq!(String::from_utf8(text).unwrap(), number.to_string());
            }
        }

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
