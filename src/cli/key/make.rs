//! Keys: made at random, recognisable, and with a checksum.

use crate::consumer::KeyDigest;
use ring::rand::{SecureRandom as _, SystemRandom};

/// What every key begins with, so that people and secret scanners know one when they see it.
pub const PREFIX: &str = "gw_";
/// 32 characters of 62: 190 bits that nobody can guess.
const RANDOM_LEN: usize = 32;
/// The checksum, so that a typo is told from a key that does not exist, and a scanner from a text that looks like one.
const CHECK_LEN: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// A new key; `None` if the system has no random numbers.
pub fn generate() -> Option<String> {
    let random = SystemRandom::new();
    let mut key = String::from(PREFIX);
    while key.len() < PREFIX.len() + RANDOM_LEN {
        let mut bytes = [0; 64];
        random.fill(&mut bytes).ok()?;
        // Six bits each; the two values beyond the alphabet are drawn again, so that each character is equally likely.
        let drawn = bytes.iter().filter_map(|byte| ALPHABET.get(usize::from(byte & 63)));
        key.extend(drawn.map(|byte| char::from(*byte)).take(PREFIX.len() + RANDOM_LEN - key.len()));
    }
    let check = checksum(&key);
    key.push_str(&check);
    Some(key)
}

/// Whether a text has the form of a key of ours, checksum included.
pub fn is_whole(key: &str) -> bool {
    let length = PREFIX.len() + RANDOM_LEN;
    key.len() == length + CHECK_LEN && key.split_at_checked(length).is_some_and(|(key, check)| checksum(key) == check)
}

/// The first 32 bits of the SHA-256 in six characters.
fn checksum(key: &str) -> String {
    let digest = KeyDigest::of(key.as_bytes());
    let mut rest = digest.bytes().iter().take(4).fold(0_u64, |sum, byte| (sum << 8) | u64::from(*byte));
    let mut text = String::new();
    for _ in 0..CHECK_LEN {
        let digit = usize::try_from(rest % 62).unwrap_or(0);
        text.push(ALPHABET.get(digit).map_or('0', |byte| char::from(*byte)));
        rest /= 62;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_recognisable_and_never_the_same() {
        let keys: std::collections::HashSet<String> = (0..1_000).map(|_| generate().unwrap()).collect();
        assert_eq!(keys.len(), 1_000);
        for key in &keys {
            assert!(key.starts_with("gw_") && key.len() == 41 && is_whole(key), "{key}");
            assert!(key.bytes().skip(3).all(|b| b.is_ascii_alphanumeric()), "{key}");
        }
        let used: std::collections::HashSet<char> = keys.iter().flat_map(|key| key.chars().skip(3).take(RANDOM_LEN)).collect();
        assert_eq!(used.len(), 62, "every character is drawn");
    }

    #[test]
    fn a_typo_is_told() {
        let key = generate().unwrap();
        for at in 3..key.len() {
            let wrong = if key.as_bytes()[at] == b'x' { "y" } else { "x" };
            let mut typo = key.clone();
            typo.replace_range(at..at + 1, wrong);
            assert!(!is_whole(&typo), "{typo}");
        }
        assert!(!is_whole(&key[..key.len() - 1]) && !is_whole(&format!("{key}x")) && !is_whole("gw_"));
    }
}
