//! What is not quoted from a configuration, though it stands on the line of a fault: secrets that should not be there.
//!
//! Keys and passwords belong into a configuration as hashes or as names of files. Somebody who writes one in plain text gets an
//! error, and that error ends in terminals, logs and build reports, so the value is not repeated. By the text of the line and
//! not by the tree: a file that is half written, with a quote missing, has none.

use regex::{Captures, Regex};
use std::borrow::Cow;
use std::sync::LazyLock;

/// The values of keys that hold hashes and secrets, keys of the gateway's own making, and what stands before the `@` of a URL.
static SECRETS: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(concat!(
        r#"(?x) \b(?P<key> (?: sha256 | argon2 | password | passwd | secret | api_key (?: ["']? \s* = \s* \{ \s* ["']? key )? | token | private_key ) ["']? \s* = \s* )"#,
        r#"(?: "(?P<double> (?: \\. | [^"\\] )* ) | '(?P<single> [^']* ) )"#,
        r"| (?P<own> gw_[0-9A-Za-z]{8,} )",
        r"| :// (?P<user> [^/\s@]* ) @",
    ))
    .ok()
});

/// The same line with secrets replaced by as many asterisks, so that columns stay.
pub fn masked(line: &str) -> Cow<'_, str> {
    let Some(secrets) = &*SECRETS else { return Cow::Borrowed("") };
    secrets.replace_all(line, |found: &Captures<'_>| {
        let whole = found.get(0).map_or("", |whole| whole.as_str());
        let start = found.get(0).map_or(0, |whole| whole.start());
        let value = ["double", "single", "own", "user"].iter().find_map(|name| found.name(name));
        let Some(value) = value.filter(|value| !is_harmless(value.as_str())) else { return whole.to_owned() };
        let (before, after) = (value.start().saturating_sub(start), value.end().saturating_sub(start));
        let stars = "*".repeat(value.as_str().chars().count());
        format!("{}{stars}{}", whole.get(..before).unwrap_or_default(), whole.get(after..).unwrap_or_default())
    })
}

/// A hash as it should be, or a reference to the environment, tells nobody anything.
fn is_harmless(value: &str) -> bool {
    let fingerprint = value.len() >= 64 && value.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
    fingerprint || value.starts_with("$argon2") || value.is_empty() || (value.starts_with("${") && value.ends_with('}'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_in_plain_text_is_not_repeated() {
        for (line, shown) in [
            (r#"  { api_key = { sha256 = "gw_topsecret" } },"#, r#"  { api_key = { sha256 = "************" } },"#),
            (r#"api_key = "hunter2", x = 1"#, r#"api_key = "*******", x = 1"#),
            (r#"{ api_key = { key = "hunter2" } }"#, r#"{ api_key = { key = "*******" } }"#),
            ("sha256 = 'hunter2'", "sha256 = '*******'"),
            (r#"password = { argon2 = "correct \"horse" }"#, r#"password = { argon2 = "***************" }"#),
            (r#"password = "päss" # é"#, r#"password = "****" # é"#),
            (r#"sha256 = "hunter2"#, r#"sha256 = "*******"#),
            (r#"url = "redis://user:pass@host:6379""#, r#"url = "redis://*********@host:6379""#),
            ("# gw_0123456789abcdef", "# *******************"),
            (r#""secret" = "x""#, r#""secret" = "*""#),
        ] {
            assert_eq!(masked(line), shown);
            assert_eq!(line.chars().count(), shown.chars().count());
        }
    }

    #[test]
    fn what_is_no_secret_stays() {
        let hash = format!("sha256 = \"{}\"", "0a".repeat(32));
        for line in [
            hash.as_str(),
            r#"argon2 = "$argon2id$v=19$m=8""#,
            r#"secret = { file = "x" }"#,
            r#"password = "${WORD}""#,
            r#"url = "http://127.0.0.1:9200/a@b""#,
            r#"token = ["authorization"]"#,
            r#"key = "tls/a.key""#,
            r#"{ api_key = { header = "x-key" } }"#,
        ] {
            assert_eq!(masked(line), line);
        }
    }
}
