//! How an answer stands in Redis: `GWC1`, the number of its pieces, the SHA-256 of what follows, and that: compressed by zstd, the length of
//! a description in JSON, the description, and the body. Nothing of it is believed before its sum is right; and then only when the
//! key that it was stored under is the one that is asked for, byte for byte.

use super::super::entry::{Body, Entry};
use super::super::freshness::Received;
use super::super::key::Key;
use super::super::policy::Terms;
use super::super::vary::Selecting;
use crate::clock::SharedClock;
use bytes::Bytes;
use http::HeaderName;
use pingora::http::ResponseHeader;
use ring::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::time::{Duration, SystemTime};

const MAGIC: &[u8; 4] = b"GWC1";
pub const PIECE: usize = 256 << 10;
/// A little compression costs little; more of it costs more than the network.
const LEVEL: i32 = 1;
/// A description larger than this is none.
const DESCRIPTION_MAX: u64 = 1 << 20;

#[derive(Serialize, Deserialize)]
struct Description {
    key: String,
    generation: u64,
    status: u16,
    headers: Vec<(String, String)>,
    /// When the header came, in milliseconds of Unix time.
    at: u64,
    initial_age: u64,
    lifetime: u64,
    stale_while_revalidate: u64,
    stale_if_error: u64,
    flags: [bool; 4],
    selecting: Vec<(String, String)>,
    tags: Vec<String>,
}

pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len().saturating_mul(2)), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

pub fn sum(bytes: &[u8]) -> String {
    hex(digest(&SHA256, bytes).as_ref())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

pub fn unix_millis(at: SystemTime) -> u64 {
    millis(at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default())
}

/// The pieces of an entry; `None` for one that cannot be written down.
pub fn encode(key: &Key, entry: &Entry, generation: u64) -> Option<Vec<Vec<u8>>> {
    let headers =
        entry.head.headers.iter().map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())));
    let terms = &entry.terms;
    let description = Description {
        key: hex(&key.bytes),
        generation,
        status: entry.head.status.as_u16(),
        headers: headers.collect::<Option<_>>()?,
        at: unix_millis(entry.received.wall),
        initial_age: millis(terms.initial_age),
        lifetime: millis(terms.lifetime),
        stale_while_revalidate: millis(terms.stale_while_revalidate),
        stale_if_error: millis(terms.stale_if_error),
        flags: [terms.no_cache, terms.must_revalidate, terms.immutable, terms.no_transform],
        selecting: entry.selecting.fields.iter().map(|(name, value)| (name.as_str().to_owned(), value.to_string())).collect(),
        tags: entry.tags.iter().map(|tag| tag.to_string()).collect(),
    };
    let description = serde_json::to_vec(&description).ok()?;
    let mut plain = u32::try_from(description.len()).ok()?.to_be_bytes().to_vec();
    plain.extend_from_slice(&description);
    entry.body.pieces.iter().for_each(|piece| plain.extend_from_slice(piece));
    let packed = zstd::bulk::compress(&plain, LEVEL).ok()?;
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    let count = packed.len().div_ceil(PIECE).max(1);
    let mut first = MAGIC.to_vec();
    first.extend_from_slice(&u32::try_from(count).ok()?.to_be_bytes());
    first.extend_from_slice(digest(&SHA256, &packed).as_ref());
    for piece in packed.chunks(PIECE) {
        let mut bytes = std::mem::take(&mut first);
        bytes.extend_from_slice(piece);
        pieces.push(bytes);
    }
    Some(pieces)
}

/// How many pieces there are, from the first one.
pub fn pieces(first: &[u8]) -> Option<u32> {
    let rest = first.strip_prefix(MAGIC)?;
    Some(u32::from_be_bytes(rest.first_chunk::<4>().copied()?))
}

/// What went wrong with bytes that were there.
#[derive(Debug, PartialEq, Eq)]
pub enum Bad {
    /// They are not what was stored.
    Corrupt,
    /// They are, and are not for this request.
    Other,
}

