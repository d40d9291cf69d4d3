//! The canonical form of a request path (RFC 3986 §6.2.2), and what is refused because it has no single form.
//!
//! The rule, in the order in which a path meets it:
//!
//! 1. It starts with `/`.
//! 2. Bytes that no URL may hold (controls, space, `"<>{}#` and the backtick, anything from 0x80) and backslashes are
//!    refused; so are malformed escapes. `|^[]`, which browsers send as they are, are percent-encoded.
//! 3. Escapes of unreserved characters are decoded, the hex digits of all others are upper-cased. Escapes of reserved
//!    characters stay: RFC 3986 §2.2 gives `%3A` and `:` different meanings, and signatures over the path depend on that.
//! 4. Refused after decoding: `%2F` (unless [`PathRules::encoded_slash`]), `%5C`, `%00` and other controls, bytes that are
//!    not UTF-8 (which covers overlong forms and surrogates), and `%25` before two hex digits, which a second decoder would
//!    turn into another path.
//! 5. `;` is refused unless [`PathRules::parameters`]: servlet containers cut it off before they match, others do not.
//!    A dot segment with a parameter or an encoded slash attached (`..;x`, `..%3B`, `..%2F`) is refused under every rule.
//! 6. Empty segments are merged (`//` is `/`), as nginx does and as most services read them.
//! 7. Dot segments, encoded or not, are removed by RFC 3986 §5.2.4. Leaving the root is refused. So is `..` together with
//!    an empty segment: whether `/a//../b` is `/a/b` or `/b` depends on who merges first.
//!
//! The query is not rewritten, only checked for bytes that end or split a request line: see [`check_query`].

use std::cell::RefCell;

/// The result of [`canonical_path`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathForm {
    /// The path was in canonical form already; the buffer was not needed.
    Canonical,
    /// The buffer holds the canonical path.
    Rewritten,
}

/// What a path is allowed to hold. The default, [`PathRules::STRICT`], allows none of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PathRules {
    /// `%2F` stays in the path as it is, for services that name things by it (`/projects/group%2Fname`).
    pub encoded_slash: bool,
    /// `;` is an ordinary character.
    pub parameters: bool,
    /// The whole path may be `*`. For `OPTIONS` only (RFC 9112 §3.2.4).
    pub asterisk: bool,
}

impl PathRules {
    pub const STRICT: PathRules = PathRules { encoded_slash: false, parameters: false, asterisk: false };
    /// All that some listener may let pass: for what is written in the configuration and compared with paths.
    pub const LENIENT: PathRules = PathRules { encoded_slash: true, parameters: true, asterisk: false };
}

macro_rules! problems {
    ($(#[$outer:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$outer])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$doc])* $variant,)* }

        impl $name {
            /// Every variant, in order.
            pub const ALL: &'static [$name] = &[$($name::$variant),*];

            /// Stable and `snake_case`: the `reason` of metrics and the `error` of the access log.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text),* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.name())
            }
        }

        impl std::error::Error for $name {}
    };
}
pub(crate) use problems;

problems! {
    /// Why a path or a query is refused.
    PathProblem {
        /// The path does not start with `/`.
        NotAbsolute = "path_not_absolute",
        /// A space, or one of `"<>{}#` and the backtick: RFC 3986 §2 has no place for them.
        IllegalByte = "path_illegal_byte",
        /// A byte below 0x20, or 0x7f.
        ControlByte = "path_control_byte",
        /// A byte from 0x80 on that is not percent-encoded.
        NonAscii = "path_non_ascii_byte",
        /// `\`, which some services read as `/`.
        Backslash = "path_backslash",
        /// `%` without two hex digits after it.
        MalformedEscape = "path_malformed_escape",
        /// `%2F`.
        EncodedSlash = "path_encoded_slash",
        /// `%5C`.
        EncodedBackslash = "path_encoded_backslash",
        /// `%00`.
        EncodedNul = "path_encoded_nul",
        /// An escape of another control character, such as `%0D`.
        EncodedControl = "path_encoded_control",
        /// Escapes that do not spell valid UTF-8; overlong forms are among them.
        InvalidUtf8 = "path_invalid_utf8",
        /// `%25` before two hex digits.
        DoubleEncoding = "path_double_encoding",
        /// `;`.
        Parameters = "path_parameters",
        /// `.` or `..` with a parameter or an encoded slash attached to it.
        DisguisedDotSegment = "path_disguised_dot_segment",
        /// `..` in a path that also has an empty segment.
        AmbiguousDotSegment = "path_ambiguous_dot_segment",
        /// More `..` than there are segments before them.
        AboveRoot = "path_above_root",
    }
}

// What one byte means in a raw path. The three low bits serve the scan that the common path gets by with: it needs to know
// which bytes are never a reason to look closer, and which pairs are.
const PLAIN: u8 = 0;
const SLASH: u8 = 0b011;
const DOT: u8 = 0b010;
const ODD: u8 = 0b1000_0000;
const PERCENT: u8 = ODD | 1;
const SEMICOLON: u8 = ODD | 2;
const ENCODE: u8 = ODD | 4;
const REFUSE: u8 = ODD | 8;

const CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which reports an index out of bounds")]
const fn classes() -> [u8; 256] {
    let mut table = [REFUSE; 256];
    let mut byte = 0;
    while byte < 256 {
        table[byte] = byte_class(byte as u8);
        byte += 1;
    }
    table
}

const fn byte_class(byte: u8) -> u8 {
    match byte {
        b'/' => SLASH,
        b'.' => DOT,
        b'%' => PERCENT,
        b';' => SEMICOLON,
        b'|' | b'^' | b'[' | b']' => ENCODE,
        b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b'=' | b':' | b'@' => PLAIN,
        unreserved if is_unreserved(unreserved) => PLAIN,
        _ => REFUSE,
    }
}

const fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~')
}

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(REFUSE)
}

/// Whether a raw path may hold `byte` at all. Not whether it may where it stands: that is [`canonical_path`]'s to say.
pub(crate) const fn may_stand_in_path(byte: u8) -> bool {
    byte_class(byte) != REFUSE
}

/// Whether a query may hold `byte`: everything visible except `"<>#`, which every client encodes. RFC 3986 §3.4 would also
/// leave out `\^{|}[]` and the backtick, but browsers send those raw (WHATWG URL, query percent-encode set).
pub(crate) const fn may_stand_in_query(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e) && !matches!(byte, b'"' | b'<' | b'>' | b'#')
}

/// Brings a path, without query, into its one form. `out` is cleared and used only when the path has to change (and to find
/// that out when it holds escapes); it needs at most three times the length of `raw`.
///
/// # Errors
/// The first problem in the order of the rule above.
pub fn canonical_path(raw: &[u8], rules: PathRules, out: &mut String) -> Result<PathForm, PathProblem> {
    if raw.first() != Some(&b'/') {
        let asterisk = rules.asterisk && raw == b"*";
        return if asterisk { Ok(PathForm::Canonical) } else { Err(PathProblem::NotAbsolute) };
    }
    if is_plain(raw) {
        return Ok(PathForm::Canonical);
    }
    rewrite(raw, rules, out)?;
    Ok(if out.as_bytes() == raw { PathForm::Canonical } else { PathForm::Rewritten })
}

/// Whether `path` is what [`canonical_path`] would make of it under these rules. For what does not come from a client: patterns, and
/// the results of rewrites.
pub fn is_canonical(path: &str, rules: PathRules) -> bool {
    thread_local! {
        static SCRATCH: RefCell<String> = const { RefCell::new(String::new()) };
    }
    SCRATCH.with(|scratch| match scratch.try_borrow_mut() {
        Ok(mut out) => canonical_path(path.as_bytes(), rules, &mut out) == Ok(PathForm::Canonical),
        Err(_) => canonical_path(path.as_bytes(), rules, &mut String::new()) == Ok(PathForm::Canonical),
    })
}

/// Checks a query, without its `?`. It is forwarded as it came.
///
/// # Errors
/// The first byte that may not stand in it: [`PathProblem::IllegalByte`], `ControlByte` or `NonAscii`.
pub fn check_query(raw: &[u8]) -> Result<(), PathProblem> {
    match raw.iter().find(|&&byte| !may_stand_in_query(byte)) {
        None => Ok(()),
        Some(&byte) => Err(refusal(byte)),
    }
}

/// Only bytes that stand for themselves, no `//`, and no segment that starts with a dot. One load and a few operations for
/// each byte and no branch: nearly every path ends here.
fn is_plain(raw: &[u8]) -> bool {
    let mut previous = 0;
    let mut odd = 0;
    for &byte in raw {
        let class = class(byte);
        // The low bit of SLASH, moved up by one, meets the second bit of SLASH and DOT.
        odd |= (class & ODD) | (((previous & 1) << 1) & class);
        previous = class;
    }
    odd == 0
}

fn refusal(byte: u8) -> PathProblem {
    match byte {
        b'\\' => PathProblem::Backslash,
        0x80.. => PathProblem::NonAscii,
        0x7f | ..0x20 => PathProblem::ControlByte,
        _ => PathProblem::IllegalByte,
    }
}

fn rewrite(raw: &[u8], rules: PathRules, out: &mut String) -> Result<(), PathProblem> {
    out.clear();
    out.reserve(raw.len());
    out.push('/');
    let (mut empty, mut parent, mut percent) = (false, false, false);
    let mut above_root = false;
    let mut segments = raw.get(1..).unwrap_or_default().split(|&byte| byte == b'/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        // `out` ends with a slash here, and this segment starts after it.
        let start = out.len();
        percent |= decode_segment(segment, rules, out)?;
        match out.as_bytes().get(start..).unwrap_or_default() {
            b"" => empty |= !last,
            b"." => out.truncate(start),
            b".." => {
                parent = true;
                out.truncate(start.saturating_sub(1));
                match out.rfind('/') {
                    Some(slash) => out.truncate(slash.saturating_add(1)),
                    None => {
                        above_root = true;
                        out.push('/');
                    }
                }
            }
            decoded if is_disguised_dot_segment(decoded) => return Err(PathProblem::DisguisedDotSegment),
            _ if !last => out.push('/'),
            _ => {}
        }
    }
    match () {
        () if parent && empty => Err(PathProblem::AmbiguousDotSegment),
        () if above_root => Err(PathProblem::AboveRoot),
        () if percent && is_encoded_twice(out.as_bytes()) => Err(PathProblem::DoubleEncoding),
        () => Ok(()),
    }
}

