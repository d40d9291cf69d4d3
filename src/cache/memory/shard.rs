//! One shard: a slab of items in two lists by use, and two maps into it.

use super::super::entry::{Entry, Expired};
use super::super::key::Key;
use super::super::purge::Purge;
use super::super::sketch::Sketch;
use super::{Counts, How};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// No item.
const NONE: u32 = u32::MAX;
/// What one key costs beside its entries.
const KEY_OVERHEAD: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Window,
    Main,
}

#[derive(Debug)]
struct Item {
    key: Arc<Key>,
    /// Newest first.
    entries: Vec<Arc<Entry>>,
    bytes: u64,
    /// Of them, those of the entries.
    entries_bytes: u64,
    part: Part,
    /// Towards more and less recent use.
    newer: u32,
    older: u32,
    /// Other keys of the same URL.
    url_before: u32,
    url_after: u32,
}

/// What had to go.
enum Way {
    Evicted,
    /// It was not worth what it would have pushed out.
    Rejected,
}

/// A list by use. The items themselves hold the links.
#[derive(Debug, Clone, Copy)]
struct List {
    newest: u32,
    oldest: u32,
    bytes: u64,
}

impl List {
    const EMPTY: List = List { newest: NONE, oldest: NONE, bytes: 0 };
}

type Hashed<V> = HashMap<u64, V, foldhash::fast::RandomState>;

#[derive(Debug)]
pub struct Shard {
    budget: u64,
    items: Vec<Option<Item>>,
    free: Vec<u32>,
    by_key: Hashed<u32>,
    by_url: Hashed<u32>,
    window: List,
    main: List,
    filling: u64,
    entries: u64,
    /// Bytes of the entries that are stored, and of all that exist.
    stored_entries: u64,
    held: Arc<AtomicU64>,
    sketch: Sketch,
}

/// The oldest that nobody is being answered with is looked for among so many.
const SKIPPED_MAX: u32 = 8;

impl Shard {
    pub fn new(budget: u64) -> Self {
        let width = usize::try_from(budget / 4096).unwrap_or(usize::MAX).clamp(512, 1 << 18);
        let sketch = Sketch::new(width);
        Shard {
            // The sketch is part of the bound.
            budget: budget.saturating_sub(u64::try_from(sketch.bytes()).unwrap_or(0)),
            items: Vec::new(),
            free: Vec::new(),
            by_key: Hashed::default(),
            by_url: Hashed::default(),
            window: List::EMPTY,
            main: List::EMPTY,
            filling: 0,
            entries: 0,
            stored_entries: 0,
            held: Arc::default(),
            sketch,
        }
    }

    pub fn stored(&self) -> u64 {
        self.window.bytes.saturating_add(self.main.bytes)
    }

    pub fn filling(&self) -> u64 {
        self.filling
    }

    /// What is stored no more, and still being sent.
    pub fn leaving(&self) -> u64 {
        self.held.load(Ordering::Relaxed).saturating_sub(self.stored_entries)
    }

    pub fn entries(&self) -> u64 {
        self.entries
    }

    /// Counts an entry for as long as it exists.
    pub fn hold(&self, entry: &Entry) {
        entry.hold(&self.held);
    }

    fn is_over(&self) -> bool {
        self.stored().saturating_add(self.filling).saturating_add(self.leaving()) > self.budget
    }

    fn item(&self, at: u32) -> Option<&Item> {
        self.items.get(usize::try_from(at).ok()?)?.as_ref()
    }

    fn item_mut(&mut self, at: u32) -> Option<&mut Item> {
        self.items.get_mut(usize::try_from(at).ok()?)?.as_mut()
    }

    fn find(&self, bytes: &[u8], hash: u64) -> Option<u32> {
        let at = *self.by_key.get(&hash)?;
        // Equal hashes are not equal keys.
        (*self.item(at)?.key.bytes == *bytes).then_some(at)
    }

