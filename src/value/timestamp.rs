//! Points in time as TOML writes them.

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error};
use std::borrow::Cow;
use std::time::{Duration, SystemTime};
use toml::value::{Date, Datetime, Offset};

/// A point in time: `2027-01-01T00:00:00Z`, with another offset, or a date alone, which begins at midnight UTC. Written
/// without quotes: it is TOML's own kind of value. From 1970 to 9999.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Timestamp(pub SystemTime);

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Datetime::deserialize(deserializer)?;
        from_datetime(&written).map(Timestamp).map_err(D::Error::custom)
    }
}

impl JsonSchema for Timestamp {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "Timestamp".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "title": "time",
            "pattern": r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([Tt ][0-9:.]+([Zz]|[+-][0-9]{2}:[0-9]{2}))?$",
            "description": "A date, or a date and time with its offset, without quotes: 2027-01-01, 2027-01-01T00:00:00Z",
        })
    }
}

fn from_datetime(written: &Datetime) -> Result<SystemTime, String> {
    let date = written.date.ok_or("a time of day is not a point in time: write a date, such as 2027-01-01")?;
    let (in_day, nanos, minutes) = match (&written.time, &written.offset) {
        (None, _) => (0, 0, 0),
        (Some(_), None) => return Err("the time has no offset: end it with Z for UTC, or with one such as +02:00".to_owned()),
        (Some(time), Some(offset)) => {
            let in_day = i64::from(time.hour) * 3600 + i64::from(time.minute) * 60 + i64::from(time.second.unwrap_or(0));
            let minutes = match offset {
                Offset::Z => 0,
                Offset::Custom { minutes } => i64::from(*minutes),
            };
            (in_day, time.nanosecond.unwrap_or(0), minutes)
        }
    };
    let seconds = days(&date) * 86_400 + in_day - minutes * 60;
    let since = u64::try_from(seconds).map_err(|_| "times before 1970 are not possible here".to_owned())?;
    SystemTime::UNIX_EPOCH.checked_add(Duration::new(since, nanos)).ok_or_else(|| "this time is too late".to_owned())
}

/// Days from 1970-01-01: Howard Hinnant's `days_from_civil` (<https://howardhinnant.github.io/date_algorithms.html>). The
/// parser has checked that month and day exist.
fn days(date: &Date) -> i64 {
    let (month, day) = (i64::from(date.month), i64::from(date.day));
    let year = i64::from(date.year) - i64::from(month <= 2);
    let (era, year_of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(serde::Deserialize)]
    struct Holder {
        at: crate::value::Located<Timestamp>,
    }

    fn at(text: &str) -> Result<u64, String> {
        let holder: Holder = toml::from_str(&format!("at = {text}")).map_err(|e| e.message().to_owned())?;
        Ok(holder.at.value.0.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
    }

    #[test]
    fn a_time_means_the_same_in_every_offset() {
        assert_eq!(at("1970-01-01"), Ok(0));
        assert_eq!(at("2026-01-02T03:04:05Z"), Ok(1_767_323_045));
        assert_eq!(at("2026-01-02T05:04:05+02:00"), Ok(1_767_323_045));
        assert_eq!(at("2026-01-01 22:04:05-05:00"), Ok(1_767_323_045));
        assert_eq!(at("2024-02-29"), Ok(1_709_164_800));
        assert_eq!(at("9999-12-31T23:59:59Z"), Ok(253_402_300_799));
    }

    #[test]
    fn what_could_be_several_times_is_refused() {
        assert!(at("2026-01-02T03:04:05").unwrap_err().starts_with("the time has no offset"));
        assert!(at("03:04:05").unwrap_err().starts_with("a time of day"));
        assert!(at("1969-12-31").unwrap_err().starts_with("times before 1970"));
        for wrong in ["\"2026-01-02\"", "2026-02-30", "1767323045"] {
            assert!(at(wrong).is_err(), "{wrong}");
        }
    }

    proptest! {
        #[test]
        fn what_the_log_writes_reads_back(seconds in 0_u64..253_402_300_799) {
            let mut out = Vec::new();
            let time = SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
            crate::telemetry::timestamp::push_rfc3339(&mut out, time, crate::telemetry::timestamp::Precision::Millis);
            prop_assert_eq!(at(&String::from_utf8(out).unwrap()), Ok(seconds));
        }
    }
}
