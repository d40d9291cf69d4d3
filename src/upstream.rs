//! Named groups of endpoints and how they are used.

pub mod config;

pub use config::UpstreamConfig;
