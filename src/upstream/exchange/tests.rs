//! Exchanges over scripted transports.

use super::*;
use crate::http1::corpus::rows;
use crate::http1::trailers::Trailers;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// Gives these pieces, one a read; then it is silent, or at its end.
#[derive(Debug, Default)]
struct Script {
    pieces: VecDeque<Vec<u8>>,
    ends: bool,
    /// Takes nothing after the first write.
    deaf: bool,
    /// What was written, one entry a call.
    written: Arc<parking_lot::Mutex<Vec<Vec<u8>>>>,
}

impl AsyncRead for Script {
    fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, out: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.pieces.pop_front() {
            Some(piece) => {
                let part = piece.len().min(out.remaining());
                out.put_slice(&piece[..part]);
                if part < piece.len() {
                    self.pieces.push_front(piece[part..].to_vec());
                }
                Poll::Ready(Ok(()))
            }
            None if self.ends => Poll::Ready(Ok(())),
            None => Poll::Pending,
        }
    }
}

impl AsyncWrite for Script {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        if self.deaf && !self.written.lock().is_empty() {
            return Poll::Pending;
        }
        self.written.lock().push(data.to_vec());
        Poll::Ready(Ok(data.len()))
    }
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Counts what comes home, and unasked words.
#[derive(Debug, Clone, Default)]
struct Counts(Arc<AtomicUsize>, Arc<AtomicUsize>);

impl Home<Script> for Counts {
    fn take_back(&mut self, _: Line<Script>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
    fn spoke_unasked(&self) {
        self.1.fetch_add(1, Ordering::Relaxed);
    }
}

impl Counts {
    fn seen(&self) -> (usize, usize) {
        (self.0.load(Ordering::Relaxed), self.1.load(Ordering::Relaxed))
    }
}

fn script(pieces: &[&[u8]]) -> Script {
    Script { pieces: pieces.iter().map(|piece| piece.to_vec()).collect(), ..Script::default() }
}

/// How long a write may take, and what is waited for in vain.
const SOON: Duration = Duration::from_millis(20);

async fn asked(script: Script, request: &[u8]) -> (Exchange<Script, Counts>, Counts) {
    let counts = Counts::default();
    let mut exchange = Exchange::new(
        Line::new(script),
        counts.clone(),
        Patience { read: None, write: Some(SOON) },
        request.starts_with(b"GET /upgrade"),
        Passing::default(),
    );
    exchange.write_all(request).await.unwrap();
    exchange.flush().await.unwrap();
    (exchange, counts)
}

/// What comes until there is nothing more, with reads of so many bytes.
fn read_on(exchange: &mut Exchange<Script, Counts>, most: usize) -> Result<Vec<u8>, Malformed> {
    let mut all = Vec::new();
    loop {
        let mut room = vec![0; most];
        let mut out = ReadBuf::new(&mut room);
        match Pin::new(&mut *exchange).poll_read(&mut Context::from_waker(Waker::noop()), &mut out) {
            Poll::Ready(Ok(())) if out.filled().is_empty() => return Ok(all),
            Poll::Ready(Ok(())) => all.extend_from_slice(out.filled()),
            Poll::Ready(Err(error)) => return Err(*error.get_ref().unwrap().downcast_ref().unwrap()),
            Poll::Pending => return Ok(all),
        }
    }
}

const GET: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";

#[tokio::test]
async fn an_answer_passes_unchanged_in_any_pieces_and_any_room() {
    let bytes: &[u8] = b"HTTP/1.1 103 X\r\n\r\nHTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    for size in [1, 2, 3, 7, 17, 18, 19, 40, bytes.len()] {
        for room in [2, 3, 5, 20, 4096] {
            let pieces: Vec<&[u8]> = bytes.chunks(size).collect();
            let (mut exchange, _) = asked(script(&pieces), GET).await;
            assert_eq!(read_on(&mut exchange, room).unwrap(), bytes, "pieces of {size}, room for {room}");
        }
    }
}

