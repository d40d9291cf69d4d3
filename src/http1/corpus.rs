//! Reads the committed corpora of tests: one case a line, some words and then bytes with escapes.

/// The words and the bytes of each line.
pub(crate) fn rows<const N: usize>(text: &'static str) -> impl Iterator<Item = ([&'static str; N], Vec<u8>)> {
    text.lines().filter(|line| !line.starts_with('#')).map(|line| {
        let mut parts = line.splitn(N + 1, ' ');
        let words = std::array::from_fn(|_| parts.next().unwrap_or_else(|| panic!("a word is missing in {line}")));
        (words, unescape(parts.next().unwrap_or_else(|| panic!("no bytes in {line}"))))
    })
}

fn unescape(text: &str) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        out.push(match byte {
            b'\\' => match rest.next().expect("an escape") {
                b'r' => b'\r',
                b'n' => b'\n',
                b't' => b'\t',
                b'\\' => b'\\',
                b'x' => {
                    let digits = [rest.next().expect("a digit"), rest.next().expect("a digit")];
                    u8::from_str_radix(std::str::from_utf8(&digits).expect("digits"), 16).expect("digits")
                }
                other => panic!("unknown escape \\{}", char::from(other)),
            },
            other => other,
        });
    }
    out
}
