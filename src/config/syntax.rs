//! From text to TOML: all syntax errors at once, and which sections they spoil.

use crate::diagnostic::{Diagnostics, FileId, Span};
use std::collections::HashSet;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The most syntax errors that are shown for one file; the rest are counted. After an unclosed quote they are echoes of it.
const SYNTAX_ERRORS_MAX: usize = 20;

/// The parser's message for a key or table that is defined twice.
const DUPLICATE: &str = "duplicate key";

/// Sections of a file that cannot be believed because a syntax error lies within them. What the parser makes of the rest of
/// such a section would give errors that nobody wrote.
#[derive(Default)]
pub(super) struct Spoiled {
    sections: HashSet<(String, Option<String>)>,
    /// The file has syntax errors, so what seems to be missing may only be unreadable.
    pub any: bool,
}

impl Spoiled {
    /// Whether the table `section`, or the section `[section.name]`, has a syntax error in it.
    pub fn has(&self, section: &str, name: Option<&str>) -> bool {
        self.any && self.sections.contains(&(section.to_owned(), name.map(str::to_owned)))
    }
}

/// Parses a file and reports its syntax errors.
pub(super) fn parse<'i>(text: &'i str, file: FileId, d: &mut Diagnostics) -> (DeTable<'i>, Spoiled) {
    let (tree, errors) = DeTable::parse_recoverable(text);
    let tree = tree.into_inner();
    if errors.is_empty() {
        return (tree, Spoiled::default());
    }
    let mut spoiled = Spoiled { any: true, ..Spoiled::default() };
    let mut places = Vec::new();
    let mut errors: Vec<_> = errors.iter().map(|e| (e.span().unwrap_or(text.len()..text.len()), e.message())).collect();
    errors.sort_by_key(|(range, _)| range.start);
    // What follows the first error of a line is mostly its echo; so are the keys of a table that is defined twice. All three
    // positions only move forward, so that a file of nothing but errors is still read in one pass.
    let (mut line_end, mut scanned, mut header) = (None, 0, 0);
    let (mut reported, mut within_duplicate, mut first_left_off) = (0_usize, None, None);
    for (range, message) in errors {
        let at = range.start;
        places.push(at);
        if line_end.is_some_and(|end| at <= end) {
            continue;
        }
        line_end = Some(text.get(at..).and_then(|rest| rest.find('\n')).map_or(text.len(), |length| at + length));
        if let Some(last) = text.get(scanned..at).and_then(|passed| passed.rfind("\n[")) {
            header = scanned + last;
        }
        scanned = at;
        if message == DUPLICATE {
            if within_duplicate == Some(header) {
                continue;
            }
            let newline = text.get(..at).and_then(|before| before.rfind('\n')).unwrap_or_default();
            within_duplicate = (newline == header).then_some(header).or(within_duplicate);
        }
        reported += 1;
        match reported.checked_sub(SYNTAX_ERRORS_MAX) {
            None | Some(0) => report(text, file, message, range, d),
            Some(1) => first_left_off = Some(range),
            Some(_) => {}
        }
    }
    if let Some(range) = first_left_off {
        let more = reported.saturating_sub(SYNTAX_ERRORS_MAX);
        let lines = if more == 1 { "line" } else { "lines" };
        d.error(Span { file, range }, format!("not valid TOML: {more} more {lines} from here on"))
            .help("often one quote or bracket before them is not closed");
    }
    let mut starts = Vec::new();
    for (section, value) in &tree {
        let whole = (section.get_ref().to_string(), None);
        starts.push((section.span().start, whole.clone()));
        match value.get_ref() {
            DeValue::Table(entries) if super::load::is_named(section.get_ref()) => {
                for (name, value) in entries {
                    let owner = (section.get_ref().to_string(), Some(name.get_ref().to_string()));
                    starts.push((name.span().start, owner.clone()));
                    collect_starts(value, &owner, &mut starts);
                }
            }
            _ => collect_starts(value, &whole, &mut starts),
        }
    }
    starts.sort();
    for place in places {
        let owner = starts.partition_point(|(start, _)| *start <= place).checked_sub(1).and_then(|at| starts.get(at));
        if let Some((_, owner)) = owner {
            spoiled.sections.insert(owner.clone());
        }
    }
    (tree, spoiled)
}

