//! The cache in the life of a request: look-up and answer in the request hook, and what the other hooks do for fetches.

mod decide;
mod fetch;
mod head;
mod judge;
mod lookup;
mod miss;
mod note;
mod part;
mod serve;
mod validate;

pub use fetch::{adopt, head_of_fetch, key, not_modified, settle_failure, to_enable};
pub use head::answered as answered_to_head;
pub use judge::judge;
pub use lookup::answer;
pub use note::response;

use crate::telemetry::metrics::Bypass;

/// What the cache has to do with a request that Pingora handles.
pub enum Role {
    /// It is a fetch of the cache itself.
    Fetch(Box<fetch::Fetch>),
    /// It goes past the cache, and says so.
    Past(Bypass),
    /// It was not to be shared a moment ago; perhaps that has changed.
    Unshared(u64),
}

/// Whether a request has its answer.
pub enum Outcome {
    Answered,
    /// It goes upstream like any other.
    Forward,
}
