//! Periods of the calendar in UTC, by arithmetic alone: no time zone, no leap seconds (Unix time has none).

use crate::value::Period;

const SECOND: u64 = 1_000_000_000;
const DAY: u64 = 86_400;

/// The number of the period that `wall` (nanoseconds since the Unix epoch) lies in, counted from the epoch, and how many
/// nanoseconds of it are left, at least 1.
pub fn at(period: Period, wall: u64) -> (u64, u64) {
    let length = match period {
        Period::Minute => 60,
        Period::Hour => 3_600,
        Period::Day => DAY,
        Period::Month => return month(wall),
    };
    let length = SECOND.saturating_mul(length);
    let index = wall.checked_div(length).unwrap_or(0);
    (index, left(index.saturating_add(1).saturating_mul(length), wall))
}

fn left(end: u64, wall: u64) -> u64 {
    end.saturating_sub(wall).max(1)
}

fn month(wall: u64) -> (u64, u64) {
    let day = wall / SECOND / DAY;
    let (year, month) = civil(day);
    let index = year.saturating_sub(1970).saturating_mul(12).saturating_add(month).saturating_sub(1);
    let (next_year, next_month) = if month == 12 { (year.saturating_add(1), 1) } else { (year, month.saturating_add(1)) };
    let end = first_day(next_year, next_month).saturating_mul(DAY).saturating_mul(SECOND);
    (index, left(end, wall))
}

/// Year and month (1 to 12) of a day since the epoch: Howard Hinnant, "chrono-compatible low-level date algorithms",
/// `civil_from_days`, for days after the epoch.
fn civil(day: u64) -> (u64, u64) {
    let shifted = day.saturating_add(719_468);
    let era = shifted / 146_097;
    let of_era = shifted % 146_097;
    let year_of_era = of_era
        .saturating_sub(of_era / 1_460)
        .saturating_add(of_era / 36_524)
        .saturating_sub(of_era / 146_096)
        .checked_div(365)
        .unwrap_or(0);
    let start = year_of_era.saturating_mul(365).saturating_add(year_of_era / 4).saturating_sub(year_of_era / 100);
    let of_year = of_era.saturating_sub(start);
    let from_march = of_year.saturating_mul(5).saturating_add(2) / 153;
    let month = if from_march < 10 { from_march.saturating_add(3) } else { from_march.saturating_sub(9) };
    let year = year_of_era.saturating_add(era.saturating_mul(400)).saturating_add(u64::from(month <= 2));
    (year, month)
}

/// The first day of a month since the epoch: `days_from_civil` of the same source.
fn first_day(year: u64, month: u64) -> u64 {
    let year = if month <= 2 { year.saturating_sub(1) } else { year };
    let era = year / 400;
    let of_era = year % 400;
    let from_march = if month > 2 { month.saturating_sub(3) } else { month.saturating_add(9) };
    let of_year = from_march.saturating_mul(153).saturating_add(2) / 5;
    let day_of_era = of_era.saturating_mul(365).saturating_add(of_era / 4).saturating_sub(of_era / 100).saturating_add(of_year);
    era.saturating_mul(146_097).saturating_add(day_of_era).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    /// `httpdate` knows the calendar by its own means.
    fn nanos(date: &str) -> u64 {
        let at = httpdate::parse_http_date(date).unwrap();
        at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64
    }

    #[test]
    fn periods_end_where_the_calendar_says() {
        let last = nanos("Sat, 29 Feb 2020 23:59:59 GMT");
        for period in [Period::Minute, Period::Hour, Period::Day, Period::Month] {
            let (index, left) = at(period, last);
            assert_eq!(left, SECOND, "{period:?}");
            assert_eq!(at(period, last + SECOND).0, index + 1, "{period:?}");
        }
        assert_eq!(at(Period::Month, 0), (0, 31 * DAY * SECOND));
        assert_eq!(at(Period::Month, nanos("Wed, 31 Dec 2025 23:59:59 GMT")), (671, SECOND));
        assert!(at(Period::Month, u64::MAX).1 >= 1);
    }

    #[test]
    fn every_day_of_two_centuries_is_in_the_month_that_its_date_says() {
        for day in 0..73_000_u64 {
            let date = httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(day * DAY));
            let parts: Vec<&str> = date.split(' ').collect();
            let names = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
            let month = names.iter().position(|name| *name == parts[2]).unwrap() as u64;
            let year: u64 = parts[3].parse().unwrap();
            assert_eq!(at(Period::Month, day * DAY * SECOND).0, (year - 1970) * 12 + month, "{date}");
        }
    }
}
