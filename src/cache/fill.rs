//! One fetch from the upstream and everyone who waits for it.
//!
//! The fetch runs by itself: no client owns it, so a client that goes away takes nothing from the others. Readers get the head as
//! soon as it is decided and the bytes as they arrive.
//!
//! While the answer is to be stored, all of its bytes are kept, and each of them is set aside in the store's bound first. Once it is
//! whole, its readers go on from the stored entry, which is in the bound for as long as anyone reads it. When it turns out that it
//! cannot be stored (no room, too large), it goes on as a stream: bytes that everyone has read are let go, and the fetch waits for
//! the slowest reader. So an answer of any size passes, and none takes more than its share.

mod phase;
mod reader;
#[cfg(test)]
mod tests;

pub use phase::{Confirmed, Head, Joined, Phase, Stored, Trip};
pub use reader::{Broken, Reader};

use super::entry::{Body, Entry, tags};
use super::freshen::Own;
use super::key::Key;
use super::memory::MemoryStore;
use super::policy::{Policy, Refusal};
use super::redis::RedisTier;
use crate::rejection::Rejection;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, header};
use parking_lot::Mutex;
use pingora::http::ResponseHeader;
use std::collections::VecDeque;
use std::sync::Arc;
use tokio::sync::Notify;

/// How far a fetch that is not stored may be ahead of its slowest reader.
const WINDOW: u64 = 256 << 10;
/// Interim responses that are kept for a reader that has not come yet.
const INTERIM_MAX: usize = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Complete,
    Broken,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    chunks: VecDeque<Bytes>,
    /// How many readers want each of the chunks next, and, behind the last, the one that has not come.
    wanted: VecDeque<usize>,
    /// The number of the first chunk that is still here.
    first: u64,
    buffered: u64,
    length: u64,
    /// Set aside in the store, for the chunks before this number.
    reserved: u64,
    reserved_before: u64,
    keep: bool,
    /// The chunks are being put together.
    assembling: bool,
    /// What they have become.
    body: Option<Span>,
    end: Option<End>,
    trailers: Option<HeaderMap>,
    live: usize,
    trip: Trip,
    /// What is answered instead, if the fetch fails.
    instead: Option<Response<Bytes>>,
    interim: Vec<ResponseHeader>,
    /// Bytes that stand behind those that are fetched.
    after: Vec<Bytes>,
}

/// Where in the body of an entry the bytes of this fetch are.
#[derive(Debug)]
struct Span {
    entry: Arc<Entry>,
    start: u64,
    end: u64,
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
            wanted: VecDeque::from([0]),
            first: 0,
            buffered: 0,
            length: 0,
            reserved: 0,
            reserved_before: 0,
            keep: false,
            assembling: false,
            body: None,
            end: None,
            trailers: None,
            live: 0,
            trip: Trip::default(),
            instead: None,
            interim: Vec::new(),
            after: Vec::new(),
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