/// Writes a part of a body that is too large to be collected, and gives up.
async fn write_in_vain(exchange: &mut Exchange<Script, Counts>) {
    let late = exchange.write(&[b'x'; 20_000]).await.unwrap_err();
    assert_eq!(named(late, ErrorType::WriteError), ErrorType::WriteTimedout);
}

#[tokio::test]
async fn a_request_that_is_not_taken_has_no_answer_but_one_that_came_early() {
    let deaf = |pieces: &[&[u8]]| Script { deaf: true, ..script(pieces) };
    let post = b"POST / HTTP/1.1\r\ncontent-length: 20000\r\n\r\n";
    let (mut exchange, _) = asked(deaf(&[]), post).await;
    assert!(matches!(read_on(&mut exchange, 9), Ok(none) if none.is_empty()), "as long as nothing is given up");
    write_in_vain(&mut exchange).await;
    let mut byte = [0];
    let read = exchange.read(&mut byte).await;
    assert_eq!(named(read.unwrap_err(), ErrorType::ReadError), ErrorType::WriteTimedout);

    let early: &[&[u8]] = &[b"HTTP/1.1 413 X\r\ncontent-length: 2\r\n\r\n", b"no"];
    let (mut exchange, _) = asked(deaf(early), post).await;
    write_in_vain(&mut exchange).await;
    assert_eq!(read_on(&mut exchange, 4096).unwrap(), early.concat());
}

#[tokio::test]
async fn of_a_refused_answer_only_earlier_pieces_pass() {
    for ([name, question, reason], bytes) in rows::<3>(include_str!("../../../tests/corpus/http1/answers.txt")) {
        let request: &[u8] = match question {
            "head" => b"HEAD / HTTP/1.1\r\n\r\n",
            "upgrade" => b"GET /upgrade HTTP/1.1\r\n\r\n",
            _ => GET,
        };
        let (mut exchange, counts) = asked(script(&[&bytes]), request).await;
        assert_eq!(read_on(&mut exchange, 4096).expect_err(name).name(), reason, "{name}");
        drop(exchange);
        let pieces: Vec<&[u8]> = bytes.chunks(1).collect();
        let (mut exchange, drip) = asked(script(&pieces), request).await;
        // Room for more than a byte: with one, it would be the look of Pingora at a connection that is over.
        assert_eq!(
            read_on(&mut exchange, 9).map_or_else(Malformed::name, |_| "over before"),
            match reason {
                "excess_bytes" => "over before",
                reason => reason,
            },
            "{name}"
        );
        drop(exchange);
        assert_eq!((counts.seen().0, drip.seen().0), (0, 0), "{name}: the connection is kept");
    }
}

#[tokio::test]
async fn a_connection_goes_home_only_when_its_exchange_is_over_and_it_is_quiet() {
    let answer: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab";
    // What Pingora does: it reads the answer, then one byte, and drops the connection when it ends.
    let kept = async |pieces: &[&[u8]], ends: bool, read: bool, look: bool| {
        let script = Script { ends, ..script(pieces) };
        let (mut exchange, counts) = asked(script, GET).await;
        if read {
            let mut answer = vec![0; answer.len()];
            exchange.read_exact(&mut answer).await.unwrap();
        }
        if look {
            assert_eq!(exchange.read(&mut [0]).await.unwrap(), 0);
        }
        drop(exchange);
        counts.seen()
    };
    assert_eq!(kept(&[answer], false, true, true).await, (1, 0));
    assert_eq!(kept(&[answer], false, true, false).await, (0, 0), "Pingora does not want to keep it");
    assert_eq!(kept(&[answer], true, true, true).await, (0, 0), "the endpoint has closed it");
    assert_eq!(kept(&[answer, b"HTTP/1.1 200 OK\r\n"], false, true, true).await, (0, 1), "the endpoint speaks on");
    assert_eq!(kept(&[answer], false, false, false).await, (0, 0), "the answer was not read");
    // It breaks off: the end is the endpoint's, and no answer is over.
    let (mut exchange, counts) = asked(Script { ends: true, ..script(&[&answer[..answer.len() - 1]]) }, GET).await;
    assert_eq!(read_on(&mut exchange, 4096).unwrap().len(), answer.len() - 1);
    assert_eq!(exchange.read(&mut [0]).await.unwrap(), 0);
    drop(exchange);
    assert_eq!(counts.seen(), (0, 0));
}

