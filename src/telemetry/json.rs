//! JSON text written straight into a byte buffer: the pieces that a log line is made of.
//!
//! `serde_json` refuses bytes that are not UTF-8 and leaves U+2028 and DEL alone; a log line must take whatever a client
//! sent and still be one line that every reader splits at the same place. So strings are written here, by one rule:
//!
//! - `"` and `\` are escaped; CR, LF and TAB as `\r`, `\n`, `\t`;
//! - every other control character (C0, DEL, C1) and the line separators U+2028 and U+2029 become `\u00XX` / `\u2028`,
//!   so that neither a terminal nor a line reader can be led astray;
//! - each invalid UTF-8 sequence becomes `\ufffd`, by the same rule as `String::from_utf8_lossy`;
//! - everything else stays as it is, in UTF-8.
//!
//! Output is at most six times its input. No function here allocates beyond the growth of the buffer that it is given.

use std::time::Duration;

/// Appends a string with its quotes. Of `bytes`, at most `limit` are written; a cut string ends in `…(+N bytes)`, where N
/// is how many bytes of the original are missing. The cut never splits a character.
pub fn push_string(out: &mut Vec<u8>, bytes: &[u8], limit: usize) {
    out.push(b'"');
    if bytes.len() <= limit {
        push_escaped(out, bytes);
        out.push(b'"');
        return;
    }
    match bytes.split_at_checked(character_boundary(bytes, limit)) {
        Some((kept, cut)) if !cut.is_empty() => {
            push_escaped(out, kept);
            out.extend_from_slice("…(+".as_bytes());
            push_u64(out, cut.len() as u64);
            out.extend_from_slice(b" bytes)");
        }
        _ => push_escaped(out, bytes),
    }
    out.push(b'"');
}

