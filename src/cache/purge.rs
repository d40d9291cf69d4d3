//! What operators, and unsafe requests, have the cache forget.

use super::entry::{Entry, Expired};
use super::key::Key;
use super::memory::How;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};

/// Purges that are remembered for answers that are coming in. An answer that takes longer than these is not stored.
const REMEMBERED: usize = 1024;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// The URL, all of it: `http://host/path?query`.
    Url(Box<str>),
    Prefix(Box<str>),
    Tag(Box<str>),
    Route(Box<str>),
    Everything,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purge {
    pub what: What,
    how: How,
}

impl Purge {
    /// `soft`: what it finds becomes stale instead of going.
    pub fn new(what: What, soft: bool) -> Self {
        Purge { what, how: if soft { How::Expire(Expired::Soft) } else { How::Remove } }
    }

    pub fn tag(tag: &str, soft: bool) -> Self {
        Purge::new(What::Tag(tag.into()), soft)
    }

    pub fn invalidation(url: &str) -> Self {
        Purge { what: What::Url(url.into()), how: How::Expire(Expired::Invalid) }
    }

    /// The same of another URL.
    pub fn of(&self, url: &str) -> Self {
        Purge { what: What::Url(url.into()), how: self.how }
    }

    pub fn how(&self) -> How {
        self.how
    }

    pub fn is_invalidation(&self) -> bool {
        self.how == How::Expire(Expired::Invalid)
    }

    pub fn is_soft(&self) -> bool {
        self.how == How::Expire(Expired::Soft)
    }

    pub fn url(&self) -> Option<&str> {
        match &self.what {
            What::Url(url) => Some(url),
            _ => None,
        }
    }

    /// Whether any entry under the key can be meant.
    pub fn may_concern(&self, key: &Key) -> bool {
        match &self.what {
            What::Url(url) => key.url == *url,
            What::Prefix(prefix) => key.url.starts_with(&**prefix),
            What::Route(route) => key.is_of(route),
            What::Tag(_) | What::Everything => true,
        }
    }

    pub fn concerns(&self, key: &Key, entry: &Entry) -> bool {
        match &self.what {
            What::Tag(tag) => entry.tags.contains(tag),
            _ => self.may_concern(key),
        }
    }
}

/// The latest purges, by number.
#[derive(Debug, Default)]
pub struct Recent {
    epoch: AtomicU64,
    list: Mutex<VecDeque<(u64, Purge)>>,
}

impl Recent {
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub fn note(&self, purge: &Purge) {
        let mut list = self.list.lock();
        let number = self.epoch.load(Ordering::Relaxed).saturating_add(1);
        list.push_back((number, purge.clone()));
        if list.len() > REMEMBERED {
            list.pop_front();
        }
        self.epoch.store(number, Ordering::Release);
    }

    /// Whether one after number `since` concerns the entry, or could have and is not remembered.
    pub fn hit(&self, since: u64, key: &Key, entry: &Entry) -> bool {
        self.any(since, |purge| purge.concerns(key, entry))
    }

    /// The same of an answer that has not come: whether one may concern it.
    pub fn may_hit(&self, since: u64, key: &Key) -> bool {
        self.any(since, |purge| purge.may_concern(key))
    }

    fn any(&self, since: u64, is: impl Fn(&Purge) -> bool) -> bool {
        if self.epoch() == since {
            return false;
        }
        let list = self.list.lock();
        let remembered = list.front().is_some_and(|(number, _)| *number <= since.saturating_add(1));
        !remembered || list.iter().rev().take_while(|(number, _)| *number > since).any(|(_, purge)| is(purge))
    }
}
