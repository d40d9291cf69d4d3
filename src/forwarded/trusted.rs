//! The proxies whose word is taken, compiled for a fast answer.

use crate::value::{Cidr, Networks};
use http::HeaderMap;
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

/// Networks of trusted proxies.
#[derive(Debug, Clone, Default)]
pub struct TrustedProxies {
    networks: Networks,
    header: ClientHeader,
}

impl TrustedProxies {
    /// Networks may overlap and stand in any order. None at all trusts no one.
    pub fn new(networks: &[Cidr]) -> Self {
        TrustedProxies { networks: Networks::new(networks), header: ClientHeader::Any }
    }

    /// With another choice of the header that names the client.
    pub fn reading(mut self, header: ClientHeader) -> Self {
        self.header = header;
        self
    }

    pub fn is_empty(&self) -> bool {
        self.networks.is_empty()
    }

    pub fn contains(&self, address: IpAddr) -> bool {
        self.networks.contains(address)
    }

    pub(super) fn believed(&self, headers: &HeaderMap) -> Believed {
        match self.header {
            ClientHeader::Any if headers.contains_key(super::client::X_FORWARDED_FOR) => Believed::XForwardedFor,
            ClientHeader::Any | ClientHeader::Forwarded => Believed::Forwarded,
            ClientHeader::XForwardedFor => Believed::XForwardedFor,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ipnet::IpNet;
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
