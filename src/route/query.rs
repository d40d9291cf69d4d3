//! Conditions on the query string, read as HTML forms write it: `name=value` pairs, `+` for a space, `%xx` for a byte
//! (<https://url.spec.whatwg.org/#urlencoded-parsing>). Compared byte by byte while decoding, so that nothing is copied.

/// The raw value of a parameter that occurs exactly once; see [`super::header::single`] for why only once.
pub(super) fn single<'a>(query: &'a str, name: &str) -> Option<&'a str> {
    let mut values = pairs(query).filter(|(known, _)| is(known, name.as_bytes())).map(|(_, value)| value);
    let first = values.next()?;
    values.next().is_none().then_some(first)
}

pub(super) fn has(query: &str, name: &str) -> bool {
    pairs(query).any(|(known, _)| is(known, name.as_bytes()))
}

/// Whether `raw` decodes to `plain`.
pub(super) fn is(raw: &str, plain: &[u8]) -> bool {
    decode(raw).eq(plain.iter().copied())
}

pub(super) fn decode(raw: &str) -> impl Iterator<Item = u8> + '_ {
    let mut bytes = raw.as_bytes().iter().copied();
    std::iter::from_fn(move || {
        Some(match bytes.next()? {
            b'+' => b' ',
            b'%' => {
                // A percent sign that starts no escape stands for itself.
                let mut ahead = bytes.clone();
                match (ahead.next().and_then(hex), ahead.next().and_then(hex)) {
                    (Some(high), Some(low)) => {
                        bytes = ahead;
                        high << 4 | low
                    }
                    _ => b'%',
                }
            }
            other => other,
        })
    })
}

fn pairs(query: &str) -> impl Iterator<Item = (&str, &str)> {
    query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")))
}

fn hex(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_like_a_form() {
        for (raw, plain) in [("a+b", "a b"), ("%61%2Fb", "a/b"), ("100%", "100%"), ("%zz%4", "%zz%4"), ("%2", "%2"), ("", "")] {
            assert!(is(raw, plain.as_bytes()), "{raw}");
        }
        assert!(!is("ab", b"a") && !is("a", b"ab"));
    }

    #[test]
    fn a_repeated_parameter_has_no_single_value() {
        assert_eq!(single("v=2&x=1", "v"), Some("2"));
        assert_eq!(single("v=2&%76=3", "v"), None);
        assert_eq!(single("&&v&", "v"), Some(""));
        assert!(has("v=2&v=3", "v") && !has("vv=2", "v"));
    }
}
