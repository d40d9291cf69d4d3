//! The last chunk of a body with trailers, in place of the bare one that Pingora writes.
//!
//! Pingora writes the size of a chunk, its data and its end one after the other, and the last chunk in one piece. Data that look
//! like that piece follow the size of a chunk as long as it, or what was taken before of the same data.

use std::io;
use std::task::Poll;

/// The end of a chunked body as Pingora writes it, and the size of a chunk that looks the same.
const LAST_CHUNK: &[u8] = b"0\r\n\r\n";
const SIZE_OF_LAST: &[u8] = b"5\r\n";

#[derive(Debug, Default)]
pub struct Ending {
    /// What is written next is the data of a chunk.
    in_chunk: bool,
    /// The last chunk with its trailers, which waits for room.
    waiting: Option<Vec<u8>>,
}

impl Ending {
    pub const fn new() -> Self {
        Ending { in_chunk: false, waiting: None }
    }

    /// What is to be written in place of `data`, if these are the last chunk and there are trailers: lines, each with its break.
    pub fn in_place_of(&mut self, data: &[u8], trailers: impl FnOnce() -> Vec<u8>) -> Option<Vec<u8>> {
        if data != LAST_CHUNK || self.in_chunk {
            return None;
        }
        self.waiting.take().or_else(|| {
            let trailers = trailers();
            (!trailers.is_empty()).then(|| [b"0\r\n", trailers.as_slice(), b"\r\n"].concat())
        })
    }

    /// `done` is what came of writing `ending`, or `data` if there is none: how many bytes of `data` that were.
    pub fn wrote(&mut self, data: &[u8], ending: Option<Vec<u8>>, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        match done {
            Poll::Pending => {
                self.waiting = ending;
                Poll::Pending
            }
            // It is small, so that it is taken whole.
            Poll::Ready(Ok(_)) if ending.is_some() => {
                self.in_chunk = false;
                Poll::Ready(Ok(data.len()))
            }
            Poll::Ready(Ok(taken)) => {
                self.in_chunk = data == SIZE_OF_LAST || taken < data.len();
                Poll::Ready(Ok(taken))
            }
            failed => failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Writes these parts to something that takes so many bytes of each at most, and what came out.
    fn written(parts: &[&str], most: usize, trailers: &str) -> String {
        let (mut ending, mut out) = (Ending::new(), String::new());
        for part in parts {
            let mut rest = *part;
            while !rest.is_empty() {
                let instead = ending.in_place_of(rest.as_bytes(), || trailers.as_bytes().to_vec());
                let taken = match &instead {
                    Some(instead) => instead.len(),
                    None => rest.len().min(most),
                };
                match &instead {
                    Some(instead) => out.push_str(std::str::from_utf8(instead).unwrap()),
                    None => out.push_str(&rest[..taken]),
                }
                let Poll::Ready(Ok(taken)) = ending.wrote(rest.as_bytes(), instead, Poll::Ready(Ok(taken))) else {
                    unreachable!()
                };
                rest = &rest[taken..];
            }
        }
        out
    }

    #[test]
    fn trailers_take_the_place_of_the_last_chunk_and_of_no_data_that_look_like_it() {
        // The data end like the last chunk, also where just this is left of them.
        let parts = ["5\r\n", "0\r\n\r\n", "\r\n", "8\r\n", "abc0\r\n\r\n", "\r\n", "3\r\n", "5\r\n", "\r\n", "0\r\n\r\n"];
        let data = parts[..9].concat();
        for most in [3, 4, 5, 100] {
            assert_eq!(written(&parts, most, "x-sum: 1\r\n"), format!("{data}0\r\nx-sum: 1\r\n\r\n"), "{most} at a time");
            assert_eq!(written(&parts, most, ""), parts.concat());
        }
    }

    #[test]
    fn what_waits_for_room_is_the_same_when_there_is_room() {
        let mut ending = Ending::new();
        let first = ending.in_place_of(LAST_CHUNK, || b"x: 1\r\n".to_vec());
        assert!(ending.wrote(LAST_CHUNK, first.clone(), Poll::Pending).is_pending());
        let second = ending.in_place_of(LAST_CHUNK, || unreachable!("they were taken"));
        assert_eq!((first, second.as_deref()), (second.clone(), Some(&b"0\r\nx: 1\r\n\r\n"[..])));
    }
}
