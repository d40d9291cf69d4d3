//! Rates and quotas as written in TOML: so many in so long.
//!
//! A rate counts over any length of time; a quota over a calendar period, because that is what a contract means by "a
//! month" and no duration can say.

use super::{Duration, split_unit, text_value};
use std::fmt;
use std::str::FromStr;

/// The largest number of a rate or quota. Far above any traffic, and far below where sums of it could overflow.
pub const NUMBER_MAX: u64 = 1_000_000_000_000;

/// So many in so long: `"60/1m"`, `"10_000/1d"`, `"5/1s"`. From 1 to 1e12, over 1ms to 365d.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    pub number: u64,
    pub per: Duration,
}

text_value!(Rate, "rate", r"^[0-9][0-9_]*/[0-9][0-9_]*(ms|s|m|h|d)$", "So many in so long: 60/1m, 10_000/1d, 5/1s");

impl FromStr for Rate {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a rate: write a number, `/` and a duration, such as 60/1m or 10_000/1d");
        let (number, per) = text.split_once('/').ok_or_else(why)?;
        let number = whole_number(number).ok_or_else(why)?;
        let per: Duration = per.parse().map_err(|_| why())?;
        if !(1..=NUMBER_MAX).contains(&number) {
            return Err(format!("`{text}`: the number of a rate is from 1 to {NUMBER_MAX}"));
        }
        if per.get().is_zero() || per.get() > std::time::Duration::from_secs(365 * 86_400) {
            return Err(format!("`{text}`: a rate is over 1ms to 365d"));
        }
        Ok(Rate { number, per })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.per)
    }
}

/// A period of the calendar, in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Period {
    Minute,
    Hour,
    Day,
    Month,
}

impl Period {
    pub const fn as_str(self) -> &'static str {
        match self {
            Period::Minute => "1m",
            Period::Hour => "1h",
            Period::Day => "1d",
            Period::Month => "1mo",
        }
    }
}

/// So many in each period of the calendar: `"1000/1d"`, `"50_000/1mo"`; periods are `1m`, `1h`, `1d` and `1mo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Quota {
    pub number: u64,
    pub period: Period,
}

text_value!(
    Quota,
    "quota",
    r"^[0-9][0-9_]*/1(m|h|d|mo)$",
    "So many in each minute, hour, day or month (UTC): 1000/1d, 50_000/1mo"
);

impl FromStr for Quota {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a quota: write a number and a period 1m, 1h, 1d or 1mo, such as 1000/1d");
        let (number, period) = text.split_once('/').ok_or_else(why)?;
        let number = whole_number(number).ok_or_else(why)?;
        let period = match period {
            "1m" => Period::Minute,
            "1h" => Period::Hour,
            "1d" => Period::Day,
            "1mo" => Period::Month,
            _ => return Err(why()),
        };
        if !(1..=NUMBER_MAX).contains(&number) {
            return Err(format!("`{text}`: the number of a quota is from 1 to {NUMBER_MAX}"));
        }
        Ok(Quota { number, period })
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.period.as_str())
    }
}

fn whole_number(text: &str) -> Option<u64> {
    // The unit only serves to share the rules for digits and underscores.
    match split_unit(&format!("{text}x"))? {
        (number, "x") => Some(number),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_quotas_have_one_spelling() {
        for (text, shown) in [("60/1m", "60/1m"), ("10_000/1d", "10000/1d"), ("1/365d", "1/365d"), ("5/1_000ms", "5/1s")] {
            let rate: Rate = text.parse().unwrap();
            assert_eq!((rate.to_string(), shown.parse::<Rate>()), (shown.to_owned(), Ok(rate)));
        }
        for wrong in ["", "60", "60/", "/1m", "60/m", "0/1m", "60/0s", "60/366d", "-1/1m", "60 / 1m", "_6/1m", "2000000000000/1s"]
        {
            assert!(wrong.parse::<Rate>().is_err(), "{wrong}");
        }
        for text in ["1000/1d", "50000/1mo", "1/1m", "7/1h"] {
            assert_eq!(text.parse::<Quota>().unwrap().to_string(), text);
        }
        for wrong in ["1000/2d", "1000/1s", "0/1d", "1000", "1000/day"] {
            assert!(wrong.parse::<Quota>().is_err(), "{wrong}");
        }
    }
}