/// Appends `bytes` as the inside of a JSON string.
pub fn push_escaped(out: &mut Vec<u8>, bytes: &[u8]) {
    // Nearly every field is printable ASCII; decoding UTF-8 takes several times as long as to see that.
    if is_plain(bytes) {
        out.extend_from_slice(bytes);
        return;
    }
    for chunk in bytes.utf8_chunks() {
        let mut rest = chunk.valid();
        while let Some(at) = rest.bytes().position(may_need_escape) {
            // `position` found the first byte of a character, so both splits are at character boundaries.
            let (clean, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
            out.extend_from_slice(clean.as_bytes());
            let mut characters = from.chars();
            if let Some(character) = characters.next() {
                push_character(out, character);
            }
            rest = characters.as_str();
        }
        out.extend_from_slice(rest.as_bytes());
        if !chunk.invalid().is_empty() {
            out.extend_from_slice(br"\ufffd");
        }
    }
}

/// Whether all bytes are printable ASCII other than `"` and `\`. Most fields are too short for vector instructions, so eight
/// bytes are looked at in one word: a lane's top bit is set if it is wrong, and only lanes above a wrong one can be set by
/// mistake (a borrow or a carry).
fn is_plain(bytes: &[u8]) -> bool {
    const ONES: u64 = 0x0101_0101_0101_0101;
    const TOPS: u64 = ONES << 7;
    let below = |word: u64, least: u8| word.wrapping_sub(ONES.wrapping_mul(least.into())) & !word;
    let equals = |word: u64, byte: u8| below(word ^ ONES.wrapping_mul(byte.into()), 1);
    let wrong = |word: u64| {
        let controls = below(word, 0x20) | word.wrapping_add(ONES) | word;
        (controls | equals(word, b'"') | equals(word, b'\\')) & TOPS != 0
    };
    let (words, rest) = bytes.as_chunks::<8>();
    let mut last = [b' '; 8];
    for (slot, byte) in last.iter_mut().zip(rest) {
        *slot = *byte;
    }
    !words.iter().any(|word| wrong(u64::from_ne_bytes(*word))) && !wrong(u64::from_ne_bytes(last))
}

/// True for each byte that needs an escape and for the lead bytes of the few longer characters that do.
const fn may_need_escape(byte: u8) -> bool {
    // C2 leads U+0080..U+00BF, of which the first half are the C1 controls; E2 leads U+2000..U+2FFF.
    byte < 0x20 || matches!(byte, b'"' | b'\\' | 0x7f | 0xc2 | 0xe2)
}

fn push_character(out: &mut Vec<u8>, character: char) {
    match character {
        '"' => out.extend_from_slice(br#"\""#),
        '\\' => out.extend_from_slice(br"\\"),
        '\n' => out.extend_from_slice(br"\n"),
        '\r' => out.extend_from_slice(br"\r"),
        '\t' => out.extend_from_slice(br"\t"),
        // All of these are below U+10000, so that one escape is enough.
        c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}') => {
            let code = u32::from(c);
            out.extend_from_slice(br"\u");
            for shift in [12, 8, 4, 0] {
                out.push(hex_digit(code >> shift));
            }
        }
        c => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

const fn hex_digit(value: u32) -> u8 {
    let nibble = (value & 0xf) as u8;
    if nibble < 10 { b'0' + nibble } else { b'a' + (nibble - 10) }
}

/// The largest place not beyond `limit` at which cutting splits no UTF-8 character; `limit` itself where the bytes there
/// are not UTF-8.
pub fn character_boundary(bytes: &[u8], limit: usize) -> usize {
    if bytes.len() <= limit {
        return bytes.len();
    }
    let is_continuation = |at: usize| bytes.get(at).is_some_and(|b| b & 0xc0 == 0x80);
    (limit.saturating_sub(3)..=limit).rev().find(|at| !is_continuation(*at)).unwrap_or(limit)
}

/// Appends a whole number in decimal.
pub fn push_u64(out: &mut Vec<u8>, number: u64) {
    push_padded(out, number, 1);
}

/// Appends a whole number in decimal with leading zeros up to `width` digits.
pub fn push_padded(out: &mut Vec<u8>, mut number: u64, width: usize) {
    // u64::MAX has 20 digits.
    let mut digits = [b'0'; 20];
    let mut used = 0;
    for slot in digits.iter_mut().rev() {
        if number == 0 && used >= width {
            break;
        }
        *slot = b'0' + (number % 10) as u8;
        number /= 10;
        used += 1;
    }
    out.extend_from_slice(digits.get(digits.len() - used..).unwrap_or_default());
}

/// Appends a duration as a number of seconds with six decimals: `0.001250`. What is below a microsecond is cut off.
pub fn push_seconds(out: &mut Vec<u8>, duration: Duration) {
    push_u64(out, duration.as_secs());
    out.push(b'.');
    push_padded(out, u64::from(duration.subsec_micros()), 6);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn string(bytes: &[u8], limit: usize) -> String {
        let mut out = Vec::new();
        push_string(&mut out, bytes, limit);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn what_could_break_a_line_is_escaped() {
        assert_eq!(string(b"a\"b\\c\r\n\t\0\x1b\x7f", 99), r#""a\"b\\c\r\n\t\u0000\u001b\u007f""#);
        assert_eq!(string("\u{85}\u{9b}\u{2028}\u{2029}".as_bytes(), 99), r#""\u0085\u009b\u2028\u2029""#);
        assert_eq!(string("é£\u{2027}\u{202a}…😀".as_bytes(), 99), "\"é£\u{2027}\u{202a}…😀\"");
        assert_eq!(string(b"\xffa\xc3(\xe2\x80", 99), r#""\ufffda\ufffd(\ufffd""#);
    }

    #[test]
    fn long_strings_are_cut_between_characters_and_say_so() {
        assert_eq!(string(b"abcdef", 6), r#""abcdef""#);
        assert_eq!(string(b"abcdef", 4), r#""abcd…(+2 bytes)""#);
        assert_eq!(string("aé".as_bytes(), 2), r#""a…(+2 bytes)""#);
        assert_eq!(string("😀😀".as_bytes(), 7), r#""😀…(+4 bytes)""#);
        assert_eq!(string(&[0x80; 10], 5), r#""\ufffd\ufffd\ufffd\ufffd\ufffd…(+5 bytes)""#);
        assert_eq!(string(b"abc", 0), r#""…(+3 bytes)""#);
    }

    #[test]
    fn numbers() {
        let written = |push: &dyn Fn(&mut Vec<u8>)| {
            let mut out = Vec::new();
            push(&mut out);
            String::from_utf8(out).unwrap()
        };
        assert_eq!(written(&|out| push_u64(out, 0)), "0");
        assert_eq!(written(&|out| push_u64(out, u64::MAX)), "18446744073709551615");
        assert_eq!(written(&|out| push_padded(out, 7, 3)), "007");
        assert_eq!(written(&|out| push_padded(out, 1234, 3)), "1234");
        assert_eq!(written(&|out| push_seconds(out, Duration::from_nanos(1_250_999))), "0.001250");
        assert_eq!(written(&|out| push_seconds(out, Duration::from_secs(61))), "61.000000");
    }

    proptest! {
        #[test]
        fn any_bytes_read_back_as_their_lossy_text(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let json = string(&bytes, usize::MAX);
            let breaks = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
            prop_assert!(!json.chars().any(breaks), "{}", json);
            let back: String = serde_json::from_str(&json).unwrap();
            prop_assert_eq!(back, String::from_utf8_lossy(&bytes).into_owned());
        }

        #[test]
        fn any_text_reads_back_as_itself(text in any::<String>()) {
            let back: String = serde_json::from_str(&string(text.as_bytes(), usize::MAX)).unwrap();
            prop_assert_eq!(back, text);
        }

        #[test]
        fn numbers_read_back(number in any::<u64>(), micros in 0_u64..10_u64.pow(15)) {
            let mut out = Vec::new();
            push_u64(&mut out, number);
            prop_assert_eq!(String::from_utf8(out).unwrap(), number.to_string());
            let mut out = Vec::new();
            push_seconds(&mut out, Duration::from_micros(micros));
            prop_assert_eq!(String::from_utf8(out).unwrap(), format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000));
        }
    }
}
