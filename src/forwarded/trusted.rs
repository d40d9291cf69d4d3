//! The proxies whose word is taken, compiled for a fast answer.

use crate::value::Cidr;
use http::HeaderMap;
use ipnet::IpNet;
use std::net::IpAddr;

/// Which header names the client.
///
/// A proxy maintains one of the two and lets the other pass as the client wrote it, so they are never mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ClientHeader {
    /// `X-Forwarded-For` where there is one, else `Forwarded`. Right for every proxy that writes `X-Forwarded-For`, which
    /// nearly all do: a client's `Forwarded` is then never looked at. Where the trusted proxies write only `Forwarded`, say
    /// so by [`ClientHeader::Forwarded`], or a client's `X-Forwarded-For` is believed.
    #[default]
    Any,
    /// `X-Forwarded-For` only.
    XForwardedFor,
    /// `Forwarded` (RFC 7239) only.
    Forwarded,
}

/// What is read in one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Believed {
    XForwardedFor,
    Forwarded,
}

/// Networks of trusted proxies. Addresses are compared in canonical form: `::ffff:10.0.0.1` is `10.0.0.1`, and a network
/// inside `::ffff:0:0/96` is one of IPv4. A wider IPv6 network, `::/0` for example, holds no IPv4 address.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    // Disjoint, ascending, both ends inclusive.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
    header: ClientHeader,
}

impl TrustedProxies {
    /// Networks may overlap and stand in any order. None at all trusts no one.
    pub fn new(networks: &[Cidr]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for Cidr(network) in networks {
            match network {
                IpNet::V4(net) => v4.push((net.network().to_bits(), net.broadcast().to_bits())),
                IpNet::V6(net) => match (net.network().to_ipv4_mapped(), net.broadcast().to_ipv4_mapped()) {
                    (Some(first), Some(last)) => v4.push((first.to_bits(), last.to_bits())),
                    _ => v6.push((net.network().to_bits(), net.broadcast().to_bits())),
                },
            }
        }
        TrustedProxies { v4: merge(v4), v6: merge(v6), header: ClientHeader::Any }
    }

    /// With another choice of the header that names the client.
    pub fn reading(mut self, header: ClientHeader) -> Self {
        self.header = header;
        self
    }

    pub fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => within(&self.v4, address.to_bits()),
            IpAddr::V6(address) => within(&self.v6, address.to_bits()),
        }
    }

    pub(super) fn believed(&self, headers: &HeaderMap) -> Believed {
        match self.header {
            ClientHeader::Any if headers.contains_key(super::client::X_FORWARDED_FOR) => Believed::XForwardedFor,
            ClientHeader::Any | ClientHeader::Forwarded => Believed::Forwarded,
            ClientHeader::XForwardedFor => Believed::XForwardedFor,
        }
    }
}

fn merge<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    let mut merged: Vec<(T, T)> = Vec::with_capacity(ranges.len());
    for (first, last) in ranges {
        match merged.last_mut() {
            Some(previous) if first <= previous.1 => previous.1 = previous.1.max(last),
            _ => merged.push((first, last)),
        }
    }
    merged.into()
}

fn within<T: Ord>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|(first, _)| *first <= value);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|(_, last)| value <= *last)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn cidrs(list: &[&str]) -> Vec<Cidr> {
        list.iter().map(|text| text.parse().expect("a network")).collect()
    }

    #[test]
    fn one_address_has_one_answer_in_both_spellings() {
        let trusted = TrustedProxies::new(&cidrs(&["10.0.0.0/8", "::ffff:192.168.0.0/112", "fd00::/8", "10.1.0.0/16"]));
        for yes in ["10.0.0.0", "10.255.255.255", "::ffff:10.2.3.4", "192.168.7.1", "::ffff:192.168.0.1", "fd12::1"] {
            assert!(trusted.contains(yes.parse().expect(yes)), "{yes}");
        }
        for no in ["9.255.255.255", "11.0.0.0", "192.169.0.0", "fe00::", "::a00:1", "::"] {
            assert!(!trusted.contains(no.parse().expect(no)), "{no}");
        }
    }

    #[test]
    fn all_of_ipv6_is_not_ipv4() {
        let trusted = TrustedProxies::new(&cidrs(&["::/0"]));
        assert!(trusted.contains("2001:db8::1".parse().expect("v6")));
        assert!(
            !trusted.contains("192.0.2.1".parse().expect("v4")) && !trusted.contains("::ffff:192.0.2.1".parse().expect("v4"))
        );
        assert!(TrustedProxies::new(&[]).is_empty() && !TrustedProxies::default().contains("::1".parse().expect("v6")));
    }

    proptest! {
        #[test]
        fn ranges_answer_as_networks_do(nets in proptest::collection::vec((any::<u32>(), 0_u8..=32), 0..12), address in any::<u32>(), near in any::<bool>()) {
            let nets: Vec<Cidr> = nets.into_iter()
                .map(|(bits, len)| Cidr(IpNet::new(IpAddr::V4(bits.into()), len).expect("a prefix").trunc())).collect();
            let address = match nets.first() {
                Some(Cidr(IpNet::V4(net))) if near => u32::from(net.broadcast()).wrapping_add(address % 3).wrapping_sub(1),
                _ => address,
            };
            let address = IpAddr::V4(address.into());
            let expected = nets.iter().any(|net| net.0.contains(&address));
            prop_assert_eq!(TrustedProxies::new(&nets).contains(address), expected);
        }
    }
}
