//! Leases by simulation: the real bookkeeping of 2 to 16 gateways against the real script in a real Redis, with a clock that the
//! test moves. Messages are late or lost, gateways crash, are cut off, and have clocks that are wrong and run unevenly.
//!
//! The oracle knows nothing of leases or of the script: it has the true times of all admissions, and looks whether they obey the
//! limit; and, where nothing goes wrong, how many an exact limit would have admitted.

use crate::support::redis::Redis;
use crate::support::{full, record};
use gatewright::limit::redis::lease::{Back, Book, Errand, IDLE, LIFE, Spent};
use gatewright::limit::redis::{Reply, SCRIPT, SharedSet, lease_arguments, reply};
use gatewright::limit::{Decision, Limit, Shape};
use gatewright::value::Period;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

/// Microseconds.
const SECOND: u64 = 1_000_000;
/// How long a gateway waits for an answer.
const TIMEOUT: u64 = 20_000;
/// The Unix time at which a simulation begins: 40 s into a minute.
const BEGIN: u64 = 1_800_000_040 * SECOND;

/// xorshift, so that a seed is a run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
    fn below(&mut self, end: u64) -> u64 {
        self.next() % end.max(1)
    }
    fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

struct Member {
    book: Book,
    name: String,
    lives: u32,
    /// Of its clock: what it is ahead in nanoseconds, and how many millionths it is too fast.
    offset: u64,
    pace: i64,
    cut_off_until: u64,
}

impl Member {
    /// What its clock shows, in nanoseconds.
    fn clock(&self, now: u64) -> u64 {
        let passed = i128::from(now - BEGIN) * 1_000;
        self.offset + u64::try_from(passed + passed * i128::from(self.pace) / 1_000_000).unwrap()
    }
}

struct Message {
    member: usize,
    lives: u32,
    errand: Errand,
    cost: u64,
}

#[allow(clippy::large_enum_variant)] // A few at a time.
enum Event {
    Request,
    Idle,
    AtRedis(Message, bool),
    Back(Message, Decision, (u64, u64)),
    Lost(Message),
    /// A later limit has refused what was spent of this batch.
    Unspend {
        member: usize,
        lives: u32,
        batch: u64,
        cost: u64,
    },
    /// The same for what Redis admitted at this time.
    Give(u64, u64),
}

#[derive(Clone, Copy)]
struct Faults {
    /// Of a hundred messages.
    lost: u64,
    crashes: bool,
    partitions: bool,
    /// Of a hundred admitted requests: refused by a later limit, up to 0.3 s after.
    refused: u64,
    /// What the dearest request costs; every other one costs 1.
    dearest: u64,
}

const NONE: Faults = Faults { lost: 0, crashes: false, partitions: false, refused: 0, dearest: 1 };

struct Simulation {
    redis: redis::Connection,
    script: String,
    key: String,
    set: Arc<SharedSet>,
    members: Vec<Member>,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64)>>,
    bodies: std::collections::HashMap<u64, Event>,
    number: u64,
    /// When, and at which cost.
    offered: Vec<(u64, u64)>,
    /// When; a request that costs three stands there three times.
    admitted: Vec<u64>,
    asked: usize,
    /// When gateways crashed: what they held is out until it expires, beside what they hold after that.
    crashes: Vec<u64>,
    /// The most uses that were out at the same time, and the most of one gateway.
    most_out: (u64, u64),
    /// Where that was more than may be.
    too_much: Option<String>,
    given: usize,
}

impl Simulation {
    fn new(redis: &Redis, limits: &[Limit], lease: u64, members: usize, seed: u64, faults: Faults) -> Self {
        Self::with(redis, SCRIPT, limits, lease, members, seed, faults)
    }

