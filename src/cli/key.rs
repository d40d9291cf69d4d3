//! `gatewright key`: API keys that are made at random and told apart from other text.

use super::Exit;
use crate::consumer::{KeyDigest, PasswordHash};
use clap::{Args, Subcommand};
use ring::rand::{SecureRandom as _, SystemRandom};
use std::io::{self, Read as _, Write as _};

/// What every key begins with, so that people and secret scanners know one when they see it.
const PREFIX: &str = "gw_";
/// 32 characters of 62: 190 bits that nobody can guess.
const RANDOM_LEN: usize = 32;
/// The checksum, so that a typo is told from a key that does not exist, and a scanner from a text that looks like one.
const CHECK_LEN: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
/// The longest input that is read.
const INPUT_MAX: u64 = 4096;

/// Make and check API keys
#[derive(Args)]
pub(super) struct KeyArgs {
    #[command(subcommand)]
    verb: KeyVerb,
}

#[derive(Subcommand)]
enum KeyVerb {
    /// Make a key for a consumer, print it once and the line of configuration that lets it in
    New {
        /// The name of its [consumers.NAME]
        consumer: String,
    },
    /// Read a key from standard input and print its line of configuration; exits 1 if it has a typo
    Hash,
    /// Read a password from standard input and print its line of configuration, for the filter `basic`
    Password {
        /// The name that is sent with the password
        username: String,
    },
}

pub(super) fn run(args: &KeyArgs) -> io::Result<Exit> {
    match &args.verb {
        KeyVerb::New { consumer } => new(consumer),
        KeyVerb::Hash => hash(),
        KeyVerb::Password { username } => password(username),
    }
}

fn new(consumer: &str) -> io::Result<Exit> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    if !consumer.starts_with(|c: char| c.is_ascii_alphanumeric()) || consumer.len() > 63 || !consumer.bytes().all(plain) {
        writeln!(io::stderr(), "error: `{}` cannot be the name of a consumer", consumer.escape_debug())?;
        return Ok(Exit::Usage);
    }
    let Some(key) = generate() else {
        writeln!(io::stderr(), "error: the system has no random numbers")?;
        return Ok(Exit::Failure);
    };
    let digest = KeyDigest::of(key.as_bytes());
    // Quoted where a bare key of TOML cannot have the character.
    let section = if consumer.contains('.') { format!("\"{consumer}\"") } else { consumer.to_owned() };
    // The key alone goes to standard output, so that it can be piped to where it is kept.
    writeln!(io::stdout(), "{key}")?;
    writeln!(
        io::stderr(),
        "The key above is shown this once. Its hash belongs in the configuration:\n\n\
         [consumers.{section}]\ncredentials = [\n  {{ api_key = {{ sha256 = \"{digest}\" }} }},\n]"
    )?;
    Ok(Exit::Success)
}

fn hash() -> io::Result<Exit> {
    let Some(text) = read()? else { return Ok(Exit::Failure) };
    let key = text.trim_end_matches(['\r', '\n']);
    if key.is_empty() || key.contains(char::is_whitespace) {
        writeln!(io::stderr(), "error: write one key to standard input")?;
        return Ok(Exit::Failure);
    }
    if key.starts_with(PREFIX) && !is_whole(key) {
        writeln!(io::stderr(), "error: the key begins with {PREFIX} but its checksum is wrong: it was not copied in full")?;
        return Ok(Exit::Failure);
    }
    writeln!(io::stdout(), "{{ api_key = {{ sha256 = \"{}\" }} }}", KeyDigest::of(key.as_bytes()))?;
    Ok(Exit::Success)
}

fn password(username: &str) -> io::Result<Exit> {
    if username.is_empty() || username.len() > 255 || username.contains(|c: char| c.is_control() || matches!(c, ':' | '"' | '\\'))
    {
        writeln!(io::stderr(), "error: `{}` cannot be a username", username.escape_debug())?;
        return Ok(Exit::Usage);
    }
    let Some(text) = read()? else { return Ok(Exit::Failure) };
    match PasswordHash::new(text.trim_end_matches(['\r', '\n']).as_bytes()) {
        Ok(hash) => {
            let hash = hash.expose();
            writeln!(io::stdout(), "{{ basic = {{ username = \"{username}\", password = {{ argon2 = \"{hash}\" }} }} }}")?;
            Ok(Exit::Success)
        }
        Err(why) => {
            writeln!(io::stderr(), "error: {why}")?;
            Ok(Exit::Failure)
        }
    }
}

/// Standard input; `None`, and an error was written, if it is not text.
fn read() -> io::Result<Option<String>> {
    let mut text = String::new();
    if io::stdin().take(INPUT_MAX).read_to_string(&mut text).is_err() {
        writeln!(io::stderr(), "error: this is not text")?;
        return Ok(None);
    }
    Ok(Some(text))
}

/// A new key; `None` if the system has no random numbers.
fn generate() -> Option<String> {
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
fn is_whole(key: &str) -> bool {
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
