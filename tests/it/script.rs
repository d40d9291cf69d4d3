//! The script in Redis against the algorithms here, two writings of the same: the same questions to both, at the ends of what can be
//! configured and with clocks that jump, through a real Redis whose time the test says.

use crate::support::full;
use crate::support::redis::Redis;
use gatewright::limit::redis::{Reply, SCRIPT, SharedSet, reply};
use gatewright::limit::{Decision, Limit, Moment, Shape, State};
use gatewright::value::Period;
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use std::cell::RefCell;

/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;
const YEAR: u64 = 365 * 86_400 * SECOND;
/// Microseconds: the time that Redis begins with.
const BEGIN: u64 = 1_800_000_000_000_000;

fn at(micros: u64) -> Moment {
    Moment { mono: micros * 1_000, wall: micros * 1_000 }
}

#[derive(Debug, Clone, Copy)]
enum What {
    Take,
    /// As much as there is.
    Charge,
    /// What the last one that was admitted took, so many microseconds later.
    Give,
}

/// How time goes on, in microseconds; it may go back.
fn pause() -> impl Strategy<Value = i64> {
    let year = 365 * 86_400 * 1_000_000_i64;
    prop_oneof![
        8 => Just(0),
        8 => 0..50_000_i64,
        4 => 0..5_000_000_i64,
        2 => 0..3_600_000_000_i64,
        1 => 0..2 * year,
        1 => -1_000_000..0_i64,
        1 => -100_000_000_000..0_i64,
    ]
}

fn step() -> impl Strategy<Value = (i64, What, u64)> {
    let what = prop_oneof![6 => Just(What::Take), 1 => Just(What::Charge), 1 => Just(What::Give)];
    let cost = prop_oneof![6 => 1..4_u64, 1 => 1..2_000_u64, 1 => Just(1_000_000_000_000)];
    (pause(), what, cost)
}

fn limit() -> impl Strategy<Value = Limit> {
    // 1/1y, 1e9/1ms and what lies between; a burst of nothing is a capacity of 1.
    let number = prop_oneof![Just(1), Just(7), 1..1_000_u64, Just(1_000_000_000), Just(1_000_000_000_000)];
    let capacity = prop_oneof![Just(1), Just(2), 1..1_000_u64, Just(1_000_000_000_000)];
    // Slots of both writings are equally long where a fifteenth is whole microseconds.
    let per = prop_oneof![Just(SECOND / 1_000 * 15), Just(15 * SECOND), Just(60 * SECOND), Just(YEAR), Just(SECOND / 1_000)];
    let period = prop_oneof![Just(Period::Minute), Just(Period::Hour), Just(Period::Day), Just(Period::Month)];
    (number, capacity, per, period, 0..3).prop_map(|(number, capacity, per, period, kind)| match kind {
        0 => Limit { name: "t".into(), number, shape: Shape::TokenBucket { per, capacity } },
        1 => {
            let per = per.max(SECOND / 1_000 * 15);
            Limit { name: "t".into(), number: number.min(65_535), shape: Shape::SlidingWindow { per } }
        }
        _ => Limit { name: "t".into(), number, shape: Shape::FixedWindow { period } },
    })
}

/// Asks the script, at times of the test's own.
struct Script {
    connection: redis::Connection,
    sha: String,
    keys: u64,
}

impl Script {
    fn new(redis: &Redis, text: &str) -> Script {
        let mut connection = redis.connection();
        let edited = text.replace("redis.call('TIME')", "redis.call('HMGET', 'clock', 's', 'us')");
        assert_ne!(edited, text);
        let sha = redis::cmd("SCRIPT").arg("LOAD").arg(edited).query(&mut connection).unwrap();
        Script { connection, sha, keys: 0 }
    }

    fn key(&mut self) -> String {
        self.keys += 1;
        format!("case:{}", self.keys)
    }

    fn ask(&mut self, key: &str, set: &SharedSet, now: u64, mode: &str, extra: &[u64], cost: u64) -> Reply {
        let mut pipeline = redis::pipe();
        pipeline.cmd("HSET").arg("clock").arg("s").arg(now / 1_000_000).arg("us").arg(now % 1_000_000).ignore();
        pipeline.cmd("EVALSHA").arg(&self.sha).arg(1).arg(key).arg(mode).arg(extra.len()).arg(extra);
        for argument in set.arguments(std::iter::once(cost)) {
            pipeline.arg(argument);
        }
        let values: Vec<redis::Value> = pipeline.query(&mut self.connection).unwrap_or_else(|e| panic!("{mode} {cost}: {e}"));
        reply(set, values.last().unwrap()).unwrap_or_else(|| panic!("{mode} {cost}: {values:?}"))
    }
}

