//! Sets of networks, compiled for a fast answer: a binary search over disjoint ranges, whatever the number of networks.

use super::Cidr;
use ipnet::IpNet;
use std::net::IpAddr;

/// A set of networks. Addresses are compared in canonical form: `::ffff:10.0.0.1` is `10.0.0.1`, and a network inside
/// `::ffff:0:0/96` is one of IPv4. A wider IPv6 network, `::/0` for example, holds no IPv4 address.
#[derive(Debug, Clone, Default)]
pub struct Networks {
    // Disjoint, ascending, both ends inclusive.
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl Networks {
    /// Networks may overlap and stand in any order.
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
        Networks { v4: merge(v4), v6: merge(v6) }
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
