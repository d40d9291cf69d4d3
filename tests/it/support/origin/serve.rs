//! One connection of an [`super::Origin`]: requests in, scripted answers out.

use super::super::http1::find;
use super::{Answer, Phase, Recorded, Shared, until};
use serde_json::json;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::SystemTime;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// Serves until the peer or the script ends it, or the origin stops.
pub async fn connection(mut stream: TcpStream, shared: Arc<Shared>, phase: watch::Receiver<Phase>) {
    let _ = stream.set_nodelay(true);
    let mut killed = phase.clone();
    let reset = tokio::select! {
        ended = serve(&mut stream, &shared, phase) => matches!(ended, Ok(End::Reset)),
        () = until(&mut killed, |phase| phase == Phase::Killed) => true,
    };
    if reset {
        let _ = stream.set_zero_linger();
    }
}

enum End {
    Close,
    Reset,
}

async fn serve(stream: &mut TcpStream, shared: &Shared, mut phase: watch::Receiver<Phase>) -> io::Result<End> {
    let mut buffer = Vec::new();
    let mut served = 0;
    loop {
        let head = tokio::select! {
            head = read_head(stream, &mut buffer) => head?,
            // Only an idle connection ends here: a request of which one byte is in is still served.
            () = until(&mut phase, |phase| phase != Phase::Serving) => {
                if !buffer.is_empty() || stream.try_read_buf(&mut buffer).is_ok_and(|length| length > 0) {
                    read_head(stream, &mut buffer).await?
                } else {
                    return Ok(End::Close);
                }
            }
        };
        let Some(head) = head else { return Ok(End::Close) };
        let request = Recorded { body: Vec::new(), trailers: String::new(), head, at: SystemTime::now() };
        if request.header("expect").is_some_and(|v| v.eq_ignore_ascii_case("100-continue")) {
            stream.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
        }
        let (body, trailers) = read_body(stream, &mut buffer, &request).await?;
        let request = Recorded { body, trailers, ..request };
        served += 1;

        let line = request.request_line();
        let (method, rest) = line.split_once(' ').unwrap_or_default();
        let target = rest.rsplit_once(' ').unwrap_or_default().0;
        let to_head = method == "HEAD";
        if target == "/health" {
            shared.health_checks.fetch_add(1, Ordering::SeqCst);
            let status = if shared.healthy.load(Ordering::SeqCst) { 200 } else { 503 };
            stream.write_all(&response(status, "ok", to_head, false)).await?;
            continue;
        }
        let echo = echo(shared, &request, method, target);
        let mut answer = shared.answer.lock().clone();
        while let Answer::Sometimes(usually, percent, else_) = answer {
            answer = if fastrand::u8(0..100) < percent { *else_ } else { *usually };
        }
        // Counted before the script, which may hold it back and must not hold up the other origins of these threads.
        shared.record(request.clone());
        let scripted =
            if let Answer::Script(script) = &answer { tokio::task::block_in_place(|| script.0(&request)) } else { None };
        let draining = *phase.borrow() != Phase::Serving;
        let close = draining || matches!(answer, Answer::CloseAfter(limit) if served >= limit);
        match answer {
            Answer::Echo | Answer::CloseAfter(_) => stream.write_all(&response(200, &echo, to_head, close)).await?,
            Answer::Status(status) => stream.write_all(&response(status, &echo, to_head, close)).await?,
            Answer::Delay(delay) => {
                tokio::time::sleep(delay).await;
                let close = close || *phase.borrow() != Phase::Serving;
                stream.write_all(&response(200, &echo, to_head, close)).await?;
                if close {
                    return Ok(End::Close);
                }
            }
            Answer::Drip(interval) => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                for byte in echo.bytes() {
                    stream.write_all(&[b'1', b'\r', b'\n', byte, b'\r', b'\n']).await?;
                    tokio::time::sleep(interval).await;
                }
                stream.write_all(b"0\r\n\r\n").await?;
            }
            Answer::ResetBefore => return Ok(End::Reset),
            Answer::LateReset(delay) => {
                tokio::time::sleep(delay).await;
                return Ok(End::Reset);
            }
            Answer::ResetMid => {
                let whole = response(200, &echo, false, false);
                stream.write_all(&whole[..whole.len() - echo.len() / 2]).await?;
                return Ok(End::Reset);
            }
            Answer::TruncatedChunks => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n").await?;
                return Ok(End::Close);
            }
            // Until the peer gives up, or a stop would wait for it for ever.
            Answer::BlackHole => while stream.read_buf(&mut buffer).await? > 0 {},
            Answer::Garbage => {
                stream.write_all(b"\x16\x03\x01 this is not HTTP\r\n\r\n").await?;
                return Ok(End::Close);
            }
            Answer::HugeHeader(size) => {
                let filler = "x".repeat(size);
                stream.write_all(format!("HTTP/1.1 200 OK\r\nx-huge: {filler}\r\ncontent-length: 0\r\n\r\n").as_bytes()).await?;
            }
            Answer::InfiniteBody => {
                stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await?;
                let chunk = [format!("{:x}\r\n", 16 * 1024).into_bytes(), vec![b'x'; 16 * 1024], b"\r\n".to_vec()].concat();
                loop {
                    stream.write_all(&chunk).await?;
                }
            }
            Answer::Bytes(bytes) => stream.write_all(&bytes).await?,
            Answer::Script(_) => match scripted {
                Some(bytes) => stream.write_all(&bytes).await?,
                None => return Ok(End::Close),
            },
            Answer::InterimFlood => loop {
                stream.write_all(b"HTTP/1.1 103 Early Hints\r\nlink: </a.css>\r\n\r\n").await?;
            },
            Answer::Refuse(status, headers) => {
                let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: 0\r\n\r\n");
                stream.write_all(head.as_bytes()).await?;
            }
            Answer::Sometimes(..) => return Err(io::Error::other("resolved above")),
            Answer::Workers(workers, work) => {
                let worker = workers.acquire().await.map_err(io::Error::other)?;
                tokio::time::sleep(work).await;
                drop(worker);
                stream.write_all(&response(200, &echo, to_head, close)).await?;
            }
        }
        if close {
            return Ok(End::Close);
        }
    }
}

