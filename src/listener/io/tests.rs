use super::super::date::Date;
use super::*;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Instant;
use tokio::net::UnixStream;

const LIMITS: HeadLimits = HeadLimits { max_header: 4096, max_headers: 16, max_uri: 1024, allow_underscores: false };
const TOLERANCE: Tolerance = Tolerance { pause: Duration::from_millis(200), rate: 100_000 };
const BOUNDS: IoBounds = IoBounds { body: TOLERANCE, write: TOLERANCE, tunnel: Tolerance { rate: 0, ..TOLERANCE } };
const SOON: Duration = Duration::from_secs(5);

fn watched() -> (UnixStream, EdgeIo<UnixStream>, Arc<Found>) {
    let (client, server) = UnixStream::pair().unwrap();
    let digest = SocketDigest::from_raw_fd(std::os::fd::AsRawFd::as_raw_fd(&server));
    let faults = Arc::new(Found::default());
    (client, EdgeIo::new(server, digest, None, BOUNDS, faults.clone()), faults)
}

/// The last fault that was reported, the date of the next head, the trailers of its answer, and those of the request.
#[derive(Default)]
struct Found(AtomicU8, parking_lot::Mutex<Option<Date>>, parking_lot::Mutex<Vec<u8>>, parking_lot::Mutex<Vec<u8>>);

impl Faults for Found {
    fn report(&self, fault: Fault) {
        self.0.store(fault as u8, Ordering::Relaxed);
    }

    fn upgrade_deadline(&self) -> Option<Instant> {
        None
    }

    fn cut_off(&self) -> bool {
        false
    }

    fn date(&self) -> Option<Date> {
        self.1.lock().take()
    }

    fn trailers(&self) -> Vec<u8> {
        std::mem::take(&mut self.2.lock())
    }

    fn asked_trailers(&self, section: &[u8]) {
        self.3.lock().extend_from_slice(section);
    }
}

impl Found {
    fn is(&self, fault: Fault) -> bool {
        self.0.load(Ordering::Relaxed) == fault as u8
    }
}

fn pair() -> (UnixStream, EdgeIo<UnixStream>) {
    let (client, io, _) = watched();
    (client, io)
}

async fn head(io: &mut EdgeIo<UnixStream>) -> Vec<u8> {
    assert!(io.wait().await.unwrap());
    let (head, bytes) = io.read_head(&LIMITS, SOON).await.unwrap();
    assert_eq!(head.len, bytes.len());
    bytes.to_vec()
}

#[tokio::test]
async fn a_session_reads_its_own_body_and_not_a_byte_of_the_next_request() {
    let (mut client, mut io) = pair();
    let first = b"POST /1 HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n";
    let second = b"GET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(&[first, &b"hello"[..], second].concat()).await.unwrap();
    assert_eq!(head(&mut io).await, first);

    // A session that asks for more than there is gets the body, and then waits as if the client were silent.
    let mut body = [0; 64];
    assert_eq!(io.read(&mut body).await.unwrap(), 5);
    assert_eq!(&body[..5], b"hello");
    let waiting = tokio::time::timeout(Duration::from_millis(20), io.read(&mut body)).await;
    assert!(waiting.is_err(), "{waiting:?}");

    assert_eq!(head(&mut io).await, second);
}

#[tokio::test]
async fn bytes_that_come_while_an_answer_is_awaited_are_kept_for_the_next_request() {
    let (mut client, mut io) = pair();
    let request = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    client.write_all(request).await.unwrap();
    assert_eq!(head(&mut io).await, request);
    client.write_all(request).await.unwrap();
    let mut probe = [0; 1];
    let waiting = tokio::time::timeout(Duration::from_millis(20), io.read(&mut probe)).await;
    assert!(waiting.is_err(), "{waiting:?}");
    assert_eq!(head(&mut io).await, request);
}

#[tokio::test]
async fn a_session_notices_that_the_client_has_gone() {
    let (mut client, mut io) = pair();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    head(&mut io).await;
    drop(client);
    assert_eq!(tokio::time::timeout(SOON, io.read(&mut [0; 1])).await.unwrap().unwrap(), 0);
    assert!(!io.wait().await.unwrap());
}

#[tokio::test]
async fn small_writes_leave_together_when_they_are_flushed_or_the_session_waits() {
    let (mut client, mut io) = pair();
    let mut buffer = [0; 64];
    for flushed in [true, false] {
        io.write_all(b"head ").await.unwrap();
        io.write_all(b"body").await.unwrap();
        assert!(client.try_read(&mut buffer).is_err(), "nothing leaves before the flush");
        if flushed {
            io.flush().await.unwrap();
        } else {
            let waiting = tokio::time::timeout(Duration::from_millis(20), io.read(&mut [0; 1])).await;
            assert!(waiting.is_err(), "{waiting:?}");
        }
        let length = tokio::time::timeout(SOON, client.read(&mut buffer)).await.unwrap().unwrap();
        assert_eq!(&buffer[..length], b"head body");
    }
}