/// Appends one decoded segment to `out`. True if it holds an escaped percent sign.
fn decode_segment(segment: &[u8], rules: PathRules, out: &mut String) -> Result<bool, PathProblem> {
    let mut percent = false;
    let mut utf8 = Utf8::default();
    let mut bytes = segment.iter();
    while let Some(&byte) = bytes.next() {
        let class = class(byte);
        let value = if class == PERCENT {
            let high = bytes.next().and_then(|&digit| hex(digit)).ok_or(PathProblem::MalformedEscape)?;
            let low = bytes.next().and_then(|&digit| hex(digit)).ok_or(PathProblem::MalformedEscape)?;
            (high << 4) | low
        } else {
            byte
        };
        utf8.step(value)?;
        match class {
            PERCENT => match value {
                0 => return Err(PathProblem::EncodedNul),
                0x01..=0x1f | 0x7f => return Err(PathProblem::EncodedControl),
                b'\\' => return Err(PathProblem::EncodedBackslash),
                b'/' if !rules.encoded_slash => return Err(PathProblem::EncodedSlash),
                unreserved if is_unreserved(unreserved) => out.push(char::from(unreserved)),
                reserved => {
                    percent |= reserved == b'%';
                    push_escape(reserved, out);
                }
            },
            SEMICOLON if !rules.parameters => return Err(PathProblem::Parameters),
            ENCODE => push_escape(byte, out),
            REFUSE => return Err(refusal(byte)),
            _ => out.push(char::from(byte)),
        }
    }
    utf8.end()?;
    Ok(percent)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|value| u8::try_from(value).ok())
}

fn push_escape(byte: u8, out: &mut String) {
    let digit = |nibble: u8| char::from(if nibble < 10 { b'0' + nibble } else { b'A' - 10 + nibble });
    out.push('%');
    out.push(digit(byte >> 4));
    out.push(digit(byte & 0xf));
}

/// `.` or `..` up to a `;`, a `%3B` or a `%2F`, or after one of them: the parts that a service may cut the segment into.
fn is_disguised_dot_segment(decoded: &[u8]) -> bool {
    if !decoded.iter().any(|&byte| matches!(byte, b';' | b'%')) {
        return false;
    }
    let mut rest = decoded;
    loop {
        let cut = rest.iter().enumerate().find_map(|(at, &byte)| match byte {
            b';' => Some((at, 1)),
            b'%' if matches!(rest.get(at..at.saturating_add(3)), Some(b"%3B" | b"%2F")) => Some((at, 3)),
            _ => None,
        });
        let (at, width) = cut.unwrap_or((rest.len(), 0));
        if matches!(rest.get(..at), Some(b"." | b"..")) {
            return true;
        }
        if width == 0 {
            return false;
        }
        rest = rest.get(at.saturating_add(width)..).unwrap_or_default();
    }
}

/// Looked for in the decoded path, because the digits may have been escaped too: `%25%32%66` is `%252f`.
fn is_encoded_twice(decoded: &[u8]) -> bool {
    decoded
        .windows(5)
        .any(|window| matches!(window, [b'%', b'2', b'5', high, low] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit()))
}

/// Checks a sequence of decoded bytes for UTF-8 (RFC 3629 §4), one at a time.
#[derive(Default)]
struct Utf8 {
    /// How many continuation bytes are still to come.
    missing: u8,
    /// The bounds of the next one; the first after some lead bytes has narrower ones, which is what excludes overlong
    /// forms, surrogates and what lies beyond U+10FFFF.
    low: u8,
    high: u8,
}

impl Utf8 {
    fn step(&mut self, byte: u8) -> Result<(), PathProblem> {
        if self.missing > 0 {
            if !(self.low..=self.high).contains(&byte) {
                return Err(PathProblem::InvalidUtf8);
            }
            *self = Utf8 { missing: self.missing.saturating_sub(1), low: 0x80, high: 0xbf };
            return Ok(());
        }
        let (missing, low, high) = match byte {
            ..0x80 => return Ok(()),
            0xc2..=0xdf => (1, 0x80, 0xbf),
            0xe0 => (2, 0xa0, 0xbf),
            0xed => (2, 0x80, 0x9f),
            0xe1..=0xef => (2, 0x80, 0xbf),
            0xf0 => (3, 0x90, 0xbf),
            0xf1..=0xf3 => (3, 0x80, 0xbf),
            0xf4 => (3, 0x80, 0x8f),
            _ => return Err(PathProblem::InvalidUtf8),
        };
        *self = Utf8 { missing, low, high };
        Ok(())
    }

    fn end(&self) -> Result<(), PathProblem> {
        if self.missing == 0 { Ok(()) } else { Err(PathProblem::InvalidUtf8) }
    }
}

#[cfg(test)]
mod tests;
