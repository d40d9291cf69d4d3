//! Which requests a route takes.

pub mod config;

pub use config::MatchConfig;