    pub fn get(&mut self, bytes: &[u8], hash: u64, counts: Counts, fits: impl Fn(&Entry) -> bool) -> Option<Arc<Entry>> {
        let at = self.find(bytes, hash);
        if counts == Counts::Once || (counts == Counts::IfFound && at.is_some()) {
            self.sketch.increment(hash);
        }
        let at = at?;
        self.unlink(at);
        self.link(at);
        // An answer that does not say that it varies, where others do, was for requests without preferences (RFC 9111 §4.1).
        let mut found = None;
        for entry in self.item(at)?.entries.iter().filter(|entry| fits(entry)) {
            if !entry.selecting.fields.is_empty() {
                return Some(Arc::clone(entry));
            }
            found = found.or(Some(entry));
        }
        found.map(Arc::clone)
    }

    pub fn variants(&self, bytes: &[u8], hash: u64) -> Vec<Arc<Entry>> {
        self.find(bytes, hash).and_then(|at| Some(self.item(at)?.entries.clone())).unwrap_or_default()
    }

    /// Returns its place, for [`Shard::settle`].
    pub fn insert(&mut self, key: &Arc<Key>, entry: Arc<Entry>, max_variants: usize) -> u32 {
        // Another key with the same hash gives way: this happens by chance once in many lives of the universe.
        if let Some(at) = self.by_key.get(&key.hash).copied()
            && self.item(at).is_some_and(|item| item.key.bytes != key.bytes)
        {
            self.take(at);
        }
        let at = match self.find(&key.bytes, key.hash) {
            Some(at) => at,
            None => self.add(key),
        };
        self.unlink(at);
        let (mut dropped, mut added) = (0, 0);
        if let Some(item) = self.item_mut(at) {
            let before = item.entries.len();
            item.entries.retain(|known| known.selecting != entry.selecting);
            item.entries.insert(0, entry);
            item.entries.truncate(max_variants.max(1));
            (dropped, added) = (before, item.entries.len());
            item.weigh();
        }
        self.entries = self.entries.saturating_sub(dropped as u64).saturating_add(added as u64);
        self.link(at);
        at
    }

    /// Moves what the window has too much of to the main part, or out, after an item was inserted. Where nothing can go, that does.
    /// Returns evictions and rejections.
    pub fn settle(&mut self, inserted: u32) -> (u64, u64) {
        let (mut evicted, mut rejected) = (0_u64, 0_u64);
        loop {
            let crowded = self.window.bytes > self.window_most() && self.window.oldest != NONE;
            if self.is_over() {
                match self.make_way(None, crowded) {
                    Some(Way::Evicted) => evicted = evicted.saturating_add(1),
                    Some(Way::Rejected) => rejected = rejected.saturating_add(1),
                    None => {
                        self.take(inserted);
                        return (evicted, rejected.saturating_add(1));
                    }
                }
            } else if crowded {
                self.promote(self.window.oldest);
            } else {
                return (evicted, rejected);
            }
        }
    }

    fn window_most(&self) -> u64 {
        self.budget / 8
    }

    /// Takes one item out. Where the window is `crowded`, its oldest, or what is coming in, has to be asked for more often than the
    /// oldest of the main part to push that out. `None`: nothing may go for what is coming in.
    fn make_way(&mut self, coming: Option<u64>, crowded: bool) -> Option<Way> {
        let candidate = self.idle(Part::Window);
        let victim = self.idle(Part::Main);
        let often = match (candidate, coming) {
            (NONE, Some(hash)) => self.sketch.frequency(hash),
            (NONE, None) => u8::MAX,
            (candidate, _) => self.frequency(candidate),
        };
        if victim != NONE && (!crowded || often > self.frequency(victim)) {
            self.take(victim);
            if crowded && candidate != NONE {
                self.promote(candidate);
            }
            return Some(Way::Evicted);
        }
        if candidate != NONE {
            self.take(candidate);
            return Some(if victim == NONE { Way::Evicted } else { Way::Rejected });
        }
        None
    }

