//! `replace` of the `rewrite` filter: a regular expression and what is written for its matches.

use super::ReplaceConfig;
use crate::filter::Problem;
use crate::value::Located;
use regex::{Regex, RegexBuilder};

/// The longest pattern and replacement, in bytes.
const MAX_TEXT: usize = 1024;
/// The most memory of a compiled pattern, in bytes, which also bounds the time for one byte of a path.
const MAX_COMPILED: usize = 1 << 20;

pub(super) struct Replacer {
    pattern: Regex,
    with: Box<[Piece]>,
    /// `with` names a group, so matches must be taken apart.
    groups: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Piece {
    Text(Box<str>),
    Group(usize),
}

impl Replacer {
    pub fn new(config: &ReplaceConfig) -> Result<Self, Problem> {
        for text in [&config.pattern, &config.with] {
            if text.len() > MAX_TEXT {
                return Err(Problem::new(format!("this is longer than {MAX_TEXT} bytes")).at(text));
            }
        }
        let pattern = RegexBuilder::new(&config.pattern).size_limit(MAX_COMPILED).dfa_size_limit(MAX_COMPILED).build();
        let pattern = pattern.map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => {
                let problem = Problem::new("the pattern needs more than 1 MiB when it is compiled").at(&config.pattern);
                problem.help("use smaller repetitions such as `{1,10}`, and ASCII classes such as `[0-9]` for `\\d`")
            }
            // The last line of the error says what is wrong; the lines before it draw the pattern.
            error => {
                let text = error.to_string();
                let why = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
                Problem::new(format!("the pattern is not a regular expression: {why}")).at(&config.pattern)
            }
        })?;
        let with = pieces(&config.with, &pattern)?;
        let groups = with.iter().any(|piece| matches!(piece, Piece::Group(_)));
        Ok(Replacer { pattern, with: with.into(), groups })
    }

    /// Gives the new path to `write`, piece by piece; `None` as soon as `write` says so.
    pub fn write(&self, path: &str, mut write: impl FnMut(&str) -> Option<()>) -> Option<()> {
        let mut done = 0;
        if self.groups {
            for captures in self.pattern.captures_iter(path) {
                let whole = captures.get(0)?;
                write(path.get(done..whole.start())?)?;
                for piece in &self.with {
                    match piece {
                        Piece::Text(text) => write(text)?,
                        Piece::Group(group) => write(captures.get(*group).map_or("", |found| found.as_str()))?,
                    }
                }
                done = whole.end();
            }
        } else {
            for found in self.pattern.find_iter(path) {
                write(path.get(done..found.start())?)?;
                for piece in &self.with {
                    if let Piece::Text(text) = piece {
                        write(text)?;
                    }
                }
                done = found.end();
            }
        }
        write(path.get(done..)?)
    }
}

/// Takes `with` apart and resolves its groups, so that a group that the pattern lacks is found at load.
fn pieces(with: &Located<String>, pattern: &Regex) -> Result<Vec<Piece>, Problem> {
    let mut pieces = Vec::new();
    let mut plain = String::new();
    let mut rest = with.as_str();
    while let Some((before, after)) = rest.split_once('$') {
        plain.push_str(before);
        if let Some(after) = after.strip_prefix('$') {
            plain.push('$');
            rest = after;
            continue;
        }
        let (name, after) = match after.strip_prefix('{') {
            Some(inner) => inner.split_once('}').unwrap_or(("", "")),
            None => after.split_at(after.find(|c: char| !c.is_ascii_digit()).unwrap_or(after.len())),
        };
        let by_number = name.parse::<usize>().ok().filter(|number| *number < pattern.captures_len());
        let by_name = || pattern.capture_names().position(|known| known == Some(name));
        let Some(group) = by_number.or_else(by_name) else {
            let problem = if name.is_empty() {
                Problem::new("`$` names no group").help("write `$1` or `${name}` for a group, `$$` for a dollar sign")
            } else {
                let groups = pattern.captures_len().saturating_sub(1);
                Problem::new(format!("the pattern has no group `{name}`"))
                    .help(format!("it has {groups} groups, and `$0` is the whole match"))
            };
            return Err(problem.at(with));
        };
        if !plain.is_empty() {
            pieces.push(Piece::Text(std::mem::take(&mut plain).into()));
        }
        pieces.push(Piece::Group(group));
        rest = after;
    }
    plain.push_str(rest);
    if !plain.is_empty() {
        pieces.push(Piece::Text(plain.into()));
    }
    Ok(pieces)
}
