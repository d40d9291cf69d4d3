//! What is wrong with a configuration, and where.
//!
//! Everything that looks at configuration reports here instead of returning at the first problem, because an operator
//! who mends a file wants the whole list in one run. A [`Span`] is a byte range in one source file; the renderers turn it
//! into line, column and a caret, for people ([`Diagnostics::render`]) and for machines ([`Diagnostics::to_json`]).

mod json;
mod mask;
mod render;

use std::borrow::Cow;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Errors beyond this number are counted and no longer kept, so that a broken file of any size costs a bounded amount of
/// memory and of the reader's patience.
pub const ERRORS_MAX: usize = 100;
/// The longest message, label or help that is shown, in characters: they can quote values, and values can be megabytes.
const TEXT_MAX: usize = 600;

/// How much of a line is looked at to tell whether a value is a secret, on each side of where it begins, in bytes.
const SECRET_CONTEXT: usize = 256;

/// One configuration file as it was read.
#[derive(Debug, Clone)]
pub struct Source {
    pub path: PathBuf,
    pub text: String,
}

/// Index into [`Diagnostics::sources`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId(pub u32);

/// A byte range in one source file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    pub file: FileId,
    pub range: Range<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

/// One finding: what is wrong, where, why, and how to mend it.
#[derive(Debug, Clone)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The headline, without a full stop: "unknown key `uptream`".
    pub message: String,
    /// The text under the caret, and where it points. Without a span the finding is about a file or an environment.
    pub primary: Option<(Span, String)>,
    /// Other places that belong to the finding, such as the first definition of a name that is defined twice.
    pub related: Vec<(Span, String)>,
    /// How to mend it.
    pub help: Option<String>,
}

impl Diagnostic {
    pub fn label(&mut self, text: impl Into<String>) -> &mut Self {
        if let Some((_, label)) = &mut self.primary {
            *label = text.into();
        }
        self
    }

    pub fn related(&mut self, span: Span, text: impl Into<String>) -> &mut Self {
        self.related.push((span, text.into()));
        self
    }

    pub fn help(&mut self, text: impl Into<String>) -> &mut Self {
        self.help = Some(text.into());
        self
    }
}

/// The collector. It owns the sources, so that spans can be rendered long after loading.
#[derive(Debug, Clone, Default)]
pub struct Diagnostics {
    pub sources: Vec<Source>,
    pub list: Vec<Diagnostic>,
    errors: usize,
    warnings: usize,
    /// Where findings beyond [`ERRORS_MAX`] are written, each over the one before.
    overflow: Option<Box<Diagnostic>>,
}

impl Diagnostics {
    pub fn add_source(&mut self, path: PathBuf, text: String) -> FileId {
        self.sources.push(Source { path, text });
        FileId(u32::try_from(self.sources.len() - 1).unwrap_or(u32::MAX))
    }

