//! From TOML to structs, with every error instead of the first.
//!
//! Serde stops at its first error. So each section is decoded by itself, and within one, what an error points at is cut out
//! and the rest is decoded again, until nothing is wrong or nothing is left to cut. Errors that the cutting itself causes,
//! such as a missing key that was just cut, are not reported. Good sections are decoded once.

use super::interpolate::Replacements;
use super::suggest::{nearest, quoted, suggest};
use crate::diagnostic::{Diagnostics, ERRORS_MAX, FileId, Span};
use crate::filter::Registry;
use std::collections::HashSet;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Error, ValueDeserializer};

/// What decoding one section needs to know.
pub(super) struct Decoder<'a, 'i> {
    pub file: FileId,
    pub text: &'a str,
    pub registry: &'a Registry,
    pub replacements: &'i Replacements,
    pub d: &'a mut Diagnostics,
}

/// A value that decoded at last, and what it lost on the way, if it lost something. What was mended by cutting may be referred to;
/// it is checked further only as far as [`Whole`] vouches for it, because it does not say all that was written.
pub(super) struct Decoded<T> {
    pub value: T,
    pub whole: Option<Whole>,
}

/// What is left whole of a table that lost something.
#[derive(Default)]
pub(super) struct Whole {
    /// The places of each key's value and of all that is within it; of a list that lost something, those of its elements.
    keys: Vec<(String, Vec<Range<usize>>)>,
    /// The keys that are gone, or have lost something within.
    lost: HashSet<String>,
}

impl Whole {
    /// Whether the key is gone, or has lost something within.
    pub fn has_lost(&self, key: &str) -> bool {
        self.lost.contains(key)
    }

    fn of(value: &Spanned<DeValue<'_>>, cut: &Cut) -> Self {
        let start = value.span().start;
        let mut whole = Whole::default();
        whole.lost.extend(cut.keys.iter().filter(|(holder, _)| *holder == start).map(|(_, name)| name.clone()));
        let DeValue::Table(table) = value.get_ref() else { return whole };
        for (key, value) in table {
            let mut places = Vec::new();
            if !whole_places(value, cut, &mut places) {
                whole.lost.insert(key.get_ref().to_string());
            }
            whole.keys.push((key.get_ref().to_string(), places));
        }
        whole
    }

    /// Whether what is found at `place` is right whatever is lost: it stands at a key that is whole, and in none of the groups of
    /// keys that are checked `together` is that key beside one that is lost.
    pub fn vouches(&self, place: &Range<usize>, together: &[&[&str]]) -> bool {
        let holds = |outer: &Range<usize>| outer.start <= place.start && place.end <= outer.end;
        let Some((key, _)) = self.keys.iter().find(|(_, places)| places.iter().any(holds)) else { return false };
        !together.iter().any(|group| group.contains(&key.as_str()) && group.iter().any(|other| self.lost.contains(*other)))
    }
}

/// Adds the places of a value and of all values in it: tables with a header of their own are not within the place of the outer
/// one. `false` if it has lost something; then only elements of lists are added, which do not hang on each other as keys do.
fn whole_places(value: &Spanned<DeValue<'_>>, cut: &Cut, places: &mut Vec<Range<usize>>) -> bool {
    let (before, mut whole) = (places.len(), !cut.holders.contains(&value.span().start));
    match value.get_ref() {
        DeValue::Table(table) => {
            whole = table.values().fold(whole, |whole, value| whole_places(value, cut, places) && whole);
            if !whole {
                places.truncate(before);
            }
        }
        DeValue::Array(list) => whole = list.iter().fold(whole, |whole, value| whole_places(value, cut, places) && whole),
        _ => {}
    }
    if whole {
        places.push(value.span());
    }
    whole
}

/// What was cut out of which table or list, so that its absence is not reported.
#[derive(Default)]
struct Cut {
    keys: HashSet<(usize, String)>,
    /// Starts of tables and lists that lost something.
    holders: HashSet<usize>,
}

impl<'a, 'i> Decoder<'a, 'i> {
    pub fn span(&self, range: Range<usize>) -> Span {
        Span { file: self.file, range }
    }

