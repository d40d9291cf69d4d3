//! Ketama: where keys and endpoints meet on a circle.
//!
//! Each endpoint owns points spread over the circle of 64-bit hashes, as many as its weight says; a key belongs to the
//! owner of the next point (Karger et al. 1997; libketama 2007). When an endpoint goes, only its own keys move. The
//! hash is fixed and has no seed, so that several gateways, and the same one after a restart, send a key to the same
//! endpoint. It is FNV-1a with the finaliser of MurmurHash3: keys are short, and whoever wants to choose where a key falls
//! may as well choose the key.
//!
//! The points are sorted, and an index by the leading bits of the hash finds the next one in a step or two, whatever their
//! number.

use std::net::SocketAddr;

/// Points of an endpoint for each unit of weight, as nginx and libketama have it.
const EACH: u64 = 160;
/// The most points of a level, apart from endpoints that get the least number. Building them takes about 10 ms.
const POINTS_MAX: u64 = 1 << 18;
/// The fewest points of an endpoint.
const LEAST: u64 = 4;

#[derive(Debug, Default)]
pub(super) struct Points {
    /// 48 bits of hash and 16 of index, sorted.
    points: Box<[u64]>,
    /// Where the points begin whose leading bits are at least this.
    index: Box<[u32]>,
    shift: u32,
}

impl Points {
    /// From index, weight and address of each.
    pub fn new<'a>(members: impl Iterator<Item = (u16, u16, SocketAddr)> + Clone + 'a) -> Self {
        let weights: u64 = members.clone().map(|(_, weight, _)| u64::from(weight)).sum();
        let scale = |weight: u64| match weights.saturating_mul(EACH) {
            fits if fits <= POINTS_MAX => weight.saturating_mul(EACH),
            _ => (weight.saturating_mul(POINTS_MAX) / weights.max(1)).max(LEAST),
        };
        let mut points = Vec::new();
        for (at, weight, address) in members {
            let own = hash(address.to_string().as_bytes());
            points.extend((0..scale(weight.into())).map(|number| mix(own ^ mix(number + 1)) & !0xffff | u64::from(at)));
        }
        points.sort_unstable();
        let bits = (usize::BITS - points.len().leading_zeros()).saturating_sub(2).clamp(1, 20);
        let shift = 64 - bits;
        let mut index = Vec::with_capacity((1 << bits) + 1);
        let mut next = 0;
        for bucket in 0..1_u64 << bits {
            while points.get(next).is_some_and(|point| point >> shift < bucket) {
                next += 1;
            }
            index.push(u32::try_from(next).unwrap_or(0));
        }
        Points { points: points.into(), index: index.into(), shift }
    }

    /// The owners of the points from a hash on, once round.
    pub fn from(&self, hash: u64) -> impl Iterator<Item = u16> {
        let bucket = usize::try_from(hash.checked_shr(self.shift).unwrap_or(0)).unwrap_or(0);
        let first = self.index.get(bucket).copied().unwrap_or(0) as usize;
        let later = self.points.get(first..).unwrap_or_default();
        let skip = later.iter().take_while(|point| **point >> 16 < hash >> 16).count();
        let (before, from) = self.points.split_at_checked(first.saturating_add(skip)).unwrap_or((&self.points, &[]));
        from.iter().chain(before).map(|point| (point & 0xffff) as u16)
    }
}

/// The hash of a key.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    mix(bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)))
}

/// MurmurHash3's `fmix64`: each bit of the result depends on each bit of the number.
fn mix(mut bits: u64) -> u64 {
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xff51_afd7_ed55_8ccd);
    bits ^= bits >> 33;
    bits = bits.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    bits ^ bits >> 33
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    fn address(at: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, (at >> 8) as u8, at as u8], 80))
    }

    fn of(members: &[(u16, u16)]) -> Points {
        Points::new(members.iter().map(|(at, weight)| (*at, *weight, address(*at))))
    }

    fn owners(points: &Points, keys: u64) -> Vec<u16> {
        (0..keys).map(|key| points.from(hash(&key.to_le_bytes())).next().unwrap()).collect()
    }

    #[test]
    fn only_the_keys_of_an_endpoint_that_goes_move() {
        let all: Vec<(u16, u16)> = (0..10).map(|at| (at, 1)).collect();
        let before = owners(&of(&all), 20_000);
        let after = owners(&of(&all[..9]), 20_000);
        for (before, after) in before.iter().zip(&after) {
            assert!(before == after || *before == 9, "{before} -> {after}");
        }
    }

    #[test]
    fn shares_follow_the_weights_within_a_fifth() {
        let points = of(&[(0, 1), (1, 1), (2, 2), (3, 4)]);
        let mut counts: HashMap<u16, f64> = HashMap::new();
        owners(&points, 80_000).into_iter().for_each(|at| *counts.entry(at).or_default() += 1.0);
        for (at, share) in [(0, 10_000.0), (1, 10_000.0), (2, 20_000.0), (3, 40_000.0)] {
            assert!((0.8..1.2).contains(&(counts[&at] / share)), "{counts:?}");
        }
    }

    #[test]
    fn a_key_falls_on_the_same_endpoint_in_every_build() {
        // Fixed for good: another value would send every key of every gateway elsewhere at an upgrade.
        assert_eq!(hash(b""), 0xefd0_1f60_ba99_2926);
        let points = of(&[(0, 1), (1, 1), (2, 1)]);
        let found: Vec<u16> = (0..8_u64).map(|key| points.from(hash(&[key as u8])).next().unwrap()).collect();
        assert_eq!(found, owners_by_search(&points, 8));
    }

    /// The definition: the first point at or after the hash, else the first of all.
    fn owners_by_search(points: &Points, keys: u8) -> Vec<u16> {
        let find = |key: u8| {
            let hash = hash(&[key]);
            let next = points.points.iter().find(|point| **point >> 16 >= hash >> 16).or(points.points.first());
            (next.unwrap() & 0xffff) as u16
        };
        (0..keys).map(find).collect()
    }

    #[test]
    fn the_index_finds_what_a_search_finds_and_the_walk_goes_once_round() {
        let points = of(&[(0, 3), (1, 1), (2, 7)]);
        let found: Vec<u16> = (0..=255).map(|key| points.from(hash(&[key])).next().unwrap()).collect();
        assert_eq!(found, owners_by_search(&points, 255).into_iter().chain([found[255]]).collect::<Vec<_>>());
        for hash in [0, 1 << 20, u64::MAX] {
            assert_eq!(points.from(hash).count(), 11 * 160);
        }
        assert_eq!(Points::default().from(7).count(), 0);
    }

    #[test]
    fn many_and_heavy_endpoints_are_bounded() {
        let many: Vec<(u16, u16)> = (0..4096).map(|at| (at, 1000)).collect();
        let points = of(&many);
        assert!(points.points.len() as u64 <= POINTS_MAX + 4096 * LEAST, "{}", points.points.len());
    }
}
