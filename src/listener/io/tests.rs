use super::*;
use tokio::net::UnixStream;

const LIMITS: HeadLimits = HeadLimits { max_header: 4096, max_headers: 16, max_uri: 1024, allow_underscores: false };
const SOON: Duration = Duration::from_secs(5);

fn pair() -> (UnixStream, EdgeIo<UnixStream>) {
    let (client, server) = UnixStream::pair().unwrap();
    let digest = SocketDigest::from_raw_fd(std::os::fd::AsRawFd::as_raw_fd(&server));
    (client, EdgeIo::new(server, digest))
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
    let expected = [b"small ".to_vec(), large.clone(), b" end".to_vec()].concat();
    let writer = tokio::spawn(async move {
        io.write_all(b"small ").await.unwrap();
        io.write_all(&large).await.unwrap();
        io.write_all(b" end").await.unwrap();
        io.flush().await.unwrap();
        io
    });
    let mut read = vec![0; expected.len()];
    client.read_exact(&mut read).await.unwrap();
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