#[tokio::test]
async fn a_shutdown_connection_never_goes_home() {
    let (mut exchange, counts) = asked(script(&[b"HTTP/1.1 204 X\r\n\r\n"]), GET).await;
    assert_eq!(read_on(&mut exchange, 100).unwrap(), b"HTTP/1.1 204 X\r\n\r\n");
    assert_eq!(exchange.read(&mut [0]).await.unwrap(), 0);
    exchange.shutdown().await.unwrap();
    drop(exchange);
    assert_eq!(counts.seen(), (0, 0));
}

#[tokio::test]
async fn a_chunk_leaves_in_one_write_and_a_body_does_not_wait_for_a_flush() {
    let script = script(&[]);
    let written = Arc::clone(&script.written);
    let (mut exchange, _) = asked(script, b"POST / HTTP/1.1\r\n\r\n").await;
    for part in [&b"5\r\n"[..], b"hello", b"\r\n"] {
        exchange.write_all(part).await.unwrap();
    }
    assert_eq!(written.lock().len(), 1, "the head");
    exchange.flush().await.unwrap();
    assert_eq!(written.lock()[1..], [b"5\r\nhello\r\n".to_vec()]);
    exchange.write_all(b"part of a body of known length").await.unwrap();
    // Pingora flushes only at its end, but waits for the answer meanwhile.
    assert_eq!(read_on(&mut exchange, 100).unwrap(), b"");
    assert_eq!(written.lock()[2..], [b"part of a body of known length".to_vec()]);
}

#[tokio::test]
async fn a_tunnel_is_left_alone() {
    let frames: &[u8] = b"HTTP/1.1 101 X\r\nupgrade: b\r\n\r\n\x81\x00\r\nHTTP/1.1";
    let (mut exchange, counts) = asked(script(&[frames, b"more"]), b"GET /upgrade HTTP/1.1\r\n\r\n").await;
    assert_eq!(read_on(&mut exchange, 4096).unwrap(), [frames, b"more"].concat());
    drop(exchange);
    assert_eq!(counts.seen(), (0, 0));
}

#[test]
fn the_reason_is_found_in_what_pingora_makes_of_it() {
    let io = io::Error::new(io::ErrorKind::InvalidData, Malformed::Excess);
    let inner = Error::because(pingora::ErrorType::ReadError, "while reading", io);
    assert_eq!(malformed(&inner), Some(Malformed::Excess));
    assert_eq!(malformed(&inner.more_context("with context")), Some(Malformed::Excess));
    let other = Error::because(pingora::ErrorType::ReadError, "x", io::Error::from(io::ErrorKind::ConnectionReset));
    assert_eq!(malformed(&other), None);
    assert_eq!(malformed(&Error::new(pingora::ErrorType::ReadError)), None);
}

/// The error of a read, as Pingora would pass it on, with the name that it has then.
fn named(error: io::Error, pingora: ErrorType) -> ErrorType {
    let mut error = Error::because(pingora, "of Pingora", error);
    name_late(&mut error);
    error.etype().clone()
}

