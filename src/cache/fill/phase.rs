//! What a fetch can come to, and what it carries then.

use super::super::entry::Entry;
use super::super::freshen::Own;
use super::super::freshness::Received;
use super::super::policy::{Refusal, Terms};
use super::super::vary::Selecting;
use crate::rejection::Rejection;
use pingora::http::ResponseHeader;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

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

/// How the upstream was asked, for the record of the request that began the fetch.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trip {
    pub endpoint: Option<SocketAddr>,
    pub attempts: u32,
    /// These three are of the last attempt.
    pub upstream_time: Option<Duration>,
    pub connect_time: Option<Duration>,
    pub reused: bool,
}

/// What the entry will be made of.
#[derive(Debug, Clone)]
pub struct Stored {
    pub terms: Terms,
    pub received: Received,
    pub selecting: Selecting,
    /// The part that it is of a whole: start, end, total.
    pub part: Option<(u64, u64, u64)>,
    /// What such a request could be given so far, and what this takes the place of.
    pub replaces: Vec<Arc<Entry>>,
    /// It came with an `Age`: another cache had it.
    pub aged: bool,
    /// What it is put together with.
    pub joined: Option<Box<Joined>>,
}

/// A stored answer that a new part of the same representation is put together with, and the head of both.
#[derive(Debug, Clone)]
pub struct Joined {
    pub entry: Arc<Entry>,
    pub head: ResponseHeader,
}

impl Stored {
    pub fn new(terms: Terms, received: Received, selecting: Selecting) -> Self {
        Stored { terms, received, selecting, part: None, replaces: Vec::new(), aged: false, joined: None }
    }
}
