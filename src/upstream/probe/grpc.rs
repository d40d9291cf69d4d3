//! The gRPC health checking protocol (<https://github.com/grpc/grpc/blob/master/doc/health-checking.md>): one unary call, whose
//! two messages have one field each, so that neither a gRPC nor a protobuf library is needed.

use super::CheckError;
use bytes::{BufMut, Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};

const PATH: &str = "/grpc.health.v1.Health/Check";
/// `HealthCheckResponse.ServingStatus.SERVING`.
const SERVING: u64 = 1;
/// The longest answer, in bytes. A right one has seven.
const ANSWER_MAX: usize = 4 << 10;
const HEAD_MAX: u32 = 16 << 10;

/// Asks for one service on a connection of its own. The caller bounds the time.
pub(super) async fn ask<T>(stream: T, service: &str, host: &str, scheme: &str) -> Result<(), CheckError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = http::Request::post(format!("{scheme}://{host}{PATH}"))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, concat!("gatewright/", env!("CARGO_PKG_VERSION"), " (health check)"))
        .body(Full::new(question(service)))
        .map_err(|_| CheckError::Protocol)?;
    let mut builder = http2::Builder::new(TokioExecutor::new());
    let handshake = builder.max_header_list_size(HEAD_MAX).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| CheckError::Protocol)?;
    let talk = async {
        let response = sender.send_request(request).await.map_err(|_| CheckError::Protocol)?;
        if response.status() != StatusCode::OK {
            return Err(CheckError::Status(response.status().as_u16()));
        }
        // An answer without a message has its trailers in the head.
        status(response.headers())?;
        let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await.map_err(|_| CheckError::Protocol)?;
        if let Some(trailers) = body.trailers() {
            status(trailers)?;
        }
        match answer(&body.to_bytes()).ok_or(CheckError::Protocol)? {
            SERVING => Ok(()),
            other => Err(CheckError::NotServing(u8::try_from(other).unwrap_or(u8::MAX))),
        }
    };
    // Polled side by side and not spawned, so that dropping this future closes the connection.
    tokio::pin!(talk, connection);
    tokio::select! {
        done = &mut talk => done,
        _ = &mut connection => talk.await,
    }
}

fn status(headers: &HeaderMap) -> Result<(), CheckError> {
    match headers.get("grpc-status").map(|code| code.to_str().ok().and_then(|code| code.parse::<u8>().ok())) {
        None | Some(Some(0)) => Ok(()),
        Some(Some(code)) => Err(CheckError::Grpc(code)),
        Some(None) => Err(CheckError::Protocol),
    }
}

/// `HealthCheckRequest { string service = 1; }` behind the prefix of a message: not compressed, and its length.
fn question(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        varint(service.len() as u64, &mut message);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(0));
    framed.put_slice(&message);
    framed.freeze()
}