    /// The oldest of a part that nobody is being answered with, as far as it is found without a long search: to push out another
    /// would free nothing.
    fn idle(&mut self, part: Part) -> u32 {
        for _ in 0..SKIPPED_MAX {
            let at = self.list(part).oldest;
            match self.item(at) {
                Some(item) if item.entries.iter().any(|entry| Arc::strong_count(entry) > 1) => {
                    self.unlink(at);
                    self.link(at);
                }
                _ => return at,
            }
        }
        NONE
    }

    fn frequency(&self, at: u32) -> u8 {
        self.item(at).map_or(0, |item| self.sketch.frequency(item.key.hash))
    }

    fn promote(&mut self, at: u32) {
        self.unlink(at);
        if let Some(item) = self.item_mut(at) {
            item.part = Part::Main;
        }
        self.link(at);
    }

    /// Whether it fits, with evictions and rejections for it. What is coming in takes room in the window.
    pub fn reserve(&mut self, hash: u64, bytes: u64) -> (bool, (u64, u64)) {
        let (mut evicted, mut rejected) = (0_u64, 0_u64);
        if self.filling.saturating_add(self.leaving()).saturating_add(bytes) > self.budget {
            return (false, (evicted, rejected));
        }
        self.filling = self.filling.saturating_add(bytes);
        while self.is_over() {
            let crowded = self.window.bytes.saturating_add(self.filling) > self.window_most();
            match self.make_way(Some(hash), crowded) {
                Some(Way::Evicted) => evicted = evicted.saturating_add(1),
                Some(Way::Rejected) => rejected = rejected.saturating_add(1),
                None => {
                    self.release(bytes);
                    return (false, (evicted, rejected.saturating_add(1)));
                }
            }
        }
        (true, (evicted, rejected))
    }

    pub fn release(&mut self, bytes: u64) {
        self.filling = self.filling.saturating_sub(bytes);
    }

    pub fn remove_entry(&mut self, bytes: &[u8], hash: u64, entry: &Arc<Entry>) {
        if let Some(at) = self.find(bytes, hash) {
            self.keep(at, |known| !Arc::ptr_eq(known, entry));
        }
    }

    pub fn purge_url(&mut self, url_hash: u64, url: &str, how: How) -> u64 {
        let mut at = self.by_url.get(&url_hash).copied().unwrap_or(NONE);
        let mut count = 0_u64;
        while let Some(item) = self.item(at) {
            let next = item.url_after;
            if *item.key.url == *url {
                count = count.saturating_add(self.apply(at, how, |_| true));
            }
            at = next;
        }
        count
    }

    pub fn purge(&mut self, purge: &Purge) -> u64 {
        let places = 0..u32::try_from(self.items.len()).unwrap_or(NONE);
        let mut count = 0_u64;
        for at in places {
            let Some(item) = self.item(at) else { continue };
            let key = Arc::clone(&item.key);
            if purge.may_concern(&key) {
                count = count.saturating_add(self.apply(at, purge.how(), |entry| purge.concerns(&key, entry)));
            }
        }
        count
    }

    fn apply(&mut self, at: u32, how: How, concerned: impl Fn(&Entry) -> bool) -> u64 {
        let Some(item) = self.item(at) else { return 0 };
        let hit = item.entries.iter().filter(|entry| concerned(entry));
        match how {
            How::Expire(expired) => hit.map(|entry| entry.expire(expired)).count() as u64,
            How::Remove => {
                let mut count = 0_u64;
                hit.for_each(|entry| {
                    // Whoever looks it up at this moment must not take it for good.
                    entry.expire(Expired::Invalid);
                    count = count.saturating_add(1);
                });
                self.keep(at, |entry| !concerned(entry));
                count
            }
        }
    }

