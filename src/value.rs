//! The kinds of value that are written in TOML: durations, sizes, percentages, networks, and text with a place.
//!
//! Each has one spelling, a reason when it is wrong, and the same JSON Schema as its parser.

mod address;
mod file;
mod networks;
mod rate;
mod secret;
mod timestamp;

pub use address::Address;
pub use file::{noting_files, read_file};
pub use networks::Networks;
pub use rate::{NUMBER_MAX, Period, Quota, Rate};
pub use secret::{SECRET_MAX, Secret, SecretSource, TextOrSecret};
pub use timestamp::Timestamp;

use crate::diagnostic::{Diagnostics, FileId, Span};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserialize, Deserializer};
use serde::ser::{Serialize, Serializer};
use std::borrow::Cow;
use std::cell::Cell;
use std::fmt;
use std::ops::{Deref, RangeInclusive};
use std::str::FromStr;

thread_local! {
    static DECODING: Cell<FileId> = const { Cell::new(FileId(0)) };
}

/// Says which file the [`Located`] values that are being decoded on this thread come from. Serde has no way to pass
/// context to a `Deserialize`, so the decoder leaves it here.
pub fn set_decoding_file(file: FileId) {
    DECODING.set(file);
}

/// A value and where it was written, so that a check made long after parsing (a name that does not exist, an impossible
/// pair) can still point at the text.
#[derive(Debug, Clone)]
pub struct Located<T> {
    pub value: T,
    pub span: Option<Span>,
}

impl<T> Located<T> {
    /// A value that nobody wrote, such as a default.
    pub fn nowhere(value: T) -> Self {
        Located { value, span: None }
    }
}

impl<T: PartialOrd + fmt::Display> Located<T> {
    /// Reports a value outside of its bounds; `true` if it is inside.
    pub fn within(&self, bounds: RangeInclusive<T>, d: &mut Diagnostics) -> bool {
        let inside = bounds.contains(&self.value);
        if !inside {
            let label = format!("must be from {} to {}", bounds.start(), bounds.end());
            d.error(self.span.clone(), format!("`{}` is not possible here", self.value)).label(label);
        }
        inside
    }
}

impl<T: Default> Default for Located<T> {
    fn default() -> Self {
        Located::nowhere(T::default())
    }
}

impl<T> Deref for Located<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.value
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Located<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = serde_spanned::Spanned::<T>::deserialize(deserializer)?;
        let span = Span { file: DECODING.get(), range: spanned.span() };
        Ok(Located { value: spanned.into_inner(), span: Some(span) })
    }
}

impl<T: JsonSchema> JsonSchema for Located<T> {
    fn inline_schema() -> bool {
        T::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        T::schema_name()
    }
    fn schema_id() -> Cow<'static, str> {
        T::schema_id()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        T::json_schema(generator)
    }
}

/// Written as what it holds; the schema uses it to show defaults.
impl<T: Serialize> Serialize for Located<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.value.serialize(serializer)
    }
}

/// Implements `Deserialize` through `FromStr`, `Serialize` through `Display`, and a string schema with a pattern and a
/// description.
macro_rules! text_value {
    ($name:ident, $title:literal, $pattern:literal, $description:literal) => {
        impl<'de> serde::de::Deserialize<'de> for $name {
            fn deserialize<D: serde::de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl serde::de::Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                        let article = if $title.starts_with('a') { "an" } else { "a" };
                        let examples = $description.split_once(": ").map_or("", |(_, examples)| examples);
                        match examples.split(',').next() {
                            Some(example) if !example.is_empty() => write!(f, "{article} {} such as \"{example}\"", $title),
                            _ => write!(f, "{article} {}", $title),
                        }
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
        impl serde::ser::Serialize for $name {
            fn serialize<S: serde::ser::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl schemars::JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> std::borrow::Cow<'static, str> {
                $title.into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "pattern": $pattern, "title": $title, "description": $description })
            }
        }
    };
}
pub(crate) use text_value;

/// A length of time: `"250ms"`, `"5s"`, `"10m"`, `"1h"`, `"7d"`; whole numbers; `"0s"` is allowed where a field says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Duration(pub std::time::Duration);

text_value!(Duration, "duration", r"^[0-9][0-9_]*(ms|s|m|h|d)$", "A length of time: 250ms, 5s, 10m, 1h, 7d");

impl Duration {
    pub const fn from_millis(millis: u64) -> Self {
        Duration(std::time::Duration::from_millis(millis))
    }
    pub const fn from_secs(secs: u64) -> Self {
        Duration(std::time::Duration::from_secs(secs))
    }
    pub const fn get(self) -> std::time::Duration {
        self.0
    }
}

impl FromStr for Duration {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a duration: write a whole number and a unit, such as 250ms, 5s, 10m, 1h or 7d");
        let (number, unit) = split_unit(text).ok_or_else(why)?;
        let millis = match unit {
            "ms" => Some(number),
            "s" => number.checked_mul(1_000),
            "m" => number.checked_mul(60_000),
            "h" => number.checked_mul(3_600_000),
            "d" => number.checked_mul(86_400_000),
            _ => return Err(why()),
        };
        // A hundred years: longer ones are typos, and staying far below u64 keeps every later sum safe.
        match millis {
            Some(millis) if millis <= 3_153_600_000_000 => Ok(Duration::from_millis(millis)),
            _ => Err(format!("`{text}` is longer than 36500d")),
        }
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        if millis == 0 {
            return f.write_str("0s");
        }
        for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
            if millis.is_multiple_of(unit) {
                return write!(f, "{}{name}", millis / unit);
            }
        }
        write!(f, "{millis}ms")
    }
}

