//! Our [`Storage`] behind `pingora-cache`: how the answers that a fetch brings get into the store.
//!
//! Pingora decides when to ask [`Policy::judge`](super::policy::Policy::judge), sends validators, tells a 304 from an answer, and
//! writes bodies here as they come in. What it does not do, and what is therefore done around it, is told in [`super`]. All that a
//! fetch needs travels in the extensions of its key, so this storage has no state and can be a constant.

use super::fill::Fill;
use async_trait::async_trait;
use bytes::Bytes;
use pingora::Result;
use pingora::cache::CacheMeta;
use pingora::cache::key::CacheKey;
use pingora::cache::storage::{
    HandleHit, HandleMiss, HitHandler, MissFinishType, MissHandler, PurgeOutcome, PurgeTarget, PurgeType, Storage,
};
use pingora::cache::trace::SpanHandle;
use pingora::http::ResponseHeader;
use std::any::Any;
use std::sync::Arc;
use std::time::SystemTime;

/// Where a fetch puts what it brings.
#[derive(Clone)]
pub struct Ticket {
    pub fill: Arc<Fill>,
    /// Stands for what is to be validated: a head without a body.
    pub stale: Arc<ResponseHeader>,
}

pub struct FillStorage;

/// Pingora asks for a `'static` storage.
pub static STORAGE: FillStorage = FillStorage;

fn ticket(key: &CacheKey) -> Result<&Ticket> {
    let missing = || pingora::Error::explain(pingora::ErrorType::InternalError, "a cache key without its fetch");
    key.extensions.get::<Ticket>().ok_or_else(missing)
}

#[async_trait]
impl Storage for FillStorage {
    /// What is stored was looked up before the fetch began; here is only what it is to validate.
    async fn lookup(&'static self, key: &CacheKey, _trace: &SpanHandle) -> Result<Option<(CacheMeta, HitHandler)>> {
        let stale = &ticket(key)?.stale;
        let long_ago = SystemTime::UNIX_EPOCH;
        Ok(Some((CacheMeta::new(long_ago, long_ago, 0, 0, (**stale).clone()), Box::new(NoBody))))
    }

    async fn get_miss_handler(&'static self, key: &CacheKey, _meta: &CacheMeta, _trace: &SpanHandle) -> Result<MissHandler> {
        Ok(Box::new(Writer { fill: Arc::clone(&ticket(key)?.fill), length: 0 }))
    }

    /// Purges go to the store itself, which knows more than keys.
    async fn purge(&'static self, _target: PurgeTarget<'_>, _kind: PurgeType, _trace: &SpanHandle) -> Result<PurgeOutcome> {
        Ok(PurgeOutcome::NotFound)
    }

    /// The head was merged and stored when the 304 was judged.
    async fn update_meta(&'static self, _key: &CacheKey, _meta: &CacheMeta, _trace: &SpanHandle) -> Result<bool> {
        Ok(true)
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync + 'static) {
        self
    }
}

/// A fetch that validates hands nobody a body: those who asked take it from the store.
struct NoBody;

#[async_trait]
impl HandleHit for NoBody {
    async fn read_body(&mut self) -> Result<Option<Bytes>> {
        Ok(None)
    }

    async fn finish(
        self: Box<Self>,
        _storage: &'static (dyn Storage + Sync),
        _key: &CacheKey,
        _trace: &SpanHandle,
    ) -> Result<()> {
        Ok(())
    }

    fn as_any(&self) -> &(dyn Any + Send + Sync) {
        self
    }

    fn as_any_mut(&mut self) -> &mut (dyn Any + Send + Sync) {
        self
    }
}

/// Dropped before its end, it leaves nothing behind.
struct Writer {
    fill: Arc<Fill>,
    length: usize,
}

#[async_trait]
impl HandleMiss for Writer {
    async fn write_body(&mut self, data: Bytes, _end: bool) -> Result<()> {
        self.length = self.length.saturating_add(data.len());
        let gone = |_| pingora::Error::explain(pingora::ErrorType::InternalError, "nobody waits for the answer any more");
        self.fill.push(data).await.map_err(gone)
    }

    async fn finish(self: Box<Self>) -> Result<MissFinishType> {
        let wrong = |_| pingora::Error::explain(pingora::ErrorType::InternalError, "the answer is not as long as it said");
        self.fill.finish(None).map_err(wrong)?;
        Ok(MissFinishType::Created(self.length))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.fill.close();
    }
}
