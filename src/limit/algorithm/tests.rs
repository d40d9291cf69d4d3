use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const SECOND: u64 = 1_000_000_000;

fn bucket(number: u64, per: u64, capacity: u64) -> Limit {
    Limit { name: "t".into(), shape: Shape::TokenBucket { per, capacity }, number }
}
fn sliding(number: u64, per: u64) -> Limit {
    Limit { name: "t".into(), shape: Shape::SlidingWindow { per }, number }
}
fn fixed(number: u64, period: Period) -> Limit {
    Limit { name: "t".into(), shape: Shape::FixedWindow { period }, number }
}
fn at(nanos: u64) -> Moment {
    Moment { mono: nanos, wall: nanos }
}

/// A limit of any kind at the ends of what can be configured.
fn any_limit() -> impl Strategy<Value = Limit> {
    let number = prop_oneof![Just(1), Just(2), 1..1000_u64, Just(crate::value::NUMBER_MAX)];
    let per = prop_oneof![Just(1_000_000), Just(SECOND), Just(60 * SECOND), Just(365 * 86_400 * SECOND)];
    let period = prop_oneof![Just(Period::Minute), Just(Period::Hour), Just(Period::Day), Just(Period::Month)];
    (number, per, period, 1..1000_u64, 0..3).prop_map(|(number, per, period, capacity, kind)| match kind {
        0 => bucket(number, per, capacity),
        1 => sliding(number.min(SLIDING_MAX), per),
        _ => fixed(number, period),
    })
}

/// Nobody is refused for as long as Redis is away only because there are many gateways.
#[test]
fn a_share_has_room_for_the_dearest_request() {
    for limit in [bucket(10, 60 * SECOND, 10), sliding(10, 60 * SECOND), fixed(10, Period::Minute)] {
        assert_eq!([1, 2, 7, 10, 11].map(|dearest| limit.share(4, dearest).most()), [2, 2, 7, 10, 10], "{limit:?}");
        let share = limit.share(4, 7);
        let state = share.take(&State::default(), at(SECOND), 7).expect("the dearest request");
        let wait = share.take(&state, at(SECOND), 7).unwrap_err();
        assert!(share.take(&state, at(SECOND + wait), 7).is_ok(), "{wait}: {limit:?}");
        assert!(limit.share(4, 7).take(&state, at(SECOND), 1).is_err(), "it has no more than one of them: {limit:?}");
    }
    // However fast it comes back, a gateway alone gives no more than its part of the rate.
    let Shape::TokenBucket { per, .. } = bucket(10, 60 * SECOND, 10).share(4, 7).shape else { panic!() };
    assert_eq!(per, 240 * SECOND);
}