/// Whether the level of a bucket is so near to a whole use that a double cannot tell on which side. One that is whole is whole
/// there, too: the script is lenient by more than its doubles are off.
fn is_near(limit: &Limit, state: &State, now: u64) -> bool {
    let Shape::TokenBucket { per, capacity } = limit.shape else { return false };
    let [at, low, high, ..] = *state;
    let level = u128::from(high) << 64 | u128::from(low);
    let level = level.saturating_sub(u128::from((now * 1_000).saturating_sub(at)) * u128::from(limit.number));
    let part = u64::try_from(level % u128::from(per)).unwrap() as f64 / per as f64;
    let doubt = 1e-6 + capacity as f64 * 1e-12;
    part > 0.0 && (part < doubt || part > 1.0 - doubt)
}

/// What the script holds may be a millionth of a use off, and its waits as much.
fn same_wait(limit: &Limit, here: u64, there: u64) -> bool {
    let slack = match limit.shape {
        Shape::TokenBucket { per, capacity } => {
            let one = per as f64 / limit.number as f64;
            3_000.0 + one * (1e-6 + capacity as f64 * 1e-12)
        }
        _ => 1_000.0,
    };
    let most = (1_u64 << 53) as f64 * 1_000.0;
    (here as f64).min(most) - slack <= there as f64 && there as f64 <= here as f64 + slack + here as f64 * 1e-9
}

fn compare(script: &mut Script, limit: &Limit, steps: &[(i64, What, u64)]) -> Result<usize, TestCaseError> {
    let set = SharedSet::new("t", std::slice::from_ref(limit), 0);
    let key = script.key();
    let (mut state, mut now) = (State::default(), BEGIN);
    let mut last: Option<(u64, u64)> = None;
    for (number, (pause, what, cost)) in steps.iter().enumerate() {
        now = now.saturating_add_signed(*pause).max(BEGIN / 2);
        let before = limit.standing(&state, at(now));
        if is_near(limit, &state, now) && before.remaining < limit.most() {
            return Ok(number);
        }
        match what {
            What::Take => {
                let cost = (*cost).min(limit.most());
                let there = script.ask(&key, &set, now, "take", &[], cost);
                prop_assert_eq!(there.at, now);
                match (limit.take(&state, at(now), cost), &there.decision) {
                    (Ok(next), Decision::Admitted(_)) => {
                        state = next;
                        last = Some((now, cost));
                    }
                    (Err(here), Decision::Refused { wait, .. }) => {
                        prop_assert!(same_wait(limit, here, *wait), "step {number} at {now}: wait {here}, there {wait}");
                        // And it is true: whoever waits so long is admitted there.
                        let later = now.saturating_add(wait.div_ceil(1_000));
                        if later < BEGIN * 4 {
                            let copy = script.key();
                            let copied: bool = redis::cmd("COPY").arg(&key).arg(&copy).query(&mut script.connection).unwrap();
                            prop_assert!(copied);
                            let then = script.ask(&copy, &set, later, "take", &[], cost).decision;
                            prop_assert!(matches!(then, Decision::Admitted(_)), "step {number}: not after {wait}: {then:?}");
                        }
                    }
                    (here, there) => prop_assert!(false, "step {number} at {now}: {here:?}, there {there:?}"),
                }
            }
            What::Charge => {
                // A bucket's charge fills it to the brim there, and to the last whole use here.
                let cost = (*cost).min(before.remaining);
                script.ask(&key, &set, now, "charge", &[], cost);
                state = limit.take(&state, at(now), cost).unwrap_or(state);
            }
            What::Give => {
                let Some((taken, cost)) = last.take().filter(|(taken, _)| *taken <= now) else { continue };
                script.ask(&key, &set, now, "give", &[taken], cost);
                state = limit.give(&state, at(taken), at(now), cost);
            }
        }
        let there = script.ask(&key, &set, now, "look", &[], 0).decision;
        let (there, here) = (there.standings()[0], limit.standing(&state, at(now)));
        if is_near(limit, &state, now) && here.remaining < limit.most() {
            return Ok(number);
        }
        prop_assert_eq!(there.remaining, here.remaining, "step {} at {}: {:?}", number, now, what);
        prop_assert!(same_wait(limit, here.more_in, there.more_in), "step {number} at {now}: {here:?}, there {there:?}");
    }
    Ok(steps.len())
}