/// The entry that the joined pieces are, for this key, of this generation, fetched after `since` (Unix milliseconds).
pub fn decode(bytes: &[u8], key: &Key, generation: u64, since: u64, most: u64, clock: &SharedClock) -> Result<Entry, Bad> {
    let corrupt = || Bad::Corrupt;
    let rest = bytes.strip_prefix(MAGIC).ok_or_else(corrupt)?;
    let (_, rest) = rest.split_first_chunk::<4>().ok_or_else(corrupt)?;
    let (sum, packed) = rest.split_first_chunk::<32>().ok_or_else(corrupt)?;
    if digest(&SHA256, packed).as_ref() != sum {
        return Err(Bad::Corrupt);
    }
    let mut plain = Vec::new();
    let bound = most.saturating_add(DESCRIPTION_MAX);
    let reader = zstd::stream::read::Decoder::new(packed).map_err(|_| Bad::Corrupt)?;
    reader.take(bound).read_to_end(&mut plain).map_err(|_| Bad::Corrupt)?;
    let (length, rest) = plain.split_first_chunk::<4>().ok_or_else(corrupt)?;
    let length = usize::try_from(u32::from_be_bytes(*length)).map_err(|_| Bad::Corrupt)?;
    if u64::try_from(length).map_or(true, |length| length.saturating_add(4) >= DESCRIPTION_MAX) {
        return Err(Bad::Corrupt);
    }
    let (description, body) = rest.split_at_checked(length).ok_or_else(corrupt)?;
    let it: Description = serde_json::from_slice(description).map_err(|_| Bad::Corrupt)?;
    if it.key != hex(&key.bytes) || it.generation != generation || it.at <= since {
        return Err(Bad::Other);
    }
    let mut head = ResponseHeader::build(it.status, Some(it.headers.len())).map_err(|_| Bad::Corrupt)?;
    for (name, value) in it.headers {
        head.append_header(name, value).map_err(|_| Bad::Corrupt)?;
    }
    let length = u64::try_from(body.len()).map_err(|_| Bad::Corrupt)?;
    // Also what was cut at the bound above: it is longer than that, whatever it says of itself.
    if length > most {
        return Err(Bad::Other);
    }
    let said = head.headers.get(http::header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<u64>().ok());
    if said.is_some_and(|said| said != length) {
        return Err(Bad::Corrupt);
    }
    let selecting =
        it.selecting.into_iter().map(|(name, value)| Some((HeaderName::try_from(name).ok()?, value.into_boxed_str())));
    let wall = clock.wall();
    let gone = Duration::from_millis(unix_millis(wall).saturating_sub(it.at));
    let now = clock.now();
    let of = Duration::from_millis;
    let [no_cache, must_revalidate, immutable, no_transform] = it.flags;
    let terms = Terms {
        // What has passed since then is part of the age that it comes with.
        initial_age: of(it.initial_age).saturating_add(gone),
        lifetime: of(it.lifetime),
        stale_while_revalidate: of(it.stale_while_revalidate),
        stale_if_error: of(it.stale_if_error),
        no_cache,
        must_revalidate,
        immutable,
        no_transform,
    };
    let received = Received { delay: Duration::ZERO, at: now, wall };
    let body = Body::whole(std::iter::once(Bytes::copy_from_slice(body)), length);
    let selecting = Selecting { fields: selecting.collect::<Option<_>>().ok_or_else(corrupt)? };
    Ok(Entry::new(head, body, terms, received, selecting, it.tags.into_iter().map(String::into_boxed_str).collect()))
}

/// The names of the fields that select, as they are stored beside the answers.
pub fn names(selecting: &Selecting) -> String {
    selecting.fields.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(",")
}

/// Where the answer to a request with these fields stands.
pub fn field(key: &Key, names: &str, value: impl Fn(&HeaderName) -> String) -> String {
    let mut bytes = key.bytes.to_vec();
    for name in names.split(',').filter_map(|name| HeaderName::try_from(name).ok()) {
        let value = value(&name);
        for text in [name.as_str(), value.as_str()] {
            bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
            bytes.extend_from_slice(text.as_bytes());
        }
    }
    sum(&bytes)
}

#[cfg(test)]
mod tests {
    use super::super::super::entry::tests::entry;
    use super::*;
    use crate::clock::SystemClock;
    use std::sync::Arc;

    fn key() -> Key {
        Key { bytes: (*b"key").into(), hash: 1, url_hash: 1, base_hash: 1, url: "http://h/".into(), route: "r".into() }
    }

    fn joined(length: usize) -> Vec<u8> {
        let mut entry = entry(0, &["tag"]);
        let mut random = fastrand::Rng::with_seed(3);
        let body = Bytes::from((0..length).map(|_| random.u8(..)).collect::<Vec<_>>());
        entry.body = Body::whole(std::iter::once(body), length as u64);
        entry.head.insert_header("x-a", "1").unwrap();
        encode(&key(), &entry, 7).unwrap().concat()
    }

    #[test]
    fn what_was_written_is_read() {
        let clock: SharedClock = Arc::new(SystemClock);
        let bytes = joined(700_000);
        assert_eq!(pieces(&bytes), Some(3));
        let back = decode(&bytes, &key(), 7, 0, 1 << 20, &clock).unwrap();
        assert_eq!((back.body.length, back.tags.len(), back.head.headers["x-a"].to_str().unwrap()), (700_000, 1, "1"));
        let refused = |key: &Key, generation, since| decode(&bytes, key, generation, since, 1 << 20, &clock).map(|_| ());
        assert_eq!(refused(&key(), 8, 0), Err(Bad::Other), "of another generation");
        assert_eq!(refused(&key(), 7, u64::MAX), Err(Bad::Other), "invalidated since");
        assert_eq!(refused(&Key { bytes: (*b"kex").into(), ..key() }, 7, 0), Err(Bad::Other), "of another key");
        assert!(decode(&bytes, &key(), 7, 0, 1 << 10, &clock).is_err(), "larger than it may be");
    }

    #[test]
    fn no_flipped_bit_is_believed() {
        let clock: SharedClock = Arc::new(SystemClock);
        let good = joined(2_000);
        let mut random = fastrand::Rng::with_seed(5);
        for _ in 0..2_000 {
            let mut bytes = good.clone();
            let at = random.usize(..bytes.len());
            // The number of pieces says how much to read, not what it is.
            if (4..8).contains(&at) {
                continue;
            }
            bytes[at] ^= 1 << random.u8(..8);
            assert!(matches!(decode(&bytes, &key(), 7, 0, 1 << 20, &clock), Err(Bad::Corrupt)), "byte {at}");
        }
        for cut in [0, 3, 40, good.len() - 1] {
            assert!(decode(&good[..cut], &key(), 7, 0, 1 << 20, &clock).is_err());
        }
    }
}