/// A number of bytes: `"512B"`, `"64KiB"`, `"10MiB"`, `"1GiB"`; also `KB`, `MB`, `GB` in thousands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

text_value!(ByteSize, "size", r"^[0-9][0-9_]*(B|KiB|MiB|GiB|TiB|KB|MB|GB|TB)$", "A number of bytes: 512B, 64KiB, 10MiB, 1GiB");

impl FromStr for ByteSize {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a size: write a whole number and a unit, such as 512B, 64KiB, 10MiB or 1GiB");
        let (number, unit) = split_unit(text).ok_or_else(why)?;
        let factor: u64 = match unit {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            "TiB" => 1 << 40,
            "KB" => 1_000,
            "MB" => 1_000_000,
            "GB" => 1_000_000_000,
            "TB" => 1_000_000_000_000,
            _ => return Err(why()),
        };
        number.checked_mul(factor).map(ByteSize).ok_or_else(|| format!("`{text}` is larger than this machine can count"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, name) in [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] {
            if self.0 != 0 && self.0.is_multiple_of(unit) {
                return write!(f, "{}{name}", self.0 / unit);
            }
        }
        write!(f, "{}B", self.0)
    }
}

/// A share: `"50%"`, `"0.1%"`. Held as parts per million.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Percent {
    pub parts_per_million: u32,
}

text_value!(Percent, "percentage", r"^[0-9]+(\.[0-9]{1,4})?%$", "A share from 0% to 100%: 50%, 0.1%");

impl FromStr for Percent {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a percentage from 0% to 100%, such as 50% or 0.1%");
        let number = text.strip_suffix('%').ok_or_else(why)?;
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        let digits = |s: &str| !s.is_empty() && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(fraction) || fraction.len() > 4 || whole.len() > 3 {
            return Err(why());
        }
        let whole: u32 = whole.parse().map_err(|_| why())?;
        let fraction: u32 = format!("{fraction:0<4}").parse().map_err(|_| why())?;
        let parts_per_million = whole * 10_000 + fraction;
        if parts_per_million > 1_000_000 {
            return Err(why());
        }
        Ok(Percent { parts_per_million })
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, fraction) = (self.parts_per_million / 10_000, self.parts_per_million % 10_000);
        if fraction == 0 {
            return write!(f, "{whole}%");
        }
        write!(f, "{whole}.{}%", format!("{fraction:04}").trim_end_matches('0'))
    }
}

/// A network or a single address: `"10.0.0.0/8"`, `"::1"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr(pub ipnet::IpNet);

text_value!(Cidr, "network", r"^[0-9a-fA-F:.]+(/[0-9]{1,3})?$", "A network or an address: 10.0.0.0/8, 192.0.2.1, fd00::/8");

impl FromStr for Cidr {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let why = || format!("`{text}` is not a network such as 10.0.0.0/8 or fd00::/8, nor an address");
        let net: ipnet::IpNet = match text.parse::<std::net::IpAddr>() {
            Ok(address) => address.into(),
            Err(_) => text.parse().map_err(|_| why())?,
        };
        if net.addr() != net.network() {
            return Err(format!("`{text}` has bits set beyond its prefix: did you mean {}?", net.trunc()));
        }
        Ok(Cidr(net))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `"12_000ms"` → `(12000, "ms")`.
fn split_unit(text: &str) -> Option<(u64, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '_')?;
    let (digits, unit) = text.split_at(end);
    if !digits.starts_with(|c: char| c.is_ascii_digit()) || digits.ends_with('_') {
        return None;
    }
    Some((digits.replace('_', "").parse().ok()?, unit))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_spelling_each() {
        assert_eq!("1_500ms".parse::<Duration>().map(Duration::get), Ok(std::time::Duration::from_millis(1500)));
        for wrong in ["", "5", "s", "-5s", "5 s", "1.5s", "5sec", "_5s", "5_s", "99999999999999999999d", "36501d"] {
            assert!(wrong.parse::<Duration>().is_err(), "{wrong}");
        }
        assert_eq!("64KiB".parse(), Ok(ByteSize(65_536)));
        for wrong in ["64", "64K", "64kib", "KiB", "99999999999TiB"] {
            assert!(wrong.parse::<ByteSize>().is_err(), "{wrong}");
        }
        assert_eq!("0.1%".parse(), Ok(Percent { parts_per_million: 1_000 }));
        for wrong in ["50", "%", "100.1%", ".5%", "1.%", "1.00001%"] {
            assert!(wrong.parse::<Percent>().is_err(), "{wrong}");
        }
        assert_eq!(
            "10.0.0.1/8".parse::<Cidr>().unwrap_err(),
            "`10.0.0.1/8` has bits set beyond its prefix: did you mean 10.0.0.0/8?"
        );
        assert!("::1".parse::<Cidr>().is_ok() && "10.0.0.0/33".parse::<Cidr>().is_err());
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_to_the_same(millis in 0_u64..3_153_600_000_000, bytes in any::<u64>()) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(duration.to_string().parse::<Duration>(), Ok(duration));
            let size = ByteSize(bytes);
            prop_assert_eq!(size.to_string().parse::<ByteSize>(), Ok(size));
            let percent = Percent { parts_per_million: (bytes % 1_000_001) as u32 };
            prop_assert_eq!(percent.to_string().parse::<Percent>(), Ok(percent));
        }
    }
}
