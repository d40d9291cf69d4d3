//! Parts (RFC 9111 §3.3, §3.4): one that is stored is made whole by fetching what it lacks, and parts that touch become one.
//!
//! Both only where a strong tag says that the bytes are of the same representation. A part without one is stored too, and answers
//! for itself.

use super::fetch::Fetch;
use crate::cache::conditional::is_strong;
use crate::cache::entry::Entry;
use crate::cache::fill::{Head, Joined, Stored};
use crate::cache::freshen::{Freshened, freshened};
use crate::cache::freshness::Received;
use crate::cache::range;
use http::{HeaderMap, HeaderValue, header};
use pingora::Result;
use pingora::http::{RequestHeader, ResponseHeader};
use std::sync::Arc;

/// The tag of a response, if it is strong.
fn strong(headers: &HeaderMap) -> Option<&HeaderValue> {
    headers.get(header::ETAG).filter(|tag| is_strong(tag))
}

/// Which bytes a stored part lacks, if it is one piece that can be asked for: the first, and the one after the last.
pub fn lacks(part: &Entry, most: u64) -> Option<(u64, u64)> {
    let (body, end) = (&part.body, part.body.start.saturating_add(part.body.length));
    strong(&part.head.headers).filter(|_| body.total <= most)?;
    match (body.start, end) {
        (0, end) if end < body.total => Some((end, body.total)),
        (start, end) if end == body.total && start > 0 => Some((0, start)),
        _ => None,
    }
}

/// The conditions of a fetch of what a stored part lacks.
pub fn conditions(part: &Entry, most: u64, head: &mut RequestHeader) -> Result<()> {
    if let (Some((start, end)), Some(tag)) = (lacks(part, most), strong(&part.head.headers)) {
        head.insert_header(header::RANGE, format!("bytes={start}-{}", end.saturating_sub(1)))?;
        head.insert_header(header::IF_RANGE, tag.clone())?;
    }
    Ok(())
}

/// The part that an answer carries: start, the byte after the end, and the length of the whole.
pub fn of(head: &ResponseHeader) -> Option<(u64, u64, u64)> {
    head.headers.get(header::CONTENT_RANGE).and_then(range::content_range)
}

/// The head of the whole that a 206 makes of a stored part; `None` if it does not.
pub fn completed(fetch: &Fetch, part: &Entry, head: &ResponseHeader, request: &HeaderMap, received: &Received) -> Option<Head> {
    let (start, end) = lacks(part, fetch.fill.policy.max_object)?;
    let same = strong(&head.headers).is_some_and(|tag| Some(tag) == strong(&part.head.headers));
    if head.status != 206 || !same || of(head) != Some((start, end, part.body.total)) {
        return None;
    }
    let Freshened { head: mut header, own, terms } = freshened(&fetch.fill.policy, part, head, fetch.asked, received);
    header.insert_header(header::CONTENT_LENGTH, HeaderValue::from(part.body.total)).ok()?;
    let outcome = terms.and_then(|terms| {
        let selecting = fetch.fill.policy.selecting(&header.headers, request)?;
        Ok(Stored::new(terms, *received, selecting))
    });
    Some(Head { header, outcome, length: Some(part.body.total), kept: false, own })
}

/// The stored answer that a new part joins, with the head of both together.
pub fn joined(fetch: &Fetch, before: &[Arc<Entry>], head: &ResponseHeader, received: &Received) -> Option<(Joined, Stored)> {
    let (start, end, total) = of(head)?;
    let tag = strong(&head.headers)?;
    let touches = |known: &&Arc<Entry>| {
        let body = &known.body;
        let until = body.start.saturating_add(body.length);
        strong(&known.head.headers) == Some(tag) && body.total == total && body.start <= end && start <= until
    };
    let known = before.iter().find(touches)?;
    let Freshened { head, terms, .. } = freshened(&fetch.fill.policy, known, head, fetch.asked, received);
    let stored = Stored::new(terms.ok()?, *received, known.selecting.clone());
    Some((Joined { entry: Arc::clone(known), head }, stored))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::entry::tests::entry;

    #[test]
    fn one_piece_is_fetched_and_only_for_a_strong_tag() {
        let part = |start: u64, length: usize, total: u64, tag: &'static str| {
            let mut it = entry(length, &[]);
            (it.body.start, it.body.total) = (start, total);
            it.head.insert_header("etag", tag).unwrap();
            lacks(&it, 1_000)
        };
        assert_eq!(part(0, 4, 10, "\"a\""), Some((4, 10)));
        assert_eq!(part(6, 4, 10, "\"a\""), Some((0, 6)));
        assert_eq!(part(2, 4, 10, "\"a\""), None, "it lacks two pieces");
        assert_eq!(part(0, 4, 10, "W/\"a\""), None);
        assert_eq!(part(0, 4, 1_001, "\"a\""), None, "it would not be stored");
        assert_eq!(part(0, 10, 10, "\"a\""), None);
    }
}
