//! One health check on the wire.
//!
//! Pingora's `HttpHealthCheck` and `TcpHealthCheck` are not used here. Each of them owns a connector, and each connector
//! reads and parses the system's certificate store from disk when it is made (and panics if it cannot), which is too much
//! for something that exists once for each upstream and is made by a reload. They also bound single reads, not the
//! check as a whole, and read a body without limit. This does one exchange on a connection of its own, and nothing of it
//! is left when the future is dropped.

mod grpc;

use super::health::{CheckError, Definition};
use crate::fetch::beside;
use crate::tls::ClientTls;
use bytes::Bytes;
use http::header;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use std::io;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::client::TlsStream;

/// The most of a response's body that is read, in bytes: enough for what health pages say, so that the endpoint sees an
/// orderly end and not a reset.
const BODY_MAX: usize = 64 << 10;
/// The longest response head, in bytes.
const HEAD_MAX: usize = 64 << 10;

/// Checks once, in at most `limit`. How long the head of the response took, or the connection of a TCP check.
pub(super) async fn check(address: SocketAddr, definition: &Definition, limit: Duration) -> Result<Duration, CheckError> {
    let started = Instant::now();
    let Some(deadline) = started.checked_add(limit) else { return Err(CheckError::Timeout) };
    let probe = async {
        let stream = TcpStream::connect(address).await.map_err(|error| match error.kind() {
            io::ErrorKind::ConnectionRefused => CheckError::Refused,
            io::ErrorKind::TimedOut => CheckError::Timeout,
            _ => CheckError::Connect,
        })?;
        match definition {
            Definition::Tcp => Ok(started.elapsed()),
            Definition::Http { path, host, expect, http2, tls } => {
                let question = Question { path, host, http2: *http2, started, deadline };
                let status = match tls {
                    None => exchange(stream, &question, "http").await?,
                    Some(tls) => exchange(secure(stream, tls, *http2).await?, &question, "https").await?,
                };
                if expect.contains(status.code) { Ok(status.after) } else { Err(CheckError::Status(status.code)) }
            }
            Definition::Grpc { service, host, tls } => {
                let done = match tls {
                    None => grpc::ask(stream, service, host, "http").await,
                    Some(tls) => grpc::ask(secure(stream, tls, true).await?, service, host, "https").await,
                };
                done.map(|()| started.elapsed())
            }
        }
    };
    timeout_at(deadline, probe).await.unwrap_or(Err(CheckError::Timeout))
}

struct Answer {
    code: u16,
    after: Duration,
}

/// What is asked, and how long there is for it.
struct Question<'a> {
    path: &'a str,
    host: &'a str,
    http2: bool,
    started: Instant,
    deadline: Instant,
}

/// The TLS that requests use: an endpoint whose certificate does not pass is not healthy.
async fn secure(stream: TcpStream, tls: &ClientTls, http2: bool) -> Result<TlsStream<TcpStream>, CheckError> {
    tls.handshake(stream, http2).await.map_err(|_| CheckError::Connect)
}

async fn exchange<T>(stream: T, question: &Question<'_>, scheme: &str) -> Result<Answer, CheckError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = http::Request::get(question.path)
        .header(header::USER_AGENT, concat!("gatewright/", env!("CARGO_PKG_VERSION"), " (health check)"));
    if question.http2 {
        let target = format!("{scheme}://{}{}", question.host, question.path);
        let request = request.uri(target).body(Empty::<Bytes>::new()).map_err(|_| CheckError::Protocol)?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        let handshake = builder.max_header_list_size(HEAD_MAX as u32).handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|_| CheckError::Protocol)?;
        return converse(sender.send_request(request), connection, question).await;
    }
    let request = request.header(header::HOST, question.host).header(header::CONNECTION, "close");
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| CheckError::Protocol)?;
    let handshake = http1::Builder::new().max_buf_size(HEAD_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| CheckError::Protocol)?;
    converse(sender.send_request(request), connection, question).await
}

/// The response to a request, on a connection that is polled with it.
async fn converse<R, C>(response: R, connection: C, question: &Question<'_>) -> Result<Answer, CheckError>
where
    R: Future<Output = hyper::Result<http::Response<Incoming>>>,
    C: Future<Output = hyper::Result<()>>,
{
    let talk = async {
        let response = response.await.map_err(|_| CheckError::Protocol)?;
        let answer = Answer { code: response.status().as_u16(), after: question.started.elapsed() };
        // The status has decided; whatever becomes of the body does not change it.
        let _ = timeout_at(question.deadline, Limited::new(response.into_body(), BODY_MAX).collect()).await;
        Ok(answer)
    };
    beside(talk, connection).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::config::StatusRange;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    const SOON: Duration = Duration::from_millis(100);
    const LONG: Duration = Duration::from_secs(10);

    fn http(path: &str) -> Definition {
        Definition::Http { path: path.into(), host: "orders:80".into(), expect: StatusRange::SUCCESS, http2: false, tls: None }
    }

    /// A server for one connection: reads a request head, answers `bytes`, and waits for the other side to close.
    async fn server(bytes: &'static [u8]) -> (SocketAddr, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            stream.write_all(bytes).await.unwrap();
            let _ = stream.read(&mut [0]).await;
            String::from_utf8(head).unwrap()
        });
        (address, task)
    }

    #[tokio::test]
    async fn an_expected_status_passes_and_the_request_is_as_configured() {
        let (address, seen) = server(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        let took = check(address, &http("/health?deep=1"), LONG).await.unwrap();
        assert!(took < LONG);
        let head = seen.await.unwrap();
        assert!(head.starts_with("GET /health?deep=1 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("host: orders:80\r\n") && head.contains("connection: close\r\n"), "{head}");
    }

    #[tokio::test]
    async fn another_status_fails_and_is_named() {
        let (address, _seen) = server(b"HTTP/1.1 503 No\r\ncontent-length: 2\r\n\r\nno").await;
        assert_eq!(check(address, &http("/"), LONG).await, Err(CheckError::Status(503)));
    }

    #[tokio::test]
    async fn what_is_not_http_fails() {
        let (address, _seen) = server(b"SSH-2.0-OpenSSH\r\n").await;
        assert_eq!(check(address, &http("/"), LONG).await, Err(CheckError::Protocol));
    }

    #[tokio::test]
    async fn silence_fails_after_the_timeout() {
        let (address, _seen) = server(b"").await;
        assert_eq!(check(address, &http("/"), SOON).await, Err(CheckError::Timeout));
    }

    #[tokio::test]
    async fn a_head_in_drops_does_not_prolong_the_check() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let drip = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            while stream.write_all(b"H").await.is_ok() && stream.write_all(b"").await.is_ok() {
                tokio::time::sleep(SOON / 10).await;
            }
        });
        let started = Instant::now();
        assert!(check(address, &http("/"), SOON).await.is_err());
        assert!(started.elapsed() < LONG);
        drip.abort();
    }

    #[tokio::test]
    async fn an_endless_body_does_not_turn_a_good_status_into_a_failure() {
        let (address, _seen) = server(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n").await;
        let took = check(address, &http("/"), SOON).await.unwrap();
        assert!(took <= SOON);
    }

    #[tokio::test]
    async fn a_closed_port_is_refused_and_an_open_one_passes_over_tcp() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(check(address, &Definition::Tcp, LONG).await.is_ok());
        drop(listener);
        assert_eq!(check(address, &Definition::Tcp, LONG).await, Err(CheckError::Refused));
    }
}
