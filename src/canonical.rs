//! One canonical host and one canonical path per request: what is authorised is, byte for byte, what is routed, cached and
//! forwarded.
//!
//! Gateways are bypassed where two parsers read one request differently: the gateway allows `/public/..;/admin`, the
//! service behind it serves `/admin`. So a request is brought into one form before anything is decided by it, that form is
//! the one sent upstream, and whatever has no single reading is refused. See [`path`] and [`host`] for the two rules.

pub mod host;
pub mod path;

pub use host::{HostProblem, canonical_host, host_as_sent};
pub use path::{PathForm, PathProblem, PathRules, canonical_path, check_query, is_canonical};
