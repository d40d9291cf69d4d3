//! Copies of requests for another upstream, whose answers nobody reads.
//!
//! A request that is copied pays for a copy of its head, and for handles to the pieces of its body, which it shares. What is
//! done with the copy happens on a thread of its own ([`Worker`]) behind a bounded queue, after the request has ended: when
//! the other upstream is slow, the queue is full, copies are dropped, and the main path never knows.

use crate::http1::trailers::Passing;
use crate::telemetry::metrics::Counter;
use crate::upstream::exchanger::{Exchanger, Request};
use crate::upstream::{Tried, Upstream};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use pingora::http::RequestHeader;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};

/// Copies that wait, of all routes together, and the bytes of their bodies.
const QUEUE: usize = 1_024;
const QUEUE_BYTES: usize = 64 << 20;
/// Copies under way at once.
const AT_ONCE: usize = 128;

/// Connections that are kept for the next copy.
const IDLE: usize = 128;
/// The most of an answer that is read for the sake of its connection, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// What belongs to the connection that a request came on, and what frames its body, which is sent as a whole.
const NOT_COPIED: [HeaderName; 7] = [
    header::CONNECTION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::UPGRADE,
    header::EXPECT,
    header::TRAILER,
];

/// What becomes of copies.
#[derive(Debug, Default)]
pub struct MirrorMetrics {
    /// An answer came, whatever it was.
    pub answered: Counter,
    /// None came in time.
    pub failed: Counter,
    /// The queue was full.
    pub busy: Counter,
    /// The body was larger than what is copied, or did not come to its end.
    pub body: Counter,
}

/// The mirror of one route.
pub struct Mirror {
    pub upstream: Arc<Upstream>,
    pub metrics: Arc<MirrorMetrics>,
    share: u32,
    max_body: usize,
    timeout: Duration,
    worker: Arc<Worker>,
}

/// What a mirror copies, and for how long.
#[derive(Debug, Clone, Copy)]
pub struct MirrorBounds {
    /// Of the requests, in parts per million.
    pub share: u32,
    /// In bytes.
    pub max_body: usize,
    pub timeout: Duration,
}

/// A copy that is being made.
pub struct MirrorCopy {
    mirror: Arc<Mirror>,
    head: RequestHeader,
    body: Vec<Bytes>,
    length: usize,
    ended: bool,
}

impl Mirror {
    pub fn new(upstream: Arc<Upstream>, metrics: Arc<MirrorMetrics>, bounds: MirrorBounds, worker: Arc<Worker>) -> Arc<Self> {
        let MirrorBounds { share, max_body, timeout } = bounds;
        Arc::new(Mirror { upstream, metrics, share, max_body, timeout, worker })
    }

    /// Begins a copy of a request as its upstream gets it, if this one is among those that are copied.
    pub fn begin(self: &Arc<Self>, head: &RequestHeader) -> Option<Box<MirrorCopy>> {
        if fastrand::u32(..1_000_000) >= self.share {
            return None;
        }
        let head = copy(head)?;
        Some(Box::new(MirrorCopy { mirror: Arc::clone(self), head, body: Vec::new(), length: 0, ended: false }))
    }
}

/// The head without what belongs to its connection; the host in the header `Host`.
fn copy(head: &RequestHeader) -> Option<RequestHeader> {
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| http::uri::PathAndQuery::from_static("/"));
    let mut request = http::Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = Uri::from(path);
    let mut headers: HeaderMap = head.headers.clone();
    NOT_COPIED.iter().for_each(|name| drop(headers.remove(name)));
    if let Some(authority) = head.uri.authority() {
        headers.insert(header::HOST, authority.as_str().parse().ok()?);
    }
    *request.headers_mut() = headers;
    // A CONNECT has no path, and its answer no end.
    (head.method != Method::CONNECT).then(|| RequestHeader::from(request.into_parts().0))
}

impl MirrorCopy {
    /// The body begins anew: the request is sent again.
    pub fn restart(&mut self) {
        self.body = Vec::new();
        (self.length, self.ended) = (0, false);
    }

    /// One more piece of the body. `end`: it was the last.
    pub fn piece(&mut self, piece: Option<&Bytes>, end: bool) {
        self.ended |= end;
        let Some(piece) = piece else { return };
        self.length = self.length.saturating_add(piece.len());
        if self.length <= self.mirror.max_body {
            self.body.push(piece.clone());
        } else {
            self.body = Vec::new();
        }
    }

