//! `Content-Digest` (RFC 9530): the body is the one that was signed.
//!
//! The body goes through as it comes and is hashed on the way; its last byte goes on only when the hash is right. So no upstream
//! ever has a whole request with another body than the one that was signed, and no body has to fit into memory. This needs
//! a `Content-Length`: without one nobody knows which byte is the last before it has been sent.

use arrayvec::ArrayVec;
use aws_lc_rs::digest as sha;
use http::{HeaderMap, HeaderName};
use sfv::{Dictionary, FieldType, ListEntry, Parser};

pub const CONTENT_DIGEST: HeaderName = HeaderName::from_static("content-digest");
/// The longest field, in bytes, all lines together.
const FIELD_MAX: usize = 4 << 10;

/// The hashes of a body under way, and what they must be.
#[derive(Debug)]
pub struct BodyDigest {
    /// At most one of each algorithm.
    expected: ArrayVec<Expected, 2>,
    length: u64,
    left: u64,
}

struct Expected {
    algorithm: &'static sha::Algorithm,
    context: sha::Context,
    value: ArrayVec<u8, 64>,
}

impl std::fmt::Debug for Expected {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Expected({:?})", self.algorithm)
    }
}

impl BodyDigest {
    /// What the field says of a body of this length. `None` if it says nothing that can be checked: all the hashes that it has
    /// must hold, and it must have at least one of `sha-256` and `sha-512`.
    pub fn read(headers: &HeaderMap, length: u64) -> Option<Self> {
        let mut all = Vec::new();
        for line in headers.get_all(&CONTENT_DIGEST) {
            if !all.is_empty() {
                all.extend_from_slice(b", ");
            }
            all.extend_from_slice(line.as_bytes());
        }
        if all.len() > FIELD_MAX {
            return None;
        }
        let dictionary = Dictionary::parse(Parser::new(&all)).ok()?;
        let mut expected = ArrayVec::new();
        for (name, algorithm) in [("sha-256", &sha::SHA256), ("sha-512", &sha::SHA512)] {
            let Some(entry) = dictionary.get(name) else { continue };
            let ListEntry::Item(item) = entry else { return None };
            let value = item.bare_item.as_byte_sequence().filter(|value| value.len() == algorithm.output_len())?;
            let value = value.iter().copied().collect();
            expected.try_push(Expected { algorithm, context: sha::Context::new(algorithm), value }).ok()?;
        }
        (!expected.is_empty()).then_some(BodyDigest { expected, length, left: length })
    }

    /// Takes the next part of the body; `false` if it is the last one and the body is another than the one that was signed.
    pub fn update(&mut self, part: &[u8]) -> bool {
        let length = u64::try_from(part.len()).unwrap_or(u64::MAX);
        if length > self.left {
            return false;
        }
        self.left = self.left.saturating_sub(length);
        self.expected.iter_mut().for_each(|expected| expected.context.update(part));
        self.left > 0 || self.holds()
    }

    /// Whether the whole body has come, and is right. To be asked at the end.
    pub fn holds(&self) -> bool {
        let same = |expected: &Expected| expected.context.clone().finish().as_ref() == expected.value.as_slice();
        self.left == 0 && self.expected.iter().all(same)
    }

    /// Begins anew: the body is sent again.
    pub fn restart(&mut self) {
        self.left = self.length;
        for expected in &mut self.expected {
            expected.context = sha::Context::new(expected.algorithm);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of RFC 9421 appendix B.2: the body of its test request.
    const BODY: &[u8] = b"{\"hello\": \"world\"}";
    const SHA512: &str = "sha-512=:WZDPaVn/7XgHaAy8pmojAkGWoRx2UFChF41A2svX+TaPm+AbwAgBWnrIiYllu7BNNyealdVLvRwEmTHWXvJwew==:";
    const SHA256: &str = "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:";

    fn digest(lines: &[&str], length: u64) -> Option<BodyDigest> {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CONTENT_DIGEST, line.parse().unwrap());
        }
        BodyDigest::read(&headers, length)
    }

    #[test]
    fn only_the_body_that_was_signed_ends() {
        for lines in [&[SHA512][..], &[SHA256], &[SHA256, SHA512], &["md5=:AAAA:, ", SHA256][1..]] {
            let mut all = digest(lines, 18).unwrap();
            assert!(all.update(&BODY[..5]) && !all.holds() && all.update(&BODY[5..]) && all.holds());
            all.restart();
            assert!(all.update(BODY) && all.holds());
            all.restart();
            assert!(!all.update(b"{\"hello\": \"World\"}") && !all.holds());
            all.restart();
            assert!(!all.update(b"{\"hello\": \"world\"} "), "longer than it said");
        }
        let mut short = digest(&[SHA256], 19).unwrap();
        assert!(short.update(BODY) && !short.holds(), "it ended before it was whole");
    }

    #[test]
    fn a_field_that_cannot_be_checked_is_none() {
        for wrong in [
            &[][..],
            &[""],
            &["md5=:AAAA:"],
            &["sha-256=abc"],
            &["sha-256=:AAAA:"],
            &["sha-256"],
            &["sha-256=(1 2)"],
            &["sha-256=:!:"],
            &[SHA256, "sha-512=:AAAA:"],
        ] {
            assert!(digest(wrong, 18).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn a_body_of_nothing_has_a_hash_too() {
        let empty = digest(&["sha-256=:47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=:"], 0).unwrap();
        assert!(empty.holds());
        assert!(!digest(&[SHA256], 0).unwrap().holds());
    }
}
