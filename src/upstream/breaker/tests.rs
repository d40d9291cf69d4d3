//! The laws of breakers, on a clock that the test moves.

use super::*;

const SECOND: Duration = Duration::from_secs(1);

struct Bench {
    breaker: Breaker,
    now: Instant,
}

impl Bench {
    fn new(change: impl FnOnce(&mut Tuning)) -> Self {
        let mut tuning = Tuning {
            error_rate: 500_000,
            window: 10 * SECOND,
            min_requests: 20,
            consecutive: None,
            slow: None,
            open_for: 30 * SECOND,
            probes: 3,
        };
        change(&mut tuning);
        let now = Instant::now();
        let state = BreakerState::new("upstream", "orders", tuning.window, now);
        Bench { breaker: Breaker::new(Arc::new(tuning), Arc::new(state)), now }
    }

    fn call(&self, failed: bool) -> bool {
        self.timed(failed, SECOND / 100)
    }

    fn timed(&self, failed: bool, took: Duration) -> bool {
        match self.breaker.admit(self.now) {
            Ok(permit) => {
                permit.record(failed, Some(took), self.now);
                true
            }
            Err(_) => false,
        }
    }

    fn state(&self) -> State {
        self.breaker.state().state()
    }
}

#[test]
fn opens_at_the_error_rate_and_not_before_there_are_enough_calls() {
    let bench = Bench::new(|_| {});
    (0..19).for_each(|_| assert!(bench.call(true)));
    assert_eq!(bench.state(), State::Closed, "19 calls are not 20");
    assert!(bench.call(true));
    assert_eq!(bench.state(), State::Open);
    assert!(!bench.call(false));
    assert_eq!(bench.breaker.admit(bench.now).err(), Some(30 * SECOND));
    assert_eq!(bench.breaker.state().refused.get(), 2);
}

#[test]
fn successes_keep_it_closed_and_old_failures_are_forgotten() {
    let mut bench = Bench::new(|_| {});
    for n in 0..1000 {
        assert!(bench.call(n % 5 < 2), "40 % is not 50 %");
    }
    (0..15).for_each(|_| assert!(bench.call(true)));
    bench.now += 11 * SECOND;
    (0..19).for_each(|_| assert!(bench.call(true)));
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn failures_in_a_row_open_it_whatever_the_rate() {
    let bench = Bench::new(|tuning| tuning.consecutive = Some(5));
    (0..100).for_each(|_| assert!(bench.call(false)));
    for _ in 0..3 {
        (0..4).for_each(|_| assert!(bench.call(true)));
        assert!(bench.call(false));
    }
    (0..5).for_each(|_| assert!(bench.call(true)));
    assert_eq!(bench.state(), State::Open);
}

#[test]
fn slow_calls_open_it_even_when_they_succeed() {
    let bench = Bench::new(|tuning| tuning.slow = Some((SECOND, 800_000)));
    (0..4).for_each(|_| assert!(bench.timed(false, SECOND / 2)));
    (0..15).for_each(|_| assert!(bench.timed(false, 2 * SECOND)));
    assert_eq!(bench.state(), State::Closed);
    assert!(bench.timed(false, SECOND));
    assert_eq!(bench.state(), State::Open);
}

fn opened() -> Bench {
    let mut bench = Bench::new(|tuning| tuning.consecutive = Some(1));
    assert!(bench.call(true));
    bench.now += 30 * SECOND;
    bench
}

#[test]
fn half_open_lets_exactly_the_probes_through_and_closes_when_all_pass() {
    let bench = opened();
    let probes: Vec<_> = (0..5).filter_map(|_| bench.breaker.admit(bench.now).ok()).collect();
    assert_eq!((probes.len(), bench.state()), (3, State::HalfOpen));
    for permit in probes {
        assert_eq!(bench.state(), State::HalfOpen);
        permit.record(false, None, bench.now);
    }
    assert_eq!(bench.state(), State::Closed);
    let entered: Vec<u64> = bench.breaker.state().entered().map(|(_, times)| times).collect();
    assert_eq!(entered, [1, 1, 1]);
}

#[test]
fn one_failed_probe_opens_it_again_for_the_whole_time() {
    let mut bench = opened();
    assert!(bench.call(false));
    assert!(bench.call(true));
    assert_eq!(bench.state(), State::Open);
    bench.now += 29 * SECOND;
    assert!(!bench.call(false));
    bench.now += SECOND;
    assert!(bench.call(false));
}

#[test]
fn it_closes_also_where_a_reload_asks_for_more_probes_than_are_left() {
    let mut bench = opened();
    assert!(bench.call(false), "one of three");
    let tuning = Tuning { probes: 5, ..(*bench.breaker.tuning).clone() };
    bench.breaker = Breaker::new(Arc::new(tuning), Arc::clone(bench.breaker.state()));
    assert!(bench.call(false) && bench.call(false));
    assert_eq!(bench.state(), State::HalfOpen, "three of five");
    assert!(!bench.call(false) && !bench.breaker.would_admit(bench.now), "none is left");
    for _ in 0..2 {
        bench.now += 30 * SECOND;
        assert!(bench.breaker.would_admit(bench.now) && bench.call(false), "one more in each `open_for`");
    }
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn a_probe_whose_client_leaves_makes_room_for_another() {
    let bench = opened();
    for _ in 0..10 {
        drop(bench.breaker.admit(bench.now).unwrap());
    }
    assert_eq!(bench.state(), State::HalfOpen);
    (0..3).for_each(|_| assert!(bench.call(false)));
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn calls_from_before_a_change_count_for_nothing_after_it() {
    let mut bench = Bench::new(|tuning| tuning.consecutive = Some(1));
    let early: Vec<_> = (0..4).map(|_| bench.breaker.admit(bench.now).unwrap()).collect();
    assert!(bench.call(true));
    bench.now += 30 * SECOND;
    (0..3).for_each(|_| assert!(bench.call(false)));
    assert_eq!(bench.state(), State::Closed);
    early.into_iter().for_each(|permit| permit.record(true, None, bench.now));
    assert_eq!(bench.state(), State::Closed);
}

#[test]
fn of_many_threads_one_changes_the_state() {
    let bench = Bench::new(|tuning| (tuning.min_requests, tuning.consecutive) = (1, Some(1)));
    std::thread::scope(|scope| {
        (0..4).for_each(|_| {
            scope.spawn(|| (0..100).for_each(|_| assert!(bench.call(true) || bench.state() == State::Open)));
        });
    });
    let entered: Vec<u64> = bench.breaker.state().entered().map(|(_, times)| times).collect();
    assert_eq!(entered, [0, 1, 0]);
}