    fn with(redis: &Redis, script: &str, limits: &[Limit], lease: u64, members: usize, seed: u64, faults: Faults) -> Self {
        let mut connection = redis.connection();
        // The one thing that is not real: what time it is.
        let edited = script.replace("redis.call('TIME')", "redis.call('HMGET', 'clock', 's', 'us')");
        assert_ne!(edited, script);
        let script: String = redis::cmd("SCRIPT").arg("LOAD").arg(edited).query(&mut connection).unwrap();
        let mut random = Random(seed * 2_654_435_761 + 88_172_645_463_325_252);
        let wrong = if faults.crashes || faults.partitions { 10_000 } else { 100 };
        let members = (0..members).map(|n| Member {
            book: Book::default(),
            name: format!("g{n}"),
            lives: 0,
            offset: 10 * 1_000_000_000 + random.below(1_000_000_000),
            pace: i64::try_from(random.below(2 * wrong)).unwrap() - i64::try_from(wrong).unwrap(),
            cut_off_until: 0,
        });
        let members: Vec<_> = members.collect();
        let set = Arc::new(SharedSet::new(&format!("sim{seed}"), limits, lease));
        let key = format!("sim:{}:{seed}:{}", name(limits), members.len());
        Simulation {
            redis: connection,
            script,
            key,
            set,
            members,
            random,
            events: BinaryHeap::new(),
            bodies: Default::default(),
            number: 0,
            offered: Vec::new(),
            admitted: Vec::new(),
            asked: 0,
            crashes: Vec::new(),
            most_out: (0, 0),
            too_much: None,
            given: 0,
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.number += 1;
        self.events.push(Reverse((time, self.number)));
        self.bodies.insert(self.number, event);
    }

    /// Requests come with pauses of up to twice `pause` microseconds, or in bursts, until there were `count` of them.
    fn run(&mut self, count: usize, pause: u64, faults: Faults) {
        self.at(BEGIN, Event::Request);
        self.at(BEGIN, Event::Idle);
        while let Some(Reverse((now, number))) = self.events.pop() {
            match self.bodies.remove(&number).unwrap() {
                Event::Request if self.offered.len() < count => {
                    self.request(now, faults);
                    let next = if self.random.chance(30) { 0 } else { self.random.below(pause * 3) };
                    self.at(now + next, Event::Request);
                }
                Event::Idle if self.offered.len() < count => {
                    for member in 0..self.members.len() {
                        let mut errands = Vec::new();
                        let clock = self.members[member].clock(now);
                        self.members[member].book.idle(clock, |_, _, errand| errands.push(errand));
                        errands.into_iter().for_each(|errand| self.send(now, member, errand, 0, faults));
                    }
                    self.at(now + IDLE / 2_000, Event::Idle);
                }
                Event::Request | Event::Idle => {}
                Event::AtRedis(message, reply_lost) => self.at_redis(now, message, reply_lost, faults),
                Event::Back(message, decision, lease) => self.back(now, &message, &decision, lease),
                Event::Lost(message) => {
                    let member = &self.members[message.member];
                    if member.lives == message.lives {
                        member.book.lost(&self.set, b"k", &message.errand, true, member.clock(now));
                    }
                }
                Event::Unspend { member, lives, batch, cost } => {
                    let member = &self.members[member];
                    if member.lives == lives {
                        member.book.unspend(&self.set, b"k", batch, cost);
                    }
                }
                Event::Give(taken, cost) => drop(self.ask(now, "give", &[taken.to_string()], cost)),
            }
        }
    }

    fn request(&mut self, now: u64, faults: Faults) {
        let cost = if faults.dearest > 1 && self.random.chance(50) { faults.dearest } else { 1 };
        self.offered.push((now, cost));
        // Most come to one gateway for a while, then to another.
        let count = self.members.len() as u64;
        let member = if self.random.chance(50) { (now / (3 * SECOND)) % count } else { self.random.below(count) } as usize;
        if faults.crashes && self.random.below(500) == 0 {
            let crashed = &mut self.members[member];
            crashed.book = Book::default();
            crashed.lives += 1;
            crashed.name = format!("g{member}/{}", crashed.lives);
            self.crashes.push(now);
        }
        if faults.partitions && self.random.below(500) == 0 {
            let long = self.random.below(9 * SECOND);
            self.members[member].cut_off_until = now + long;
        }
        let clock = self.members[member].clock(now);
        match self.members[member].book.spend(&self.set, b"k", cost, clock) {
            Spent::Here { decision, batch, errand } => {
                if matches!(decision, Decision::Admitted(_)) {
                    match batch.filter(|_| self.random.chance(faults.refused)) {
                        Some(batch) => {
                            let lives = self.members[member].lives;
                            self.given += 1;
                            let later = self.random.below(3 * SECOND / 10);
                            self.at(now + later, Event::Unspend { member, lives, batch, cost });
                        }
                        None => self.admit(now, cost),
                    }
                }
                if let Some(errand) = errand {
                    self.send(now, member, *errand, 0, faults);
                }
            }
            Spent::Ask(errand) => self.send(now, member, errand, cost, faults),
        }
    }

    fn admit(&mut self, now: u64, cost: u64) {
        self.admitted.extend((0..cost).map(|_| now));
    }

    fn send(&mut self, now: u64, member: usize, errand: Errand, cost: u64, faults: Faults) {
        self.asked += 1;
        let lives = self.members[member].lives;
        let message = Message { member, lives, errand, cost };
        let cut_off = now < self.members[member].cut_off_until;
        let (there, back) = (self.random.chance(faults.lost), self.random.chance(faults.lost));
        if cut_off || there {
            return self.at(now + TIMEOUT, Event::Lost(message));
        }
        let way = 50 + self.random.below(2_000);
        self.at(now + way, Event::AtRedis(message, back));
    }

    /// Asks the script, and looks at what is out on leases then.
    fn ask(&mut self, now: u64, mode: &str, extra: &[String], cost: u64) -> Reply {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HSET").arg("clock").arg("s").arg(now / SECOND).arg("us").arg(now % SECOND).ignore();
        pipeline.cmd("EVALSHA").arg(&self.script).arg(1).arg(&self.key).arg(mode).arg(extra.len()).arg(extra);
        for argument in self.set.arguments(std::iter::repeat(cost)) {
            pipeline.arg(argument);
        }
        pipeline.cmd("HGET").arg(&self.key).arg("#");
        let (value, out): (redis::Value, Option<String>) = pipeline.query(&mut self.redis).unwrap();
        self.withheld(now, &out.unwrap_or_default());
        let reply = reply(&self.set, &value).unwrap_or_else(|| panic!("{value:?}"));
        assert_eq!(reply.at, now);
        reply
    }

    /// No gateway ever has more out than its lease, nor all of them more than theirs together; one that has crashed and started
    /// again is two of them, until what the first life held has expired. `out` is `GATEWAY/ERRAND,USES,EXPIRES;...`.
    fn withheld(&mut self, now: u64, out: &str) {
        let mut of: std::collections::HashMap<&str, u64> = Default::default();
        for lease in out.split_terminator(';') {
            let mut parts = lease.split(',');
            let (id, uses, expires) = (parts.next().unwrap(), parts.next().unwrap(), parts.next().unwrap());
            if expires.parse::<u64>().unwrap() > now {
                *of.entry(id.rsplit_once('/').unwrap().0).or_default() += uses.parse::<u64>().unwrap();
            }
        }
        let (all, most) = (of.values().sum::<u64>(), of.values().max().copied().unwrap_or(0));
        self.most_out = (self.most_out.0.max(all), self.most_out.1.max(most));
        let lease = self.set.lease();
        if most > lease {
            self.too_much.get_or_insert(format!("a gateway withholds {most}, more than its lease of {lease}, at {now}: {out}"));
        }
        let gone = self.crashes.iter().rev().take_while(|crash| now - **crash < LIFE / 1_000 + TIMEOUT).count() as u64;
        let gateways = self.members.len() as u64 + gone;
        if all > gateways * lease {
            self.too_much.get_or_insert(format!("{gateways} gateways withhold {all} at {now}: {out}"));
        }
    }

    fn at_redis(&mut self, now: u64, message: Message, reply_lost: bool, faults: Faults) {
        // The name of the life that asked: a gateway that starts again is another one.
        let name =
            if message.lives == 0 { format!("g{}", message.member) } else { format!("g{}/{}", message.member, message.lives) };
        let extra = lease_arguments(&name, &message.errand, self.members.len() as u64, self.set.lease());
        let Reply { decision, lease, .. } = self.ask(now, "lease", &extra, message.cost);
        let gone = self.members[message.member].lives != message.lives;
        if message.cost > 0 && matches!(decision, Decision::Admitted(_)) && !reply_lost && !gone {
            if self.random.chance(faults.refused) {
                self.given += 1;
                let later = self.random.below(3 * SECOND / 10);
                // What is told to Redis may get lost, as everything.
                if !self.random.chance(faults.lost) {
                    self.at(now + later, Event::Give(now, message.cost));
                }
            } else {
                self.admit(now, message.cost);
            }
        }
        if reply_lost {
            self.at(now + TIMEOUT, Event::Lost(message));
        } else {
            let way = 50 + self.random.below(2_000);
            self.at(now + way, Event::Back(message, decision, lease));
        }
    }

    fn back(&mut self, now: u64, message: &Message, decision: &Decision, lease: (u64, u64)) {
        let member = &self.members[message.member];
        if member.lives == message.lives {
            let clock = member.clock(now);
            member.book.answered(&self.set, b"k", &message.errand, decision, lease, clock);
            member.book.refused(&self.set, b"k", message.cost, decision, clock);
        }
    }
}

fn name(limits: &[Limit]) -> String {
    limits.iter().map(|limit| &*limit.name).collect::<Vec<_>>().join("+")
}

/// Whether these times obey all limits; the error says where they do not.
fn obeys(limits: &[Limit], times: &mut [u64]) -> Result<(), String> {
    times.sort_unstable();
    limits.iter().try_for_each(|limit| obeys_one(limit, times))
}

fn obeys_one(limit: &Limit, times: &[u64]) -> Result<(), String> {
    match limit.shape {
        // A leaky bucket in doubles.
        Shape::TokenBucket { per, capacity } => {
            let (mut level, mut last) = (0.0_f64, 0_u64);
            for time in times.iter() {
                let drained = (time - last) as f64 * 1_000.0 * limit.number as f64 / per as f64;
                level = (level - drained).max(0.0) + 1.0;
                last = *time;
                if level > capacity as f64 + 1e-3 {
                    return Err(format!("{level} of {capacity} at {time}"));
                }
            }
        }
        Shape::SlidingWindow { per } => {
            let number = limit.number as usize;
            for (first, beyond) in times.iter().zip(times.iter().skip(number)) {
                if (beyond - first) * 1_000 < per {
                    return Err(format!("{} within {} us", number + 1, beyond - first));
                }
            }
        }
        Shape::FixedWindow { .. } => {
            let mut counts = std::collections::HashMap::new();
            for time in times.iter() {
                let count = counts.entry(time / (60 * SECOND)).or_insert(0_u64);
                *count += 1;
                if *count > limit.number {
                    return Err(format!("{count} of {} in a minute", limit.number));
                }
            }
        }
    }
    Ok(())
}

/// How many uses exact limits would have admitted of what was offered.
fn exact(limits: &[Limit], offered: &[(u64, u64)]) -> usize {
    let mut admitted: Vec<u64> = Vec::new();
    let (mut levels, mut last) = (vec![0.0_f64; limits.len()], 0);
    for (time, cost) in offered {
        let mut fits = true;
        for (limit, level) in limits.iter().zip(&mut levels) {
            fits &= match limit.shape {
                Shape::TokenBucket { per, capacity } => {
                    *level = (*level - (time - last) as f64 * 1_000.0 * limit.number as f64 / per as f64).max(0.0);
                    *level + *cost as f64 <= capacity as f64
                }
                Shape::SlidingWindow { per } => {
                    let old = (admitted.len() + *cost as usize).checked_sub(limit.number as usize + 1).map(|at| admitted[at]);
                    old.is_none_or(|old| (time - old) * 1_000 >= per)
                }
                Shape::FixedWindow { .. } => {
                    let minute = time / (60 * SECOND);
                    let count = admitted.iter().rev().take_while(|other| **other / (60 * SECOND) == minute).count();
                    count as u64 + cost <= limit.number
                }
            };
        }
        last = *time;
        if fits {
            levels.iter_mut().for_each(|level| *level += *cost as f64);
            admitted.extend((0..*cost).map(|_| *time));
        }
    }
    admitted.len()
}

/// Limits that hold together, and what the dearest request costs.
fn limits() -> [(Vec<Limit>, u64); 4] {
    let second = 1_000_000_000;
    let bucket = Limit { name: "bucket".into(), number: 200, shape: Shape::TokenBucket { per: 10 * second, capacity: 300 } };
    let sliding = Limit { name: "sliding".into(), number: 400, shape: Shape::SlidingWindow { per: 20 * second } };
    let fixed = Limit { name: "fixed".into(), number: 900, shape: Shape::FixedWindow { period: Period::Minute } };
    // Over a minute the second of them is the one that holds, after a burst the first.
    let both = vec![bucket.clone(), fixed.clone()];
    [(vec![bucket], 1), (vec![sliding], 1), (vec![fixed], 1), (both, 3)]
}

/// Requests of each run; `GATEWRIGHT_FULL=1` runs ten times as many.
fn requests() -> usize {
    if full() { 60_000 } else { 6_000 }
}

/// That they never withhold more than one for each gateway either is looked at with every message.
#[test]
fn whatever_happens_leases_never_admit_more_than_the_limit() {
    let redis = Redis::start();
    for (seed, members) in (1..).zip([2, 4, 9, 16]) {
        for (limits, dearest) in limits() {
            let faults = Faults { lost: 3, crashes: true, partitions: true, refused: 10, dearest };
            let mut simulation = Simulation::new(&redis, &limits, 20, members, seed, faults);
            simulation.run(requests(), 15_000, faults);
            let name = name(&limits);
            obeys(&limits, &mut simulation.admitted).unwrap_or_else(|wrong| panic!("{name} of {members}: {wrong}"));
            let admitted = simulation.admitted.len();
            assert!(admitted > 300, "{name} of {members}: only {admitted} were admitted");
            assert_eq!(simulation.too_much, None, "{name} of {members}");
            assert!(simulation.given > 20 && !simulation.crashes.is_empty() && simulation.most_out.0 > 0);
            println!("{name} of {members}: {admitted} admitted, at most {:?} out", simulation.most_out);
            let result = serde_json::json!({
                "limits": name, "gateways": members, "offered": simulation.offered.len(), "admitted": admitted, "lease": 20,
                "most_out": simulation.most_out.0, "most_out_of_one": simulation.most_out.1,
            });
            record("leases through losses, crashes and partitions", result);
        }
    }
}

/// An oracle that finds nothing proves nothing: a script that forgets leases that nobody brings back is found out.
#[test]
fn the_oracle_notices_a_script_that_forgets_leases() {
    let redis = Redis::start();
    let forgetful = SCRIPT.replace("      spent = uses\n", "      spent = 0\n");
    assert_ne!(forgetful, SCRIPT);
    let found = limits().into_iter().filter(|(limits, dearest)| {
        let faults = Faults { lost: 10, crashes: true, partitions: true, refused: 0, dearest: *dearest };
        let mut simulation = Simulation::with(&redis, &forgetful, limits, 100, 9, 3, faults);
        simulation.run(6_000, 15_000, faults);
        obeys(limits, &mut simulation.admitted).is_err()
    });
    assert!(found.count() >= 2);
}

/// A gateway does not know of every lease that it has: the report of one gets lost, and there is room for two others. How many uses
/// it is given then, and once the report has come; and whether it ever had more than its lease.
fn unknown_leases(redis: &Redis, script: &str) -> (Vec<u64>, bool) {
    let limit =
        Limit { name: "wide".into(), number: 1_000, shape: Shape::TokenBucket { per: 3_600_000_000_000, capacity: 1_000 } };
    let mut simulation = Simulation::with(redis, script, &[limit], 20, 2, 7, NONE);
    let set = Arc::clone(&simulation.set);
    let mut given = Vec::new();
    let reported: Back = [(1, 10)].into_iter().collect();
    for (step, gateway, id, back) in [
        (0, "g0", 1, Back::new()),
        // The first is finished, which nobody hears of.
        (1, "g0", 3, Back::new()),
        (2, "g0", 4, Back::new()),
        // Another one is not concerned, nor is what it has.
        (3, "g1", 1, Back::new()),
        (4, "g1", 2, Back::new()),
        (5, "g0", 5, Back::new()),
        (6, "g0", 6, reported),
        // All of them have expired.
        (6 * SECOND, "g0", 7, Back::new()),
    ] {
        let errand = Errand { id, want: set.lease() / 2, back, at: 0 };
        let reply = simulation.ask(BEGIN + step, "lease", &lease_arguments(gateway, &errand, 2, set.lease()), 0);
        given.push(reply.lease.0);
    }
    (given, simulation.too_much.is_some())
}

#[test]
fn a_gateway_gets_no_more_than_its_lease_whatever_it_knows_of() {
    let redis = Redis::start();
    assert_eq!(unknown_leases(&redis, SCRIPT), (vec![10, 10, 0, 10, 10, 0, 10, 10], false));
    // What is looked at with every message of the simulations would have told.
    let generous = SCRIPT.replace(" - own)", ")");
    assert_ne!(generous, SCRIPT);
    assert_eq!(unknown_leases(&redis, &generous), (vec![10; 8], true));
}

#[test]
fn leases_cost_clients_no_more_than_one_for_each_gateway() {
    let redis = Redis::start();
    for (seed, members) in (11..).zip([2, 4, 16]) {
        for (limits, dearest) in limits() {
            let (lease, faults) = (10, Faults { dearest, ..NONE });
            let mut simulation = Simulation::new(&redis, &limits, lease, members, seed, faults);
            simulation.run(requests(), 15_000, faults);
            let name = name(&limits);
            obeys(&limits, &mut simulation.admitted).unwrap_or_else(|wrong| panic!("{name} of {members}: {wrong}"));
            assert_eq!(simulation.too_much, None, "{name} of {members}");
            let (admitted, expected) = (simulation.admitted.len(), exact(&limits, &simulation.offered));
            // A sliding window gives back up to a fifteenth late, and a refusal is believed for a tenth of a second.
            let bucket = |limit: &Limit| matches!(limit.shape, Shape::TokenBucket { .. });
            let windows = match limits.iter().all(bucket) {
                true => 1,
                false => 2 + (simulation.offered.last().unwrap().0 - BEGIN) as usize / (20 * SECOND as usize),
            };
            let slides = |limit: &Limit| matches!(limit.shape, Shape::SlidingWindow { .. });
            let late = if limits.iter().any(slides) { expected / 14 } else { 0 };
            let withheld = members * lease as usize * windows + late + expected / 50;
            assert!(admitted + withheld >= expected, "{name} of {members}: {admitted} of {expected}, {withheld} withheld");
            assert!(admitted <= expected + expected / 100, "{name} of {members}: {admitted} of {expected}");
        }
    }
}

/// What a lease lives that is taken 2 s before the end of its minute, by the clock of Redis, in nanoseconds; and what is left just before
/// that end, at it, and when the lease comes back after it.
fn lease_at_the_border(redis: &Redis, script: &str) -> (u64, [u64; 3]) {
    let limit = Limit { name: "minute".into(), number: 10, shape: Shape::FixedWindow { period: Period::Minute } };
    let mut simulation = Simulation::with(redis, script, &[limit], 10, 2, 8, NONE);
    let border = BEGIN + 20 * SECOND;
    let mut lease = |at, id, want, back| {
        let errand = Errand { id, want, back, at: 0 };
        simulation.ask(at, "lease", &lease_arguments("g0", &errand, 2, 10), 0)
    };
    let given = lease(border - 2 * SECOND, 1, 5, Back::new());
    assert_eq!(given.lease.0, 5);
    // As long as it lives it is withheld; what comes back when the window is over was spent in that.
    let left = [(border - 1, Back::new()), (border, Back::new()), (border + 1, [(1, 5)].into_iter().collect())];
    let left = left.map(|(at, back)| lease(at, 2, 0, back).decision.standings()[0].remaining);
    (given.lease.1, left)
}

#[test]
fn a_lease_lives_no_longer_than_its_calendar_window() {
    let redis = Redis::start();
    assert_eq!(lease_at_the_border(&redis, SCRIPT), (2 * SECOND * 1_000, [5, 10, 10]));
    let unfenced = SCRIPT.replace("if limit.ends then life", "if false then life");
    assert_ne!(unfenced, SCRIPT);
    assert_eq!(lease_at_the_border(&redis, &unfenced).0, LIFE, "the test would have noticed");
}

/// The same with 2 % for each gateway, as one would configure it: most requests make no round trip.
#[test]
fn with_a_lease_most_requests_make_no_round_trip() {
    let redis = Redis::start();
    let shape = Shape::TokenBucket { per: 60_000_000_000, capacity: 100_000 };
    let limit = Limit { name: "wide".into(), number: 100_000, shape };
    let mut simulation = Simulation::new(&redis, &[limit], 2_000, 4, 99, NONE);
    simulation.run(20_000, 1_000, NONE);
    assert_eq!(simulation.admitted.len(), 20_000);
    assert!(simulation.asked * 100 < 20_000 * 2, "{} round trips for 20000 requests", simulation.asked);
}
