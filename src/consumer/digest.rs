//! The SHA-256 of an API key: all that is kept of one.
//!
//! A plain hash is enough because keys are long and random: there is nothing to guess, so nothing to slow down. Looking up a
//! digest takes the same time for every key that does not exist, whatever part of it happens to be right.

use crate::value::text_value;
use ring::digest::{SHA256, SHA256_OUTPUT_LEN, digest};
use std::fmt::{self, Write as _};
use std::str::FromStr;

/// The hexadecimal digits of [`KeyDigest::long`].
pub const LONG: usize = 32;

/// A SHA-256 digest, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct KeyDigest([u8; SHA256_OUTPUT_LEN]);

text_value!(KeyDigest, "SHA-256 hash", r"^[0-9a-fA-F]{64}$", "A SHA-256 hash: 64 hexadecimal digits");

impl KeyDigest {
    /// Of a key as it is sent. Allocates nothing.
    pub fn of(key: &[u8]) -> Self {
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        // Both have the length of a SHA-256.
        for (to, from) in bytes.iter_mut().zip(digest(&SHA256, key).as_ref()) {
            *to = *from;
        }
        KeyDigest(bytes)
    }

    /// The first 32 bits: tells keys apart in logs, and says nothing about a key that was made at random.
    pub fn short(&self) -> String {
        self.first(8)
    }

    /// The first 128 bits, by which keys are counted: of 32, two among a hundred thousand would be the same.
    pub fn long(&self) -> String {
        self.first(LONG)
    }

    fn first(&self, digits: usize) -> String {
        self.0.iter().flat_map(|byte| hexadecimal(*byte)).take(digits).collect()
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for KeyDigest {
    type Err = String;
    /// The text is not quoted in the error: someone may have written the key itself.
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || "this is not a SHA-256 hash: it has 64 hexadecimal digits, as `gatewright key new` prints".to_owned();
        let mut bytes = [0; SHA256_OUTPUT_LEN];
        let mut digits = text.chars().map(|c| c.to_digit(16).and_then(|digit| u8::try_from(digit).ok()));
        for byte in &mut bytes {
            let (Some(Some(high)), Some(Some(low))) = (digits.next(), digits.next()) else { return Err(why()) };
            *byte = (high << 4) | low;
        }
        if digits.next().is_some() { Err(why()) } else { Ok(KeyDigest(bytes)) }
    }
}

impl fmt::Display for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().flat_map(|byte| hexadecimal(*byte)).try_for_each(|digit| f.write_char(digit))
    }
}

fn hexadecimal(byte: u8) -> [char; 2] {
    [byte >> 4, byte & 15].map(|digit| char::from_digit(digit.into(), 16).unwrap_or('0'))
}

/// In full it would let guesses at a weak key be tried on whatever it was printed to.
impl fmt::Debug for KeyDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyDigest({}…)", self.short())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_sha_256_of_fips_180_4() {
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(KeyDigest::of(b"abc").to_string(), abc);
        assert_eq!(abc.parse(), Ok(KeyDigest::of(b"abc")));
        assert_eq!(abc.to_uppercase().parse(), Ok(KeyDigest::of(b"abc")));
        assert_eq!(KeyDigest::of(b"abc").short(), "ba7816bf");
        assert_eq!(KeyDigest::of(b"abc").long(), "ba7816bf8f01cfea414140de5dae2223");
    }

    #[test]
    fn a_key_in_place_of_its_hash_is_refused_and_not_repeated() {
        for wrong in ["gw_topsecret", "", &"0".repeat(63), &"0".repeat(65), &"g".repeat(64), &"é".repeat(32)] {
            let error = wrong.parse::<KeyDigest>().unwrap_err();
            assert!(wrong.is_empty() || !error.contains(wrong), "{error}");
        }
    }
}