#[tokio::test]
async fn a_silent_endpoint_is_waited_for_so_long_and_not_longer() {
    let patience = Patience { read: Some(SOON), write: None };
    // The beginning of a head is not yet an answer.
    for pieces in [&[][..], &[&b"HTTP/1.1 200 OK\r\nX-A"[..]][..]] {
        let mut exchange = Exchange::new(Line::new(script(pieces)), Counts::default(), patience, false, Passing::default());
        exchange.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        let begun = Instant::now();
        let late = exchange.read(&mut [0; 100]).await.unwrap_err();
        assert!(begun.elapsed() >= SOON);
        assert_eq!(named(late, ErrorType::ReadError), ErrorType::ReadTimedout);
    }
    // What has come ends the wait, and a next one begins.
    let mut exchange = Exchange::new(
        Line::new(script(&[b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n"])),
        Counts::default(),
        patience,
        false,
        Passing::default(),
    );
    exchange.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(exchange.read(&mut [0; 100]).await.unwrap() > 0);
    let begun = Instant::now();
    let late = exchange.read(&mut [0; 100]).await.unwrap_err();
    assert!(begun.elapsed() >= SOON);
    assert_eq!(named(late, ErrorType::ReadError), ErrorType::ReadTimedout);
}

#[tokio::test]
async fn an_endpoint_that_takes_nothing_is_waited_for_so_long_and_not_longer() {
    let (ours, theirs) = tokio::io::duplex(10);
    let patience = Patience { read: None, write: Some(SOON) };
    let mut exchange = Exchange::new(Line::new(ours), (), patience, false, Passing::default());
    let begun = Instant::now();
    // What is left of it is kept for the flush.
    exchange.write_all(b"GET /that-does-not-fit HTTP/1.1\r\n\r\n").await.unwrap();
    let late = exchange.flush().await.unwrap_err();
    assert!(begun.elapsed() >= SOON);
    assert_eq!(named(late, ErrorType::WriteError), ErrorType::WriteTimedout);
    drop(theirs);
}

#[test]
fn other_errors_keep_their_name() {
    let reset = io::Error::from(io::ErrorKind::ConnectionReset);
    assert_eq!(named(reset, ErrorType::ReadError), ErrorType::ReadError);
    // The kernel's own, of a connection whose packets nobody acknowledges.
    assert_eq!(named(io::ErrorKind::TimedOut.into(), ErrorType::ReadError), ErrorType::ReadError);
}

#[tokio::test]
async fn trailers_are_left_for_the_client_that_wants_them() {
    let answer: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nab\r\n0\r\nx-sum: 1\r\nage: 2\r\n\r\n";
    for size in [1, 5, 40, answer.len()] {
        let pieces: Vec<_> = answer.chunks(size).collect();
        let trailers = Arc::new(Trailers::default());
        let passing = Passing { answer: Some(trailers.clone()), ..Passing::default() };
        let mut exchange = Exchange::new(Line::new(script(&pieces)), Counts::default(), Patience::default(), false, passing);
        exchange.write_all(GET).await.unwrap();
        exchange.flush().await.unwrap();
        assert_eq!(read_on(&mut exchange, 64).unwrap(), answer);
        assert_eq!(trailers.take(), b"x-sum: 1\r\n", "in pieces of {size}");
    }
}

#[tokio::test]
async fn a_chunked_request_ends_with_its_trailers_each_time_that_it_is_sent() {
    let trailers = Arc::new(Trailers::default());
    trailers.keep_section(b"x-sum: 1\r\n");
    let head = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\nx-last: 0\r\n\r\n";
    for _ in 0..2 {
        let (transport, passing) = (script(&[]), Passing { request: Some(trailers.clone()), ..Passing::default() });
        let written = transport.written.clone();
        let mut exchange = Exchange::new(Line::new(transport), Counts::default(), Patience::default(), false, passing);
        for part in [head, "5\r\n", "0\r\n\r\n", "\r\n", "0\r\n\r\n"] {
            exchange.write_all(part.as_bytes()).await.unwrap();
        }
        exchange.flush().await.unwrap();
        let all = String::from_utf8(written.lock().concat()).unwrap();
        assert_eq!(all, format!("{head}5\r\n0\r\n\r\n\r\n0\r\nx-sum: 1\r\n\r\n"));
    }
}
