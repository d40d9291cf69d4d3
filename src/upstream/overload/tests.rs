//! The limit against a model of a service: so many workers, each with one request at a time, and a queue before them.

use super::*;
use std::collections::VecDeque;

const MILLI: Duration = Duration::from_millis(1);

fn tuning(min: u32, max: u32, initial: u32) -> Tuning {
    Tuning { min, max, initial, slack: 0.5 }
}

struct Model {
    overload: Overload,
    workers: usize,
    /// In milliseconds.
    service: u64,
    now: Instant,
    /// Places and when their requests came; first those that are worked on.
    queue: VecDeque<(Place, u64, u64)>,
    at: u64,
    due: f64,
    done: u64,
    refused: u64,
}

impl Model {
    fn new(workers: usize, service: u64, tuning: Tuning) -> Self {
        let now = Instant::now();
        let overload = Overload::new(tuning, Arc::new(OverloadState::new(tuning.initial, now)));
        Model { overload, workers, service, now, queue: VecDeque::new(), at: 0, due: 0.0, done: 0, refused: 0 }
    }

    /// Runs for so many milliseconds, with so many requests each.
    fn run(&mut self, millis: u64, rate: f64) {
        (self.done, self.refused) = (0, 0);
        for _ in 0..millis {
            self.at += 1;
            let now = self.now + MILLI * u32::try_from(self.at).unwrap();
            for _ in 0..self.workers.min(self.queue.len()) {
                let (place, came, left) = self.queue.pop_front().unwrap();
                if left == 1 {
                    self.done += 1;
                    self.overload.answered(MILLI * u32::try_from(self.at - came).unwrap(), now);
                    drop(place);
                } else {
                    self.queue.push_back((place, came, left - 1));
                }
            }
            // Those that are worked on went to the back: let them be first again.
            let worked = self.queue.iter().filter(|(.., left)| *left < self.service).count().min(self.queue.len());
            self.queue.make_contiguous().sort_by_key(|(_, came, left)| (*left == self.service, *came));
            assert!(worked <= self.workers);
            self.due += rate;
            while self.due >= 1.0 {
                self.due -= 1.0;
                match self.overload.enter(100) {
                    Some(place) => self.queue.push_back((place, self.at, self.service)),
                    None => self.refused += 1,
                }
            }
        }
    }
}

#[test]
fn five_times_too_much_is_shed_and_the_upstream_stays_busy() {
    // 8 workers of 20 ms: 400 requests a second.
    let mut model = Model::new(8, 20, tuning(4, 1000, 50));
    model.run(2_000, 0.3);
    assert_eq!(model.refused, 0, "what it can take is not refused");
    model.run(60_000, 2.0);
    assert!(model.done >= 24_000 * 95 / 100, "{} of 24000", model.done);
    model.run(5_000, 2.0);
    let limit = model.overload.state().limit();
    assert!((8..=32).contains(&limit), "{limit}");
}

#[test]
fn after_an_overload_nothing_is_refused_for_long() {
    let mut model = Model::new(8, 20, tuning(4, 1000, 50));
    model.run(20_000, 2.0);
    model.run(500, 0.3);
    model.run(10_000, 0.3);
    assert_eq!(model.refused, 0);
}

#[test]
fn a_service_that_grows_is_given_more() {
    let mut model = Model::new(4, 20, tuning(4, 1000, 10));
    model.run(10_000, 1.0);
    model.workers = 40;
    model.run(8_000, 2.0);
    model.run(2_000, 2.0);
    assert!(model.done >= 2 * 2_000 * 95 / 100, "{} of 4000", model.done);
}

#[test]
fn slower_work_is_not_taken_for_a_queue_for_ever() {
    let mut model = Model::new(40, 10, tuning(2, 1000, 50));
    model.run(5_000, 2.0);
    // What is asked for takes five times as long from now on, and there are workers enough for it.
    model.service = 50;
    model.workers = 200;
    model.run(20_000, 2.0);
    model.run(2_000, 2.0);
    assert!(model.done >= 4_000 * 95 / 100, "{} of 4000", model.done);
}

#[test]
fn timeouts_alone_shrink_the_limit() {
    let overload = Overload::new(tuning(4, 100, 100), Arc::new(OverloadState::new(100, Instant::now())));
    let start = Instant::now();
    for n in 1..=100_u32 {
        overload.timed_out(start + STEP * n);
    }
    assert_eq!(overload.state().limit(), 4);
}

#[test]
fn lower_shares_are_refused_first() {
    let overload = Overload::new(tuning(10, 10, 10), Arc::new(OverloadState::new(10, Instant::now())));
    let low: Vec<Place> = std::iter::from_fn(|| overload.enter(60)).collect();
    assert_eq!(low.len(), 6);
    let high: Vec<Place> = std::iter::from_fn(|| overload.enter(100)).collect();
    assert_eq!((high.len(), overload.state().in_flight(), overload.state().shed.get()), (4, 10, 2));
    drop(low);
    assert!(overload.enter(60).is_some());
    drop(high);
    assert_eq!(overload.state().in_flight(), 0);
}
