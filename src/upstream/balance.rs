//! How an endpoint is chosen.
//!
//! Whatever can be worked out when health or membership changes is worked out then, by whoever changed it ([`Level`]); a
//! request only looks things up. No way of choosing looks at more than a fixed number of endpoints, so that an upstream of
//! a thousand costs what one of ten does, and none allocates or takes a lock.

pub mod config;
pub mod key;
mod latency;
mod points;
mod ring;
pub mod sticky;

pub use config::Balance;
pub use key::{By, Facts};
pub use latency::{FAILURE, PeakEwma};
pub use ring::RING_MAX;
pub use sticky::Sticky;

use super::endpoint::{Endpoint, Tried};
use points::Points;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// How many endpoints `least_requests` compares: all of a small upstream, a moving window of a large one.
const WINDOW: usize = 16;
/// How many points of the hash ring are looked at for an endpoint with room. With `max_load` at its default half of them have
/// room on average, so that this is practically never reached; if it is, the first one that was not tried takes the request.
const WALK: usize = 128;
/// Weights are multiplied by this while an endpoint warms up, so that a part of weight 1 can be expressed.
const FINE: u16 = 64;
/// The least share of its weight that an endpoint gets while it warms up, in percent: without any request it would never
/// get warm.
const LEAST_WARM: u64 = 10;

/// What a policy needs besides the endpoints.
#[derive(Debug, Default)]
pub(super) struct Policy {
    pub kind: Kind,
    /// `slow_start`; zero: off.
    pub slow_start: Duration,
    pub sticky: Option<Arc<Sticky>>,
    /// Requests under way at all endpoints, counted for bounded load only.
    pub load: Option<Arc<Load>>,
}

/// [`Balance`], ready to be used.
#[derive(Debug, Default)]
pub(super) enum Kind {
    #[default]
    RoundRobin,
    LeastRequests,
    PeakEwma,
    Random,
    Hash {
        by: Box<[By]>,
        max_load: u64,
    },
    Sticky,
}

/// Requests under way at an upstream. On a cache line of its own, because every request writes it.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Load(AtomicU32);

impl Load {
    pub(super) fn enter(&self) {
        self.0.fetch_add(1, Relaxed);
    }
    pub(super) fn leave(&self) {
        self.0.fetch_sub(1, Relaxed);
    }
    fn get(&self) -> u64 {
        self.0.load(Relaxed).into()
    }
}

/// Which endpoint a request belongs to, as far as the request itself says so.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Affinity {
    /// To none.
    #[default]
    None,
    /// To the one that this hash falls on.
    Key(u64),
    /// To the endpoint at this index.
    Endpoint(u16),
}

/// The endpoints of one priority that take traffic. A request goes to the first level that has one left for it.
#[derive(Debug, Default)]
pub(super) struct Level {
    members: Box<[Member]>,
    /// Whose turn it is, by weight.
    ring: Box<[u16]>,
    points: Points,
    weight: u64,
}

#[derive(Debug, Clone, Copy)]
struct Member {
    at: u16,
    /// The weight, multiplied by [`FINE`] while an endpoint of the upstream warms up.
    weight: u16,
}

/// The levels of these endpoints that `wanted` lets through, and whether one of them is warming up.
pub(super) fn levels(
    endpoints: &[Arc<Endpoint>],
    policy: &Policy,
    now: Instant,
    wanted: impl Fn(&Endpoint) -> bool,
) -> (Box<[Level]>, bool) {
    let warmth = |endpoint: &Endpoint| warmth(endpoint, policy.slow_start, now);
    let members: Vec<(u16, &Endpoint)> = endpoints
        .iter()
        .enumerate()
        .filter(|(_, endpoint)| endpoint.weight > 0 && wanted(endpoint))
        .filter_map(|(at, endpoint)| Some((u16::try_from(at).ok()?, &**endpoint)))
        .collect();
    let warming = members.iter().any(|(_, endpoint)| warmth(endpoint) < 100);
    let mut ranks: Vec<u16> = members.iter().map(|(_, endpoint)| endpoint.rank).collect();
    ranks.sort_unstable();
    ranks.dedup();
    let level = |rank: u16| {
        let here = members.iter().filter(|(_, endpoint)| endpoint.rank == rank);
        let members: Box<[Member]> = here
            .clone()
            .map(|(at, endpoint)| {
                let part =
                    |weight: u64| u16::try_from((weight * u64::from(FINE) * warmth(endpoint) / 100).max(1)).unwrap_or(u16::MAX);
                Member { at: *at, weight: if warming { part(endpoint.weight.into()) } else { endpoint.weight } }
            })
            .collect();
        let points = match policy.kind {
            Kind::Hash { .. } => Points::new(here.map(|(at, endpoint)| (*at, endpoint.weight, endpoint.address))),
            _ => Points::default(),
        };
        Level {
            ring: ring::ring(members.iter().map(|member| (member.at, member.weight))),
            weight: here_weight(&members, endpoints),
            points,
            members,
        }
    };
    (ranks.into_iter().map(level).collect(), warming)
}

fn here_weight(members: &[Member], endpoints: &[Arc<Endpoint>]) -> u64 {
    members.iter().filter_map(|member| endpoints.get(usize::from(member.at))).map(|endpoint| u64::from(endpoint.weight)).sum()
}