proptest! {
    /// Whatever the clock does: no panic, no more than the limit at one moment, and a wait that is true when nobody else comes.
    #[test]
    fn any_clock_and_any_cost_keep_the_limit(
        limit in any_limit(),
        steps in prop::collection::vec((prop_oneof![any::<u64>(), 0..SECOND, Just(0)], 1..2000_u64), 1..60),
    ) {
        let mut state = State::default();
        for (now, cost) in steps {
            let standing = limit.standing(&state, at(now));
            prop_assert!(standing.remaining <= limit.most());
            match limit.take(&state, at(now), cost) {
                Ok(next) => {
                    prop_assert!(cost <= standing.remaining);
                    prop_assert_eq!(limit.standing(&next, at(now)).remaining, standing.remaining - cost);
                    state = next;
                }
                Err(wait) => {
                    prop_assert!(cost > standing.remaining && wait > 0);
                    if let Some(later) = now.checked_add(wait) && wait < u64::MAX / 4 && now < u64::MAX / 4 {
                        prop_assert!(limit.take(&state, at(later), cost).is_ok(), "{now} {cost} {wait} {state:?}");
                    }
                }
            }
        }
    }

    /// What is given back at once was never taken.
    #[test]
    fn a_use_that_is_given_back_at_once_leaves_no_trace(
        limit in any_limit(),
        takes in prop::collection::vec((0..SECOND, 1..5_u64), 0..40),
        pause in 0..SECOND,
        cost in 1..5_u64,
    ) {
        let (mut state, mut now) = (State::default(), 1_800_000_000 * SECOND);
        for (pause, cost) in takes {
            now += pause;
            state = limit.take(&state, at(now), cost).unwrap_or(state);
        }
        now += pause;
        if let Ok(taken) = limit.take(&state, at(now), cost) {
            let given = limit.give(&taken, at(now), at(now), cost);
            prop_assert_eq!(limit.standing(&given, at(now)), limit.standing(&state, at(now)));
        }
    }

    /// However late what is given back comes, and however many wait for it at the same time: those that were served obey the limit,
    /// which nobody but they has used. The oracle replays them alone.
    #[test]
    fn what_is_given_back_late_is_never_more_than_what_is_still_counted(
        limit in any_limit(),
        steps in prop::collection::vec((prop_oneof![Just(0), 0..SECOND / 50, 0..SECOND], 1..4_u64, 0..3 * SECOND, any::<bool>()), 1..80),
    ) {
        let (mut state, mut alone, mut now) = (State::default(), State::default(), 1_800_000_000 * SECOND);
        let mut pending: Vec<(u64, u64, u64)> = Vec::new();
        for (pause, cost, later, served) in steps {
            now += pause;
            pending.sort_unstable();
            while let Some((due, taken, cost)) = pending.first().copied().filter(|(due, ..)| *due <= now) {
                pending.remove(0);
                state = limit.give(&state, at(taken), at(due), cost);
            }
            if let Ok(next) = limit.take(&state, at(now), cost) {
                state = next;
                if served {
                    let replayed = limit.take(&alone, at(now), cost);
                    prop_assert!(replayed.is_ok(), "more than the limit at {now}: {replayed:?}");
                    alone = replayed.unwrap_or(alone);
                } else {
                    pending.push((now + later, now, cost));
                }
            }
            prop_assert!(limit.standing(&state, at(now)).remaining <= limit.standing(&alone, at(now)).remaining);
        }
    }

    /// More time never makes less available, and what `more_in` and `idle_in` promise is so.
    #[test]
    fn time_only_gives(limit in any_limit(), takes in prop::collection::vec((0..SECOND, 1..5_u64), 1..40), later in 0..100 * SECOND) {
        let (mut state, mut now) = (State::default(), 1_800_000_000 * SECOND);
        for (pause, cost) in takes {
            now += pause;
            state = limit.take(&state, at(now), cost).unwrap_or(state);
        }
        let standing = limit.standing(&state, at(now));
        prop_assert!(limit.standing(&state, at(now + later)).remaining >= standing.remaining);
        if standing.more_in > 0 {
            prop_assert!(limit.standing(&state, at(now + standing.more_in)).remaining > standing.remaining);
        }
        let idle = limit.standing(&state, at(now + standing.idle_in));
        prop_assert_eq!((idle.remaining, idle.idle_in), (limit.most(), 0));
    }
}

#[test]
fn the_extremes_neither_overflow_nor_round_away() {
    let year = 365 * 86_400 * SECOND;
    let slow = bucket(1, year, 1);
    let state = slow.take(&State::default(), at(5), 1).unwrap();
    assert_eq!(slow.take(&state, at(5), 1), Err(year));
    assert_eq!(slow.take(&state, at(4 + year), 1), Err(1));
    assert!(slow.take(&state, at(5 + year), 1).is_ok());
    // A thousand in each nanosecond.
    let fast = bucket(1_000_000_000, 1_000_000, 1_000_000_000);
    let state = fast.take(&State::default(), at(0), 1_000_000_000).unwrap();
    assert_eq!(fast.standing(&state, at(1)).remaining, 1_000);
    assert_eq!(fast.take(&state, at(0), 1), Err(1));
    assert_eq!(slow.take(&state, at(0), 2), Err(u64::MAX), "more than it ever holds");
}

#[test]
fn another_number_goes_on_with_the_same_count() {
    let (before, after) = (bucket(60, 60 * SECOND, 60), bucket(120, 60 * SECOND, 120));
    let mut state = State::default();
    for _ in 0..60 {
        state = before.take(&state, at(7), 1).unwrap();
    }
    assert_eq!((before.standing(&state, at(7)).remaining, after.standing(&state, at(7)).remaining), (0, 60));
}

/// The oracle: a log of the time of every use that was admitted, and nothing else in common with the algorithms.
struct Log {
    times: VecDeque<u64>,
}

impl Log {
    fn within(&self, from: u64) -> usize {
        self.times.iter().rev().take_while(|at| **at >= from).count()
    }
}

/// A small generator of pauses (xorshift): bursts, steady flow, and silence, the same in each run.
fn pauses(seed: u64) -> impl Iterator<Item = u64> {
    let mut x = seed;
    std::iter::repeat_with(move || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        match x % 1_000 {
            0 => 3 * SECOND,
            1..=500 => 0,
            _ => x % 20_000_000,
        }
    })
}

