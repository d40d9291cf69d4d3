//! Ranges of a stored body (RFC 9110 §14).

use http::HeaderValue;

/// More ranges than this, or ranges that overlap, are not worth an answer in parts (§17.15): the whole is sent.
const RANGES_MAX: usize = 16;

/// What of a body a request wants: first byte and the one after the last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    Whole,
    One(u64, u64),
    Many(Vec<(u64, u64)>),
    /// Nothing of what is asked for exists: 416.
    None,
}

/// Reads `Range` for a body of `length` bytes. What is not understood is ignored (§14.2).
pub fn wanted(value: &HeaderValue, length: u64) -> Wanted {
    let Some(list) = value.to_str().ok().and_then(|text| {
        let (unit, list) = text.split_once('=')?;
        unit.trim().eq_ignore_ascii_case("bytes").then_some(list)
    }) else {
        return Wanted::Whole;
    };
    let mut ranges = Vec::new();
    for (count, part) in list.split(',').map(str::trim).filter(|part| !part.is_empty()).enumerate() {
        if count >= RANGES_MAX {
            return Wanted::Whole;
        }
        match one(part, length) {
            Some(Some(range)) => ranges.push(range),
            Some(None) => {}
            None => return Wanted::Whole,
        }
    }
    let overlapping = {
        let mut sorted = ranges.clone();
        sorted.sort_unstable();
        sorted.windows(2).any(|pair| matches!(pair, [a, b] if b.0 < a.1))
    };
    match ranges.as_slice() {
        [] if list.trim().is_empty() => Wanted::Whole,
        [] => Wanted::None,
        [(start, end)] => Wanted::One(*start, *end),
        _ if overlapping => Wanted::Whole,
        _ => Wanted::Many(ranges),
    }
}

/// `Some(None)`: valid, but beyond the end. `None`: not a range.
fn one(part: &str, length: u64) -> Option<Option<(u64, u64)>> {
    let (first, last) = part.split_once('-')?;
    let number = |text: &str| {
        let text = text.trim();
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) { None } else { Some(text.parse().unwrap_or(u64::MAX)) }
    };
    match (first.trim().is_empty(), last.trim().is_empty()) {
        (true, true) => None,
        (true, false) => {
            let count: u64 = number(last)?;
            Some((count > 0 && length > 0).then(|| (length.saturating_sub(count), length)))
        }
        (false, open) => {
            let start = number(first)?;
            let end = if open { length } else { number(last)?.saturating_add(1) };
            if end <= start && !open {
                return None;
            }
            Some((start < length).then(|| (start, end.min(length))))
        }
    }
}

/// `Content-Range` of a response that carries one part: start, the byte after the end, and the length of the whole.
pub fn content_range(value: &HeaderValue) -> Option<(u64, u64, u64)> {
    let rest = value.to_str().ok()?.trim().strip_prefix("bytes")?.trim_start();
    let (range, total) = rest.split_once('/')?;
    let (start, last) = range.split_once('-')?;
    let (start, last, total) =
        (start.trim().parse::<u64>().ok()?, last.trim().parse::<u64>().ok()?, total.trim().parse::<u64>().ok()?);
    (start <= last && last < total).then(|| (start, last.saturating_add(1), total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_what_exists() {
        let of = |text: &'static str| wanted(&HeaderValue::from_static(text), 100);
        assert_eq!(of("bytes=0-9"), Wanted::One(0, 10));
        assert_eq!(of("Bytes=90-"), Wanted::One(90, 100));
        assert_eq!(of("bytes=-5"), Wanted::One(95, 100));
        assert_eq!(of("bytes=-500"), Wanted::One(0, 100));
        assert_eq!(of("bytes=90-1000"), Wanted::One(90, 100));
        assert_eq!(of("bytes=100-"), Wanted::None);
        assert_eq!(of("bytes=-0"), Wanted::None);
        assert_eq!(of("bytes=0-1, 200-"), Wanted::One(0, 2));
        assert_eq!(of("bytes=0-1,5-6"), Wanted::Many(vec![(0, 2), (5, 7)]));
        for whole in ["bytes=5-1", "bytes=a-b", "bytes=", "items=0-1", "bytes=0-9,5-15", "bytes=-", "0-1"] {
            assert_eq!(of(whole), Wanted::Whole, "{whole}");
        }
    }

    #[test]
    fn content_ranges_must_make_sense() {
        let of = |text: &'static str| content_range(&HeaderValue::from_static(text));
        assert_eq!(of("bytes 0-4/10"), Some((0, 5, 10)));
        for bad in ["bytes 4-0/10", "bytes 0-10/10", "bytes */10", "bytes 0-4/*", "x 0-4/10"] {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
