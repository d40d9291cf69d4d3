//! `gatewright key`: API keys that are made at random and told apart from other text.

mod at_redis;
mod issue;
mod make;

use super::{ConfigArgs, Exit};
use crate::consumer::{KeyDigest, PasswordHash};
use crate::filter::Registry;
use clap::{Args, Subcommand};
use make::{PREFIX, generate, is_whole};
use std::io::{self, Read as _, Write as _};

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
        /// Issue it in the Redis of [consumer_source], where it counts at once and without a reload
        #[arg(long)]
        redis: bool,
        #[command(flatten)]
        config: ConfigArgs,
        #[command(flatten)]
        issue: issue::IssueArgs,
    },
    /// List keys, those of the configuration and those in Redis, without the keys themselves
    List {
        /// Only those of this consumer
        consumer: Option<String>,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Revoke a key in Redis: no gateway takes it any more
    Revoke {
        /// The key's id as logs and `key list` show it, or its whole hash
        id: String,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Make a new key in place of one, which counts for as long as that was made to; the old one goes on for a time
    Rotate {
        /// The old key's id as logs and `key list` show it, or its whole hash
        id: String,
        /// How long the old key goes on, such as 24h; 0s revokes it at once
        #[arg(long, default_value = "24h")]
        overlap: crate::value::Duration,
        #[command(flatten)]
        config: ConfigArgs,
    },
    /// Read a key from standard input and print its line of configuration; exits 1 if it has a typo
    Hash,
    /// Read a password from standard input and print its line of configuration, for the filter `basic`
    Password {
        /// The name that is sent with the password
        username: String,
    },
}

pub(super) fn run(args: &KeyArgs, registry: &Registry) -> io::Result<Exit> {
    match &args.verb {
        KeyVerb::New { consumer, redis: false, issue, .. } => new(consumer, issue),
        KeyVerb::New { consumer, config, issue, .. } if is_name(consumer) => issue::new(consumer, config, issue, registry),
        KeyVerb::New { consumer, .. } => not_a_name(consumer),
        KeyVerb::List { consumer, config } => issue::list(consumer.as_deref(), config, registry),
        KeyVerb::Revoke { id, config } => issue::revoke(id, config, registry),
        KeyVerb::Rotate { id, overlap, config } => issue::rotate(id, overlap.get(), config, registry),
        KeyVerb::Hash => hash(),
        KeyVerb::Password { username } => password(username),
    }
}

fn is_name(consumer: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
    consumer.starts_with(|c: char| c.is_ascii_alphanumeric()) && consumer.len() <= 63 && consumer.bytes().all(plain)
}

fn not_a_name(consumer: &str) -> io::Result<Exit> {
    writeln!(io::stderr(), "error: `{}` cannot be the name of a consumer", consumer.escape_debug())?;
    Ok(Exit::Usage)
}

fn new(consumer: &str, issue: &issue::IssueArgs) -> io::Result<Exit> {
    if !is_name(consumer) {
        return not_a_name(consumer);
    }
    if issue.is_given() {
        writeln!(io::stderr(), "error: --role, --tier and --expires-in are for keys that are issued with --redis")?;
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