    /// The head has come. `Err`: why the body is not to be kept.
    pub fn begin(
        &self,
        mut header: ResponseHeader,
        own: Own,
        outcome: Result<Stored, Refusal>,
        to_head: bool,
    ) -> Result<(), Refusal> {
        let length = header.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
        let too_large = length.is_some_and(|length| length > self.policy.max_object);
        let outcome = match outcome {
            Ok(stored) if too_large => {
                if stored.aged {
                    // It passes as it came, and this was taken out of what was to be stored.
                    let _ = header.insert_header(header::AGE, HeaderValue::from(stored.terms.initial_age.as_secs()));
                }
                Err(Refusal::TooLarge)
            }
            outcome => outcome,
        };
        // Decided for the whole of it where that can be told, so that nothing is pushed out for an answer that is then not stored.
        let reserved = length.filter(|_| outcome.is_ok() && !to_head).unwrap_or(0);
        let room = reserved == 0 || self.store.reserve(&self.key, reserved);
        let keep = outcome.is_ok() && !to_head && room;
        let why = match &outcome {
            Ok(_) if keep || to_head => Ok(()),
            Ok(_) => Err(Refusal::NoRoom),
            Err(why) => Err(*why),
        };
        let reserved = if keep { reserved } else { 0 };
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Waiting) {
            drop(state);
            self.store.release(&self.key, reserved);
            return why;
        }
        (state.keep, state.reserved) = (keep, reserved);
        state.phase = Phase::Streaming(Arc::new(Head { header, outcome, length: length.filter(|_| !to_head), kept: keep, own }));
        drop(state);
        self.changed.notify_waiters();
        why
    }

    /// What is fetched is what a stored part of it lacks: whoever reads gets the whole. To be said before the head.
    pub fn complete(&self, part: &Body) {
        let mut state = self.state.lock();
        if part.start > 0 {
            state.after = part.pieces.to_vec();
            return;
        }
        for piece in &part.pieces {
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            state.add(piece.clone(), length);
        }
    }

    /// The fetch has failed, and this is what the configuration wants to be answered.
    pub fn answer_instead(&self, answer: Response<Bytes>) {
        self.state.lock().instead = Some(answer);
    }

    pub fn instead(&self) -> Option<Response<Bytes>> {
        self.state.lock().instead.clone()
    }

    pub fn note_trip(&self, trip: Trip) {
        self.state.lock().trip = trip;
    }

    pub fn trip(&self) -> Trip {
        self.state.lock().trip
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
                if state.keep && self.take_in(&mut state, &data, length) {
                    drop(state);
                    self.changed.notify_waiters();
                    return Ok(());
                }
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

    /// Adds bytes that nobody waits for. `Err`: they are not kept.
    pub fn push_now(&self, data: &Bytes) -> Result<(), Broken> {
        let length = u64::try_from(data.len()).unwrap_or(u64::MAX);
        let mut state = self.state.lock();
        let kept = data.is_empty() || state.keep && self.take_in(&mut state, data, length);
        if kept { Ok(()) } else { Err(Broken) }
    }

    /// Adds bytes to what is kept. `false`: there is no room for them, and nothing is kept any more.
    fn take_in(&self, state: &mut State, data: &Bytes, length: u64) -> bool {
        let whole = state.length.saturating_add(length);
        let more = whole.saturating_sub(state.reserved);
        let fits = whole <= self.policy.max_object;
        if fits && (more == 0 || self.store.reserve(&self.key, more)) {
            state.reserved = state.reserved.saturating_add(more);
            // A copy: the transport's buffer is larger than what stands in it, and is not in the bound.
            state.add(Bytes::copy_from_slice(data), length);
            return true;
        }
        self.let_go(state);
        self.policy.metrics.refused(if fits { Refusal::NoRoom } else { Refusal::TooLarge });
        false
    }

    /// The body is not to be stored any more: what of it has been read is let go.
    fn let_go(&self, state: &mut State) {
        if state.keep {
            state.keep = false;
            let excess = state.reserved.saturating_sub(state.buffered);
            state.reserved = state.reserved.saturating_sub(excess);
            state.reserved_before = state.first.saturating_add(u64::try_from(state.chunks.len()).unwrap_or(0));
            self.store.release(&self.key, excess);
        }
        self.trim(state);
    }

    /// Lets go of what every reader has, where it is not kept.
    fn trim(&self, state: &mut State) {
        let released = state.trim();
        if released > 0 {
            self.store.release(&self.key, released);
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
        for piece in std::mem::take(&mut state.after) {
            let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
            state.add(piece, length);
        }
        let right = head.length.is_none_or(|length| length == state.length);
        state.trailers = trailers;
        // A part of another length than its range says is passed on as it came, but nobody knows what it is a part of.
        let fits = |of: &Stored| of.part.is_none_or(|(start, end, _)| end.saturating_sub(start) == state.length);
        let fits = head.outcome.as_ref().is_ok_and(fits);
        let (true, true, true, Ok(of)) = (state.keep, right, fits, &head.outcome) else {
            self.let_go(&mut state);
            state.end = Some(if right { End::Complete } else { End::Broken });
            drop(state);
            self.changed.notify_waiters();
            return if right { Ok(None) } else { Err(Broken) };
        };
        state.assembling = true;
        let chunks = std::mem::take(&mut state.chunks);
        let reserved = std::mem::take(&mut state.reserved);
        let length = state.length;
        drop(state);
        // Each chunk goes as its bytes are copied, so that they are not in memory twice.
        let entry = Arc::new(self.entry(&head.header, of, chunks, length));
        let stored = self.store.insert(&self.key, Arc::clone(&entry), self.policy.max_variants, self.epoch, reserved);
        if stored {
            for known in &of.replaces {
                self.store.remove(&self.key, known);
            }
            self.share(&entry);
        } else {
            self.policy.metrics.refused(Refusal::Purged);
        }
        let (start, end) = of.part.map_or((0, length), |(start, end, _)| (start, end));
        // Only now: whoever comes finds it here until it is found in the store.
        let mut state = self.state.lock();
        state.keep = false;
        state.body = Some(Span { entry: Arc::clone(&entry), start, end });
        state.end = Some(End::Complete);
        drop(state);
        self.changed.notify_waiters();
        Ok(stored.then_some(entry))
    }

    fn entry(&self, header: &ResponseHeader, of: &Stored, chunks: VecDeque<Bytes>, length: u64) -> Entry {
        let mut head = header.clone();
        let mut body = Body::whole(chunks.into_iter(), length);
        if let Some((start, _, total)) = of.part {
            (body.start, body.total) = (start, total);
            if let Some(joined) = &of.joined
                && let Some(both) = body.joined(&joined.entry.body)
            {
                body = both;
                head = joined.head.clone();
            }
            head.remove_header(&header::CONTENT_RANGE);
            // What is kept speaks of the whole; each answer says which part it carries.
            let _ = head.set_status(http::StatusCode::OK);
        }
        // A 205 has no body either, and ends where others do: by its length (RFC 9112 section 6.3).
        if head.status != http::StatusCode::NO_CONTENT {
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
        matches!(&self.state.lock().phase, Phase::Streaming(head) if !head.kept)
    }

    /// Nothing more will come. Without an end before, what has come is broken.
    pub fn close(&self) {
        let mut state = self.state.lock();
        if state.end.is_none() {
            state.end = Some(End::Broken);
        }
        self.let_go(&mut state);
        drop(state);
        self.changed.notify_waiters();
    }

    /// Whether anyone else may still join: the body is kept from its first byte, and whole, and it was asked for after everything that
    /// was to be forgotten.
    pub fn is_open(&self) -> bool {
        let state = self.state.lock();
        let open = match state.phase {
            Phase::Waiting => state.end.is_none(),
            Phase::Streaming(_) => state.keep && state.first == 0,
            _ => false,
        };
        drop(state);
        open && !self.store.may_be_purged(self.epoch, &self.key)
    }

    /// A reader from the first byte. `None` if that is gone.
    pub fn read(self: &Arc<Self>) -> Option<Reader> {
        let mut state = self.state.lock();
        if state.first > 0 {
            return None;
        }
        if let Some(count) = state.wanted.front_mut() {
            *count = count.saturating_add(1);
        }
        state.live = state.live.saturating_add(1);
        drop(state);
        Some(Reader { fill: Arc::clone(self), next: 0, at: 0 })
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

impl Drop for Fill {
    fn drop(&mut self) {
        let reserved = self.state.get_mut().reserved;
        if reserved > 0 {
            self.store.release(&self.key, reserved);
        }
    }
}

impl State {
    fn add(&mut self, data: Bytes, length: u64) {
        self.chunks.push_back(data);
        self.wanted.push_back(0);
        self.length = self.length.saturating_add(length);
        self.buffered = self.buffered.saturating_add(length);
    }

    /// Lets go of what every reader has. Returns how much of it was set aside in the store.
    fn trim(&mut self) -> u64 {
        let mut released = 0_u64;
        while !self.keep
            && self.wanted.front() == Some(&0)
            && let Some(chunk) = self.chunks.pop_front()
        {
            self.wanted.pop_front();
            let length = u64::try_from(chunk.len()).unwrap_or(0);
            self.buffered = self.buffered.saturating_sub(length);
            if self.first < self.reserved_before {
                released = released.saturating_add(length);
            }
            self.first = self.first.saturating_add(1);
        }
        self.reserved = self.reserved.saturating_sub(released);
        released
    }

    /// A reader moves on from a chunk, or goes.
    fn leave(&mut self, number: u64, to_next: bool) {
        let index = usize::try_from(number.saturating_sub(self.first)).unwrap_or(usize::MAX);
        if let Some(count) = self.wanted.get_mut(index) {
            *count = count.saturating_sub(1);
        }
        if to_next && let Some(count) = self.wanted.get_mut(index.saturating_add(1)) {
            *count = count.saturating_add(1);
        }
    }
}
