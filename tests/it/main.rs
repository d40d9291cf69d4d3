//! Everything that is tested through the real binary: one test crate, so that it links once, and one helper library
//! (`support`) so that a test reads as the sentence that it checks.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod access;
mod access_log;
mod accuracy;
mod activation;
mod answers;
mod auth;
mod authorised_path;
mod balance;
mod bounds;
mod cache;
mod cache_callers;
mod cache_redis;
mod cache_rfc;
mod compress;
mod crowd;
mod custom_filter;
mod discovery;
mod faults;
mod floods;
mod frames;
mod golden;
mod grpc;
mod headers;
mod hedging;
mod http2;
mod issued;
mod jwt;
mod keepalive;
mod leases;
mod limits;
mod limits_kinds;
mod limits_together;
mod malformed;
mod metrics;
mod oauth;
mod problem;
mod proxy_protocol;
mod redis_topologies;
mod redis_uses;
mod reload;
mod resilience;
mod rolling;
mod routing;
mod signed;
mod status;
mod steer;
mod stop;
mod support;
mod systemd;
mod tls;
mod upgrade;
mod upstreams;
mod websocket;
