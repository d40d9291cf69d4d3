//! One fetch from the upstream and everyone who waits for it.
//!
//! The fetch runs by itself: no client owns it, so a client that goes away takes nothing from the others. Readers get the head as
//! soon as it is decided and the bytes as they arrive.
//!
//! While the answer is to be stored, all of its bytes are kept, and each of them is set aside in the store's bound first. When it
//! turns out that it cannot be stored (no room, too large), it goes on as a stream: bytes that everyone has read are let go, and the
//! fetch waits for the slowest reader. So an answer of any size passes, and none takes more than its share.

use super::entry::{Body, Entry, tags};
use super::freshen::Own;
use super::freshness::Received;
use super::key::Key;
use super::memory::MemoryStore;
use super::policy::{Policy, Refusal, Terms};
use super::redis::RedisTier;
use super::vary::Selecting;
use crate::rejection::Rejection;
use bytes::Bytes;
use http::{HeaderMap, header};
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;

/// How far a fetch that is not stored may be ahead of its slowest reader.
const WINDOW: u64 = 256 << 10;
/// Interim responses that are kept for a reader that has not come yet.
const INTERIM_MAX: usize = 16;

/// What became of the fetch, as far as it is known.
#[derive(Debug, Clone)]
pub enum Phase {
    Waiting,
    /// A head; the body follows.
    Streaming(Arc<Head>),
    /// The upstream has confirmed a stored response.
    Validated(Arc<Confirmed>),
    /// There was nothing to fetch: the store has it by now.
    Stored,
    /// Another gateway had it.
    Shared(Arc<Entry>),
    /// The upstream has confirmed what the client holds, which is not stored here. The outcome says whether others who hold the same
    /// may hear of it.
    NotModified(Arc<Head>),
    /// A 304 that means nothing that is stored: the whole is to be fetched.
    Unclear,
    Failed(Rejection),
}

/// A stored response that the upstream has confirmed.
#[derive(Debug)]
pub struct Confirmed {
    pub entry: Arc<Entry>,
    /// Fields for the one who asked, not to be stored nor given to others.
    pub own: Own,
    /// Whether others may have it at all.
    pub shared: bool,
}

#[derive(Debug)]
pub struct Head {
    pub header: ResponseHeader,
    pub outcome: Result<Stored, Refusal>,
    pub length: Option<u64>,
    /// The body is to be stored.
    pub kept: bool,
    /// Fields for the one who asked, not to be stored nor given to others.
    pub own: Own,
}

/// What the entry will be made of.
#[derive(Debug, Clone)]
pub struct Stored {
    pub terms: Terms,
    pub received: Received,
    pub selecting: Selecting,
    /// The part that it is of a whole: start, end, total.
    pub part: Option<(u64, u64, u64)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Broken,
}

/// The answer ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Broken;

#[derive(Debug)]
struct State {
    phase: Phase,
    chunks: VecDeque<Bytes>,
    /// The number of the first chunk that is still here.
    first: u64,
    buffered: u64,
    length: u64,
    /// Set aside in the store.
    reserved: u64,
    keep: bool,
    end: Option<End>,
    trailers: Option<HeaderMap>,
    /// Which chunk each reader wants next.
    readers: Vec<Option<u64>>,
    live: usize,
    interim: Vec<ResponseHeader>,
}

#[derive(Debug)]
pub struct Fill {
    state: Mutex<State>,
    changed: Notify,
    drained: Notify,
    pub key: Arc<Key>,
    pub policy: Arc<Policy>,
    store: Arc<MemoryStore>,
    /// See [`MemoryStore::insert`].
    epoch: u64,
    /// The other tier, and the generation that the fetch belongs to.
    shared: Option<(Arc<RedisTier>, u64)>,
}

impl Fill {
    pub fn new(key: Arc<Key>, policy: Arc<Policy>, store: Arc<MemoryStore>, tier: Option<&Arc<RedisTier>>) -> Arc<Self> {
        let epoch = store.epoch();
        let shared = tier.filter(|_| policy.redis).map(|tier| (Arc::clone(tier), tier.generation()));
        let state = State {
            phase: Phase::Waiting,
            chunks: VecDeque::new(),
            first: 0,
            buffered: 0,
            length: 0,
            reserved: 0,
            keep: false,
            end: None,
            trailers: None,
            readers: Vec::new(),
            live: 0,
            interim: Vec::new(),
        };
        Arc::new(Fill {
            state: Mutex::new(state),
            changed: Notify::new(),
            drained: Notify::new(),
            key,
            policy,
            store,
            epoch,
            shared,
        })
    }

    pub fn phase(&self) -> Phase {
        self.state.lock().phase.clone()
    }

