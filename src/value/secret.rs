//! Secrets: where they come from, and a holder that cannot be printed by accident.

use super::read_file;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer, MapAccess, Visitor};
use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};

/// The largest secret, in bytes. Keys and tokens are far smaller; certificates are not read as secrets.
pub const SECRET_MAX: usize = 64 * 1024;

/// The value of a secret. It has no `Debug`, `Display` or `Serialize`: what shows one must say so by [`Secret::expose`].
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    pub fn new(value: impl Into<String>) -> Self {
        Secret(value.into())
    }

    pub fn expose(&self) -> &str {
        &self.0
    }
}

/// Where a secret is read from when the configuration is compiled, so at each start and reload:
/// `{ file = "..." }`, `{ env = "NAME" }` or `{ credential = "name" }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SecretSource {
    /// A file, relative to the configuration file that names it. A line break at its end is not part of the secret.
    File(PathBuf),
    /// A variable of the gateway's environment.
    Env(String),
    /// A systemd credential: a file of that name in `$CREDENTIALS_DIRECTORY` (`LoadCredential=` in the unit).
    Credential(String),
}

/// Text written in place, or a [`SecretSource`].
#[derive(Clone)]
pub enum TextOrSecret {
    Text(String),
    Source(SecretSource),
}

type Env<'a> = &'a dyn Fn(&str) -> Option<String>;

impl SecretSource {
    /// Reads the secret; `base` is the directory of the configuration file. The error is a sentence without the secret.
    pub fn resolve(&self, base: &Path) -> Result<Secret, String> {
        self.resolve_in(base, &|name| std::env::var(name).ok())
    }

    /// As [`SecretSource::resolve`], in a given environment.
    pub fn resolve_in(&self, base: &Path, env: Env<'_>) -> Result<Secret, String> {
        match self {
            SecretSource::File(path) => read(&base.join(path)),
            SecretSource::Env(name) => match env(name) {
                Some(value) if !value.is_empty() => Ok(Secret(value)),
                Some(_) => Err(format!("the environment variable {name} is empty")),
                None => Err(format!("the environment variable {name} is not set")),
            },
            SecretSource::Credential(name) => {
                // A name with a slash could leave the directory; systemd allows none either (systemd.exec(5)).
                if name.is_empty() || name.contains('/') || name.starts_with('.') {
                    return Err(format!("`{name}` is not the name of a credential"));
                }
                let directory = env("CREDENTIALS_DIRECTORY")
                    .ok_or("$CREDENTIALS_DIRECTORY is not set: the unit needs LoadCredential= or SetCredential=")?;
                read(&Path::new(&directory).join(name))
            }
        }
    }
}

/// Says which of the two it is and no more: even what is written in place may be meant to be secret.
impl fmt::Debug for TextOrSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            TextOrSecret::Text(_) => f.write_str("Text(..)"),
            TextOrSecret::Source(source) => source.fmt(f),
        }
    }
}

impl TextOrSecret {
    /// The text, or the secret read as by [`SecretSource::resolve`].
    pub fn resolve(&self, base: &Path) -> Result<Secret, String> {
        match self {
            TextOrSecret::Text(text) => Ok(Secret(text.clone())),
            TextOrSecret::Source(source) => source.resolve(base),
        }
    }
}

fn read(path: &Path) -> Result<Secret, String> {
    let failed = |why: &dyn fmt::Display| format!("cannot read the secret {}: {why}", path.display());
    let bytes = read_file(path, SECRET_MAX as u64).map_err(|why| failed(&why))?;
    let mut text = String::from_utf8(bytes).map_err(|_| failed(&"it is not UTF-8 text"))?;
    if text.ends_with('\n') {
        text.pop();
        if text.ends_with('\r') {
            text.pop();
        }
    }
    if text.is_empty() {
        return Err(failed(&"it is empty"));
    }
    Ok(Secret(text))
}

/// The key of a source. Unknown ones get serde's own message, which names the known.
#[derive(serde::Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum Kind {
    File,
    Env,
    Credential,
}

/// Written by hand: an untagged enum would lose the place and the reason of an error.
struct SourceVisitor;

impl<'de> Visitor<'de> for SourceVisitor {
    type Value = SecretSource;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret: { file = \"...\" }, { env = \"...\" } or { credential = \"...\" }")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<SecretSource, A::Error> {
        let exactly_one = || de::Error::custom("a secret has exactly one of `file`, `env` and `credential`");
        let source = match map.next_key()?.ok_or_else(exactly_one)? {
            Kind::File => SecretSource::File(map.next_value()?),
            Kind::Env => SecretSource::Env(map.next_value()?),
            Kind::Credential => SecretSource::Credential(map.next_value()?),
        };
        match map.next_key::<Kind>()? {
            None => Ok(source),
            Some(_) => Err(exactly_one()),
        }
    }
}

