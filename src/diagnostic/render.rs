//! Diagnostics for people: the compiler's way of showing file, line, text and caret.

use super::mask::masked;
use super::{Diagnostic, Diagnostics, Severity, Span, floor, line_and_column, shown};
use annotate_snippets::{AnnotationKind, Group, Level, Origin, Renderer, Snippet};
use std::borrow::Cow;
use std::ops::Range;

/// The longest line that is shown, in bytes: the renderer cuts it to the width of a terminal, but must look at all of it.
/// Generated configurations have lines of a megabyte; of those only the fault itself is quoted.
const LINE_MAX: usize = 4096;
/// How much of the fault is quoted then, in bytes.
const QUOTE_MAX: usize = 60;

impl Diagnostics {
    /// The whole report, one block a finding, closed by a line with their number. Empty when there is nothing to say.
    pub fn render(&self, color: bool) -> String {
        let renderer = if color { Renderer::styled() } else { Renderer::plain() };
        let mut out = String::new();
        for found in self.in_order() {
            out.push_str(renderer.render(&[self.group(found)]).trim_end());
            out.push_str("\n\n");
        }
        if self.left_off() > 0 {
            out.push_str(&format!("and at least {} more\n\n", self.left_off()));
        }
        if let Some(summary) = self.summary() {
            out.push_str(&summary);
            out.push('\n');
        }
        out
    }

    fn group<'a>(&'a self, found: &'a Diagnostic) -> Group<'a> {
        let level = match found.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
        };
        let mut group = Group::with_title(level.primary_title(shown(&found.message)));
        if let Some((span, label)) = &found.primary {
            group = self.excerpt(group, span, label, AnnotationKind::Primary);
        }
        for (span, label) in &found.related {
            group = self.excerpt(group, span, label, AnnotationKind::Context);
        }
        match &found.help {
            Some(help) => group.element(Level::HELP.message(shown(help))),
            None => group,
        }
    }

    fn excerpt<'a>(&'a self, group: Group<'a>, span: &Span, label: &'a str, kind: AnnotationKind) -> Group<'a> {
        let Some(source) = self.source(span.file) else { return group };
        let path = source.path.to_string_lossy();
        let (number, column) = line_and_column(&source.text, span.range.start);
        let (line, range) = line_of(&source.text, span.range.clone());
        if line.len() > LINE_MAX {
            let quote = line.get(range.start..floor(line, range.end.min(range.start + QUOTE_MAX))).unwrap_or_default();
            let note = format!("in a line of {} bytes, at `{}`", line.len(), long(line, &range, quote));
            let note = if label.is_empty() { note } else { format!("{note}: {label}") };
            return group
                .element(Origin::path(path).line(number).char_column(column))
                .element(Level::NOTE.message(shown(&note).into_owned()));
        }
        let label = (!label.is_empty()).then(|| shown(label));
        let (line, range) = match masked(line) {
            Cow::Borrowed(line) => (Cow::Borrowed(line), range),
            // Characters stay, bytes may not.
            Cow::Owned(masked) => {
                let chars = |end: usize| line.get(..end).map_or(0, |before| before.chars().count());
                let place = |count: usize| masked.char_indices().nth(count).map_or(masked.len(), |(at, _)| at);
                let range = place(chars(range.start))..place(chars(range.end));
                (Cow::Owned(masked), range)
            }
        };
        group.element(Snippet::source(line).path(path).line_start(number).annotation(kind.span(range).label(label)))
    }
}

/// What is quoted of a line that is too long to be shown: with what stands before it, which tells whether it is a secret.
fn long<'a>(line: &str, range: &Range<usize>, quote: &'a str) -> Cow<'a, str> {
    let from = floor(line, range.start.saturating_sub(QUOTE_MAX));
    let around = line.get(from..floor(line, range.end.min(range.start + QUOTE_MAX))).unwrap_or_default();
    match masked(around) {
        Cow::Borrowed(_) => Cow::Borrowed(quote),
        Cow::Owned(_) => Cow::Borrowed("…"),
    }
}

/// The line in which a range starts, and the range within it. A range that ends on a later line is cut at the end of its
/// first: the first line says where, and the rest can be long.
fn line_of(text: &str, range: Range<usize>) -> (&str, Range<usize>) {
    let start = floor(text, range.start);
    let line_start = text.get(..start).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    let line_end = text.get(start..).and_then(|after| after.find(['\n', '\r'])).map_or(text.len(), |end| start + end);
    let end = floor(text, range.end.clamp(start, line_end));
    (text.get(line_start..line_end).unwrap_or_default(), start - line_start..end - line_start)
}