    pub fn is_waiting(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Waiting)
    }

    /// Says what became of it. Only the first word counts.
    pub fn settle(&self, phase: Phase) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Waiting) {
            state.phase = phase;
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// The head has come. Returns whether the body is to be kept.
    pub fn begin(&self, header: ResponseHeader, own: Own, outcome: Result<Stored, Refusal>, to_head: bool) -> bool {
        let length = header.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let too_large = length.is_some_and(|length| length > self.policy.max_object);
        let outcome = if outcome.is_ok() && too_large { Err(Refusal::TooLarge) } else { outcome };
        let keep = outcome.is_ok() && !to_head;
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Waiting) {
            return state.keep;
        }
        state.keep = keep;
        state.phase = Phase::Streaming(Arc::new(Head { header, outcome, length: length.filter(|_| !to_head), kept: keep, own }));
        drop(state);
        self.changed.notify_waiters();
        keep
    }

    pub fn interim(&self, head: ResponseHeader) {
        let mut state = self.state.lock();
        if state.interim.len() < INTERIM_MAX {
            state.interim.push(head);
            drop(state);
            self.changed.notify_waiters();
        }
    }

    /// Interim responses since the last time. For the client whose request it is.
    pub fn take_interim(&self) -> Vec<ResponseHeader> {
        std::mem::take(&mut self.state.lock().interim)
    }

    /// Adds bytes. Waits for slow readers when they are not kept; `Err`: nobody wants them any more.
    pub async fn push(&self, data: Bytes) -> Result<(), Broken> {
        if data.is_empty() {
            return Ok(());
        }
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            {
                let mut state = self.state.lock();
                if state.keep {
                    let fits = state.length.saturating_add(length) <= self.policy.max_object;
                    if fits && self.store.reserve(&self.key, length) {
                        state.reserved = state.reserved.saturating_add(length);
                        // A copy: the transport's buffer is larger than what stands in it, and is not in the bound.
                        state.add(Bytes::copy_from_slice(&data), length);
                        drop(state);
                        self.changed.notify_waiters();
                        return Ok(());
                    }
                    state.keep = false;
                    self.store.release(&self.key, std::mem::take(&mut state.reserved));
                    self.policy.metrics.refused(if fits { Refusal::NoRoom } else { Refusal::TooLarge });
                }
                state.trim();
                if state.live == 0 {
                    return Err(Broken);
                }
                if state.buffered < WINDOW {
                    state.add(data, length);
                    drop(state);
                    self.changed.notify_waiters();
                    return Ok(());
                }
            }
            drained.await;
        }
    }

    /// The end has come. Stores what was kept, if it is what it said it would be. `Err`: it is not.
    pub fn finish(&self, trailers: Option<HeaderMap>) -> Result<Option<Arc<Entry>>, Broken> {
        let mut state = self.state.lock();
        if state.end.is_some() {
            return Ok(None);
        }
        let Phase::Streaming(head) = state.phase.clone() else {
            state.end = Some(End::Broken);
            return Err(Broken);
        };
        let right = head.length.is_none_or(|length| length == state.length);
        let kept = state.keep && right;
        let reserved = std::mem::take(&mut state.reserved);
        let length = state.length;
        let chunks: Vec<Bytes> = if kept { state.chunks.iter().cloned().collect() } else { Vec::new() };
        drop(state);
        // Twice in memory for this moment: the readers let go of the chunks as they pass.
        self.store.release(&self.key, reserved);
        let mut stored = None;
        if kept && let Ok(of) = &head.outcome {
            let entry = Arc::new(self.entry(&head.header, of, chunks, length));
            if self.store.insert(&self.key, Arc::clone(&entry), self.policy.max_variants, self.epoch, 0) {
                self.share(&entry);
                stored = Some(entry);
            } else {
                self.policy.metrics.refused(Refusal::Purged);
            }
        }
        // Only now: whoever comes finds it here until it is found in the store.
        let mut state = self.state.lock();
        state.keep = false;
        state.end = Some(if right { End::Complete } else { End::Broken });
        state.trailers = trailers;
        drop(state);
        self.changed.notify_waiters();
        if right { Ok(stored) } else { Err(Broken) }
    }

    fn entry(&self, header: &ResponseHeader, of: &Stored, chunks: Vec<Bytes>, length: u64) -> Entry {
        let mut head = header.clone();
        let mut body = Body::whole(chunks.into_iter(), length);
        if let Some((start, _, total)) = of.part {
            (body.start, body.total) = (start, total);
            head.remove_header(&header::CONTENT_RANGE);
            // What is kept speaks of the whole; each answer says which part it carries.
            let _ = head.set_status(http::StatusCode::OK);
        }
        let bodyless = matches!(head.status.as_u16(), 204 | 205);
        if !bodyless {
            let _ = head.insert_header(header::CONTENT_LENGTH, http::HeaderValue::from(body.total));
        }
        let tags = tags(&head.headers);
        Entry::new(head, body, of.terms, of.received, of.selecting.clone(), tags)
    }

    fn share(&self, entry: &Arc<Entry>) {
        if let Some((tier, generation)) = self.shared.as_ref().filter(|_| entry.is_complete()) {
            tier.put(&self.key, entry, *generation);
        }
    }

    /// What the other gateways have for a request with these fields. Stored here too, if it is fresh.
    pub async fn from_tier(&self, request: &HeaderMap, now: std::time::Instant) -> Option<Arc<Entry>> {
        let (tier, _) = self.shared.as_ref()?;
        let entry = tier.get(&self.key, request, self.policy.max_object).await?;
        if entry.terms.no_cache || entry.freshness(now).is_err() {
            return None;
        }
        let entry = Arc::new(entry);
        let kept = self.store.insert(&self.key, Arc::clone(&entry), self.policy.max_variants, self.epoch, 0);
        kept.then_some(entry)
    }

    /// Stores an entry that was confirmed, unless it was purged meanwhile.
    pub fn keep(&self, entry: &Arc<Entry>) -> bool {
        let kept = self.store.insert(&self.key, Arc::clone(entry), self.policy.max_variants, self.epoch, 0);
        if kept {
            self.share(entry);
        }
        kept
    }

    /// Whether there is a head, of an answer that is not stored.
    pub fn passes(&self) -> bool {
        matches!(&self.state.lock().phase, Phase::Streaming(head) if head.outcome.is_err())
    }

    /// Nothing more will come. Without an end before, what has come is broken.
    pub fn close(&self) {
        let mut state = self.state.lock();
        if state.end.is_none() {
            state.end = Some(End::Broken);
        }
        state.keep = false;
        let reserved = std::mem::take(&mut state.reserved);
        drop(state);
        self.store.release(&self.key, reserved);
        self.changed.notify_waiters();
    }

    /// Whether anyone else may still join: the body is kept from its first byte, and whole.
    pub fn is_open(&self) -> bool {
        let state = self.state.lock();
        match state.phase {
            Phase::Waiting => state.end.is_none(),
            Phase::Streaming(_) => state.keep && state.first == 0,
            _ => false,
        }
    }

    /// A reader from the first byte. `None` if that is gone.
    pub fn read(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.state.lock();
        if state.first > 0 {
            return None;
        }
        let place = match state.readers.iter().position(Option::is_none) {
            // Searching is for streams with few readers; where there are thousands, nobody has left yet.
            Some(place) if state.live < 64 => place,
            _ => {
                state.readers.push(None);
                state.readers.len().saturating_sub(1)
            }
        };
        if let Some(slot) = state.readers.get_mut(place) {
            *slot = Some(0);
        }
        state.live = state.live.saturating_add(1);
        drop(state);
        Some(Reader { fill: Arc::clone(self), place, next: 0 })
    }

    /// Waits until `look` finds something.
    pub async fn wait<T>(&self, mut look: impl FnMut(&Fill) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look(self) {
                return found;
            }
            changed.await;
        }
    }

    /// The phase, once it is decided, or that there are interim responses to pass on.
    pub fn decided(&self, interim: bool) -> Option<Phase> {
        let state = self.state.lock();
        match &state.phase {
            _ if interim && !state.interim.is_empty() => Some(Phase::Waiting),
            Phase::Waiting if state.end.is_some() => Some(Phase::Failed(Rejection::new(&crate::rejection::UPSTREAM_RESET))),
            Phase::Waiting => None,
            decided => Some(decided.clone()),
        }
    }
}