struct TextVisitor;

impl<'de> Visitor<'de> for TextVisitor {
    type Value = TextOrSecret;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, { file = \"...\" }, { env = \"...\" } or { credential = \"...\" }")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<TextOrSecret, E> {
        Ok(TextOrSecret::Text(text.to_owned()))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TextOrSecret, A::Error> {
        SourceVisitor.visit_map(map).map(TextOrSecret::Source)
    }
}

impl<'de> Deserialize<'de> for SecretSource {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(SourceVisitor)
    }
}

impl<'de> Deserialize<'de> for TextOrSecret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TextVisitor)
    }
}

impl JsonSchema for SecretSource {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "SecretSource".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "object",
            "title": "secret",
            "description": "Where a secret is read from: a file, an environment variable, or a systemd credential",
            "properties": {
                "file": { "type": "string", "description": "A file, relative to the configuration file; at most 64 KiB, one line break at its end is dropped." },
                "env": { "type": "string", "description": "An environment variable." },
                "credential": { "type": "string", "description": "A systemd credential: a file in $CREDENTIALS_DIRECTORY." },
            },
            "additionalProperties": false,
            "minProperties": 1,
            "maxProperties": 1,
        })
    }
}

impl JsonSchema for TextOrSecret {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "TextOrSecret".into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "title": "text or secret", "anyOf": [{ "type": "string" }, SecretSource::json_schema(generator)] })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Deserialize)]
    struct Holder {
        a: TextOrSecret,
    }

    fn parse(text: &str) -> Result<TextOrSecret, String> {
        toml::from_str::<Holder>(text).map(|holder| holder.a).map_err(|e| e.message().to_owned())
    }

    fn source(text: &str) -> SecretSource {
        match parse(text) {
            Ok(TextOrSecret::Source(source)) => source,
            Ok(TextOrSecret::Text(_)) => panic!("text: {text}"),
            Err(why) => panic!("{why}: {text}"),
        }
    }

    #[test]
    fn a_secret_is_text_or_one_source() {
        assert!(matches!(parse("a = 'x'"), Ok(TextOrSecret::Text(text)) if text == "x"));
        assert_eq!(source("a = { file = 'x' }"), SecretSource::File("x".into()));
        assert_eq!(source("a = { env = 'X' }"), SecretSource::Env("X".into()));
        assert_eq!(source("a = { credential = 'x' }"), SecretSource::Credential("x".into()));
        let error = |text| parse(text).err().unwrap();
        assert!(error("a = {}").contains("exactly one"));
        assert!(error("a = { file = 'x', env = 'X' }").contains("exactly one"));
        assert!(error("a = { fiel = 'x' }").starts_with("unknown field `fiel`"));
        assert!(error("a = 5").contains("expected a string, { file"));
    }

    #[test]
    fn files_are_bounded_text_without_their_last_line_break() {
        let dir = tempfile::tempdir().unwrap();
        let resolve = |content: &[u8]| {
            std::fs::write(dir.path().join("s"), content).unwrap();
            SecretSource::File("s".into()).resolve(dir.path()).map(|secret| secret.expose().to_owned())
        };
        assert_eq!(resolve(b"hush\n"), Ok("hush".to_owned()));
        assert_eq!(resolve(b" hush\n\r\n"), Ok(" hush\n".to_owned()));
        assert!(resolve(b"\n").unwrap_err().ends_with("it is empty"));
        assert!(resolve(&[0xff]).unwrap_err().ends_with("it is not UTF-8 text"));
        assert!(resolve(&vec![b'a'; SECRET_MAX + 1]).unwrap_err().ends_with("it is larger than 64 KiB"));
        assert!(SecretSource::File("absent".into()).resolve(dir.path()).err().unwrap().contains("No such file"));
    }

    #[test]
    fn credentials_stay_in_their_directory() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("key"), "k\n").unwrap();
        let here = dir.path().to_str().unwrap().to_owned();
        let env = move |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| here.clone());
        let resolve = |name: &str| SecretSource::Credential(name.into()).resolve_in(Path::new("/"), &env);
        assert!(resolve("key").is_ok_and(|secret| secret.expose() == "k"));
        for wrong in ["../key", "", ".", "..", "/etc/passwd"] {
            assert!(resolve(wrong).is_err(), "{wrong}");
        }
        let unset = SecretSource::Credential("key".into()).resolve_in(Path::new("/"), &|_| None);
        assert!(unset.err().unwrap().contains("LoadCredential"));
        let env = SecretSource::Env("KEY".into());
        assert!(env.resolve_in(Path::new("/"), &|_| None).err().unwrap().contains("not set"));
    }
}