#[test]
fn a_million_requests_are_admitted_as_another_algorithm_would() {
    let (number, burst) = (100_u64, 100_u64);
    let limit = bucket(number, SECOND, burst);
    let (mut state, mut now, mut admitted) = (State::default(), 0_u64, 0_u64);
    let mut log = Log { times: VecDeque::new() };
    // The oracle: a bucket of fractions of tokens that is filled at each request.
    let (mut expected, mut tokens, mut filled) = (0_u64, burst as f64, 0_u64);
    for pause in pauses(42).take(1_000_000) {
        now += pause;
        if let Ok(next) = limit.take(&state, at(now), 1) {
            state = next;
            admitted += 1;
            log.times.push_back(now);
            while log.times.len() > 1_000 {
                log.times.pop_front();
            }
            assert!((log.within(now.saturating_sub(SECOND - 1)) as u64) < number + burst, "at {now}");
        }
        tokens = (tokens + (now - filled) as f64 * number as f64 / SECOND as f64).min(burst as f64);
        filled = now;
        if tokens >= 1.0 {
            tokens -= 1.0;
            expected += 1;
        }
    }
    assert!(admitted > 100_000, "{admitted}");
    assert!(admitted.abs_diff(expected) * 1_000 <= expected, "{admitted} against {expected}");
}

#[test]
fn a_sliding_window_never_holds_more_than_its_number_and_is_late_by_a_fifteenth_at_most() {
    let (number, per) = (50_u64, SECOND);
    let limit = sliding(number, per);
    let (mut state, mut now) = (State::default(), 0);
    let mut log = Log { times: VecDeque::new() };
    for pause in pauses(7).take(200_000) {
        now += pause;
        match limit.take(&state, at(now), 1) {
            Ok(next) => {
                state = next;
                log.times.push_back(now);
                assert!(log.within(now.saturating_sub(per - 1)) as u64 <= number, "at {now}");
            }
            Err(_) => {
                let slack = per + per.div_ceil(15);
                assert!(log.within(now.saturating_sub(slack)) as u64 >= number, "refused too long at {now}");
            }
        }
        while log.times.len() > 500 {
            log.times.pop_front();
        }
    }
}

#[test]
fn of_a_bucket_goes_back_what_has_not_drained_and_of_a_quota_what_is_of_this_period() {
    let limit = bucket(1, SECOND, 5);
    let mut state = limit.take(&State::default(), at(0), 3).unwrap();
    state = limit.give(&state, at(0), at(SECOND), 2);
    assert_eq!(limit.standing(&state, at(SECOND)).remaining, 4, "3 - 1 drained - (2 - 1 drained)");
    let limit = fixed(5, Period::Minute);
    let state = limit.take(&State::default(), at(59 * SECOND), 2).unwrap();
    let left = |state: &State, now| limit.standing(state, at(now)).remaining;
    assert_eq!(left(&limit.give(&state, at(59 * SECOND), at(59 * SECOND), 1), 59 * SECOND), 4);
    let next = limit.take(&state, at(61 * SECOND), 2).unwrap();
    assert_eq!(left(&limit.give(&next, at(59 * SECOND), at(62 * SECOND), 2), 62 * SECOND), 3, "that minute is over");
    let limit = sliding(5, 15 * SECOND);
    let state = limit.take(&State::default(), at(0), 2).unwrap();
    let next = limit.take(&state, at(17 * SECOND), 2).unwrap();
    let left = |state: &State, now| limit.standing(state, at(now)).remaining;
    assert_eq!(left(&limit.give(&next, at(0), at(17 * SECOND), 2), 17 * SECOND), 3, "it counts no more");
}

#[test]
fn a_quota_ends_with_its_day_and_not_before() {
    let limit = fixed(2, Period::Day);
    let noon = 20_000 * 86_400 * SECOND + 43_200 * SECOND;
    let mut state = limit.take(&State::default(), at(noon), 2).unwrap();
    assert_eq!(limit.take(&state, at(noon), 1), Err(43_200 * SECOND));
    assert!(limit.take(&state, at(noon + 43_200 * SECOND), 1).is_ok());
    // Set back over midnight: still the later day's count.
    state = limit.take(&State::default(), at(noon + 43_201 * SECOND), 2).unwrap();
    assert!(limit.take(&state, at(noon + 43_199 * SECOND), 1).is_err());
    // Set back by a year: the old count was of a wrong clock.
    assert!(limit.take(&state, at(noon - 365 * 86_400 * SECOND), 1).is_ok());
}
