//! Dates of HTTP as caches are to read them (RFC 9111 §4.2): all three forms, names in any case, and no zone but GMT.

use http::HeaderValue;
use std::time::SystemTime;

/// No form is longer: the one of RFC 850 with the longest day has 33 bytes.
const LENGTH_MAX: usize = 40;

/// `None` for what is no date.
pub fn read(value: &HeaderValue) -> Option<SystemTime> {
    let text = value.to_str().ok()?;
    httpdate::parse_http_date(text).ok().or_else(|| respelled(text.as_bytes()))
}

/// With the names of days and months and the zone in the case in which the standard has them.
fn respelled(text: &[u8]) -> Option<SystemTime> {
    let mut spelled = arrayvec::ArrayVec::<u8, LENGTH_MAX>::new();
    let mut within = false;
    for byte in text {
        spelled.try_push(if within { byte.to_ascii_lowercase() } else { byte.to_ascii_uppercase() }).ok()?;
        within = byte.is_ascii_alphabetic();
    }
    if let Some(zone) = spelled.len().checked_sub(4).and_then(|at| spelled.get_mut(at..))
        && zone.eq_ignore_ascii_case(b" gmt")
    {
        zone.make_ascii_uppercase();
    }
    httpdate::parse_http_date(std::str::from_utf8(&spelled).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_in_any_case_and_other_zones_are_not() {
        let of = |text: &'static str| read(&HeaderValue::from_static(text)).map(httpdate::fmt_http_date);
        let date = Some("Sun, 06 Nov 1994 08:49:37 GMT".to_owned());
        for good in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "SUN, 06 NOV 1994 08:49:37 gmt",
            "sun, 06 nov 1994 08:49:37 Gmt",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "SUNDAY, 06-NOV-94 08:49:37 gmt",
            "Sun Nov  6 08:49:37 1994",
            "sun nov  6 08:49:37 1994",
        ] {
            assert_eq!(of(good), date, "{good}");
        }
        for bad in
            ["Sun, 06 Nov 1994 08:49:37 UTC", "Sun, 06 Nov 1994 08:49:37 utc", "Sun, 06 Nov 1994 08:49:37", "0", "x", "gmt", ""]
        {
            assert_eq!(of(bad), None, "{bad}");
        }
    }
}
