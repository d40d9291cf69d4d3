//! The laws of ejection, through an upstream, on a clock that the test moves.

use super::*;
use crate::clock::{ManualClock, SharedClock};
use crate::state::StatePool;
use crate::upstream::Tried;
use crate::upstream::tests::config;

const SECOND: Duration = Duration::from_secs(1);
const TOOK: Option<Duration> = Some(Duration::from_millis(10));

struct Bench {
    clock: Arc<ManualClock>,
    pool: Arc<StatePool>,
    upstream: Arc<Upstream>,
}

impl Bench {
    fn new(endpoints: usize, outlier: &str) -> Self {
        let bench = Bench {
            clock: ManualClock::new(),
            pool: StatePool::new(),
            upstream: super::super::tests::upstream("endpoints = ['127.0.0.1:1']"),
        };
        let upstream = bench.build(endpoints, outlier);
        Bench { upstream, ..bench }
    }

    fn build(&self, endpoints: usize, outlier: &str) -> Arc<Upstream> {
        let list: Vec<String> = (1..=endpoints).map(|port| format!("'127.0.0.1:{port}'")).collect();
        let text = format!("endpoints = [{}]\nhealth = {{ tcp = true }}\noutlier = {{ {outlier} }}", list.join(","));
        let clock: SharedClock = self.clock.clone();
        Upstream::build("orders", &config(&text), crate::upstream::Beside::default(), &self.pool, &clock)
    }

    fn record(&self, at: usize, times: usize, failed: bool, took: Option<Duration>) {
        let endpoints = self.upstream.endpoints();
        (0..times).for_each(|_| endpoints[at].guards().record(failed, took, self.upstream.clock().now()));
    }

    fn judge(&self) {
        self.upstream.guards().group().unwrap().evaluate();
    }

    fn ejected(&self) -> Vec<usize> {
        let endpoints = self.upstream.endpoints();
        (0..endpoints.len()).filter(|at| endpoints[*at].outlier().unwrap().is_ejected()).collect()
    }
}

#[test]
fn errors_in_a_row_eject_and_time_brings_back() {
    let bench = Bench::new(4, "");
    bench.record(1, 4, true, TOOK);
    bench.judge();
    assert_eq!(bench.ejected(), [0_usize; 0], "four are not five");
    bench.record(1, 1, true, TOOK);
    bench.judge();
    assert_eq!((bench.ejected(), bench.upstream.available()), (vec![1], 3));
    let picked: Vec<u16> = (0..6).map(|_| bench.upstream.select(&Tried::new()).unwrap().address().port()).collect();
    assert!(!picked.contains(&2), "{picked:?}");
    let state = bench.upstream.endpoints()[1].outlier().unwrap().clone();
    assert_eq!((state.ejected_for(bench.upstream.clock().now()), state.back_since()), (Some(30 * SECOND), None));
    bench.clock.advance(30 * SECOND);
    bench.judge();
    assert_eq!((bench.ejected(), bench.upstream.available()), (vec![], 4));
    assert_eq!(state.back_since(), Some(bench.upstream.clock().now()));
}

#[test]
fn an_ejected_endpoint_is_a_last_resort_while_its_checks_pass() {
    let bench = Bench::new(3, "");
    bench.record(1, 5, true, TOOK);
    bench.judge();
    let endpoints = bench.upstream.endpoints();
    let mut tried = Tried::new();
    [0, 2].into_iter().for_each(|at| tried.add(&endpoints[at]));
    assert!(bench.upstream.select(&tried).is_none());
    assert_eq!(bench.upstream.last_resort(&tried).unwrap().id(), endpoints[1].id());
    tried.add(&endpoints[1]);
    assert!(bench.upstream.last_resort(&tried).is_none());
    tried.clear();
    endpoints[1].health().unwrap().record(Err(crate::upstream::CheckError::Refused), &bench.upstream.tuning().unwrap());
    assert!(bench.upstream.last_resort(&tried).is_none(), "its checks say more than a suspicion");
}

#[test]
fn a_success_between_errors_is_another_row() {
    let bench = Bench::new(2, "");
    for _ in 0..20 {
        bench.record(0, 4, true, TOOK);
        bench.record(0, 1, false, TOOK);
    }
    bench.judge();
    assert_eq!(bench.ejected(), [0_usize; 0]);
}

#[test]
fn a_share_of_errors_ejects_once_there_are_enough_requests() {
    let bench = Bench::new(3, "consecutive_errors = 0, error_rate = '50%', min_requests = 10");
    bench.record(2, 9, true, TOOK);
    bench.judge();
    assert_eq!(bench.ejected(), [0_usize; 0]);
    bench.record(2, 1, false, TOOK);
    bench.judge();
    assert_eq!(bench.ejected(), [2]);
}

#[test]
fn an_endpoint_far_slower_than_the_median_is_ejected() {
    let bench = Bench::new(3, "latency_factor = 3, latency_min = '20ms', min_requests = 20");
    for at in 0..3 {
        bench.record(at, 40, false, TOOK);
    }
    bench.judge();
    assert_eq!(bench.ejected(), [0_usize; 0]);
    bench.record(1, 40, false, Some(100 * Duration::from_millis(1)));
    bench.judge();
    assert_eq!(bench.ejected(), [1]);

    let quick = Bench::new(2, "latency_factor = 3, latency_min = '200ms'");
    quick.record(0, 40, false, TOOK);
    quick.record(1, 40, false, Some(Duration::from_millis(100)));
    quick.judge();
    assert_eq!(quick.ejected(), [0_usize; 0], "below latency_min nothing is too slow");
}

