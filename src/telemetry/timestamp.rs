//! RFC 3339 time in UTC, written without allocation.
//!
//! A log line needs the calendar date of "now" far more often than the date changes, so each thread keeps the text of
//! the last second that it formatted and only writes the fraction anew. The conversion from days to a date is Howard
//! Hinnant's `civil_from_days` (<https://howardhinnant.github.io/date_algorithms.html>), in unsigned arithmetic because
//! the range is 1970 to 9999.

use super::json::push_padded;
use std::cell::RefCell;
use std::time::{Duration, SystemTime};

/// The last second of the year 9999, the end of RFC 3339. Later times are written as this one, earlier than 1970 as 1970.
const LAST_SECOND: u64 = 253_402_300_799;

/// How finely a time is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    Millis,
    Micros,
}

/// One second and its text up to the fraction: `2026-01-02T03:04:05`.
struct CachedSecond {
    second: Option<u64>,
    text: Vec<u8>,
}

thread_local! {
    static CACHE: RefCell<CachedSecond> = const { RefCell::new(CachedSecond { second: None, text: Vec::new() }) };
}

/// Appends `time` as `2026-01-02T03:04:05.678Z`.
pub fn push_rfc3339(out: &mut Vec<u8>, time: SystemTime, precision: Precision) {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    let second = since.as_secs().min(LAST_SECOND);
    CACHE.with(|cache| match cache.try_borrow_mut() {
        Ok(mut cache) => {
            if cache.second != Some(second) {
                cache.text.clear();
                push_date_time(&mut cache.text, second);
                cache.second = Some(second);
            }
            out.extend_from_slice(&cache.text);
        }
        // Cannot happen, as nothing in the borrow calls out; but the cache is only a cache.
        Err(_) => push_date_time(out, second),
    });
    out.push(b'.');
    match precision {
        Precision::Millis => push_padded(out, u64::from(since.subsec_millis()), 3),
        Precision::Micros => push_padded(out, u64::from(since.subsec_micros()), 6),
    }
    out.push(b'Z');
}

fn push_date_time(out: &mut Vec<u8>, second: u64) {
    let (days, in_day) = (second / 86_400, second % 86_400);
    // 719 468 days lie between 0000-03-01, where the algorithm's eras begin, and 1970-01-01.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    for (number, width, after) in [
        (year, 4, b'-'),
        (month, 2, b'-'),
        (day, 2, b'T'),
        (in_day / 3_600, 2, b':'),
        (in_day / 60 % 60, 2, b':'),
        (in_day % 60, 2, 0),
    ] {
        push_padded(out, number, width);
        if after != 0 {
            out.push(after);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(time: SystemTime, precision: Precision) -> String {
        let mut out = Vec::new();
        push_rfc3339(&mut out, time, precision);
        String::from_utf8(out).unwrap()
    }

    fn at(seconds: u64, nanos: u32) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::new(seconds, nanos)
    }

    #[test]
    fn known_dates() {
        assert_eq!(text(at(0, 0), Precision::Millis), "1970-01-01T00:00:00.000Z");
        assert_eq!(text(at(951_782_399, 999_999_999), Precision::Millis), "2000-02-28T23:59:59.999Z");
        assert_eq!(text(at(951_782_400, 0), Precision::Micros), "2000-02-29T00:00:00.000000Z");
        assert_eq!(text(at(1_767_323_045, 678_901_000), Precision::Micros), "2026-01-02T03:04:05.678901Z");
        assert_eq!(text(at(LAST_SECOND, 0), Precision::Millis), "9999-12-31T23:59:59.000Z");
    }

    #[test]
    fn what_cannot_be_written_is_clamped() {
        assert_eq!(text(at(LAST_SECOND + 1, 0), Precision::Millis), "9999-12-31T23:59:59.000Z");
        assert_eq!(text(SystemTime::UNIX_EPOCH - Duration::from_secs(5), Precision::Millis), "1970-01-01T00:00:00.000Z");
    }

    proptest! {
        #[test]
        fn agrees_with_the_http_date_of_the_same_second(seconds in 0..LAST_SECOND) {
            let ours = text(at(seconds, 0), Precision::Millis);
            let months = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            let month: usize = ours[5..7].parse().unwrap();
            let theirs = httpdate::fmt_http_date(at(seconds, 0));
            let rebuilt = format!("{} {} {} {} GMT", &ours[8..10], months[month - 1], &ours[..4], &ours[11..19]);
            prop_assert_eq!(&theirs[5..], rebuilt.as_str());
        }
    }
}