type Owner = (String, Option<String>);

fn collect_starts(value: &Spanned<DeValue<'_>>, owner: &Owner, starts: &mut Vec<(usize, Owner)>) {
    match value.get_ref() {
        DeValue::Table(table) => {
            for (key, value) in table {
                starts.push((key.span().start, owner.clone()));
                collect_starts(value, owner, starts);
            }
        }
        DeValue::Array(list) => list.iter().for_each(|value| collect_starts(value, owner, starts)),
        _ => {}
    }
}

fn report(text: &str, file: FileId, message: &str, range: Range<usize>, d: &mut Diagnostics) {
    if message == DUPLICATE {
        let line_start = text.get(..range.start).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
        let line = text.get(line_start..).unwrap_or_default().lines().next().unwrap_or_default().trim();
        let key = match line.split_once(']') {
            Some((header, _)) if header.starts_with('[') => format!("{header}]"),
            _ => text.get(range.clone()).unwrap_or_default().to_owned(),
        };
        let first = first_definition(text, &range);
        let found = d.error(Span { file, range }, format!("`{key}` is defined twice")).label("again here");
        if let Some(first) = first {
            found.related(Span { file, range: first }, "first here");
        }
        return;
    }
    let (headline, expected) = match message.split_once(", expected ") {
        Some((headline, expected)) => (headline, Some(expected)),
        None => (message, None),
    };
    let found = d.error(Span { file, range }, format!("not valid TOML: {headline}"));
    match expected {
        Some("nothing") => found.label("nothing may stand here"),
        Some(expected) => found.label(format!("expected {expected}")),
        None => found,
    };
}

/// The place of the first definition of a key that is defined again at `again`. The parser keeps only one of the two, so
/// this looks at the text: for a table at the headers before it, for a value at the lines since the last header.
fn first_definition(text: &str, again: &Range<usize>) -> Option<Range<usize>> {
    let key = text.get(again.clone())?;
    let line_start = text.get(..again.start)?.rfind('\n').map_or(0, |newline| newline + 1);
    let head = text.get(line_start..again.start)?;
    let is_header = head.trim_start().starts_with('[');
    // Twice in one inline table.
    let here = |at: &usize| {
        let before = head.get(..*at).and_then(|before| before.chars().next_back());
        let after = head.get(at + key.len()..).unwrap_or_default();
        before.is_some_and(|c| matches!(c, '{' | ',' | ' ' | '\t')) && after.trim_start().starts_with(['=', '.'])
    };
    if let Some((at, _)) = head.rmatch_indices(key).find(|(at, _)| !is_header && here(at)) {
        return Some(line_start + at..line_start + at + key.len());
    }
    let mut end = line_start;
    while end > 0 {
        let start = text.get(..end - 1)?.rfind('\n').map_or(0, |newline| newline + 1);
        let line = text.get(start..end)?;
        let indent = line.len() - line.trim_start().len();
        let body = line.trim_start();
        if is_header {
            let tail = body.strip_prefix(head.trim_start()).and_then(|rest| rest.strip_prefix(key));
            if tail.is_some_and(|tail| tail.trim_start().starts_with([']', '.'])) {
                let at = start + indent + head.trim_start().len();
                return Some(at..at + key.len());
            }
        } else {
            if body.strip_prefix(key).is_some_and(|tail| tail.trim_start().starts_with(['=', '.'])) {
                return Some(start + indent..start + indent + key.len());
            }
            if body.starts_with('[') {
                return None;
            }
        }
        end = start;
    }
    None
}