#[test]
fn each_ejection_in_a_row_is_twice_as_long_up_to_the_longest() {
    let bench = Bench::new(2, "eject_for = '10s', eject_for_max = '35s'");
    let state = bench.upstream.endpoints()[0].outlier().unwrap().clone();
    let mut lengths = Vec::new();
    for _ in 0..4 {
        bench.record(0, 5, true, TOOK);
        bench.judge();
        let length = state.ejected_for(bench.upstream.clock().now()).unwrap();
        lengths.push(length.as_secs());
        bench.clock.advance(length);
        bench.judge();
    }
    assert_eq!(lengths, [10, 20, 35, 35]);
    bench.clock.advance(35 * SECOND);
    bench.record(0, 5, true, TOOK);
    bench.judge();
    assert_eq!(state.ejected_for(bench.upstream.clock().now()), Some(10 * SECOND), "it has behaved for long enough");
    assert_eq!(state.ejections().next(), Some((Reason::ConsecutiveErrors, 5)));
}

#[test]
fn at_most_a_share_is_out_and_never_the_last() {
    let bench = Bench::new(10, "max_ejected = '30%'");
    (0..10).for_each(|at| bench.record(at, 5, true, TOOK));
    bench.judge();
    assert_eq!(bench.ejected(), [0, 1, 2]);

    let all = Bench::new(3, "max_ejected = '100%'");
    (0..3).for_each(|at| all.record(at, 5, true, TOOK));
    all.judge();
    assert_eq!((all.ejected(), all.upstream.available()), (vec![0, 1], 1));

    let one = Bench::new(1, "");
    one.record(0, 50, true, TOOK);
    one.judge();
    assert_eq!(one.ejected(), [0_usize; 0]);

    let two = Bench::new(2, "max_ejected = '10%'");
    two.record(0, 5, true, TOOK);
    two.judge();
    assert_eq!(two.ejected(), [0], "one always may");
    let none = Bench::new(2, "max_ejected = '0%'");
    none.record(0, 5, true, TOOK);
    none.judge();
    assert_eq!(none.ejected(), [0_usize; 0]);
}

#[test]
fn who_was_out_longest_makes_room_for_who_fails_now() {
    let bench = Bench::new(4, "max_ejected = '50%', eject_for = '10s', eject_for_max = '1h'");
    // The second ejection of 0 and 1: for 20 s.
    for later in [9, 8] {
        [0, 1].into_iter().for_each(|at| {
            bench.record(at, 5, true, TOOK);
            bench.judge();
            bench.clock.advance(SECOND);
        });
        bench.clock.advance(later * SECOND);
        bench.judge();
    }
    assert_eq!(bench.ejected(), [0, 1], "out for 10 s and for 9 s");
    bench.record(2, 5, true, TOOK);
    bench.judge();
    assert_eq!(bench.ejected(), [1, 2]);
    // The others have not been out for as long as an ejection lasts at least.
    bench.record(0, 5, true, TOOK);
    bench.judge();
    assert_eq!(bench.ejected(), [1, 2]);
    bench.clock.advance(SECOND);
    bench.judge();
    assert_eq!(bench.ejected(), [0, 2]);

    let two = Bench::new(2, "max_ejected = '100%', eject_for = '10s'");
    two.record(0, 5, true, TOOK);
    two.judge();
    two.clock.advance(9 * SECOND);
    two.record(1, 5, true, TOOK);
    two.judge();
    assert_eq!(two.ejected(), [0], "the last one stays");
}

#[test]
fn ejections_are_void_when_too_few_are_left() {
    for (panic, expected) in [("0%", 1), ("20%", 1), ("60%", 2)] {
        let bench = Bench::new(4, &format!("panic = '{panic}'"));
        (0..2).for_each(|at| bench.record(at, 5, true, TOOK));
        bench.judge();
        let checked = |at: usize, healthy: bool| {
            let endpoints = bench.upstream.endpoints();
            let result = if healthy { Ok(SECOND) } else { Err(crate::upstream::CheckError::Refused) };
            endpoints[at].health().unwrap().record(result, &bench.upstream.tuning().unwrap());
        };
        // Two of four are ejected; of the other two one is unhealthy, and of the ejected ones as well.
        checked(2, false);
        checked(0, false);
        let ports: std::collections::BTreeSet<u16> =
            (0..20).map(|_| bench.upstream.select(&Tried::new()).unwrap().address().port()).collect();
        assert_eq!(ports.len(), expected, "{panic}: {ports:?}");
        // With the last one gone the ejected one is better than nothing.
        checked(3, false);
        assert_eq!(bench.upstream.select(&Tried::new()).unwrap().address().port(), 2, "{panic}");
    }
}

#[test]
fn ejections_and_evidence_survive_a_reload() {
    let bench = Bench::new(3, "");
    bench.record(0, 5, true, TOOK);
    bench.record(1, 4, true, TOOK);
    bench.judge();
    let after = bench.build(3, "eject_for = '40s'");
    assert!(after.endpoints()[0].outlier().unwrap().is_ejected());
    assert_eq!(after.available(), 2);
    after.endpoints()[1].guards().record(true, TOOK, after.clock().now());
    after.guards().group().unwrap().evaluate();
    assert!(!after.endpoints()[1].outlier().unwrap().is_ejected(), "one of three may be out");
    bench.clock.advance(31 * SECOND);
    after.guards().group().unwrap().evaluate();
    assert!(!after.endpoints()[0].outlier().unwrap().is_ejected());
    assert!(after.endpoints()[1].outlier().unwrap().is_ejected(), "now there is room for it");
    assert_eq!(bench.upstream.available(), 2, "a snapshot still in use follows");
}
