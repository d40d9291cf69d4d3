//! Gatewright: a programmable API gateway on Cloudflare's Pingora.
//!
//! The map of the crate follows the life of a request; see the modules in that order.

pub mod cli;
pub mod clock;
pub mod config;
pub mod diagnostic;
pub mod filter;
pub mod rejection;
pub mod request;
pub mod respond;
pub mod route;
pub mod state;
pub mod upstream;
pub mod value;
