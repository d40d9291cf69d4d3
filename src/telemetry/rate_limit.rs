//! Keeps one call site from flooding the log.
//!
//! Pingora writes an `error!` for every failed request or handshake, so that whoever can make requests fail could fill the
//! disk and bury the one line that matters. Each call site (target, file, line and level) may write so many lines a
//! second; what is beyond is counted, and the count is written afterwards.
//!
//! Sites are kept in a fixed table by hash. Two that meet in one place share one allowance while both are busy: a flood
//! then costs a neighbour some lines, which are counted like its own.

use arrayvec::ArrayString;
use log::Level;
use parking_lot::Mutex;
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::time::Instant;

const SLOTS: usize = 256;
/// The part of a target that a summary repeats, in bytes.
const TARGET_MAX: usize = 64;

/// Where a record comes from.
#[derive(Debug, Clone, Copy, Hash)]
pub struct Site<'a> {
    pub target: &'a str,
    pub file: Option<&'a str>,
    pub line: Option<u32>,
    pub level: Level,
}

/// What became of the records that were not written.
#[derive(Debug, PartialEq, Eq)]
pub struct Suppressed {
    pub target: ArrayString<TARGET_MAX>,
    pub level: Level,
    /// How many, since the last summary of this site.
    pub count: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Write it, after the summary of what was suppressed before.
    Write(Option<Suppressed>),
    /// Leave it out. `first`: nothing else of this site waits to be summed up yet, so see to it that somebody
    /// will call [`RateLimit::drain`].
    Suppress { first: bool },
}

pub struct RateLimit {
    slots: Box<[Mutex<Slot>]>,
    per_second: u32,
    start: Instant,
}

struct Slot {
    site: u64,
    /// The second since `start` that `seen` counts in.
    second: u64,
    seen: u32,
    suppressed: u64,
    target: ArrayString<TARGET_MAX>,
    level: Level,
}

impl Slot {
    fn take_summary(&mut self) -> Option<Suppressed> {
        let count = std::mem::take(&mut self.suppressed);
        (count > 0).then_some(Suppressed { target: self.target, level: self.level, count })
    }
}

impl RateLimit {
    /// Allows each site `per_second` records in a second; 0 means any number.
    pub fn new(per_second: u32, start: Instant) -> Self {
        let empty =
            || Mutex::new(Slot { site: 0, second: 0, seen: 0, suppressed: 0, target: ArrayString::new(), level: Level::Error });
        RateLimit { slots: (0..SLOTS).map(|_| empty()).collect(), per_second, start }
    }

    pub fn check(&self, site: Site<'_>, now: Instant) -> Verdict {
        if self.per_second == 0 {
            return Verdict::Write(None);
        }
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(site);
        let Some(slot) = self.slots.get(hash as usize % SLOTS) else { return Verdict::Write(None) };
        let second = now.saturating_duration_since(self.start).as_secs();
        let mut slot = slot.lock();
        let mut summary = None;
        if slot.second != second || slot.seen == 0 {
            summary = slot.take_summary();
            slot.second = second;
            slot.seen = 0;
            if slot.site != hash {
                slot.site = hash;
                slot.level = site.level;
                slot.target = ArrayString::new();
                for character in site.target.chars() {
                    if slot.target.try_push(character).is_err() {
                        break;
                    }
                }
            }
        }
        if slot.seen < self.per_second {
            slot.seen += 1;
            return Verdict::Write(summary);
        }
        slot.suppressed = slot.suppressed.saturating_add(1);
        Verdict::Suppress { first: slot.suppressed == 1 }
    }

    /// Takes all counts that no later record has brought up yet, so that the end of a flood is told as well.
    pub fn drain(&self, mut report: impl FnMut(Suppressed)) {
        for slot in &self.slots {
            if let Some(summary) = slot.lock().take_summary() {
                report(summary);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn site(line: u32) -> Site<'static> {
        Site { target: "pingora_proxy", file: Some("lib.rs"), line: Some(line), level: Level::Error }
    }

    #[test]
    fn a_flood_is_cut_and_summed_up_with_the_next_record() {
        let start = Instant::now();
        let limit = RateLimit::new(10, start);
        for _ in 0..10 {
            assert_eq!(limit.check(site(1), start), Verdict::Write(None));
        }
        assert_eq!(limit.check(site(1), start), Verdict::Suppress { first: true });
        assert_eq!(limit.check(site(1), start), Verdict::Suppress { first: false });
        let Verdict::Write(Some(summary)) = limit.check(site(1), start + Duration::from_secs(1)) else { panic!("no summary") };
        assert_eq!((summary.target.as_str(), summary.level, summary.count), ("pingora_proxy", Level::Error, 2));
        assert_eq!(limit.check(site(1), start + Duration::from_secs(1)), Verdict::Write(None), "told once");
    }

    #[test]
    fn sites_do_not_share_their_allowance() {
        let start = Instant::now();
        let limit = RateLimit::new(1, start);
        assert_eq!(limit.check(site(1), start), Verdict::Write(None));
        assert_eq!(limit.check(site(1), start), Verdict::Suppress { first: true });
        // Sites that happen to meet in the table are the exception, so most of many others must pass.
        let passed = (2..102).filter(|line| limit.check(site(*line), start) == Verdict::Write(None)).count();
        assert!(passed > 60, "{passed} of 100");
    }

    #[test]
    fn drain_tells_each_count_once() {
        let start = Instant::now();
        let limit = RateLimit::new(1, start);
        for _ in 0..5 {
            limit.check(site(1), start);
        }
        let mut counts = Vec::new();
        limit.drain(|summary| counts.push(summary.count));
        limit.drain(|summary| counts.push(summary.count));
        assert_eq!(counts, [4]);
        assert_eq!(limit.check(site(1), start), Verdict::Suppress { first: true }, "the allowance of this second stays used");
    }

    #[test]
    fn a_long_target_is_cut_between_characters() {
        let start = Instant::now();
        let limit = RateLimit::new(1, start);
        let target = "é".repeat(TARGET_MAX);
        let long = Site { target: &target, ..site(1) };
        limit.check(long, start);
        limit.check(long, start);
        let mut seen = Vec::new();
        limit.drain(|summary| seen.push(summary.target.to_string()));
        assert_eq!(seen, ["é".repeat(TARGET_MAX / 2)]);
    }

    #[test]
    fn zero_switches_the_limit_off() {
        let start = Instant::now();
        let limit = RateLimit::new(0, start);
        assert!((0..1000).all(|_| limit.check(site(1), start) == Verdict::Write(None)));
    }
}
