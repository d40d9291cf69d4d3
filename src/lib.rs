//! Gatewright: a programmable API gateway on Cloudflare's Pingora.
//!
//! The layers, from the top:
//!
//! - [`cli`] reads the command line, [`server`] assembles the process.
//! - [`listener`] accepts connections, [`proxy`] is the life of a request, [`respond`] writes what the gateway answers itself,
//!   [`admin`] answers operators, [`reload`] takes new configurations, [`upgrade`] replaces the binary, and [`systemd`] hears of it.
//! - [`snapshot`] is the compiled configuration that requests run on, [`config`] the TOML that it is compiled from.
//! - [`filter`] is one step of policy; [`route`] and [`upstream`] say which filters, and where a request goes, [`discovery`]
//!   which endpoints there are, [`mirror`] who gets copies; [`cache`] keeps answers and [`compress`] codes them;
//!   [`consumer`] who may call, [`identity`] who does, [`jwt`] and [`signature`] what proves it, [`condition`] what must be true
//!   besides; and [`fetch`] asks other services over HTTP.
//! - [`limit`], [`cache`], [`consumer`] (through [`tracked`]), [`signature`] and [`discovery`] reach a Redis by [`redis_link`].
//! - At the bottom is what everything shares: [`rejection`], [`request`], [`canonical`], [`fields`], [`forwarded`], [`http1`],
//!   [`state`], [`telemetry`], [`value`], [`diagnostic`], [`clock`], [`alarm`]; and [`tls`], which reads certificates for both ends.
//!
//! Imports point down, or to the same layer, but for three:
//!
//! - [`request`] is what is known of one request, in the types of those who found it out: [`identity`], [`limit`], [`route`] and
//!   [`signature`].
//! - [`snapshot`] has the plan of each [`listener`], which it compiles and the listener carries out.
//! - [`telemetry`] writes the figures that [`cache`] keeps anyway.
//!
//! To run a gateway with filters of your own, implement [`filter::FilterConfig`] and [`filter::Filter`], and hand a
//! [`filter::Registry`] that has them to [`cli::main`]: see `examples/custom_filter.rs`.

pub mod admin;
pub mod alarm;
pub mod arena;
pub mod cache;
pub mod canonical;
pub mod cli;
pub mod clock;
pub mod compress;
pub mod condition;
pub mod config;
pub mod consumer;
pub mod demo;
pub mod diagnostic;
pub mod discovery;
pub mod fetch;
pub mod fields;
pub mod filter;
pub mod forwarded;
pub mod http1;
pub mod identity;
pub mod jwt;
pub mod limit;
pub mod listener;
pub mod mirror;
pub mod proxy;
pub mod readiness;
pub mod redis_link;
pub mod rejection;
pub mod reload;
pub mod request;
pub mod respond;
pub mod route;
pub mod server;
pub mod signature;
pub mod snapshot;
pub mod state;
pub mod systemd;
pub mod telemetry;
pub mod template;
pub mod text;
pub mod tls;
pub mod tracked;
pub mod upgrade;
pub mod upstream;
pub mod value;

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
