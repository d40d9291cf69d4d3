//! The pieces of one line of a head. Each function sees a complete line without its CRLF, or a part of one.

const TOKEN: u8 = 1;
const UNDERSCORE: u8 = 1 << 1;

const CLASSES: [u8; 256] = classes();

#[expect(clippy::indexing_slicing, reason = "evaluated by the compiler, which reports an index out of bounds")]
const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let byte = index as u8;
        // RFC 9110 §5.6.2.
        let punctuation = matches!(byte, b'!' | b'#' | b'$' | b'%' | b'&' | b'\'' | b'*' | b'+' | b'-' | b'.')
            || matches!(byte, b'^' | b'`' | b'|' | b'~');
        if byte.is_ascii_alphanumeric() || punctuation {
            table[index] |= TOKEN;
        }
        if byte == b'_' {
            table[index] |= UNDERSCORE;
        }
        index += 1;
    }
    table
}

fn class(byte: u8) -> u8 {
    CLASSES.get(usize::from(byte)).copied().unwrap_or(0)
}

/// A byte that ends or splits lines for some reader, or that no header may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Nul,
    /// A carriage return without a line feed after it.
    BareCr,
    Other,
}

/// What is wrong with a header line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldFault {
    /// It starts with white space.
    Fold,
    MissingColon,
    EmptyName,
    SpaceBeforeColon,
    /// The name is not a token.
    Name,
    Underscore,
    Control(Control),
}

pub fn is_token(bytes: &[u8]) -> bool {
    !bytes.is_empty() && bytes.iter().all(|&byte| class(byte) & (TOKEN | UNDERSCORE) != 0)
}

/// Whether there is a byte that no header value may hold. Written so that the compiler makes SIMD of it.
pub fn has_control(value: &[u8]) -> bool {
    value.iter().fold(false, |found, &byte| found | ((byte < 0x20) & (byte != b'\t')) | (byte == 0x7f))
}

/// Names the first byte that [`has_control`] found.
pub fn control(bytes: &[u8]) -> Option<Control> {
    bytes.iter().find_map(|&byte| match byte {
        0 => Some(Control::Nul),
        b'\r' => Some(Control::BareCr),
        b'\t' => None,
        ..0x20 | 0x7f => Some(Control::Other),
        _ => None,
    })
}

/// Without spaces and tabs around it (RFC 9110 §5.6.3).
pub fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// Decimal digits without a leading zero. Bounded by `i64::MAX`, because many programs count bodies with a sign.
pub fn number(digits: &[u8]) -> Option<u64> {
    match digits {
        [b'0'] => return Some(0),
        [b'1'..=b'9', ..] if digits.len() <= 19 => {}
        _ => return None,
    }
    let number = digits.iter().try_fold(0_u64, |number, &digit| match digit {
        b'0'..=b'9' => number.checked_mul(10)?.checked_add(u64::from(digit.wrapping_sub(b'0'))),
        _ => None,
    })?;
    (number <= i64::MAX as u64).then_some(number)
}

/// Splits `Name: value` at the colon, and checks both. The value is not trimmed.
pub fn split_field(line: &[u8], allow_underscores: bool) -> Result<(&[u8], &[u8]), FieldFault> {
    if matches!(line.first(), Some(b' ' | b'\t')) {
        return Err(FieldFault::Fold);
    }
    let allowed = if allow_underscores { TOKEN | UNDERSCORE } else { TOKEN };
    let end = line.iter().position(|&byte| class(byte) & allowed == 0);
    let (name, rest) = end.and_then(|end| line.split_at_checked(end)).ok_or(FieldFault::MissingColon)?;
    match rest {
        [b':', ..] if name.is_empty() => Err(FieldFault::EmptyName),
        [b':', value @ ..] if has_control(value) => Err(FieldFault::Control(control(value).unwrap_or(Control::Other))),
        [b':', value @ ..] => Ok((name, value)),
        [b'_', ..] => Err(FieldFault::Underscore),
        [b' ' | b'\t', ..] if trim(rest).first() == Some(&b':') => Err(FieldFault::SpaceBeforeColon),
        [other, ..] => Err(match control(&[*other]) {
            Some(control) => FieldFault::Control(control),
            None if rest.contains(&b':') => FieldFault::Name,
            None => FieldFault::MissingColon,
        }),
        [] => Err(FieldFault::MissingColon),
    }
}