#[tokio::test]
async fn large_writes_keep_their_order() {
    let (mut client, mut io) = pair();
    let large: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    // A socket that is nearly full takes a part of what was collected, a part of what follows, or the one and not the other.
    let pieces: Vec<Vec<u8>> =
        large.chunks(20_011).enumerate().flat_map(|(at, piece)| [vec![at as u8; 7_000], piece.to_vec()]).collect();
    let expected = pieces.concat();
    let writer = tokio::spawn(async move {
        for piece in &pieces {
            io.write_all(piece).await.unwrap();
        }
        io.flush().await.unwrap();
        io
    });
    let mut read = vec![0; expected.len()];
    for part in read.chunks_mut(3_001) {
        client.read_exact(part).await.unwrap();
    }
    assert!(read == expected, "bytes were lost or changed places");
    writer.await.unwrap();
}

#[tokio::test]
async fn a_head_has_one_deadline_however_it_drips() {
    let (mut client, mut io) = pair();
    let drip = tokio::spawn(async move {
        for byte in b"GET / HTTP/1.1\r\nhost: a\r\nx: ".iter().cycle() {
            if client.write_all(&[*byte]).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    assert!(io.wait().await.unwrap());
    let result = io.read_head(&LIMITS, Duration::from_millis(200)).await;
    assert!(matches!(result, Err(HeadError::Timeout)), "{:?}", result.map(|(_, bytes)| bytes));
    drop(io);
    drip.await.unwrap();
}

#[tokio::test]
async fn a_body_that_drips_is_found_out() {
    let (mut client, mut io, faults) = watched();
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1000\r\n\r\n").await.unwrap();
    head(&mut io).await;
    let drip = tokio::spawn(async move {
        while client.write_all(b"x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    let read = async {
        loop {
            if let Err(error) = io.read(&mut [0; 64]).await {
                return error;
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, read).await.unwrap().kind(), io::ErrorKind::TimedOut);
    assert!(faults.is(Fault::SlowBody));
    drop(io);
    drip.await.unwrap();
}

#[tokio::test]
async fn a_client_that_does_not_read_is_found_out() {
    let (mut client, mut io, faults) = watched();
    client.write_all(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    head(&mut io).await;
    let write = async {
        loop {
            if let Err(error) = io.write_all(&[b'x'; 4096]).await {
                return error;
            }
        }
    };
    assert_eq!(tokio::time::timeout(SOON, write).await.unwrap().kind(), io::ErrorKind::TimedOut);
    assert!(faults.is(Fault::SlowReader));
}

const UPGRADE: &[u8] = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";

#[tokio::test]
async fn nothing_comes_through_between_an_upgrade_and_its_101() {
    let (mut client, mut io, faults) = watched();
    client.write_all(UPGRADE).await.unwrap();
    head(&mut io).await;
    client.write_all(b"early").await.unwrap();
    let read = tokio::time::timeout(SOON, io.read(&mut [0; 64])).await.unwrap();
    assert_eq!(read.unwrap_err().kind(), io::ErrorKind::InvalidData);
    assert!(faults.is(Fault::EarlyBytes));

    let (mut client, mut io) = pair();
    client.write_all(&[UPGRADE, b"early"].concat()).await.unwrap();
    assert!(io.wait().await.unwrap());
    let refused = io.read_head(&LIMITS, SOON).await;
    assert!(matches!(refused, Err(HeadError::Malformed(Malformed::EarlyUpgradeBytes))));
}

#[tokio::test]
async fn a_tunnel_is_open_both_ways_and_ends_when_both_are_silent() {
    let (mut client, mut io, faults) = watched();
    let tunnel = Tolerance { pause: Duration::from_secs(2), ..TOLERANCE };
    io.set_bounds(IoBounds { tunnel, ..BOUNDS });
    client.write_all(UPGRADE).await.unwrap();
    head(&mut io).await;
    io.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.unwrap();
    io.flush().await.unwrap();
    client.write_all(b"frame").await.unwrap();
    let mut buffer = [0; 64];
    assert_eq!(io.read(&mut buffer).await.unwrap(), 5);
    // One direction is enough to keep it open.
    for _ in 0..10 {
        io.write_all(b"frame").await.unwrap();
        let silent = tokio::time::timeout(Duration::from_millis(250), io.read(&mut buffer)).await;
        assert!(silent.is_err(), "{silent:?}");
    }
    let ended = tokio::time::timeout(SOON, io.read(&mut buffer)).await.unwrap();
    assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
    assert!(faults.is(Fault::IdleTunnel));
}

#[tokio::test]
async fn a_chunked_body_ends_where_it_ends_and_the_next_request_is_kept() {
    let (mut client, mut io) = pair();
    let first = b"POST /1 HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
    let (body, second) = (b"5\r\nhello\r\n0\r\n\r\n", b"GET /2 HTTP/1.1\r\nhost: a\r\n\r\n");
    // The end and the next request in one read from the buffer, and then from the socket.
    for cut in [first.len() + body.len() + second.len(), first.len(), first.len() + 7] {
        let all = [&first[..], body, second].concat();
        client.write_all(&all[..cut]).await.unwrap();
        assert_eq!(head(&mut io).await, first);
        client.write_all(&all[cut..]).await.unwrap();
        let mut read = Vec::new();
        while read.len() < body.len() {
            let mut piece = [0; 64];
            let n = io.read(&mut piece).await.unwrap();
            read.extend_from_slice(&piece[..n]);
        }
        assert_eq!(read, body);
        let waiting = tokio::time::timeout(Duration::from_millis(20), io.read(&mut [0; 8])).await;
        assert!(waiting.is_err(), "{waiting:?}");
        assert_eq!(head(&mut io).await, second);
    }
}

#[tokio::test]
async fn a_chunked_body_with_two_readings_is_a_fault() {
    let (mut client, mut io, found) = watched();
    client.write_all(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5;\nx\r\nhello\r\n").await.unwrap();
    head(&mut io).await;
    assert!(io.read(&mut [0; 64]).await.is_err() && found.is(Fault::BadChunk));
}

#[tokio::test]
async fn a_head_keeps_the_date_that_it_came_with() {
    let (mut client, mut io, found) = watched();
    let head = "HTTP/1.1 200 OK\r\nDate: Sat, 28 Nov 2026 18:00:00 GMT\r\na: b\r\n\r\n";
    let body = head.replace("200", "201");
    let mut bytes = [0; 256];
    for date in [Some(*b"Sun, 06 Nov 1994 08:49:37 GMT"), None] {
        *found.1.lock() = date;
        let want = head.replace(
            "Sat, 28 Nov 2026 18:00:00 GMT",
            date.as_ref().map_or("Sat, 28 Nov 2026 18:00:00 GMT", |date| std::str::from_utf8(date).unwrap()),
        );
        io.write_all(b"HTTP/1.1 103 X\r\n\r\n").await.unwrap();
        io.write_all(head.as_bytes()).await.unwrap();
        // A body is none of it, whatever it looks like.
        io.write_all(body.as_bytes()).await.unwrap();
        io.flush().await.unwrap();
        let length = client.read(&mut bytes).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes[..length]), format!("HTTP/1.1 103 X\r\n\r\n{want}{body}"));
    }
}

#[tokio::test]
async fn trailers_take_the_place_of_the_last_chunk_and_of_nothing_that_looks_like_it() {
    let (mut client, mut io, found) = watched();
    *found.2.lock() = b"x-sum: 1\r\n".to_vec();
    for part in ["HTTP/1.1 200 OK\r\n\r\n", "5\r\n", "0\r\n\r\n", "\r\n", "3\r\n", "5\r\n", "\r\n", "0\r\n\r\n"] {
        io.write_all(part.as_bytes()).await.unwrap();
    }
    // And of the next answer, which has none.
    for part in ["HTTP/1.1 200 OK\r\n\r\n", "0\r\n\r\n"] {
        io.write_all(part.as_bytes()).await.unwrap();
    }
    io.flush().await.unwrap();
    drop(io);
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert_eq!(
        all,
        "HTTP/1.1 200 OK\r\n\r\n5\r\n0\r\n\r\n\r\n3\r\n5\r\n\r\n0\r\nx-sum: 1\r\n\r\n\
         HTTP/1.1 200 OK\r\n\r\n0\r\n\r\n"
    );
}

/// An HTTP/2 connection that idles owns nothing here: the `h2` crate has buffers of its own.
#[tokio::test]
async fn streams_hold_no_buffer_once_what_was_there_is_read_and_sent() {
    let (mut client, mut io) = pair();
    client.write_all(&[PREFACE, b"frames"].concat()).await.unwrap();
    assert!(io.wait().await.unwrap());
    assert!(io.starts_with_preface(SOON).await.unwrap());
    io.open_streams();
    let mut seen = [0; 30];
    io.read_exact(&mut seen).await.unwrap();
    assert_eq!((seen.strip_prefix(PREFACE), io.read.capacity()), (Some(&b"frames"[..]), 0));
    io.write_all(b"settings").await.unwrap();
    assert!(io.write.capacity() > 0);
    io.flush().await.unwrap();
    assert_eq!(io.write.capacity(), 0);
    client.read_exact(&mut seen[..8]).await.unwrap();
    assert_eq!(&seen[..8], b"settings");
}
