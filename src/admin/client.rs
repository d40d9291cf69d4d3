//! The other end of the admin listener, for the verbs of the command line.

use crate::fetch::{self, Answer, Stream};
use crate::value::Address;
use bytes::Bytes;
use http::{Method, Request, StatusCode, header};
use http_body_util::Empty;
use std::io;
use std::time::Duration;

/// An answer larger than this is not from a gateway.
const MAX_ANSWER: usize = 64 << 20;

/// One request; waits at most `patience` for the whole answer.
pub async fn call(address: &Address, method: Method, path: &str, patience: Duration) -> io::Result<(StatusCode, Bytes)> {
    let exchange = async {
        match address {
            Address::Tcp(address) => exchange(tokio::net::TcpStream::connect(address).await?, method, path).await,
            Address::Unix(socket) => exchange(tokio::net::UnixStream::connect(socket).await?, method, path).await,
        }
    };
    match tokio::time::timeout(patience, exchange).await {
        Ok(done) => done,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {patience:?}"))),
    }
}

async fn exchange<S: Stream + 'static>(stream: S, method: Method, path: &str) -> io::Result<(StatusCode, Bytes)> {
    let request = Request::builder().method(method).uri(path).header(header::HOST, "localhost");
    let request = request.body(Empty::<Bytes>::new()).map_err(io::Error::other)?;
    let Answer { head, body } = fetch::exchange(stream, request, MAX_ANSWER).await.map_err(io::Error::other)?;
    Ok((head.status, body.map_err(io::Error::other)?))
}