    pub fn error(&mut self, span: impl Into<Option<Span>>, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Error, span.into(), message.into())
    }

    pub fn warning(&mut self, span: impl Into<Option<Span>>, message: impl Into<String>) -> &mut Diagnostic {
        self.push(Severity::Warning, span.into(), message.into())
    }

    /// Whether this is told of that place already.
    pub fn is_told(&self, span: &Span, message: &str) -> bool {
        self.list.iter().any(|known| known.message == message && known.primary.as_ref().is_some_and(|(place, _)| place == span))
    }

    pub fn has_errors(&self) -> bool {
        self.errors > 0
    }

    /// How many errors were found, including those that were not kept.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// How many warnings were found, including those that were not kept.
    pub fn warnings(&self) -> usize {
        self.warnings
    }

    pub fn source(&self, file: FileId) -> Option<&Source> {
        self.sources.get(usize::try_from(file.0).ok()?)
    }

    /// The file of a span, and the line and column of its first character, both from 1; columns count characters.
    pub fn place(&self, span: &Span) -> Option<(&Path, usize, usize)> {
        let source = self.source(span.file)?;
        let (line, column) = line_and_column(&source.text, span.range.start);
        Some((&source.path, line, column))
    }

    /// `12 errors, 1 warning`, or nothing when there is neither.
    pub fn summary(&self) -> Option<String> {
        let count = |n: usize, word: &str| (n > 0).then(|| format!("{n} {word}{}", if n == 1 { "" } else { "s" }));
        match (count(self.errors, "error"), count(self.warnings, "warning")) {
            (Some(errors), Some(warnings)) => Some(format!("{errors}, {warnings}")),
            (errors, warnings) => errors.or(warnings),
        }
    }

    /// The findings in the order in which a reader meets their places; those without a place come first.
    fn in_order(&self) -> Vec<&Diagnostic> {
        let mut list: Vec<_> = self.list.iter().collect();
        list.sort_by_key(|d| d.primary.as_ref().map(|(span, _)| (span.file, span.range.start)));
        list
    }

    /// How many findings were counted but not kept.
    fn left_off(&self) -> usize {
        (self.errors + self.warnings).saturating_sub(self.list.len())
    }

    /// Takes over those findings of another collector, of the same sources, that fit.
    pub fn take(&mut self, other: Diagnostics, fits: impl Fn(&Diagnostic) -> bool) {
        for found in other.list.into_iter().filter(fits) {
            let slot = self.push(found.severity, None, String::new());
            *slot = found;
        }
    }

    fn push(&mut self, severity: Severity, span: Option<Span>, message: String) -> &mut Diagnostic {
        let primary = span.map(|span| (span, String::new()));
        let found = Diagnostic { severity, message, primary, related: Vec::new(), help: None };
        match severity {
            Severity::Error => self.errors += 1,
            Severity::Warning => self.warnings += 1,
        }
        if self.list.len() < ERRORS_MAX { self.list.push_mut(found) } else { self.overflow.insert(Box::new(found)) }
    }
}

/// The known name that is most like `wrong`, if one is like it at all.
pub fn nearest<'a>(wrong: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // Transposed letters count once, and long names may differ in more places than short ones.
    let length = wrong.chars().count();
    let bound = (length / 3).max(1);
    known
        .filter(|name| name.chars().count().abs_diff(length) <= bound)
        .map(|name| (strsim::damerau_levenshtein(&wrong.to_lowercase(), &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= bound)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}

/// Line and column of a byte offset, both from 1; columns count characters. An offset beyond the end is the end.
fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let before = text.get(..floor(text, offset)).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
    let line = memchr::memchr_iter(b'\n', before.as_bytes()).count() + 1;
    (line, before.get(line_start..).unwrap_or_default().chars().count() + 1)
}

/// Whether the text at a place is a secret in plain text, which no message may repeat.
pub fn is_secret(text: &str, range: &Range<usize>) -> bool {
    let line_start = text.get(..floor(text, range.start)).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    let from = line_start.max(floor(text, range.start.saturating_sub(SECRET_CONTEXT)));
    let to = floor(text, range.end.min(range.start.saturating_add(SECRET_CONTEXT)));
    let before = text.get(from..floor(text, range.start)).unwrap_or_default();
    let whole = text.get(from..to).unwrap_or_default();
    matches!(mask::masked(whole), Cow::Owned(_)) && matches!(mask::masked(before), Cow::Borrowed(_))
}

/// The nearest character boundary at or before `offset`.
fn floor(text: &str, offset: usize) -> usize {
    let mut offset = offset.min(text.len());
    while !text.is_char_boundary(offset) {
        offset -= 1;
    }
    offset
}