/// How many steps of how many could be compared, or what differs.
fn run(redis: &Redis, text: &str, config: Config) -> Result<(usize, usize), String> {
    let script = RefCell::new(Script::new(redis, text));
    let done = RefCell::new((0_usize, 0_usize));
    let outcome = TestRunner::new(config).run(&(limit(), prop::collection::vec(step(), 1..50)), |(limit, steps)| {
        let compared = compare(&mut script.borrow_mut(), &limit, &steps)?;
        let mut done = done.borrow_mut();
        *done = (done.0 + compared, done.1 + steps.len());
        Ok(())
    });
    outcome.map(|()| done.into_inner()).map_err(|wrong| wrong.to_string())
}

/// Nothing has been counted in the new period yet, so that a clock that steps back over the border finds the old one's count.
#[test]
fn a_use_that_goes_back_in_the_next_period_takes_no_other_with_it() {
    let redis = Redis::start();
    let limit = Limit { name: "t".into(), number: 1_000_000_000, shape: Shape::FixedWindow { period: Period::Hour } };
    let mut script = Script::new(&redis, SCRIPT);
    for back in [-2, -3_000_000_000] {
        let steps = [(182_505_953, What::Take, 1), (5_882, What::Take, 3), (3_417_488_165, What::Give, 1), (back, What::Take, 1)];
        let compared = compare(&mut script, &limit, &steps).unwrap_or_else(|wrong| panic!("{wrong}"));
        assert_eq!(compared, steps.len());
    }
}

/// `GATEWRIGHT_FULL=1`: ten thousand sequences.
#[test]
fn the_script_decides_as_the_algorithms_do_at_the_extremes_and_when_clocks_jump() {
    let redis = Redis::start();
    let cases = if full() { 10_000 } else { 400 };
    let (compared, steps) = run(&redis, SCRIPT, Config { cases, failure_persistence: None, ..Config::default() })
        .unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{compared} of {steps} steps of {cases} sequences were compared");
    assert!(compared * 2 > steps, "only {compared} of {steps} steps were compared");
}

/// What can be configured at most and at least, used up.
fn extremes() -> Vec<Limit> {
    let bucket = |number, per, capacity| Limit { name: "t".into(), number, shape: Shape::TokenBucket { per, capacity } };
    vec![
        // 1/365d with a burst of 0, which is 1; 1e9/1ms; 1e12 of both.
        bucket(1, YEAR, 1),
        bucket(1_000_000_000, SECOND / 1_000, 1),
        bucket(1_000_000_000, SECOND / 1_000, 1_000_000_000),
        bucket(1_000_000_000_000, YEAR, 1_000_000_000_000),
        bucket(7, 60 * SECOND, 3),
        Limit { name: "t".into(), number: 65_535, shape: Shape::SlidingWindow { per: YEAR } },
        Limit { name: "t".into(), number: 10, shape: Shape::SlidingWindow { per: SECOND / 1_000 * 15 } },
        Limit { name: "t".into(), number: 1_000_000_000_000, shape: Shape::FixedWindow { period: Period::Month } },
        Limit { name: "t".into(), number: 1, shape: Shape::FixedWindow { period: Period::Minute } },
    ]
}

