//! The connections with the service: kept, bounded, and given up when it does not answer.

use crate::fetch::{Endpoint, HEAD_MAX, connect};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

/// The longest body that is read so that its connection can be used again. The body itself means nothing.
const BODY_MAX: usize = 64 << 10;
/// Idle connections that are kept, and how long: less than most servers keep theirs.
const IDLE_MAX: usize = 32;
const IDLE_FOR: Duration = Duration::from_secs(4);
/// After how many failures in a row the service is left alone, and for how long.
const FAILURES_MAX: u32 = 5;
const REST: Duration = Duration::from_secs(1);

/// What the service says, without its body.
pub(super) struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
}

/// Why there is no answer, for the log.
#[derive(Debug)]
pub(super) enum NoAnswer {
    /// The service was not asked, so that this says nothing about it.
    NotAsked(&'static str),
    Failed(String),
}

impl std::fmt::Display for NoAnswer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NoAnswer::NotAsked(why) => f.write_str(why),
            NoAnswer::Failed(why) => f.write_str(why),
        }
    }
}

pub(super) struct Client {
    at: Endpoint,
    tls: Option<TlsConnector>,
    idle: Mutex<Vec<(SendRequest<Empty<Bytes>>, Instant)>>,
    places: Semaphore,
    breaker: Mutex<Breaker>,
}

#[derive(Default)]
struct Breaker {
    failures: u32,
    rests_until: Option<Instant>,
}

impl Client {
    pub fn new(at: Endpoint, tls: Option<TlsConnector>, most: usize) -> Self {
        Client { at, tls, idle: Mutex::default(), places: Semaphore::new(most), breaker: Mutex::default() }
    }

    pub fn at(&self) -> &Endpoint {
        &self.at
    }

    pub fn worked(&self) {
        *self.breaker.lock() = Breaker::default();
    }

    pub fn failed(&self, now: Instant) {
        let mut breaker = self.breaker.lock();
        breaker.failures = breaker.failures.saturating_add(1);
        if breaker.failures >= FAILURES_MAX {
            if breaker.failures == FAILURES_MAX {
                log::warn!("{} fails, so that requests that need it are refused", self.at);
            }
            breaker.rests_until = now.checked_add(REST);
        }
    }

    /// Whether the service may be asked now. When its rest is over, by one request until that has an answer or failed.
    fn may_ask(&self, now: Instant) -> bool {
        let mut breaker = self.breaker.lock();
        match breaker.rests_until {
            Some(until) if now < until => false,
            Some(_) => {
                breaker.rests_until = now.checked_add(REST);
                true
            }
            None => true,
        }
    }

    /// Asks once; the caller bounds the time. The error is for the log.
    pub async fn ask(&self, headers: HeaderMap, now: Instant) -> Result<Answer, NoAnswer> {
        if !self.may_ask(now) {
            return Err(NoAnswer::NotAsked("it failed just now and is left alone"));
        }
        let _place = self.places.try_acquire().map_err(|_| NoAnswer::NotAsked("too many requests wait for it already"))?;
        // A connection that the service closed in the meantime says nothing about the service.
        if let Some(sender) = self.take_idle(now)
            && let Ok(answer) = self.exchange(sender, headers.clone(), now).await
        {
            return Ok(answer);
        }
        let stream = connect(&self.at, self.tls.as_ref()).await.map_err(NoAnswer::Failed)?;
        let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(|e| NoAnswer::Failed(e.to_string()))?;
        // Ends when the sender is dropped, or the service closes.
        tokio::spawn(async move {
            let _ = connection.await;
        });
        self.exchange(sender, headers, now).await.map_err(NoAnswer::Failed)
    }

    fn take_idle(&self, now: Instant) -> Option<SendRequest<Empty<Bytes>>> {
        let mut idle = self.idle.lock();
        while let Some((sender, since)) = idle.pop() {
            if sender.is_ready() && now.saturating_duration_since(since) < IDLE_FOR {
                return Some(sender);
            }
        }
        None
    }

    async fn exchange(&self, mut sender: SendRequest<Empty<Bytes>>, headers: HeaderMap, now: Instant) -> Result<Answer, String> {
        let mut request = Request::get(&self.at.target).body(Empty::new()).map_err(|e| e.to_string())?;
        *request.headers_mut() = headers;
        let authority = HeaderValue::from_str(&self.at.authority).map_err(|e| e.to_string())?;
        request.headers_mut().insert(header::HOST, authority);
        let response = sender.send_request(request).await.map_err(|e| format!("the answer is not HTTP: {e}"))?;
        let (head, body) = response.into_parts();
        let whole = Limited::new(body, BODY_MAX).collect().await.is_ok();
        if whole && sender.is_ready() {
            let mut idle = self.idle.lock();
            if idle.len() < IDLE_MAX {
                idle.push((sender, now));
            }
        }
        Ok(Answer { status: head.status, headers: head.headers })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_that_fails_is_left_alone_and_then_tried_by_one() {
        let client = Client::new(Endpoint::parse("http://127.0.0.1:1/").unwrap(), None, 1);
        let now = Instant::now();
        (0..FAILURES_MAX).for_each(|_| {
            assert!(client.may_ask(now));
            client.failed(now);
        });
        assert!(!client.may_ask(now) && !client.may_ask(now + REST / 2));
        assert!(client.may_ask(now + REST), "one tries");
        assert!(!client.may_ask(now + REST), "the others wait for it");
        client.failed(now + REST);
        assert!(!client.may_ask(now + REST * 3 / 2));
        client.worked();
        assert!(client.may_ask(now) && client.may_ask(now));
    }

    #[tokio::test]
    async fn no_more_wait_than_there_is_room_for() {
        let client = Client::new(Endpoint::parse("http://127.0.0.1:1/").unwrap(), None, 1);
        let _taken = client.places.try_acquire().unwrap();
        assert!(matches!(client.ask(HeaderMap::new(), Instant::now()).await, Err(NoAnswer::NotAsked(_))));
    }
}
