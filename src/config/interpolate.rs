//! `${NAME}` and `${NAME:-text}` in string values.
//!
//! Names are `[A-Z_][A-Z0-9_]*`. Anything else behind `${` belongs to somebody else, such as a filter's `${request_id}`, and
//! is left alone, but for what only a shell would understand, such as `${NAME-text}`: that is a mistake. As in a shell, `:-`
//! also stands in for a variable that is empty. `$${NAME}` is the text `${NAME}`.

use crate::diagnostic::{Diagnostics, FileId, Span};
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// What takes the place of one string.
struct Replacement {
    text: String,
    /// The string is one reference and nothing else, so it may also be a number or a boolean.
    whole: bool,
}

/// The strings of one file that change, by the offset at which they are written.
#[derive(Default)]
pub(super) struct Replacements {
    list: HashMap<usize, Replacement>,
    /// Strings with an error that is reported already.
    broken: HashSet<usize>,
}

impl Replacements {
    /// Looks through all values of a file. Only reads, so that [`Replacements::apply`] can lend the new texts to the tree.
    pub fn collect(
        table: &DeTable<'_>,
        text: &str,
        file: FileId,
        env: &dyn Fn(&str) -> Option<String>,
        d: &mut Diagnostics,
    ) -> Self {
        let mut out = Replacements::default();
        if text.contains("${") {
            let mut problem = |range: Range<usize>, message: String| {
                d.error(Span { file, range }, message);
            };
            table.values().for_each(|value| out.visit(value, text, env, &mut problem));
        }
        out
    }

    fn visit(
        &mut self,
        value: &Spanned<DeValue<'_>>,
        source: &str,
        env: &dyn Fn(&str) -> Option<String>,
        problem: &mut dyn FnMut(Range<usize>, String),
    ) {
        match value.get_ref() {
            DeValue::Table(table) => table.values().for_each(|value| self.visit(value, source, env, problem)),
            DeValue::Array(list) => list.iter().for_each(|value| self.visit(value, source, env, problem)),
            DeValue::String(text) if text.contains("${") => {
                let (new, whole, problems) = expand(text, env);
                for (at, message) in problems {
                    self.broken.insert(value.span().start);
                    problem(place(source, value.span(), text, at), message);
                }
                if new != **text {
                    self.list.insert(value.span().start, Replacement { text: new, whole });
                }
            }
            _ => {}
        }
    }

    /// Puts the new texts into the tree.
    pub fn apply<'i>(&'i self, table: &mut DeTable<'i>) {
        if !self.list.is_empty() {
            table.iter_mut().for_each(|(_, value)| self.replace(value));
        }
    }

    fn replace<'i>(&'i self, value: &mut Spanned<DeValue<'i>>) {
        let start = value.span().start;
        match value.get_mut() {
            DeValue::Table(table) => table.iter_mut().for_each(|(_, value)| self.replace(value)),
            DeValue::Array(list) => list.iter_mut().for_each(|value| self.replace(value)),
            DeValue::String(text) => {
                if let Some(new) = self.list.get(&start) {
                    *text = new.text.as_str().into();
                }
            }
            _ => {}
        }
    }

    /// The number or boolean that the string at this offset can also be read as.
    pub fn scalar(&self, start: usize) -> Option<DeValue<'_>> {
        let text = self.list.get(&start).filter(|replacement| replacement.whole)?.text.trim();
        let value = DeValue::parse(text).ok()?.into_inner();
        matches!(value, DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_)).then_some(value)
    }

    /// The strings within a value that have an error which is reported already.
    pub fn broken_in(&self, value: &Spanned<DeValue<'_>>, out: &mut Vec<Range<usize>>) {
        if self.broken.is_empty() {
            return;
        }
        match value.get_ref() {
            DeValue::Table(table) => table.values().for_each(|value| self.broken_in(value, out)),
            DeValue::Array(list) => list.iter().for_each(|value| self.broken_in(value, out)),
            DeValue::String(_) if self.broken.contains(&value.span().start) => out.push(value.span()),
            _ => {}
        }
    }

    /// Feeds the new texts to `each` in a stable order.
    pub fn each(&self, mut each: impl FnMut(&str)) {
        let mut list: Vec<_> = self.list.iter().collect();
        list.sort_by_key(|(start, _)| **start);
        list.into_iter().for_each(|(_, replacement)| each(&replacement.text));
    }
}

type Problems = Vec<(Range<usize>, String)>;

