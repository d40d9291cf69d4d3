//! The access log: one line of JSON for each request, also for those that were refused.
//!
//! ```json
//! {"time":"2026-01-02T03:04:05.678901Z","request_id":"0198…","listener":"https","client":"192.0.2.7","method":"GET",
//!  "host":"api.example.com","path":"/orders/7","protocol":"HTTP/2","route":"orders","upstream":"orders",
//!  "endpoint":"10.0.0.4:3001","consumer":"acme","credential":"api_key:3f2a9c01","status":200,"bytes_in":0,
//!  "bytes_out":512,"duration":0.012345,"upstream_time":0.010210,"connect_time":0.000312,"attempts":1,"reused":false,"cache":"miss","user_agent":"curl/8.5.0"}
//! ```
//!
//! [`FIELDS`] names every field. A field that has no value is left out. The query of the target is never logged, because keys
//! and tokens are passed there. Whatever a client sends stays inside its field: see [`super::json`] for the escapes. A text field is cut after [`TEXT_MAX`] bytes (names and the user
//! agent after 512) and then ends in `…(+N bytes)`.
//!
//! With sampling, requests that went well are thinned out by a hash of their request id, so that gateways behind one another
//! keep the same ones. Errors are always logged: rejections, 5xx, transport errors, and requests that got no response.
//!
//! The line is built in a buffer that its thread keeps, without allocation, and handed to a [`Writer`].

use super::json::{push_seconds, push_string, push_u64};
use super::timestamp::{Precision, push_rfc3339};
use super::writer::Writer;
use crate::text::{put_ip, put_socket};
use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// The most bytes of one text field that are logged.
pub const TEXT_MAX: usize = 2 << 10;
/// The same for `method`, `user_agent` and the names: what is longer there is noise.
const SHORT_MAX: usize = 512;

/// One request, as seen at its end. Borrowed from it: nothing here is owned.
#[derive(Debug, Clone)]
pub struct AccessRecord<'a> {
    /// When the request was received.
    pub time: SystemTime,
    pub request_id: &'a str,
    pub listener: Option<&'a str>,
    pub client: IpAddr,
    /// As sent; not only known methods. Empty if the request was not understood that far; so are host and path.
    pub method: &'a [u8],
    pub host: &'a [u8],
    /// The path of the target, canonical as soon as it is known to have a canonical form. If it holds a query, the log leaves it out.
    pub path: &'a [u8],
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub protocol: &'static str,
    pub route: Option<&'a str>,
    pub upstream: Option<&'a str>,
    pub endpoint: Option<SocketAddr>,
    pub consumer: Option<&'a str>,
    /// Who it is from, where that is no consumer.
    pub subject: Option<&'a str>,
    /// The id of the credential, never the credential itself.
    pub credential: Option<&'a str>,
    /// `None` if no response was sent.
    pub status: Option<u16>,
    /// The code of the rejection, if the gateway answered by one.
    pub rejection: Option<&'a str>,
    /// What failed in transport or was wrong with the request, for operators.
    pub error: Option<&'a str>,
    /// Of the request body.
    pub bytes_in: u64,
    /// Of the response body.
    pub bytes_out: u64,
    /// From the first byte of the request to the last of the response.
    pub duration: Duration,
    /// From the start of the last attempt to the header of its response.
    pub upstream_time: Option<Duration>,
    /// Of the last attempt, if it opened a connection.
    pub connect_time: Option<Duration>,
    /// How often an endpoint was tried; 0 if the request went to none.
    pub attempts: u32,
    /// Whether the last attempt used a connection that was open already.
    pub reused: Option<bool>,
    /// What the cache of the route did.
    pub cache: Option<&'static str>,
    pub user_agent: Option<&'a [u8]>,
}

