//! The framing of a chunked body, checked byte for byte on its way to the session.
//!
//! Pingora's parser finds the end of a chunked body, and finds one where others would find none: a size that is empty or
//! followed by white space, an extension with a line feed in it, trailers that are no fields. Whoever stands in front of the
//! gateway and reads such a body differently sees another request begin where we see data (the "funky chunks" attacks).
//! Here only what RFC 9112 §7.1 writes passes, and less of it:
//!
//! - a size is 1 to 16 hexadecimal digits, without white space around it;
//! - extensions are printable ASCII up to [`LINE_MAX`], with no white space before the first `;`;
//! - every line and every chunk ends in CR LF;
//! - trailers are fields, up to [`TRAILERS_MAX`] in all.
//!
//! The end that is found is the end of the request: bytes after it stay with the connection for the next one.

use super::line::{has_control, is_token};

/// The longest line with a size and its extensions, in bytes. Nothing that is in use needs extensions at all.
const LINE_MAX: u16 = 256;
/// All trailers together, in bytes.
const TRAILERS_MAX: u16 = 8 << 10;
const DIGITS_MAX: u8 = 16;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In the digits of a size; how many there are.
    Size(u8),
    Extension,
    /// After the CR of a size line.
    SizeEnd,
    Data,
    DataCr,
    DataLf,
    /// At the start of a line after the last chunk.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerEnd,
    /// After the CR of the empty line.
    LastLf,
    Done,
}

/// The bytes are no chunked body that has one reading.
#[derive(Debug, PartialEq, Eq)]
pub struct BadChunk;

/// Reads a body in pieces, however they are cut.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChunkScanner {
    at: At,
    /// Of the size that is being read, and then of data that is still to come.
    left: u64,
    /// Bytes of the line, or of the trailers, so far.
    length: u16,
    /// The trailers, where somebody wants them.
    kept: Option<Vec<u8>>,
}

impl ChunkScanner {
    pub const fn new() -> Self {
        ChunkScanner { at: At::Size(0), left: 0, length: 0, kept: None }
    }

    /// The same, with the trailers kept: their lines, without the empty one.
    pub fn keeping(keep: bool) -> Self {
        ChunkScanner { kept: keep.then(Vec::new), ..ChunkScanner::new() }
    }

    /// The trailers that have been kept, once the body has been read.
    pub fn take_trailers(&mut self) -> Option<Vec<u8>> {
        self.kept.take().filter(|kept| !kept.is_empty())
    }

    /// The whole body has been read.
    pub fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Reads on: how many of these bytes belong to the body. Fewer than all only at its end.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<usize, BadChunk> {
        let mut read = 0_usize;
        while let Some(rest) = bytes.get(read..)
            && let Some(&byte) = rest.first()
        {
            if self.at == At::Done {
                break;
            }
            if self.at == At::Data {
                // Without a look at what is in it.
                let skip = rest.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
                self.left = self.left.saturating_sub(u64::try_from(skip).unwrap_or(u64::MAX));
                read = read.saturating_add(skip);
                if self.left == 0 {
                    self.at = At::DataCr;
                }
                continue;
            }
            self.step(byte)?;
            read = read.saturating_add(1);
            if let (Some(kept), At::Trailer | At::TrailerName | At::TrailerValue | At::TrailerEnd) = (&mut self.kept, self.at)
                // The line feed of the last chunk's size is none of theirs.
                && !(kept.is_empty() && byte == b'\n')
            {
                kept.push(byte);
            }
        }
        Ok(read)
    }

    fn step(&mut self, byte: u8) -> Result<(), BadChunk> {
        self.at = match (self.at, byte) {
            (At::Size(1..), b';') => self.within(LINE_MAX, At::Extension)?,
            (At::Size(1..), b'\r') => At::SizeEnd,
            (At::Size(digits), _) => self.digit(digits, byte)?,
            (At::Extension, b'\r') => At::SizeEnd,
            (At::Extension, b'\t' | b' '..=b'~') => self.within(LINE_MAX, At::Extension)?,
            (At::SizeEnd, b'\n') => {
                self.length = 0;
                if self.left == 0 { At::Trailer } else { At::Data }
            }
            (At::DataCr, b'\r') => At::DataLf,
            (At::DataLf, b'\n') => At::Size(0),
            (At::Trailer, b'\r') => At::LastLf,
            (At::Trailer | At::TrailerName, _) if is_token(&[byte]) => self.within(TRAILERS_MAX, At::TrailerName)?,
            (At::TrailerName, b':') => At::TrailerValue,
            (At::TrailerValue, b'\r') => At::TrailerEnd,
            (At::TrailerValue, _) if !has_control(&[byte]) => self.within(TRAILERS_MAX, At::TrailerValue)?,
            (At::TrailerEnd, b'\n') => At::Trailer,
            (At::LastLf, b'\n') => At::Done,
            _ => return Err(BadChunk),
        };
        Ok(())
    }

