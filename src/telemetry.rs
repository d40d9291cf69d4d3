//! What the gateway says about itself: its own log, a line for each request, and numbers for Prometheus.
//!
//! Everything here is called from the request path and must cost next to nothing there: a metric is an atomic that the
//! caller holds a handle to, a line is built in a buffer that its thread reuses, and both kinds of log reach their
//! output through a [`writer::Writer`], which drops and counts records rather than make a request wait for a disk or a
//! pipe. Nothing here knows Pingora, so that each part is tested alone.

pub mod access_log;
pub mod histogram;
pub mod json;
pub mod logger;
pub mod metrics;
pub mod process;
pub mod rate_limit;
pub mod timestamp;
pub mod writer;