impl<'a> AccessRecord<'a> {
    /// A record with nothing but the facts that every request has; for the rest: `AccessRecord { .., ..AccessRecord::new(..) }`.
    pub fn new(time: SystemTime, request_id: &'a str, client: IpAddr) -> Self {
        AccessRecord {
            time,
            request_id,
            listener: None,
            client,
            method: b"",
            host: b"",
            path: b"",
            protocol: "",
            route: None,
            upstream: None,
            endpoint: None,
            consumer: None,
            subject: None,
            credential: None,
            status: None,
            rejection: None,
            error: None,
            bytes_in: 0,
            bytes_out: 0,
            duration: Duration::ZERO,
            upstream_time: None,
            connect_time: None,
            attempts: 0,
            reused: None,
            cache: None,
            user_agent: None,
        }
    }

    /// Whether sampling must keep it.
    fn is_error(&self) -> bool {
        self.status.is_none_or(|status| status >= 500) || self.rejection.is_some() || self.error.is_some()
    }
}

/// Names and meanings of all fields, in the order in which they are written.
pub const FIELDS: &[(&str, &str)] = &[
    ("time", "When the request was received: RFC 3339, UTC, microseconds"),
    ("request_id", "The id of the request, also sent to the endpoint and in the response"),
    ("listener", "The listener that accepted the connection"),
    ("client", "The client's address: the rightmost hop that is not a trusted proxy"),
    ("method", "The method as sent; absent if the request could not be read that far"),
    ("host", "The host that was asked for"),
    (
        "path",
        "The path in its canonical form, before filters rewrite it, without the query; as sent if the request was refused for it",
    ),
    ("protocol", "HTTP/1.0, HTTP/1.1 or HTTP/2"),
    ("route", "The route that matched"),
    ("upstream", "The upstream that the route chose"),
    ("endpoint", "The address of the endpoint that was tried last"),
    ("consumer", "The consumer that the request was authenticated as"),
    ("subject", "Who the request is from where that is no consumer: the subject of a token, or the name of a certificate"),
    ("credential", "The id of the credential that proved it; never the credential itself"),
    ("status", "The status of the response; absent if none was sent"),
    ("rejection", "The code of the rejection, if the gateway answered in place of the upstream"),
    ("error", "What failed in transport, or what was wrong with a request that could not be understood"),
    ("bytes_in", "Bytes of the request body"),
    ("bytes_out", "Bytes of the response body"),
    ("duration", "Seconds from the first byte of the request to the last of the response"),
    ("upstream_time", "Seconds from the start of the last attempt to the header of its response"),
    ("connect_time", "Seconds that the last attempt took to open a connection; absent if it reused one"),
    ("attempts", "How often an endpoint was tried"),
    ("reused", "Whether the last attempt used a connection that was open already"),
    (
        "cache",
        "On routes with a cache: hit, stale, revalidated, miss, collapsed (a miss that waited for another's fetch) or bypass",
    ),
    ("user_agent", "The User-Agent of the request"),
];

/// How an [`AccessLog`] writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AccessLogOptions {
    /// The share of requests without error that are logged, in parts per million. Default all.
    pub sample_per_million: u32,
}

impl Default for AccessLogOptions {
    fn default() -> Self {
        AccessLogOptions { sample_per_million: 1_000_000 }
    }
}

/// The access log as one snapshot is configured to write it. The writer outlives reloads that do not change the output.
pub struct AccessLog {
    writer: Arc<Writer>,
    options: AccessLogOptions,
}

impl AccessLog {
    pub fn new(writer: Arc<Writer>, options: AccessLogOptions) -> Self {
        AccessLog { writer, options }
    }

    /// Where the lines go, for its counters, [`Writer::flush`] and [`Writer::reopen`].
    pub fn writer(&self) -> &Arc<Writer> {
        &self.writer
    }

    /// Writes one line, if sampling keeps the request. Never blocks; a line that the queue has no room for is counted as dropped.
    pub fn write(&self, record: &AccessRecord<'_>) {
        thread_local!(static LINE: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) });
        if !record.is_error() && !sampled(record.request_id, self.options.sample_per_million) {
            return;
        }
        LINE.with_borrow_mut(|line| {
            line.clear();
            push_line(line, record);
            self.writer.push(line);
        });
    }
}