/// The next head with its empty line, or `None` when the peer closes before one byte of it.
async fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Option<Vec<u8>>> {
    loop {
        if let Some(end) = find(buffer, b"\r\n\r\n") {
            return Ok(Some(buffer.drain(..end + 4).collect()));
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
}

/// The content, and the trailers behind it.
async fn read_body(stream: &mut TcpStream, buffer: &mut Vec<u8>, request: &Recorded) -> io::Result<(Vec<u8>, String)> {
    let length = request.header("content-length").and_then(|v| v.parse().ok()).unwrap_or(0);
    if request.header("transfer-encoding").is_none() {
        fill(stream, buffer, length).await?;
        return Ok((buffer.drain(..length).collect(), String::new()));
    }
    let mut body = Vec::new();
    loop {
        let line = read_line(stream, buffer).await?;
        let size = String::from_utf8_lossy(&line).trim().split(';').next().and_then(|s| usize::from_str_radix(s, 16).ok());
        let size = size.ok_or_else(|| io::Error::other("bad chunk size"))?;
        if size == 0 {
            break;
        }
        fill(stream, buffer, size + 2).await?;
        body.extend(buffer.drain(..size + 2).take(size));
    }
    let mut trailers = Vec::new();
    loop {
        match read_line(stream, buffer).await? {
            line if line == b"\r\n" => return Ok((body, String::from_utf8_lossy(&trailers).into_owned())),
            line => trailers.extend_from_slice(&line),
        }
    }
}

/// The next line, with its break.
async fn read_line(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<Vec<u8>> {
    loop {
        match find(buffer, b"\r\n") {
            Some(end) => return Ok(buffer.drain(..end + 2).collect()),
            None => fill(stream, buffer, buffer.len() + 1).await?,
        }
    }
}

async fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>, length: usize) -> io::Result<()> {
    while buffer.len() < length {
        if stream.read_buf(buffer).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

fn echo(shared: &Shared, request: &Recorded, method: &str, target: &str) -> String {
    let head = String::from_utf8_lossy(&request.head).into_owned();
    let headers: Vec<(&str, &str)> =
        head.lines().skip(1).filter_map(|l| l.split_once(':')).map(|(name, value)| (name, value.trim())).collect();
    json!({
        "origin": shared.name,
        "method": method,
        "target": target,
        "headers": headers,
        "body": String::from_utf8_lossy(&request.body),
        "id": request.header("x-load-id"),
    })
    .to_string()
}

fn response(status: u16, body: &str, to_head: bool, close: bool) -> Vec<u8> {
    let connection = if close { "connection: close\r\n" } else { "" };
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n{connection}\r\n");
    if to_head { head.into_bytes() } else { [head.as_bytes(), body.as_bytes()].concat() }
}