fn varint(mut number: u64, out: &mut BytesMut) {
    while number >= 0x80 {
        out.put_u8((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.put_u8(number as u8);
}

/// The status in `HealthCheckResponse { ServingStatus status = 1; }`; 0, which is not written, if it is absent. `None`: this is
/// no such message.
fn answer(framed: &[u8]) -> Option<u64> {
    let (prefix, message) = framed.split_at_checked(5)?;
    let [0, length @ ..] = prefix else { return None };
    let length = u32::from_be_bytes(length.try_into().ok()?);
    let mut rest = message.get(..usize::try_from(length).ok()?)?;
    let mut status = 0;
    while !rest.is_empty() {
        let (key, after) = read_varint(rest)?;
        match key & 7 {
            0 => {
                let (value, after) = read_varint(after)?;
                if key >> 3 == 1 {
                    status = value;
                }
                rest = after;
            }
            2 => {
                let (length, after) = read_varint(after)?;
                rest = after.get(usize::try_from(length).ok()?..)?;
            }
            1 => rest = after.get(8..)?,
            5 => rest = after.get(4..)?,
            _ => return None,
        }
    }
    Some(status)
}

fn read_varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let mut number = 0_u64;
    for (at, byte) in bytes.iter().take(10).enumerate() {
        number |= u64::from(byte & 0x7f).checked_shl(u32::try_from(at).ok()? * 7)?;
        if byte & 0x80 == 0 {
            return Some((number, bytes.get(at + 1..)?));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::health::Definition;
    use crate::upstream::probe::check;
    use hyper::service::service_fn;
    use std::convert::Infallible;
    use std::net::SocketAddr;
    use std::time::Duration;
    use tokio::net::TcpListener;

    #[test]
    fn messages_are_as_protobuf_has_them() {
        assert_eq!(&question("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&question("abc")[..], [0, 0, 0, 0, 5, 0x0a, 3, b'a', b'b', b'c']);
        assert_eq!(question(&"x".repeat(200)).len(), 5 + 1 + 2 + 200);
        assert_eq!(answer(&[0, 0, 0, 0, 2, 8, 1]), Some(1));
        assert_eq!(answer(&[0, 0, 0, 0, 0]), Some(0), "UNKNOWN is not written");
        assert_eq!(answer(&[0, 0, 0, 0, 5, 0x12, 1, 7, 8, 2]), Some(2), "unknown fields are passed over");
        for wrong in [&[][..], &[0, 0, 0, 0, 9, 8, 1], &[1, 0, 0, 0, 2, 8, 1], &[0, 0, 0, 0, 2, 8, 0x80], &[0, 0, 0, 0, 1, 0x0b]]
        {
            assert_eq!(answer(wrong), None, "{wrong:?}");
        }
    }

    /// A server of the protocol that answers every question with these, and tells what it was asked.
    async fn server(body: &'static [u8], code: &'static str) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (tell, asked) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let tell = tell.clone();
                let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                    let tell = tell.clone();
                    async move {
                        let uri = request.uri().to_string();
                        let kind = request.headers()["content-type"].to_str().unwrap().to_owned();
                        let body_of = request.into_body().collect().await.unwrap().to_bytes();
                        let _ = tell.send(format!("{uri} {kind} {}", String::from_utf8_lossy(&body_of[5..]).trim()));
                        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), code.parse().unwrap())]);
                        let body = Full::new(Bytes::from_static(body)).with_trailers(async move { Some(Ok(trailers)) });
                        Ok::<_, Infallible>(
                            http::Response::builder().header("content-type", "application/grpc").body(body).unwrap(),
                        )
                    }
                });
                let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
            }
        });
        (address, asked)
    }

    async fn outcome(body: &'static [u8], code: &'static str) -> Result<Duration, CheckError> {
        let (address, _asked) = server(body, code).await;
        let definition = Definition::Grpc { service: "orders.v1.Orders".into(), host: "orders:80".into(), tls: None };
        check(address, &definition, Duration::from_secs(10)).await
    }

    #[tokio::test]
    async fn only_serving_passes() {
        assert!(outcome(&[0, 0, 0, 0, 2, 8, 1], "0").await.is_ok());
        assert_eq!(outcome(&[0, 0, 0, 0, 2, 8, 2], "0").await, Err(CheckError::NotServing(2)));
        assert_eq!(outcome(&[0, 0, 0, 0, 0], "0").await, Err(CheckError::NotServing(0)));
        assert_eq!(outcome(&[], "5").await, Err(CheckError::Grpc(5)), "NOT_FOUND: the service is unknown");
        assert_eq!(outcome(&[1, 2, 3], "0").await, Err(CheckError::Protocol));
    }

    #[tokio::test]
    async fn the_question_is_a_call_of_the_protocol() {
        let (address, mut asked) = server(&[0, 0, 0, 0, 2, 8, 1], "0").await;
        let definition = Definition::Grpc { service: "orders".into(), host: "orders:80".into(), tls: None };
        check(address, &definition, Duration::from_secs(10)).await.unwrap();
        let expected = "http://orders:80/grpc.health.v1.Health/Check application/grpc \u{6}orders";
        assert_eq!(asked.recv().await.as_deref(), Some(expected));
    }
}