/// Whether a request id falls into the share. FNV-1a, finished by a multiplication so that its upper bits, which decide,
/// depend on the whole of the id.
fn sampled(request_id: &str, per_million: u32) -> bool {
    if per_million >= 1_000_000 {
        return true;
    }
    let fnv = request_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    // The upper 32 bits as a fraction of one.
    (mixed >> 32).wrapping_mul(1_000_000) >> 32 < u64::from(per_million)
}

/// The start of a field as bytes, made when the crate is compiled: `,"name":`.
macro_rules! key {
    ($name:literal) => {
        concat!(",\"", $name, "\":").as_bytes()
    };
}

/// Appends a record as a line of JSON with its newline.
fn push_line(out: &mut Vec<u8>, record: &AccessRecord<'_>) {
    let path_end = memchr::memchr2(b'?', b'#', record.path).unwrap_or(record.path.len());
    let path = record.path.get(..path_end).unwrap_or_default();

    out.extend_from_slice(b"{\"time\":\"");
    push_rfc3339(out, record.time, Precision::Micros);
    out.push(b'"');
    text(out, key!("request_id"), Some(record.request_id.as_bytes()), SHORT_MAX);
    text(out, key!("listener"), record.listener.map(str::as_bytes), SHORT_MAX);
    out.extend_from_slice(key!("client"));
    out.push(b'"');
    put_ip(out, record.client);
    out.push(b'"');
    text(out, key!("method"), filled(record.method), SHORT_MAX);
    text(out, key!("host"), filled(record.host), TEXT_MAX);
    text(out, key!("path"), filled(path), TEXT_MAX);
    text(out, key!("protocol"), filled(record.protocol.as_bytes()), SHORT_MAX);
    text(out, key!("route"), record.route.map(str::as_bytes), SHORT_MAX);
    text(out, key!("upstream"), record.upstream.map(str::as_bytes), SHORT_MAX);
    if let Some(endpoint) = record.endpoint {
        out.extend_from_slice(key!("endpoint"));
        out.push(b'"');
        put_socket(out, endpoint);
        out.push(b'"');
    }
    text(out, key!("consumer"), record.consumer.map(str::as_bytes), SHORT_MAX);
    text(out, key!("subject"), record.subject.map(str::as_bytes), SHORT_MAX);
    text(out, key!("credential"), record.credential.map(str::as_bytes), SHORT_MAX);
    if let Some(status) = record.status {
        number(out, key!("status"), status.into());
    }
    text(out, key!("rejection"), record.rejection.map(str::as_bytes), SHORT_MAX);
    text(out, key!("error"), record.error.map(str::as_bytes), SHORT_MAX);
    number(out, key!("bytes_in"), record.bytes_in);
    number(out, key!("bytes_out"), record.bytes_out);
    seconds(out, key!("duration"), Some(record.duration));
    seconds(out, key!("upstream_time"), record.upstream_time);
    seconds(out, key!("connect_time"), record.connect_time);
    number(out, key!("attempts"), record.attempts.into());
    if let Some(reused) = record.reused {
        out.extend_from_slice(key!("reused"));
        out.extend_from_slice(if reused { b"true" } else { b"false" });
    }
    text(out, key!("cache"), record.cache.map(str::as_bytes), SHORT_MAX);
    text(out, key!("user_agent"), record.user_agent, SHORT_MAX);
    out.extend_from_slice(b"}\n");
}

fn filled(bytes: &[u8]) -> Option<&[u8]> {
    (!bytes.is_empty()).then_some(bytes)
}

// Inlined, so that each key is copied as a constant of known length instead of by a call.
#[inline(always)]
fn text(out: &mut Vec<u8>, key: &[u8], value: Option<&[u8]>, limit: usize) {
    if let Some(value) = value {
        out.extend_from_slice(key);
        push_string(out, value, limit);
    }
}

#[inline(always)]
fn number(out: &mut Vec<u8>, key: &[u8], value: u64) {
    out.extend_from_slice(key);
    push_u64(out, value);
}

#[inline(always)]
fn seconds(out: &mut Vec<u8>, key: &[u8], value: Option<Duration>) {
    if let Some(value) = value {
        out.extend_from_slice(key);
        push_seconds(out, value);
    }
}

#[cfg(test)]
mod tests;