    fn keep(&mut self, at: u32, keep: impl Fn(&Arc<Entry>) -> bool) {
        self.unlink(at);
        let Some(item) = self.item_mut(at) else { return };
        let before = item.entries.len();
        item.entries.retain(keep);
        item.weigh();
        let left = item.entries.len();
        self.entries = self.entries.saturating_sub((before.saturating_sub(left)) as u64);
        self.link(at);
        if left == 0 {
            self.take(at);
        }
    }

    fn add(&mut self, key: &Arc<Key>) -> u32 {
        let after = self.by_url.get(&key.url_hash).copied().unwrap_or(NONE);
        let mut item = Item {
            key: Arc::clone(key),
            entries: Vec::new(),
            bytes: 0,
            entries_bytes: 0,
            part: Part::Window,
            newer: NONE,
            older: NONE,
            url_before: NONE,
            url_after: after,
        };
        item.weigh();
        let at = match self.free.pop() {
            Some(at) => at,
            None => {
                self.items.push(None);
                u32::try_from(self.items.len().saturating_sub(1)).unwrap_or(NONE)
            }
        };
        if let Some(slot) = usize::try_from(at).ok().and_then(|at| self.items.get_mut(at)) {
            *slot = Some(item);
        }
        if let Some(next) = self.item_mut(after) {
            next.url_before = at;
        }
        self.by_url.insert(key.url_hash, at);
        self.by_key.insert(key.hash, at);
        self.link(at);
        at
    }

    /// Removes an item from everywhere.
    fn take(&mut self, at: u32) {
        self.unlink(at);
        let Some(item) = usize::try_from(at).ok().and_then(|at| self.items.get_mut(at)).and_then(Option::take) else { return };
        self.free.push(at);
        self.by_key.remove(&item.key.hash);
        self.entries = self.entries.saturating_sub(item.entries.len() as u64);
        if let Some(after) = self.item_mut(item.url_after) {
            after.url_before = item.url_before;
        }
        match self.item_mut(item.url_before) {
            Some(before) => before.url_after = item.url_after,
            None if item.url_after == NONE => drop(self.by_url.remove(&item.key.url_hash)),
            None => drop(self.by_url.insert(item.key.url_hash, item.url_after)),
        }
    }

    fn list(&mut self, part: Part) -> &mut List {
        match part {
            Part::Window => &mut self.window,
            Part::Main => &mut self.main,
        }
    }

    /// Puts an item at the newest end of its list.
    fn link(&mut self, at: u32) {
        let Some(item) = self.item(at) else { return };
        let (part, bytes, entries) = (item.part, item.bytes, item.entries_bytes);
        let list = self.list(part);
        let second = std::mem::replace(&mut list.newest, at);
        if list.oldest == NONE {
            list.oldest = at;
        }
        list.bytes = list.bytes.saturating_add(bytes);
        self.stored_entries = self.stored_entries.saturating_add(entries);
        if let Some(item) = self.item_mut(at) {
            (item.newer, item.older) = (NONE, second);
        }
        if let Some(second) = self.item_mut(second) {
            second.newer = at;
        }
    }

    fn unlink(&mut self, at: u32) {
        let Some(item) = self.item(at) else { return };
        let (part, bytes, entries) = (item.part, item.bytes, item.entries_bytes);
        let (newer, older) = (item.newer, item.older);
        match self.item_mut(newer) {
            Some(newer) => newer.older = older,
            None => self.list(part).newest = older,
        }
        match self.item_mut(older) {
            Some(older) => older.newer = newer,
            None => self.list(part).oldest = newer,
        }
        let list = self.list(part);
        list.bytes = list.bytes.saturating_sub(bytes);
        self.stored_entries = self.stored_entries.saturating_sub(entries);
    }
}

impl Item {
    fn weigh(&mut self) {
        let key = self.key.bytes.len().saturating_add(self.key.url.len()).saturating_add(KEY_OVERHEAD);
        self.entries_bytes = self.entries.iter().map(|entry| entry.weight()).fold(0, u64::saturating_add);
        self.bytes = self.entries_bytes.saturating_add(u64::try_from(key).unwrap_or(0));
    }
}