/// Uses each of the extremes up, moves the clock of Redis, and asks: whoever waits as long as is told then is admitted, and whoever
/// waits less is not. The error says where it is not so.
fn waits(redis: &Redis, text: &str) -> Result<(), String> {
    let mut script = Script::new(redis, text);
    // In the middle of a month, and of a minute.
    let begin = BEGIN + 10 * 86_400_000_000 + 30_000_000;
    for limit in extremes() {
        for moved in [0, 1_000, 1_000_000, -1, -1_000, -1_000_000, -20_000_000, -40_000_000, -3_600_000_000_i64] {
            let what = format!("{limit:?}, moved {moved} us");
            let set = SharedSet::new("t", std::slice::from_ref(&limit), 0);
            let key = script.key();
            let state = limit.take(&State::default(), at(begin), limit.most()).map_err(|wait| format!("{what}: {wait}"))?;
            if !matches!(script.ask(&key, &set, begin, "take", &[], limit.most()).decision, Decision::Admitted(_)) {
                return Err(format!("{what}: not all of it"));
            }
            let now = begin.saturating_add_signed(moved);
            let here = limit.take(&state, at(now), 1);
            let (wait, here) = match (script.ask(&key, &set, now, "take", &[], 1).decision, here) {
                (Decision::Refused { wait, .. }, Err(here)) => (wait, here),
                (Decision::Admitted(_), Ok(_)) => continue,
                other => return Err(format!("{what}: {other:?}")),
            };
            if !same_wait(&limit, here, wait) {
                return Err(format!("{what}: a wait of {wait}, and {here} here"));
            }
            let mut asked_at = |later: u64| {
                let copy = script.key();
                let copied: bool = redis::cmd("COPY").arg(&key).arg(&copy).query(&mut script.connection).unwrap();
                assert!(copied);
                matches!(script.ask(&copy, &set, later, "take", &[], 1).decision, Decision::Admitted(_))
            };
            let micros = wait.div_ceil(1_000);
            if !asked_at(now + micros) {
                return Err(format!("{what}: not admitted after {micros} us"));
            }
            // Told to the microsecond, but that one more is told than must be, and what doubles cannot tell.
            let early = 4 + micros / 1_000_000_000;
            if micros > early && asked_at(now + micros - early) {
                return Err(format!("{what}: admitted {early} us before {micros} us have passed"));
            }
        }
    }
    Ok(())
}

#[test]
fn a_wait_is_true_at_the_extremes_and_after_the_clock_of_redis_has_jumped() {
    waits(&Redis::start(), SCRIPT).unwrap_or_else(|wrong| panic!("{wrong}"));
}

/// A comparison that finds nothing proves nothing: each of these little mistakes is found, those in waits after the clock went back
/// among them.
#[test]
fn a_script_that_differs_in_little_is_found_out() {
    let redis = Redis::start();
    for (right, wrong, in_waits) in [
        ("per / number) + 1 + still", "per / number) + 1", true),
        ("math.max(0, at - now)", "0", true),
        ("at = math.max(at, now)", "at = now", false),
        ("newest = math.max(newest, n)", "newest = newest", true),
        ("math.ceil(per / (slots - 1))", "math.ceil(per / slots)", true),
        ("(newest - (i - 1) + slots) * length - now", "(newest - (i - 1) + slots) * length - newest * length", true),
        (
            "return limit.used + held + uses > number and ends - now or 0",
            "return limit.used + held + uses > number and 1 or 0",
            true,
        ),
        ("if i == index + 1 and c > 0 then", "if false then", false),
        ("math.min(more, idle) + still, idle + still", "math.min(more, idle), idle", false),
        ("math.max(0, uses - math.max(0, now - taken) * number / per)", "uses", false),
        ("if taken >= began then", "if true then", false),
        ("if slot > slots then return end", "", false),
    ] {
        let edited = SCRIPT.replacen(right, wrong, 1);
        assert_ne!(edited, SCRIPT, "{right}");
        if in_waits {
            assert!(waits(&redis, &edited).is_err(), "no wait was wrong with `{wrong}` for `{right}`");
        }
        // The first that is wrong is enough.
        let config = Config { cases: 5_000, failure_persistence: None, max_shrink_iters: 0, ..Config::default() };
        assert!(in_waits || run(&redis, &edited, config).is_err(), "nobody noticed `{wrong}` for `{right}`");
    }
}

/// What cannot be told in 64 bits is told as very long, and a key that lives longer than Redis can say lives very long.
#[test]
fn a_bucket_that_drains_for_longer_than_the_world_stands_breaks_nothing() {
    let redis = Redis::start();
    let mut script = Script::new(&redis, SCRIPT);
    let shape = Shape::TokenBucket { per: YEAR, capacity: 1_000_000_000_000 };
    let limit = Limit { name: "t".into(), number: 1, shape };
    let set = SharedSet::new("t", std::slice::from_ref(&limit), 0);
    script.ask("k", &set, BEGIN, "charge", &[], 1_000_000_000_000);
    let Decision::Refused { wait, standings, .. } = script.ask("k", &set, BEGIN, "take", &[], 4_000_000_000).decision else {
        panic!("more than there is")
    };
    assert_eq!(standings[0].remaining, 0);
    assert!(wait > 200 * YEAR, "{wait}");
    let left: i64 = redis::cmd("PTTL").arg("k").query(&mut script.connection).unwrap();
    assert!(left > 1_000_000_000, "{left}");
}
