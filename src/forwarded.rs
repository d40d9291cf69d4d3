//! Who the client is behind trusted proxies, and what the services behind this gateway are told about it.
//!
//! Everything in `X-Forwarded-*` and `Forwarded` was written by whoever sent the request. It counts only if the peer, the
//! address on the other end of the connection, is one of the proxies that the operator trusts; from anyone else these
//! headers are removed and written anew. See [`client_address`] for how a chain of proxies is read.

mod client;
mod request_id;
mod trusted;
mod via;
mod write;

pub use client::{MAX_HOPS, client_address};
pub use request_id::{X_REQUEST_ID, id_value, request_id};
pub use trusted::{ClientHeader, TrustedProxies};
pub use via::{VIA_HEADER, VIA_HOPS_MAX, Via};
pub use write::{ForwardedFacts, ForwardedHeaders, told_by_proxy, write_forwarded};