    /// Decodes a value, reports all that is wrong with it, and returns what is left.
    pub fn decode<T>(
        &mut self,
        mut value: Spanned<DeValue<'i>>,
        decode: impl Fn(ValueDeserializer<'i>) -> Result<T, Error>,
    ) -> Option<Decoded<T>> {
        let mut cut = Cut::default();
        let mut broken = Vec::new();
        self.replacements.broken_in(&value, &mut broken);
        let mut clean = broken.is_empty();
        for range in &broken {
            remove(&mut value, range, &mut cut)?;
        }
        loop {
            let error = match decode(ValueDeserializer::from(value.clone())) {
                Ok(decoded) => return Some(Decoded { value: decoded, whole: (!clean).then(|| Whole::of(&value, &cut)) }),
                Err(error) => error,
            };
            let range = error.span().unwrap_or_else(|| value.span());
            if error.message().starts_with("invalid type: string")
                && let Some(scalar) = self.replacements.scalar(range.start)
                && replace(&mut value, &range, &scalar)
            {
                continue;
            }
            clean = false;
            let mut meant = None;
            if !cut.explains(&error, &range) {
                meant = self.report(&error, range.clone());
            }
            // Beyond the bound findings are only counted: then one for each section is enough.
            if self.d.list.len() >= ERRORS_MAX {
                return None;
            }
            let holder = remove(&mut value, &range, &mut cut)?;
            // A key that was only misspelt is not missing.
            cut.keys.extend(meant.map(|name| (holder, name)));
        }
    }

    /// Returns the key that an unknown one was likely meant to be.
    fn report(&mut self, error: &Error, range: Range<usize>) -> Option<String> {
        let message = error.message();
        if crate::diagnostic::is_secret(self.text, &range)
            && (message.starts_with("unknown variant") || message.starts_with("invalid value"))
        {
            // The message quotes what was written.
            let span = self.span(range);
            self.d.error(span, "this value is not possible here").help("secrets are written as hashes, or as { file = \"...\" }");
            return None;
        }
        let quotes = self.text.get(range.clone()).is_some_and(|text| text.starts_with(['"', '\'']));
        let span = self.span(range);
        if let Some((wrong, known)) = unknown(message, "unknown field `") {
            suggest(self.d.error(span, format!("unknown key `{wrong}`")), wrong, "keys", quoted(known));
            return nearest(wrong, quoted(known)).map(str::to_owned);
        } else if let Some((wrong, known)) = unknown(message, "unknown variant `") {
            let (one, many) = if quotes { ("value", "values") } else { ("key", "keys") };
            suggest(self.d.error(span, format!("unknown {one} `{wrong}`")), wrong, many, quoted(known));
        } else if let Some(name) = missing(message) {
            self.d.error(span, format!("missing key `{name}`")).label(format!("`{name}` is required here"));
        } else if let Some((found, expected)) = invalid(message, "invalid type: ") {
            self.d.error(span, format!("expected {}", plain(expected))).label(format!("this is {}", kind(found)));
        } else if let Some((found, expected)) = invalid(message, "invalid value: ") {
            let value = quoted(found).next().unwrap_or(found);
            self.d.error(span, format!("`{value}` is not possible here")).label(format!("expected {}", plain(expected)));
        } else if message == "wanted string or table" {
            self.d.error(span, "expected a string or a table");
        } else if message.starts_with("wanted exactly 1 element") {
            self.d.error(span, "expected a table with exactly one key");
        } else {
            self.d.error(span, message);
        }
        None
    }
}

impl Cut {
    /// Whether an error is only there because of what was cut.
    fn explains(&self, error: &Error, place: &Range<usize>) -> bool {
        let message = error.message();
        match missing(message) {
            Some(name) => self.keys.contains(&(place.start, name.to_owned())),
            // Such as "exactly one of": the table or list had been accepted before something was cut out of it.
            None => self.holders.contains(&place.start) && !message.starts_with("unknown "),
        }
    }
}

/// Removes the innermost key and value that `place` points at, and returns where the table or list that held it starts.
fn remove(value: &mut Spanned<DeValue<'_>>, place: &Range<usize>, cut: &mut Cut) -> Option<usize> {
    let holder = value.span().start;
    match value.get_mut() {
        DeValue::Table(table) => {
            if let Some(inner) = table.iter_mut().find_map(|(_, value)| remove(value, place, cut)) {
                return Some(inner);
            }
            let name = table.iter().find(|(key, value)| key.span() == *place || value.span() == *place)?.0.get_ref().to_string();
            table.remove(name.as_str());
            cut.keys.insert((holder, name));
        }
        DeValue::Array(list) => {
            if let Some(inner) = list.iter_mut().find_map(|value| remove(value, place, cut)) {
                return Some(inner);
            }
            if !list.iter().any(|value| value.span() == *place) {
                return None;
            }
            let kept = list.iter().filter(|value| value.span() != *place).cloned();
            *list = kept.collect();
        }
        _ => return None,
    }
    cut.holders.insert(holder);
    Some(holder)
}

/// Puts `new` in the place of the string at `place`.
fn replace<'i>(value: &mut Spanned<DeValue<'i>>, place: &Range<usize>, new: &DeValue<'i>) -> bool {
    let here = value.span() == *place;
    match value.get_mut() {
        DeValue::Table(table) => table.iter_mut().any(|(_, value)| replace(value, place, new)),
        DeValue::Array(list) => list.iter_mut().any(|value| replace(value, place, new)),
        string @ DeValue::String(_) if here => {
            *string = new.clone();
            true
        }
        _ => false,
    }
}

