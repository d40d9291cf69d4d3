//! The configuration: one tree of structs, read from TOML files.
//!
//! [`load`] reads files, directories and includes, and reports everything that is wrong with them at once. The same
//! structs give the parser, the JSON Schema ([`schema()`]) and the reference page ([`reference()`]); a test keeps the three
//! equal. To add a section: its struct, its field in [`Config`], and in `load.rs` its name and its arm of the match; the
//! tests fail until all four are there. What a filter takes is the filter's own business, see
//! [`crate::filter::FilterConfig`].

mod admin;
mod decode;
mod filters;
mod interpolate;
mod limits;
mod listener;
mod load;
mod log;
mod reference;
mod route;
mod schema;
mod server;
mod split;
mod suggest;
mod syntax;
mod tree;
mod validate;

#[cfg(test)]
mod tests;

pub use admin::AdminConfig;
pub use filters::{FilterEntry, Filters};
pub use limits::{LimitsConfig, RedisConfig};
pub use listener::{Http2, ListenerConfig, ProxyProtocolConfig};
pub use load::{DEFAULT_PATH, FILE_MAX, Loaded, load, load_text};
pub use log::{AccessFormat, AccessLogConfig, AccessOutput, Level, LogConfig};
pub use reference::reference;
pub use route::{ChainConfig, ClientDeadline, RouteConfig, RouteTimeouts};
pub use schema::schema;
pub use server::{HeaderCase, ServerConfig};
pub use split::{KeepConfig, KeepCookie, MirrorConfig, PartConfig, SplitConfig};
pub use tree::{Config, Entry, Named, Unread};