    /// The request has come to its end: hands the copy on. `empty`: it has no body.
    pub fn finish(self, empty: bool) {
        let MirrorCopy { mirror, head, body, length, ended } = self;
        if length > mirror.max_body || !(ended || empty) {
            mirror.metrics.body.increment();
            return;
        }
        let worker = Arc::clone(&mirror.worker);
        if !worker.take(Job { mirror: Arc::clone(&mirror), head, body, length }) {
            mirror.metrics.busy.increment();
        }
    }
}

struct Job {
    mirror: Arc<Mirror>,
    head: RequestHeader,
    body: Vec<Bytes>,
    length: usize,
}

/// Sends a copy, and reads its answer to throw it away. The caller bounds the time.
async fn send(exchanger: Arc<Exchanger>, upstream: &Upstream, mut head: RequestHeader, body: &[Bytes]) -> Result<(), String> {
    let endpoint = upstream.select(&Tried::new()).ok_or("no endpoint takes traffic")?.begin();
    if !body.is_empty() || matches!(head.method, Method::POST | Method::PUT | Method::PATCH) {
        let length: usize = body.iter().map(Bytes::len).sum();
        let _ = head.insert_header(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    let request = Request { head: &head, body, keep: endpoint.may_pool() };
    let answer = exchanger.send(endpoint.http_peer(None, std::time::Instant::now(), Passing::default()), request, |_| {}).await;
    answer.map_err(|failed| failed.error.to_string())?.discard(ANSWER_MAX).await;
    Ok(())
}

/// The thread that sends copies. One for all mirrors of a process; it ends with the last of them.
pub struct Worker {
    /// `None` where nothing is to be sent, such as for `check`.
    jobs: Option<mpsc::Sender<Job>>,
    bytes: Arc<AtomicUsize>,
}

impl Worker {
    /// A dry one drops everything.
    pub fn start(dry: bool) -> Self {
        let bytes = Arc::<AtomicUsize>::default();
        let (jobs, queue) = mpsc::channel(QUEUE);
        let waiting = Arc::clone(&bytes);
        let started = !dry && {
            let thread = std::thread::Builder::new().name("mirror".to_owned());
            match thread.spawn(move || run(queue, &waiting)) {
                Ok(_) => true,
                Err(error) => {
                    log::error!("requests are not mirrored: no thread for it: {error}");
                    false
                }
            }
        };
        Worker { jobs: started.then_some(jobs), bytes }
    }

    fn take(&self, job: Job) -> bool {
        let Some(jobs) = &self.jobs else { return false };
        let length = job.length;
        if self.bytes.fetch_add(length, Relaxed).saturating_add(length) > QUEUE_BYTES || jobs.try_send(job).is_err() {
            self.bytes.fetch_sub(length, Relaxed);
            return false;
        }
        true
    }
}

fn run(mut queue: mpsc::Receiver<Job>, bytes: &Arc<AtomicUsize>) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return log::error!("requests are not mirrored: {error}"),
    };
    crate::upstream::apart();
    runtime.block_on(async move {
        let places = Arc::new(Semaphore::new(AT_ONCE));
        // One of its own: connections belong to the runtime that opened them.
        let exchanger = Arc::new(Exchanger::new(IDLE));
        while let Ok(place) = Arc::clone(&places).acquire_owned().await {
            let Some(job) = queue.recv().await else { return };
            let (exchanger, bytes) = (Arc::clone(&exchanger), Arc::clone(bytes));
            tokio::spawn(async move {
                let Job { mirror, head, body, length } = job;
                let sent = tokio::time::timeout(mirror.timeout, send(exchanger, &mirror.upstream, head, &body)).await;
                match sent {
                    Ok(Ok(())) => mirror.metrics.answered.increment(),
                    Ok(Err(why)) => {
                        log::debug!("mirror {}: {why}", mirror.upstream.name());
                        mirror.metrics.failed.increment();
                    }
                    Err(_) => mirror.metrics.failed.increment(),
                }
                bytes.fetch_sub(length, Relaxed);
                drop(place);
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_no_header_of_the_connection_and_a_host() {
        let mut head = RequestHeader::build("POST", b"/a?b=c", None).unwrap();
        for (name, value) in [("connection", "x"), ("content-length", "3"), ("te", "trailers"), ("x-kept", "1"), ("host", "h")] {
            head.insert_header(name, value).unwrap();
        }
        let copied = copy(&head).unwrap();
        let mut names: Vec<&str> = copied.headers.keys().map(|name| name.as_str()).collect();
        names.sort_unstable();
        assert_eq!((names, copied.uri.to_string().as_str()), (vec!["host", "x-kept"], "/a?b=c"));
        assert!(copy(&RequestHeader::build("CONNECT", b"/", None).unwrap()).is_none());
    }
}
