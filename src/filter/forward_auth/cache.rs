//! Answers that let pass, for equal requests, for a short time.

use super::Permit;
use aws_lc_rs::digest as sha;
use http::HeaderMap;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most answers that are kept.
const ROOM: usize = 10_000;

pub(super) type Mark = [u8; 32];

#[derive(Default)]
pub(super) struct Cache {
    permits: Mutex<HashMap<Mark, (Arc<Permit>, Instant), foldhash::fast::RandomState>>,
}

impl Cache {
    /// Tells a question from every other. The id of the request is no part of it.
    pub fn mark(question: &HeaderMap) -> Mark {
        let mut context = sha::Context::new(&sha::SHA256);
        for (name, value) in question.iter().filter(|(name, _)| **name != crate::forwarded::X_REQUEST_ID.name) {
            // Lengths, so that no two questions read alike.
            for part in [name.as_str().as_bytes(), value.as_bytes()] {
                context.update(&part.len().to_le_bytes());
                context.update(part);
            }
        }
        let mut mark = [0; 32];
        mark.iter_mut().zip(context.finish().as_ref()).for_each(|(to, from)| *to = *from);
        mark
    }

    pub fn get(&self, mark: &Mark, now: Instant, keep: Duration) -> Option<Arc<Permit>> {
        let permits = self.permits.lock();
        let (permit, since) = permits.get(mark)?;
        (now.saturating_duration_since(*since) < keep).then(|| Arc::clone(permit))
    }

    /// When it is full the oldest half makes room.
    pub fn insert(&self, mark: Mark, permit: Arc<Permit>, now: Instant) {
        let mut permits = self.permits.lock();
        if permits.len() >= ROOM && !permits.contains_key(&mark) {
            let mut ages: Vec<Instant> = permits.values().map(|(_, since)| *since).collect();
            ages.sort_unstable();
            if let Some(median) = ages.get(ages.len() / 2).copied() {
                permits.retain(|_, (_, since)| *since > median);
            }
        }
        permits.insert(mark, (permit, now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn only_equal_questions_have_one_answer() {
        let marks: std::collections::HashSet<Mark> = [
            &[("cookie", "a"), ("x-forwarded-uri", "/a")][..],
            &[("cookie", "a"), ("x-forwarded-uri", "/b")],
            &[("cookie", "b"), ("x-forwarded-uri", "/a")],
            &[("cookie", "ax-forwarded-uri"), ("x-forwarded-uri", "/a")],
            &[("x-forwarded-uri", "/a")],
        ]
        .iter()
        .map(|pairs| Cache::mark(&question(pairs)))
        .collect();
        assert_eq!(marks.len(), 5);
        let with_id = |id| Cache::mark(&question(&[("cookie", "a"), ("x-request-id", id)]));
        assert_eq!(with_id("1"), with_id("2"));
    }

    #[test]
    fn no_number_of_answers_grows_it_and_none_outlives_its_time() {
        let cache = Cache::default();
        let permit = Arc::new(Permit { identity: None, headers: Vec::new() });
        let begin = Instant::now();
        let mark = |n: usize| {
            let mut mark = [0; 32];
            mark[..8].copy_from_slice(&n.to_le_bytes());
            mark
        };
        for n in 0..2 * ROOM {
            cache.insert(mark(n), Arc::clone(&permit), begin + Duration::from_nanos(n as u64));
            assert!(cache.permits.lock().len() <= ROOM);
        }
        let keep = Duration::from_secs(1);
        assert!(cache.get(&mark(2 * ROOM - 1), begin, keep).is_some());
        assert!(cache.get(&mark(2 * ROOM - 1), begin + Duration::from_secs(2), keep).is_none());
        assert!(cache.get(&mark(0), begin, keep).is_none());
    }
}