/// The text with its references replaced, whether it was one reference and nothing else, and what is wrong with it.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> (String, bool, Problems) {
    let mut out = String::with_capacity(text.len());
    let mut problems = Vec::new();
    let mut whole = false;
    let mut rest = text;
    while let Some(at) = rest.find("${") {
        let offset = text.len() - rest.len() + at;
        let (before, from) = rest.split_at(at);
        let body = from.get(2..).unwrap_or_default();
        let end = body.find(|c: char| !matches!(c, 'A'..='Z' | '0'..='9' | '_')).unwrap_or(body.len());
        let (name, after) = body.split_at(end);
        // What a shell understands besides is a mistake here, and nobody else's: a name of one letter may be a range of a pattern.
        let of_shell = name.len() > 1 && after.starts_with(['-', '=', '?', '+']) && after.contains('}');
        if name.is_empty()
            || name.starts_with(|c: char| c.is_ascii_digit())
            || !(after.is_empty() || after.starts_with(['}', ':']) || of_shell)
        {
            out.push_str(before);
            out.push_str("${");
            rest = body;
            continue;
        }
        let Some(close) = after.find('}') else {
            problems.push((offset..text.len(), format!("`${{{name}` is not closed by `}}`")));
            out.push_str(rest);
            rest = "";
            break;
        };
        let (default, left) = after.split_at(close);
        let reference = offset..offset + 2 + end + close + 1;
        rest = left.get(1..).unwrap_or_default();
        if let Some(before) = before.strip_suffix('$') {
            out.push_str(before);
            out.push_str(text.get(reference).unwrap_or_default());
            continue;
        }
        out.push_str(before);
        whole = reference == (0..text.len());
        let default = match default.strip_prefix(":-") {
            Some(default) if default.contains("${") => {
                problems.push((reference, format!("the default of `${{{name}}}` cannot hold another reference")));
                continue;
            }
            Some(default) => Some(default),
            None if default.is_empty() => None,
            None => {
                problems.push((reference, format!("after `${{{name}` only `}}` or `:-default}}` may follow; a text that is to be as it is begins with `$${{`")));
                continue;
            }
        };
        match (env(name), default) {
            (Some(value), None) => out.push_str(&value),
            (Some(value), Some(_)) if !value.is_empty() => out.push_str(&value),
            (_, Some(default)) => out.push_str(default),
            (None, None) => problems.push((
                reference,
                format!("the environment variable `{name}` is not set and there is no default: write `${{{name}:-default}}` to give one"),
            )),
        }
    }
    out.push_str(rest);
    (out, whole, problems)
}

/// Where a part of a string stands in the file: exactly, when the literal has no escapes; else the whole literal.
fn place(source: &str, literal: Range<usize>, text: &str, part: Range<usize>) -> Range<usize> {
    let raw = source.get(literal.clone()).unwrap_or_default();
    let start = ["\"\"\"", "'''", "\"", "'"].iter().find_map(|quote| {
        let inner = raw.strip_prefix(quote)?.strip_suffix(quote)?;
        (inner == text).then_some(literal.start + quote.len())
    });
    match start {
        Some(start) => start + part.start..start + part.end,
        None => literal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn env(name: &str) -> Option<String> {
        match name {
            "HOST" => Some("example.com".to_owned()),
            "EMPTY" => Some(String::new()),
            _ => None,
        }
    }

    fn good(text: &str) -> String {
        let (out, _, problems) = expand(text, &env);
        assert_eq!(problems, []);
        out
    }

    #[test]
    fn references_are_replaced() {
        assert_eq!(good("http://${HOST}:${PORT:-80}/"), "http://example.com:80/");
        assert_eq!(good("[${EMPTY}] [${EMPTY:-x}] [${NONE:-}]"), "[] [x] []");
        assert_eq!(good("${HOST:-a:-b}${X:-a:-b}"), "example.coma:-b");
    }

    #[test]
    fn what_is_not_ours_is_left_alone() {
        for text in ["${request_id}", "${1}", "$HOST", "${}", "${Host}", "a${", "$", "{}", "$${request_id}", "${ HOST }"] {
            assert_eq!(good(text), text);
        }
        assert_eq!(good("$${HOST} ${request_id} $${A:-b}"), "${HOST} ${request_id} ${A:-b}");
    }

    #[test]
    fn problems_say_where() {
        let problem = |text| expand(text, &env).2.into_iter().next().unwrap();
        let (at, message) = problem("a ${NONE} b");
        assert_eq!(at, 2..9);
        assert!(message.contains("`NONE` is not set"), "{message}");
        assert_eq!(problem("a ${HOST").0, 2..8);
        assert_eq!(problem("${HOST:x}").0, 0..9);
        for text in ["${HOST-x}", "${HOST=x}", "${HOST?x}", "${HOST+x}"] {
            assert_eq!(problem(text).0, 0..9, "{text}");
        }
        assert_eq!(good("^${A-Z}$"), "^${A-Z}$");
        assert_eq!(problem("${HOST:-${OTHER}}").0, 0..16);
    }

    #[test]
    fn places_are_exact_unless_there_are_escapes() {
        let source = r#"a = "x${N}" b = "\t${N}""#;
        assert_eq!(place(source, 4..11, "x${N}", 1..5), 6..10);
        assert_eq!(place(source, 16..24, "\t${N}", 1..5), 16..24);
    }

    proptest! {
        #[test]
        fn no_text_breaks_expansion(text in "[$${}A-Z:\\-é]{0,40}") {
            expand(&text, &env);
        }
    }
}
