//! The cache in the life of a request: look-up and answer in the request hook, and what the other hooks do for fetches.

mod decide;
mod fetch;
mod head;
mod judge;
mod kept;
mod lookup;
mod miss;
mod note;
mod part;
mod serve;
mod validate;

pub use fetch::{adopt, head_of_fetch, interim, key, not_modified, settle_failure, to_enable};
pub use head::answered as answered_to_head;
pub use judge::judge;
pub use kept::keep;
pub use lookup::{Served, answer, direct_hit};
pub use note::{made_here, response};

use super::Ctx;
use crate::cache::fill::Fill;
use crate::telemetry::metrics::Bypass;
use std::sync::Arc;

/// What the cache has to do with a request that Pingora handles.
pub enum Role {
    /// It is a fetch of the cache itself.
    Fetch(Box<fetch::Fetch>),
    /// It goes past the cache, and says so.
    Past(Bypass),
    /// What comes of the hash was not to be shared a moment ago; perhaps that has changed, and then this is kept.
    Unshared(u64, Option<Arc<Fill>>),
    /// The fetch that it has waited for has failed.
    Failed(note::Status),
    /// It goes past the cache, and its answer is kept.
    Kept(Arc<Fill>),
}

/// Whether a request has its answer.
pub enum Outcome {
    Answered,
    /// It goes upstream like any other.
    Forward,
}
