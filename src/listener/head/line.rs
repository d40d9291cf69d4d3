//! The request line. Each function sees a complete line without its CRLF, or a part of one.

use super::{HeadLimits, Malformed, Version};
use crate::canonical::path::{may_stand_in_path, may_stand_in_query};
use crate::http1::line::control;

/// The request line, as far as later lines need it.
#[derive(Debug, Clone)]
pub(super) struct Line {
    pub version: Version,
    /// From where to where the host of a target in absolute form goes in the head.
    pub authority: Option<(usize, usize)>,
}

const METHOD_MAX: usize = 32;

const METHOD: u8 = 1;
const PATH: u8 = 1 << 1;
const QUERY: u8 = 1 << 2;

const CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which reports an index out of bounds")]
const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let byte = index as u8;
        if byte.is_ascii_uppercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_') {
            table[index] |= METHOD;
        }
        if may_stand_in_path(byte) {
            table[index] |= PATH;
        }
        if may_stand_in_query(byte) {
            table[index] |= QUERY;
        }
        index += 1;
    }
    table
}

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(0)
}

fn all(bytes: &[u8], of: u8) -> bool {
    // Without a branch for each byte: these are short, and nearly always fine.
    bytes.iter().fold(of, |common, &byte| common & class(byte)) != 0
}

/// The first byte of a method, or of the empty line that may precede it (a line feed is judged with its line).
pub(super) fn may_start_request(byte: u8) -> bool {
    matches!(byte, b'\r' | b'\n') || class(byte) & METHOD != 0
}

/// `start` is where the line begins in the head.
pub(super) fn parse(line: &[u8], start: usize, limits: &HeadLimits) -> Result<Line, Malformed> {
    // A control byte explains better what is wrong than the shape that it spoils.
    parse_parts(line, start, limits).map_err(|problem| control(line).map_or(problem, Malformed::from))
}

fn parse_parts(line: &[u8], start: usize, limits: &HeadLimits) -> Result<Line, Malformed> {
    let space = line.iter().position(|&byte| byte == b' ').ok_or(Malformed::RequestLine)?;
    let (method, rest) = line.split_at_checked(space).ok_or(Malformed::RequestLine)?;
    if method.is_empty() || method.len() > METHOD_MAX || !all(method, METHOD) {
        return Err(Malformed::Method);
    }
    let rest = rest.get(1..).unwrap_or_default();
    // Whatever follows the last space was meant for the version; without one, something is missing.
    let wrong = || if rest.contains(&b' ') { Malformed::Version } else { Malformed::RequestLine };
    // Nine bytes: the space and `HTTP/1.1`.
    let (target, tail) = rest.len().checked_sub(9).and_then(|at| rest.split_at_checked(at)).ok_or_else(wrong)?;
    let version = match tail {
        b" HTTP/1.1" => Version::Http11,
        b" HTTP/1.0" => Version::Http10,
        [b' ', b'H', b'T', b'T', b'P', b'/', major, b'.', minor] if major.is_ascii_digit() && minor.is_ascii_digit() => {
            return Err(Malformed::VersionNotSupported);
        }
        _ => return Err(wrong()),
    };
    if target.len() > limits.max_uri {
        return Err(Malformed::UriTooLong);
    }
    if method == b"CONNECT" {
        return Err(Malformed::Connect);
    }
    let authority = match target.first() {
        Some(b'/') => {
            check_path_and_query(target)?;
            None
        }
        Some(b'*') if target == b"*" && method == b"OPTIONS" => None,
        _ => Some(absolute(target, start.saturating_add(space).saturating_add(1))?),
    };
    Ok(Line { version, authority })
}

fn check_path_and_query(target: &[u8]) -> Result<(), Malformed> {
    let end = memchr::memchr(b'?', target).unwrap_or(target.len());
    let (path, query) = target.split_at_checked(end).unwrap_or_default();
    if all(path, PATH) && all(query, QUERY) { Ok(()) } else { Err(Malformed::TargetByte) }
}

/// RFC 9112 §3.2.2, for the two schemes that name something this gateway serves.
fn absolute(target: &[u8], start: usize) -> Result<(usize, usize), Malformed> {
    let scheme = |scheme: &[u8]| target.get(..scheme.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(scheme));
    let skip = match () {
        () if scheme(b"http://") => 7,
        () if scheme(b"https://") => 8,
        () => return Err(Malformed::Target),
    };
    let after = target.get(skip..).unwrap_or_default();
    let end = after.iter().position(|&byte| matches!(byte, b'/' | b'?' | b'#' | b'\\')).unwrap_or(after.len());
    match after.get(end..).unwrap_or_default() {
        [] => {}
        path @ [b'/', ..] => check_path_and_query(path)?,
        // `http://host?query`: a valid URL with an empty path, which parsers disagree about.
        _ => return Err(Malformed::Target),
    }
    let from = start.saturating_add(skip);
    Ok((from, from.saturating_add(end)))
}