/// `unknown field `x`, expected ...` → `x` and the rest.
fn unknown<'m>(message: &'m str, prefix: &str) -> Option<(&'m str, &'m str)> {
    let rest = message.strip_prefix(prefix)?;
    // The name itself may hold anything, so look for the end from behind.
    let end = rest.rfind("`, expected ").or_else(|| rest.rfind("`, there are no "))?;
    Some((rest.get(..end)?, rest.get(end + 1..)?))
}

fn missing(message: &str) -> Option<&str> {
    message.strip_prefix("missing field `")?.strip_suffix('`')
}

/// `invalid type: string "x", expected u32` → `string "x"` and `u32`.
fn invalid<'m>(message: &'m str, prefix: &str) -> Option<(&'m str, &'m str)> {
    message.strip_prefix(prefix)?.rsplit_once(", expected ")
}

/// Serde's name for what it expected, in the words of a configuration.
fn plain(expected: &str) -> String {
    let range = |low: &str, high: u64| format!("a whole number from {low} to {high}");
    match expected {
        "u8" => range("0", u8::MAX.into()),
        "u16" => range("0", u16::MAX.into()),
        "u32" => range("0", u32::MAX.into()),
        "a nonzero u16" => range("1", u16::MAX.into()),
        "a nonzero u32" => range("1", u32::MAX.into()),
        "u64" | "usize" => "a whole number, 0 or more".to_owned(),
        "a nonzero u64" | "a nonzero usize" => "a whole number, 1 or more".to_owned(),
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number".to_owned(),
        "f32" | "f64" => "a number".to_owned(),
        "a boolean" => "true or false".to_owned(),
        "a sequence" => "a list".to_owned(),
        "a map" => "a table".to_owned(),
        "path string" => "a path".to_owned(),
        _ if expected.starts_with("struct ") => "a table".to_owned(),
        _ => expected.to_owned(),
    }
}

/// Serde's description of what it found, in the words of a configuration.
fn kind(found: &str) -> &str {
    match found.split(' ').next().unwrap_or_default() {
        "string" => "a string",
        "integer" if found.ends_with("128") => "too large",
        "integer" => "a whole number",
        "floating" => "a number with a fraction",
        "boolean" => "a boolean",
        "map" => "a table",
        "sequence" => "a list",
        _ => found,
    }
}

/// The table behind a section's key, or an error that says what to write.
pub(super) fn expect_table<'i>(
    value: Spanned<DeValue<'i>>,
    what: &str,
    file: FileId,
    d: &mut Diagnostics,
) -> Option<DeTable<'i>> {
    let range = value.span();
    match value.into_inner() {
        DeValue::Table(table) => Some(table),
        other => {
            d.error(Span { file, range }, "expected a table").label(format!("this is {}", article(other.type_str()))).help(what);
            None
        }
    }
}

/// TOML's name of a type with its article.
pub(super) fn article(kind: &str) -> String {
    match kind {
        "array" => "a list".to_owned(),
        "integer" => "a whole number".to_owned(),
        "float" => "a number with a fraction".to_owned(),
        "datetime" => "a date".to_owned(),
        kind => format!("a {kind}"),
    }
}
