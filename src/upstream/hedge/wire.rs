//! The connection that Pingora believes in: it writes the request into the void, for the race has its head already, and
//! reads the answer of whoever wins as HTTP/1.1.

use crate::upstream::exchanger::Answer;
use bytes::{BufMut, Bytes, BytesMut};
use http::{Method, header};
use pingora::http::ResponseHeader;
use pingora::protocols::l4::virt::{VirtualSockOpt, VirtualSocket};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;

/// Pieces that wait for their reader. Further ones wait in the connection they come from.
const PIECES: usize = 4;

/// The end that Pingora reads from. It ends when the sender is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    pieces: mpsc::Receiver<Bytes>,
    current: Bytes,
}

/// The end that is written to.
pub(super) type Out = mpsc::Sender<Bytes>;

pub(super) fn pair() -> (Out, Socket) {
    let (out, pieces) = mpsc::channel(PIECES);
    (out, Socket { pieces, current: Bytes::new() })
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let socket = self.get_mut();
        while socket.current.is_empty() {
            match ready!(socket.pieces.poll_recv(cx)) {
                Some(piece) => socket.current = piece,
                None => return Poll::Ready(Ok(())),
            }
        }
        let piece = socket.current.split_to(socket.current.len().min(buf.remaining()));
        buf.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl VirtualSocket for Socket {
    fn set_socket_option(&self, _: VirtualSockOpt) -> io::Result<()> {
        // The sockets below were set up when they were opened.
        Ok(())
    }
}

/// A head as HTTP/1.1 writes it.
pub(super) fn head_bytes(head: &ResponseHeader) -> Bytes {
    let mut bytes = BytesMut::with_capacity(512);
    bytes.put_slice(b"HTTP/1.1 ");
    bytes.put_slice(head.status.as_str().as_bytes());
    bytes.put_u8(b' ');
    bytes.put_slice(head.get_reason_phrase().unwrap_or_default().as_bytes());
    bytes.put_slice(b"\r\n");
    head.header_to_h1_wire(&mut bytes);
    bytes.put_slice(b"\r\n");
    bytes.freeze()
}

/// Passes an answer on. `true`: the whole of it was read, so that its connection may be kept.
pub(super) async fn pump(answer: &mut Answer, method: &Method, out: &Out) -> bool {
    let Some(mut head) = answer.head().cloned() else { return false };
    // Its framing was checked and undone; what follows is framed anew.
    head.remove_header(&header::TRANSFER_ENCODING);
    let bodyless = *method == Method::HEAD || matches!(head.status.as_u16(), 204 | 304);
    let chunked = !bodyless && !head.headers.contains_key(header::CONTENT_LENGTH);
    if chunked && head.insert_header(header::TRANSFER_ENCODING, "chunked").is_err() {
        return false;
    }
    if out.send(head_bytes(&head)).await.is_err() {
        return false;
    }
    let mut begun = false;
    loop {
        match answer.piece().await {
            Ok(Some(piece)) if piece.is_empty() => {}
            Ok(Some(piece)) => {
                let before = if begun { "\r\n" } else { "" };
                let size = chunked.then(|| Bytes::from(format!("{before}{:x}\r\n", piece.len())));
                begun = true;
                for bytes in size.into_iter().chain([piece]) {
                    if out.send(bytes).await.is_err() {
                        return false;
                    }
                }
            }
            Ok(None) => break,
            // The reader finds the body cut off.
            Err(_) => return false,
        }
    }
    let end = if begun { "\r\n0\r\n\r\n" } else { "0\r\n\r\n" };
    !chunked || out.send(Bytes::from_static(end.as_bytes())).await.is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn what_is_sent_is_read_in_order_and_ends_with_the_sender() {
        let (out, mut socket) = pair();
        socket.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
        for piece in ["ab", "", "cde"] {
            out.send(Bytes::from_static(piece.as_bytes())).await.unwrap();
        }
        drop(out);
        let mut read = vec![0; 3];
        assert_eq!(socket.read_exact(&mut read).await.unwrap(), 3);
        socket.read_to_end(&mut read).await.unwrap();
        assert_eq!(read, b"abcde");
    }

    #[test]
    fn a_head_is_written_with_its_reason_and_its_fields() {
        let mut head = ResponseHeader::build(404, None).unwrap();
        head.append_header("x-a", "1").unwrap();
        head.append_header("x-a", "2").unwrap();
        let text = String::from_utf8(head_bytes(&head).to_vec()).unwrap().to_ascii_lowercase();
        assert_eq!(text, "http/1.1 404 not found\r\nx-a: 1\r\nx-a: 2\r\n\r\n");
    }
}