/// What may be written to a terminal or a log: bounded, and with control characters escaped, because messages quote
/// what stands in files.
fn shown(text: &str) -> Cow<'_, str> {
    let cut = text.char_indices().nth(TEXT_MAX).map(|(at, _)| at);
    if cut.is_none() && !text.contains(|c: char| c.is_control()) {
        return Cow::Borrowed(text);
    }
    let mut out = String::new();
    for c in text.get(..cut.unwrap_or(text.len())).unwrap_or_default().chars() {
        if c.is_control() { out.extend(c.escape_default()) } else { out.push(c) }
    }
    if cut.is_some() {
        out.push('…');
    }
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one_line(text: &str) -> Diagnostics {
        let mut d = Diagnostics::default();
        d.add_source("a.toml".into(), text.to_owned());
        d
    }

    fn span(range: Range<usize>) -> Span {
        Span { file: FileId(0), range }
    }

    #[test]
    fn columns_count_characters() {
        let d = one_line("ok = 1\nü = \"é\" # x\n");
        let at = d.sources[0].text.find('#').unwrap();
        assert_eq!(d.place(&span(at..at + 1)), Some((Path::new("a.toml"), 2, 9)));
        assert_eq!(d.place(&span(10_000..10_001)), Some((Path::new("a.toml"), 3, 1)));
        // Inside a character: its start.
        assert_eq!(d.place(&span(8..9)), Some((Path::new("a.toml"), 2, 1)));
    }

    #[test]
    fn findings_are_bounded_and_counted() {
        let mut d = one_line("x");
        for _ in 0..ERRORS_MAX + 7 {
            d.error(span(0..1), "wrong").help("mend it");
        }
        assert_eq!((d.list.len(), d.errors()), (ERRORS_MAX, ERRORS_MAX + 7));
        let text = d.render(false);
        assert!(text.ends_with("and at least 7 more\n\n107 errors\n"), "{text}");
    }

    #[test]
    fn messages_cannot_move_the_cursor_or_flood() {
        let mut d = one_line("x");
        d.error(None, format!("\u{1b}[2J{}", "a".repeat(1 << 20)));
        let text = d.render(false);
        assert!(!text.contains('\u{1b}') && text.contains("\\u{1b}[2Jaaa"), "{text}");
        assert!(text.len() < 2_000, "{}", text.len());
    }

    #[test]
    fn a_megabyte_line_shows_only_the_neighbourhood_of_its_fault() {
        let line = format!("a = [\"{}\", oops, \"{}\"]", "é".repeat(300_000), "b".repeat(600_000));
        let at = line.find("oops").unwrap();
        let mut d = one_line(&line);
        d.error(span(at..at + 4), "not a value").label("here");
        let text = d.render(false);
        assert!(text.len() < 2_000 && text.contains("oops"), "{text}");
        assert!(text.contains("a.toml:1:300010"), "{text}");
    }

    #[test]
    fn findings_come_in_the_order_of_the_text() {
        let mut d = one_line("a\nb\n");
        d.warning(span(2..3), "second");
        d.error(span(0..1), "first");
        d.error(None, "no place");
        let text = d.render(false);
        let at = |what| text.find(what).unwrap();
        assert!(at("no place") < at("first") && at("first") < at("second"), "{text}");
        assert!(text.ends_with("2 errors, 1 warning\n"), "{text}");
    }

    #[test]
    fn machines_get_every_part_of_a_finding() {
        let mut d = one_line("ab\ncd\n");
        d.error(span(0..2), "twice").label("again").related(span(3..5), "first").help("rename one");
        d.error(None, "no file");
        let json: serde_json::Value = serde_json::from_str(&d.to_json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!([
                { "severity": "error", "message": "no file", "file": null, "line": null, "column": null, "end_line": null,
                  "end_column": null, "label": null, "help": null, "related": [] },
                { "severity": "error", "message": "twice", "file": "a.toml", "line": 1, "column": 1, "end_line": 1,
                  "end_column": 3, "label": "again", "help": "rename one",
                  "related": [{ "file": "a.toml", "line": 2, "column": 1, "end_line": 2, "end_column": 3, "message": "first" }] },
            ])
        );
    }
}
