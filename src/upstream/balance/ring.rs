//! Smooth weighted round-robin, worked out ahead of the requests.
//!
//! nginx's algorithm (`ngx_http_upstream_round_robin.c`, commit 52327e0) gives each endpoint a running value: on every pick
//! all values grow by their weight, the largest is taken, and the total of the weights is taken off it. It spreads an
//! endpoint's turns evenly (weights 5, 1, 1 give `a a b a c a a`), but needs a lock, because each pick changes all values.
//! The sequence repeats after as many picks as the total of the weights, so it is computed once whenever endpoints or
//! their health change. A request then takes the next element with one atomic addition.
//!
//! Computing it pick by pick over all endpoints would cost endpoints times picks. Endpoints of equal weight take their
//! turns in the order written, so that one queue for each distinct weight gives the same sequence: its front is the
//! endpoint with the fewest turns, and only fronts need comparing.

use std::collections::BTreeMap;

/// The most elements of a ring, apart from endpoints whose share is below one element: those get one each.
pub const RING_MAX: u64 = 4096;

/// The order in which the members take their turns, as indexes. `members` are an index and a weight each, in the order
/// written; members of weight 0 take none.
///
/// Weights are divided by their greatest common divisor. If their total is still above [`RING_MAX`] they are scaled down to
/// it, so that an endpoint's share is wrong by at most about 1/4096 of the traffic of the upstream.
pub fn ring(members: impl Iterator<Item = (u16, u16)>) -> Box<[u16]> {
    let members: Vec<(u16, u64)> = members.filter(|(_, weight)| *weight > 0).map(|(at, weight)| (at, weight.into())).collect();
    let divisor = members.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
    let sum: u64 = members.iter().map(|(_, weight)| weight / divisor).sum();
    let scaled = |weight: u64| {
        let weight = weight / divisor;
        if sum <= RING_MAX { weight } else { ((weight * RING_MAX + sum / 2) / sum).max(1) }
    };
    let members: Vec<(u16, u64)> = members.into_iter().map(|(at, weight)| (at, scaled(weight))).collect();
    let divisor = members.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);

    let mut classes: BTreeMap<u64, Vec<u16>> = BTreeMap::new();
    for (at, weight) in members {
        classes.entry(weight / divisor).or_default().push(at);
    }
    let total: u64 = classes.iter().map(|(weight, members)| weight * members.len() as u64).sum();
    let mut queues: Vec<Queue> = classes.into_iter().map(|(weight, members)| Queue::new(weight, members)).collect();
    (0..total).filter_map(|_| next(&mut queues, total)).collect()
}

/// The members of one weight.
struct Queue {
    weight: u64,
    members: Vec<u16>,
    /// Whose turn it is within the queue.
    front: usize,
    /// The front's running value.
    value: i64,
}

impl Queue {
    fn new(weight: u64, members: Vec<u16>) -> Self {
        Queue { weight, members, front: 0, value: 0 }
    }

    fn front(&self) -> Option<u16> {
        self.members.get(self.front).copied()
    }
}

/// One pick of nginx's algorithm.
fn next(queues: &mut [Queue], total: u64) -> Option<u16> {
    for queue in queues.iter_mut() {
        queue.value += queue.weight.cast_signed();
    }
    // The member that is written first wins between equal values.
    let best = queues.iter_mut().max_by_key(|queue| (queue.value, std::cmp::Reverse(queue.front())))?;
    let picked = best.front()?;
    best.front += 1;
    if best.front == best.members.len() {
        // The first one has had its turn as often as the others now: from here on all are one total lower.
        best.front = 0;
        best.value -= total.cast_signed();
    }
    Some(picked)
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn ring_of(weights: &[u16]) -> Box<[u16]> {
        ring(weights.iter().enumerate().map(|(at, weight)| (u16::try_from(at).unwrap(), *weight)))
    }

    /// nginx's loop, word for word.
    fn nginx(weights: &[u16], picks: usize) -> Vec<u16> {
        let total: i64 = weights.iter().map(|weight| i64::from(*weight)).sum();
        let mut values = vec![0_i64; weights.len()];
        let mut sequence = Vec::new();
        for _ in 0..picks {
            let mut best: Option<usize> = None;
            for at in 0..weights.len() {
                values[at] += i64::from(weights[at]);
                if best.is_none_or(|best| values[at] > values[best]) {
                    best = Some(at);
                }
            }
            let best = best.unwrap();
            values[best] -= total;
            sequence.push(u16::try_from(best).unwrap());
        }
        sequence
    }

    #[test]
    fn weights_five_one_one_spread_as_in_nginx() {
        let letters: String = ring_of(&[5, 1, 1]).iter().map(|at| ["a", "b", "c"][usize::from(*at)]).collect();
        assert_eq!(letters, "aabacaa");
    }

    #[test]
    fn common_factors_shorten_the_ring() {
        assert_eq!(*ring_of(&[1000, 500, 500]), [0, 1, 2, 0]);
        assert_eq!(*ring_of(&[7, 7, 7]), [0, 1, 2]);
    }

    #[test]
    fn weight_zero_takes_no_turn() {
        assert_eq!(*ring_of(&[0, 3, 0]), [1]);
        assert!(ring_of(&[0, 0]).is_empty() && ring_of(&[]).is_empty());
    }

    #[test]
    fn a_large_total_is_scaled_and_nobody_starves() {
        let mut weights = vec![1000; 4000];
        weights.extend([1; 96]);
        let ring = ring_of(&weights);
        assert!(ring.len() <= 2 * 4096, "{}", ring.len());
        for at in 0..4096 {
            assert!(ring.contains(&at), "{at} starves");
        }
    }

    proptest! {
        #[test]
        fn the_sequence_is_that_of_nginx(weights in proptest::collection::vec(0_u16..40, 1..40)) {
            prop_assume!(weights.iter().any(|weight| *weight > 0));
            let ring = ring_of(&weights);
            // Members of weight 0 are not in the algorithm at all.
            let kept: Vec<usize> = (0..weights.len()).filter(|at| weights[*at] > 0).collect();
            let kept_weights: Vec<u16> = kept.iter().map(|at| weights[*at]).collect();
            let expected: Vec<u16> = nginx(&kept_weights, ring.len())
                .into_iter()
                .map(|at| u16::try_from(kept[usize::from(at)]).unwrap())
                .collect();
            prop_assert_eq!(ring.to_vec(), expected);
        }

        #[test]
        fn shares_follow_the_weights(weights in proptest::collection::vec(0_u16..=1000, 1..60)) {
            let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
            prop_assume!(total > 0.0);
            let ring = ring_of(&weights);
            for (at, weight) in weights.iter().enumerate() {
                let turns = ring.iter().filter(|picked| usize::from(**picked) == at).count();
                #[allow(clippy::cast_precision_loss)]
                let share = turns as f64 / ring.len() as f64;
                let wanted = f64::from(*weight) / total;
                // Half an element of rounding, plus what the rounding of the others does to the length of the ring.
                prop_assert!((share - wanted).abs() <= 1.5 / 4096.0 + wanted * 0.01, "{at}: {share} for {wanted}");
                prop_assert_eq!(turns == 0, *weight == 0);
            }
        }
    }
}
