//! A stored response: immutable, shared by everyone who is being answered with it.

use super::freshness::Received;
use super::policy::Terms;
use super::vary::Selecting;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use pingora::http::ResponseHeader;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

/// What an entry costs beside its bytes: structs, map slots and the allocator.
const OVERHEAD: usize = 768;
/// And each field of its head.
const FIELD: usize = 96;
/// Tags beyond these are not kept.
const TAGS_MAX: usize = 128;
/// Bodies are kept in pieces of this size, so that none of them needs one large piece of memory.
pub const PIECE: usize = 256 << 10;

/// Fields that belong to one connection or to the proxies on the way, and are not stored (RFC 9111 §3.1).
const NOT_STORED: [&str; 11] = [
    "age",
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

#[derive(Debug)]
pub struct Entry {
    /// As it goes out, but for `Age` and what the gateway adds to every response.
    pub head: ResponseHeader,
    pub body: Body,
    pub terms: Terms,
    pub received: Received,
    pub selecting: Selecting,
    pub tags: Box<[Box<str>]>,
    pub(crate) expired: AtomicU8,
    pub(crate) held: OnceLock<Held>,
}

/// Counts the bytes of an entry for as long as it exists: one that is pushed out of the store while clients are being answered with
/// it takes memory until the last of them has it.
#[derive(Debug)]
pub struct Held {
    total: Arc<AtomicU64>,
    bytes: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// A body, or a part of one.
#[derive(Debug, Clone, Default)]
pub struct Body {
    pub pieces: Box<[Bytes]>,
    /// Where the first byte stands in the whole.
    pub start: u64,
    pub length: u64,
    pub total: u64,
}

/// What has happened to an entry since it was stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    No = 0,
    /// Purged softly: stale, and the windows of staleness still hold.
    Soft = 1,
    /// Invalidated: not used again without validation.
    Invalid = 2,
}

impl Entry {
    pub fn new(
        head: ResponseHeader,
        body: Body,
        terms: Terms,
        received: Received,
        selecting: Selecting,
        tags: Box<[Box<str>]>,
    ) -> Self {
        Entry { head, body, terms, received, selecting, tags, expired: AtomicU8::new(0), held: OnceLock::new() }
    }

    /// Counts it in `total` from now on, once.
    pub fn hold(&self, total: &Arc<AtomicU64>) {
        self.held.get_or_init(|| {
            let bytes = self.weight();
            total.fetch_add(bytes, Ordering::Relaxed);
            Held { total: Arc::clone(total), bytes }
        });
    }

    pub fn age(&self, now: Instant) -> Duration {
        self.terms.initial_age.saturating_add(now.saturating_duration_since(self.received.at))
    }

    /// How long it stays fresh, or how long it has been stale.
    pub fn freshness(&self, now: Instant) -> Result<Duration, Duration> {
        let age = self.age(now);
        match self.expired() {
            Expired::No if age < self.terms.lifetime => Ok(self.terms.lifetime.saturating_sub(age)),
            Expired::No => Err(age.saturating_sub(self.terms.lifetime)),
            _ => Err(age.saturating_sub(self.terms.lifetime)),
        }
    }

    pub fn expired(&self) -> Expired {
        match self.expired.load(Ordering::Relaxed) {
            0 => Expired::No,
            1 => Expired::Soft,
            _ => Expired::Invalid,
        }
    }

    pub fn expire(&self, how: Expired) {
        self.expired.fetch_max(how as u8, Ordering::Relaxed);
    }

    pub fn is_complete(&self) -> bool {
        self.body.start == 0 && self.body.length == self.body.total
    }

    /// Bytes that it takes, overhead included.
    pub fn weight(&self) -> u64 {
        let tags: usize = self.tags.iter().map(|tag| tag.len().saturating_add(16)).sum();
        let rest = head_bytes(&self.head).saturating_add(self.selecting.bytes()).saturating_add(tags).saturating_add(OVERHEAD);
        self.body.length.saturating_add(u64::try_from(rest).unwrap_or(u64::MAX))
    }

    pub fn validator(&self) -> bool {
        self.head.headers.contains_key(header::ETAG) || self.head.headers.contains_key(header::LAST_MODIFIED)
    }
}

fn head_bytes(head: &ResponseHeader) -> usize {
    // Names stand twice: Pingora keeps their case in a map of its own.
    head.headers
        .iter()
        .map(|(name, value)| name.as_str().len().saturating_mul(2).saturating_add(value.len()).saturating_add(FIELD))
        .sum()
}

impl Body {
    /// Puts the pieces of a complete body together.
    pub fn whole(chunks: impl Iterator<Item = Bytes>, length: u64) -> Self {
        let mut pieces: Vec<Bytes> = Vec::new();
        let mut piece: Vec<u8> = Vec::new();
        let mut left = usize::try_from(length).unwrap_or(usize::MAX);
        for chunk in chunks {
            let mut rest: &[u8] = &chunk;
            while !rest.is_empty() {
                if piece.capacity() == 0 {
                    piece.reserve_exact(left.min(PIECE).max(rest.len().min(PIECE)));
                }
                let room = PIECE.saturating_sub(piece.len()).min(rest.len());
                let (now, later) = rest.split_at_checked(room).unwrap_or((rest, &[]));
                piece.extend_from_slice(now);
                left = left.saturating_sub(now.len());
                rest = later;
                if piece.len() >= PIECE {
                    pieces.push(Bytes::from(std::mem::take(&mut piece)));
                }
            }
        }
        if !piece.is_empty() {
            pieces.push(Bytes::from(piece));
        }
        Body { pieces: pieces.into(), start: 0, length, total: length }
    }

    /// This part and another of the same whole that touches it, or overlaps, as one; `None` if they do not.
    pub fn joined(&self, other: &Body) -> Option<Body> {
        let end = |body: &Body| body.start.saturating_add(body.length);
        let (first, second) = if self.start <= other.start { (self, other) } else { (other, self) };
        if self.total != other.total || end(first) < second.start {
            return None;
        }
        let until = end(first).max(end(second));
        let pieces = || {
            let middle = second.slices(second.start.max(end(first)), until);
            first.slices(first.start, end(first)).chain(middle)
        };
        let length = until.saturating_sub(first.start);
        let count = u64::try_from(pieces().count()).unwrap_or(u64::MAX);
        // Many small parts would cost more than what is in them.
        let scattered = count > (length / u64::try_from(PIECE).unwrap_or(1)).saturating_add(16);
        let pieces = if scattered { Body::whole(pieces(), length).pieces } else { pieces().collect() };
        Some(Body { pieces, start: first.start, length, total: self.total })
    }

    /// The bytes from `start` to before `end` of the whole, as far as they are here.
    pub fn slices(&self, start: u64, end: u64) -> impl Iterator<Item = Bytes> {
        let mut at = self.start;
        self.pieces.iter().filter_map(move |piece| {
            let from = at;
            at = at.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
            let (first, last) = (start.max(from), end.min(at));
            (first < last).then(|| {
                let place = |offset: u64| usize::try_from(offset.saturating_sub(from)).unwrap_or(usize::MAX).min(piece.len());
                piece.slice(place(first)..place(last))
            })
        })
    }

    pub fn holds(&self, start: u64, end: u64) -> bool {
        self.start <= start && end <= self.start.saturating_add(self.length)
    }
}

/// The head of a response as it is stored. `fields`: what the response itself wants left out.
pub fn stored_head(head: &ResponseHeader, fields: &[HeaderName], received: &Received) -> ResponseHeader {
    let mut stored = head.clone();
    let named = connection_options(&head.headers);
    for name in NOT_STORED {
        stored.remove_header(name);
    }
    for name in fields.iter().chain(&named) {
        stored.remove_header(name);
    }
    if !stored.headers.contains_key(header::DATE)
        && let Ok(date) = HeaderValue::from_str(&httpdate::fmt_http_date(received.wall))
    {
        // RFC 9110 §6.6.1: who stores a response that has no date gives it one.
        let _ = stored.insert_header(header::DATE, date);
    }
    stored.set_version(http::Version::HTTP_11);
    stored
}

fn connection_options(headers: &HeaderMap) -> Vec<HeaderName> {
    let lines = headers.get_all(header::CONNECTION).iter();
    lines
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect()
}

/// The stored head with what a 304 says anew (RFC 9111 §3.2): every field but those that are not stored and those that describe
/// the bytes that are.
pub fn merged_head(stored: &ResponseHeader, update: &ResponseHeader, received: &Received) -> ResponseHeader {
    let update = stored_head(update, &[], received);
    let mut merged = stored.clone();
    let kept = |name: &HeaderName| matches!(name.as_str(), "content-length" | "content-encoding" | "content-range");
    for name in update.headers.keys().filter(|name| !kept(name)) {
        merged.remove_header(name);
        for value in update.headers.get_all(name) {
            // The name and the value come from a header map.
            let _ = merged.append_header(name.clone(), value.clone());
        }
    }
    merged
}

/// Names by which responses are purged together: `Surrogate-Key`, separated by spaces, and `Cache-Tag`, by commas.
pub fn tags(headers: &HeaderMap) -> Box<[Box<str>]> {
    let words = |name: &str, separator: char| {
        let lines = headers.get_all(name).iter().filter_map(|line| line.to_str().ok());
        lines
            .flat_map(|line| line.split(separator))
            .map(str::trim)
            .filter(|tag| !tag.is_empty())
            .map(Box::from)
            .collect::<Vec<_>>()
    };
    let mut tags = words("surrogate-key", ' ');
    tags.extend(words("cache-tag", ','));
    tags.truncate(TAGS_MAX);
    tags.into()
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use std::time::SystemTime;

    pub fn received() -> Received {
        Received { delay: Duration::ZERO, at: Instant::now(), wall: SystemTime::now() }
    }

    pub fn terms(lifetime: u64) -> Terms {
        Terms {
            lifetime: Duration::from_secs(lifetime),
            initial_age: Duration::ZERO,
            stale_while_revalidate: Duration::ZERO,
            stale_if_error: Duration::ZERO,
            no_cache: false,
            must_revalidate: false,
            immutable: false,
            no_transform: false,
        }
    }

    /// An entry with a body of `length` bytes.
    pub fn entry(length: usize, tags: &[&str]) -> Entry {
        let head = ResponseHeader::build(200, None).unwrap();
        let body = Body::whole([Bytes::from(vec![b'x'; length])].into_iter(), length as u64);
        let tags = tags.iter().map(|tag| Box::from(*tag)).collect();
        Entry::new(head, body, terms(60), received(), Selecting::default(), tags)
    }

    #[test]
    fn bodies_are_cut_across_pieces() {
        let bytes: Vec<u8> = (0..PIECE * 2 + 10).map(|i| (i % 251) as u8).collect();
        let chunks = bytes.chunks(1000).map(Bytes::copy_from_slice);
        let body = Body::whole(chunks, bytes.len() as u64);
        assert_eq!(body.pieces.len(), 3);
        let cut = |start: usize, end: usize| body.slices(start as u64, end as u64).flatten().collect::<Vec<u8>>();
        for (start, end) in [(0, bytes.len()), (PIECE - 3, PIECE + 3), (5, 6), (PIECE * 2, PIECE * 2 + 10)] {
            assert_eq!(cut(start, end), &bytes[start..end]);
        }
    }

    #[test]
    fn parts_that_touch_become_one() {
        let bytes: Vec<u8> = (0..100).collect();
        let part = |start: usize, end: usize| Body {
            start: start as u64,
            total: 100,
            ..Body::whole(std::iter::once(Bytes::copy_from_slice(&bytes[start..end])), (end - start) as u64)
        };
        for (a, b, want) in [
            ((0, 10), (10, 20), Some((0, 20))),
            ((10, 20), (0, 10), Some((0, 20))),
            ((0, 15), (10, 20), Some((0, 20))),
            ((0, 50), (10, 20), Some((0, 50))),
            ((10, 20), (0, 100), Some((0, 100))),
            ((0, 10), (11, 20), None),
        ] {
            let joined = part(a.0, a.1).joined(&part(b.0, b.1));
            let got = joined.as_ref().map(|body| (body.start as usize, (body.start + body.length) as usize));
            assert_eq!(got, want, "{a:?} and {b:?}");
            if let (Some(body), Some((start, end))) = (joined, want) {
                assert_eq!(body.slices(0, 100).flatten().collect::<Vec<u8>>(), &bytes[start..end], "{a:?} and {b:?}");
            }
        }
        let scattered = (1..100).fold(part(0, 1), |body, at| body.joined(&part(at, at + 1)).unwrap());
        assert!(scattered.length == 100 && scattered.pieces.len() <= 20, "{}", scattered.pieces.len());
    }

    #[test]
    fn a_304_replaces_fields_but_not_those_of_the_body() {
        let build = |pairs: &[(&'static str, &str)]| {
            let mut head = ResponseHeader::build(200, None).unwrap();
            for (name, value) in pairs {
                head.append_header(*name, *value).unwrap();
            }
            head
        };
        let stored = build(&[("x-a", "1"), ("x-a", "2"), ("content-length", "5"), ("content-encoding", "gzip"), ("x-keep", "1")]);
        let update =
            build(&[("x-a", "3"), ("content-length", "0"), ("content-encoding", "br"), ("connection", "x-b"), ("x-b", "1")]);
        let merged = merged_head(&stored, &update, &received());
        let all = |name: &str| merged.headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
        assert_eq!((all("x-a"), all("content-length"), all("content-encoding")), (vec!["3"], vec!["5"], vec!["gzip"]));
        assert_eq!((all("x-b").len(), all("x-keep")), (0, vec!["1"]));
    }

    #[test]
    fn an_expired_entry_does_not_become_fresh_again() {
        let entry = entry(1, &[]);
        assert!(entry.freshness(Instant::now()).is_ok());
        entry.expire(Expired::Invalid);
        entry.expire(Expired::Soft);
        assert_eq!((entry.expired(), entry.freshness(Instant::now()).is_err()), (Expired::Invalid, true));
    }
}