/// How much of its weight an endpoint gets, in percent: it rises in a straight line over `slow_start` from the moment at which
/// it appeared, recovered or was brought back.
fn warmth(endpoint: &Endpoint, slow_start: Duration, now: Instant) -> u64 {
    let Some(since) = endpoint.warm_since().filter(|_| !slow_start.is_zero()) else { return 100 };
    let passed = now.saturating_duration_since(since).as_millis().saturating_mul(100);
    let percent = passed.checked_div(slow_start.as_millis()).unwrap_or(100);
    u64::try_from(percent).unwrap_or(100).clamp(LEAST_WARM, 100)
}

/// One choice among the endpoints of a level.
pub(super) struct Pick<'a> {
    pub policy: &'a Policy,
    pub endpoints: &'a [Arc<Endpoint>],
    pub tried: &'a Tried,
    pub turn: &'a AtomicUsize,
    pub affinity: Affinity,
    pub now: &'a dyn Fn() -> Instant,
}

impl<'a> Pick<'a> {
    /// The endpoint that takes the request, or `None` if all of this level were tried.
    pub fn from(&self, level: &Level) -> Option<&'a Arc<Endpoint>> {
        match (&self.policy.kind, self.affinity) {
            (Kind::Hash { max_load, .. }, Affinity::Key(hash)) => {
                self.by_hash(level, hash, *max_load).or_else(|| self.in_turn(level))
            }
            (Kind::Sticky, Affinity::Endpoint(at)) => {
                let known = level.members.binary_search_by_key(&at, |member| member.at).is_ok();
                Some(at).filter(|_| known).and_then(|at| self.untried(at)).or_else(|| self.in_turn(level))
            }
            (Kind::RoundRobin | Kind::Hash { .. } | Kind::Sticky, _) => self.in_turn(level),
            (Kind::LeastRequests, _) => self.least(level),
            (Kind::PeakEwma, _) => self.of_two(level),
            (Kind::Random, _) => self.along(level, random(level.ring.len())),
        }
    }

    fn untried(&self, at: u16) -> Option<&'a Arc<Endpoint>> {
        self.endpoints.get(usize::from(at)).filter(|endpoint| !self.tried.contains(endpoint.id()))
    }

    fn next_turn(&self, of: usize) -> usize {
        self.turn.fetch_add(1, Relaxed).checked_rem(of).unwrap_or(0)
    }

    fn in_turn(&self, level: &Level) -> Option<&'a Arc<Endpoint>> {
        self.along(level, self.next_turn(level.ring.len()))
    }

    /// The first one from a place on the ring that was not tried.
    fn along(&self, level: &Level, from: usize) -> Option<&'a Arc<Endpoint>> {
        let (before, from) = level.ring.split_at_checked(from)?;
        from.iter().chain(before).find_map(|at| self.untried(*at))
    }

    /// The fewest requests under way for its weight. Among equals the window's first wins, and the window moves on by one with
    /// each request, so that idle endpoints take turns.
    fn least(&self, level: &Level) -> Option<&'a Arc<Endpoint>> {
        let (before, from) = level.members.split_at_checked(self.next_turn(level.members.len()))?;
        let window = from.iter().chain(before).take(WINDOW);
        let open = window.filter_map(|member| Some((member, self.untried(member.at)?)));
        let best = open.min_by(|(a, left), (b, right)| {
            let load =
                |endpoint: &Endpoint, other: &Member| (u64::from(endpoint.state.in_flight()) + 1) * u64::from(other.weight);
            load(left, b).cmp(&load(right, a))
        });
        best.map(|(_, endpoint)| endpoint).or_else(|| self.in_turn(level))
    }

    /// The cheaper of two different ones, drawn by weight.
    fn of_two(&self, level: &Level) -> Option<&'a Arc<Endpoint>> {
        let first = self.along(level, random(level.ring.len()))?;
        let (before, from) = level.ring.split_at_checked(random(level.ring.len()))?;
        // Equal neighbours on the ring are few, and a bound keeps the cost flat where one endpoint has nearly all the weight.
        let other = from.iter().chain(before).take(WINDOW).filter_map(|at| self.untried(*at));
        let Some(second) = other.into_iter().find(|other| other.id() != first.id()) else { return Some(first) };
        let now = (self.now)();
        let cost = |endpoint: &Endpoint| endpoint.state.latency.cost(endpoint.state.in_flight(), now);
        Some(if cost(second) < cost(first) { second } else { first })
    }

    /// The first one from the hash on that was not tried and has room: consistent hashing with bounded loads (Mirrokni, Thorup,
    /// Zadimoghaddam, SODA 2018), where nobody gets more than `max_load` percent of the average.
    fn by_hash(&self, level: &Level, hash: u64, max_load: u64) -> Option<&'a Arc<Endpoint>> {
        let total = self.policy.load.as_ref().map_or(0, |load| load.get()).saturating_add(1);
        let has_room = |endpoint: &Endpoint| {
            let load = u64::from(endpoint.state.in_flight()).saturating_add(1);
            // load <= ceil(max_load/100 * total * weight / weights), without a division.
            let most = total.saturating_mul(max_load).saturating_mul(endpoint.weight.into());
            load.saturating_sub(1).saturating_mul(100).saturating_mul(level.weight) < most
        };
        let mut first = None;
        for at in level.points.from(hash).take(WALK) {
            let Some(endpoint) = self.untried(at) else { continue };
            if has_room(endpoint) {
                return Some(endpoint);
            }
            first = first.or(Some(endpoint));
        }
        first
    }
}

fn random(below: usize) -> usize {
    if below == 0 { 0 } else { fastrand::usize(..below) }
}

#[cfg(test)]
mod tests;