    fn digit(&mut self, digits: u8, byte: u8) -> Result<At, BadChunk> {
        let value = char::from(byte).to_digit(16).ok_or(BadChunk)?;
        if digits >= DIGITS_MAX {
            return Err(BadChunk);
        }
        self.left = self.left.checked_mul(16).and_then(|left| left.checked_add(u64::from(value))).ok_or(BadChunk)?;
        // Some readers count in signed numbers.
        if i64::try_from(self.left).is_err() {
            return Err(BadChunk);
        }
        Ok(At::Size(digits.saturating_add(1)))
    }

    fn within(&mut self, most: u16, next: At) -> Result<At, BadChunk> {
        self.length = self.length.saturating_add(1);
        if self.length > most { Err(BadChunk) } else { Ok(next) }
    }
}

impl Default for ChunkScanner {
    fn default() -> Self {
        ChunkScanner::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes of the body, and whether it is over.
    fn whole(bytes: &[u8]) -> Result<(usize, bool), BadChunk> {
        let mut scanner = ChunkScanner::new();
        Ok((scanner.scan(bytes)?, scanner.is_done()))
    }

    #[test]
    fn a_body_ends_where_rfc_9112_ends_it() {
        for (body, rest) in [
            ("0\r\n\r\n", "GET"),
            ("5\r\nhello\r\n0\r\n\r\n", ""),
            ("5;a=b;c=\"d e\"\r\nhello\r\n000\r\n\r\n", "\r\n"),
            ("A\r\n0\r\n\r\n12345\r\n0;last\r\nx-a: 1\r\nx-b:\r\n\r\n", "0\r\n\r\n"),
            ("0000000000000001\r\n\r\r\n0\r\n\r\n", ""),
        ] {
            assert_eq!(whole(format!("{body}{rest}").as_bytes()), Ok((body.len(), true)), "{body:?}");
            for end in 0..body.len() {
                assert_eq!(whole(&body.as_bytes()[..end]), Ok((end, false)), "{body:?} cut at {end}");
            }
        }
    }

    #[test]
    fn trailers_are_kept_as_they_came_if_they_are_wanted() {
        let body = b"5\r\nhello\r\n0;x\r\nx-a: 1\r\nX-B:two \r\n\r\n";
        for size in [1, 2, 3, body.len()] {
            for (keep, expected) in [(true, Some(b"x-a: 1\r\nX-B:two \r\n".to_vec())), (false, None)] {
                let mut scanner = ChunkScanner::keeping(keep);
                body.chunks(size).for_each(|piece| assert_eq!(scanner.scan(piece), Ok(piece.len())));
                assert!(scanner.is_done());
                assert_eq!(scanner.take_trailers(), expected);
            }
        }
        let mut none = ChunkScanner::keeping(true);
        none.scan(b"1\r\na\r\n0\r\n\r\n").unwrap();
        assert_eq!(none.take_trailers(), None);
    }

    #[test]
    fn everything_else_is_refused() {
        let long = |unit: &str, times: usize| unit.repeat(times);
        for body in [
            "\r\n",
            "\n",
            ";a\r\n",
            " 5\r\n",
            "5 \r\n",
            "5\t\r\n",
            "5 ;a\r\n",
            "5\n",
            "5\r\r\n",
            "5\rx",
            "0x5\r\n",
            "+5\r\n",
            "-5\r\n",
            "g\r\n",
            "5;\n",
            "5;a\nb",
            "5;a\0",
            "5;\u{e9}\r\n",
            "5\r\nhelloX",
            "5\r\nhello\n",
            "5\r\nhello\rX",
            "8000000000000000\r\n",
            "10000000000000000\r\n",
            "00000000000000001\r\n",
            "0\r\n\n",
            "0\n\r\n",
            "0\r\n\rX",
            "0\r\n a: b\r\n",
            "0\r\na\r\n",
            "0\r\na : b\r\n",
            "0\r\n: b\r\n",
            "0\r\na: b\n",
            "0\r\na: \0\r\n",
            "0\r\na: b\rX",
        ] {
            assert_eq!(whole(body.as_bytes()), Err(BadChunk), "{body:?}");
        }
        assert_eq!(whole(format!("5;{}\r\n", long("a", 256)).as_bytes()), Err(BadChunk));
        assert!(whole(format!("5;{}\r\n", long("a", 255)).as_bytes()).is_ok());
        assert_eq!(whole(format!("0\r\n{}", long("a: b\r\n", 5000)).as_bytes()), Err(BadChunk));
    }

    proptest! {
        #[test]
        fn any_division_into_pieces_gives_one_verdict(
            pieces in prop::collection::vec("([0-9a-f]{1,2}\r\n|[ -~]{0,20}|\r\n|0\r\n\r\n|5\r\nhello\r\n)", 0..12),
            cuts in prop::collection::vec(0usize..200, 0..6),
        ) {
            let bytes = pieces.concat().into_bytes();
            let expected = whole(&bytes);
            let mut ends: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).chain([bytes.len()]).collect();
            ends.sort_unstable();
            let (mut scanner, mut read) = (ChunkScanner::new(), 0);
            let mut verdict = Ok(());
            for end in ends {
                match scanner.scan(&bytes[read..end.max(read)]) {
                    Ok(more) => read += more,
                    Err(BadChunk) => { verdict = Err(BadChunk); break }
                }
            }
            prop_assert_eq!(verdict.map(|()| (read, scanner.is_done())), expected);
        }
    }
}