impl State {
    fn add(&mut self, data: Bytes, length: u64) {
        self.chunks.push_back(data);
        self.length = self.length.saturating_add(length);
        self.buffered = self.buffered.saturating_add(length);
    }

    /// Lets go of what every reader has.
    fn trim(&mut self) {
        let slowest = self.readers.iter().flatten().copied().min().unwrap_or(u64::MAX);
        while self.first < slowest
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.first = self.first.saturating_add(1);
            self.buffered = self.buffered.saturating_sub(u64::try_from(chunk.len()).unwrap_or(0));
        }
    }
}

/// One reader's place in a body.
#[derive(Debug)]
pub struct Reader {
    fill: Arc<Fill>,
    place: usize,
    next: u64,
}

impl Reader {
    /// The next bytes, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        let fill = Arc::clone(&self.fill);
        fill.wait(|fill| self.look(fill)).await
    }

    /// The next bytes if they are here already, without waiting.
    pub fn now(&mut self) -> Option<Bytes> {
        match self.look(&Arc::clone(&self.fill)) {
            Some(Ok(data)) => data,
            _ => None,
        }
    }

    fn look(&mut self, fill: &Fill) -> Option<Result<Option<Bytes>, Broken>> {
        let mut state = fill.state.lock();
        let index = usize::try_from(self.next.saturating_sub(state.first)).unwrap_or(usize::MAX);
        if let Some(chunk) = state.chunks.get(index).cloned() {
            self.next = self.next.saturating_add(1);
            if let Some(slot) = state.readers.get_mut(self.place) {
                *slot = Some(self.next);
            }
            if !state.keep && state.end.is_none() {
                drop(state);
                fill.drained.notify_one();
            }
            return Some(Ok(Some(chunk)));
        }
        match state.end {
            Some(End::Complete) => Some(Ok(None)),
            Some(End::Broken) => Some(Err(Broken)),
            None => None,
        }
    }

    pub fn trailers(&self) -> Option<HeaderMap> {
        self.fill.state.lock().trailers.clone()
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = self.fill.state.lock();
        if let Some(slot) = state.readers.get_mut(self.place) {
            *slot = None;
        }
        state.live = state.live.saturating_sub(1);
        drop(state);
        self.fill.drained.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::super::entry::tests::{received, terms};
    use super::super::policy::tests::policy;
    use super::*;

    fn fill(max_object: u64) -> Arc<Fill> {
        let store = Arc::new(MemoryStore::new(1 << 20));
        let key = Key { bytes: (*b"k").into(), hash: 1, url_hash: 1, base_hash: 1, url: "http://h/".into(), route: "r".into() };
        Fill::new(Arc::new(key), Arc::new(Policy { max_object, ..policy() }), store, None)
    }

    fn begin(fill: &Fill, length: Option<&str>) -> bool {
        let mut head = ResponseHeader::build(200, None).unwrap();
        if let Some(length) = length {
            head.insert_header("content-length", length).unwrap();
        }
        let stored = Stored { terms: terms(60), received: received(), selecting: Selecting::default(), part: None };
        fill.begin(head, Vec::new(), Ok(stored), false)
    }

    async fn all(mut reader: Reader) -> Result<Vec<u8>, Broken> {
        let mut bytes = Vec::new();
        while let Some(chunk) = reader.next().await? {
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
    }

    #[tokio::test]
    async fn everyone_gets_every_byte_whenever_they_come() {
        let fill = fill(1000);
        let early = tokio::spawn(all(fill.read().unwrap()));
        assert!(begin(&fill, None));
        fill.push(Bytes::from_static(b"ab")).await.unwrap();
        let late = tokio::spawn(all(fill.read().unwrap()));
        fill.push(Bytes::from_static(b"cd")).await.unwrap();
        let entry = fill.finish(None).unwrap().unwrap();
        assert_eq!(entry.body.length, 4);
        assert_eq!((early.await.unwrap().unwrap(), late.await.unwrap().unwrap()), (b"abcd".to_vec(), b"abcd".to_vec()));
        assert_eq!(fill.store.stats().filling, 0);
        assert_eq!(fill.store.variants(&fill.key).len(), 1);
    }

    #[tokio::test]
    async fn what_is_not_what_it_said_is_not_stored() {
        for (length, finish) in [(Some("5"), true), (None, false)] {
            let fill = fill(1000);
            begin(&fill, length);
            let reader = fill.read().unwrap();
            fill.push(Bytes::from_static(b"ab")).await.unwrap();
            if finish {
                assert!(fill.finish(None).is_err());
            }
            fill.close();
            assert_eq!(all(reader).await, Err(Broken));
            assert_eq!((fill.store.variants(&fill.key).len(), fill.store.stats().filling), (0, 0));
        }
    }

    #[tokio::test]
    async fn what_is_too_large_passes_through_a_window() {
        let fill = fill(100_000);
        assert!(begin(&fill, None));
        let reader = tokio::spawn(all(fill.read().unwrap()));
        for _ in 0..200 {
            fill.push(Bytes::from(vec![b'x'; 10_000])).await.unwrap();
            let state = fill.state.lock();
            assert!(state.buffered <= WINDOW + 100_000, "{}", state.buffered);
        }
        assert!(!fill.is_open() && fill.read().is_none());
        assert_eq!(fill.finish(None).unwrap().map(|_| ()), None);
        assert_eq!(reader.await.unwrap().unwrap().len(), 2_000_000);
        assert_eq!((fill.store.variants(&fill.key).len(), fill.store.stats().filling), (0, 0));
    }

    #[tokio::test]
    async fn a_stream_that_nobody_reads_ends() {
        let fill = fill(10);
        begin(&fill, None);
        let reader = fill.read().unwrap();
        fill.push(Bytes::from_static(b"0123456789ab")).await.unwrap();
        drop(reader);
        assert_eq!(fill.push(Bytes::from_static(b"x")).await, Err(Broken));
    }
}
