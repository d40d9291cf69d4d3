//! Gatewright: a programmable API gateway on Cloudflare's Pingora.
//!
//! The map of the crate follows the life of a request; see the modules in that order.

pub mod arena;
pub mod canonical;
pub mod clock;
pub mod diagnostic;
pub mod filter;
pub mod forwarded;
pub mod listener;
pub mod rejection;
pub mod request;
pub mod respond;
pub mod state;
pub mod value;
