//! Values with units, as they stand in the configuration: `5s`, `64KiB`, `100/s`, `20%`.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

/// A length of time such as `5s`, `1m30s`, `500ms` (Kubernetes GEP-2257) or `30d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Period(Duration);

impl Period {
    /// From whole seconds.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// From milliseconds.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(millis))
    }

    /// As the standard library has it.
    pub const fn as_duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Period {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        const WANTED: &str = "is not a duration; write it with units, such as `500ms`, `5s`, `1m30s`, `24h` or `30d`";
        let wrong = || format!("`{text}` {WANTED}");
        let mut total = Duration::ZERO;
        let mut rest = text;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            let unit_length = rest
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(rest.len());
            let (unit, after) = rest.split_at(unit_length);
            let millis_each: u64 = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(wrong()),
            };
            let part = number.checked_mul(millis_each).ok_or_else(wrong)?;
            total = total
                .checked_add(Duration::from_millis(part))
                .ok_or_else(wrong)?;
            rest = after;
        }
        // About a hundred years: sums with the clock stay far from overflow.
        if total > Duration::from_secs(100 * 366 * 86_400) {
            return Err(format!(
                "`{text}` is longer than a hundred years; write `36600d` or less"
            ));
        }
        Ok(Self(total))
    }
}

/// A length of time that is not zero, for what would spin or never work if it were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

impl Interval {
    /// From whole seconds; 0 counts as 1.
    pub const fn seconds(seconds: u64) -> Self {
        Self(Duration::from_secs(if seconds == 0 { 1 } else { seconds }))
    }

    /// From milliseconds; 0 counts as 1.
    pub const fn millis(millis: u64) -> Self {
        Self(Duration::from_millis(if millis == 0 { 1 } else { millis }))
    }

    /// As the standard library has it.
    pub const fn as_duration(self) -> Duration {
        self.0
    }
}

impl FromStr for Interval {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let period: Period = text.parse()?;
        if period.as_duration().is_zero() {
            return Err(format!("`{text}` is no time at all; write `1ms` or more"));
        }
        Ok(Self(period.as_duration()))
    }
}

/// A number of bytes such as `64KiB`, `10MiB` or `512B`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(u64);

impl Size {
    /// From bytes.
    pub const fn bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// In bytes.
    pub const fn as_bytes(self) -> u64 {
        self.0
    }
}

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a size; write it with units, such as `512B`, `64KiB` or `10MiB`"
            )
        };
        let digits = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let number: u64 = text[..digits].parse().map_err(|_| wrong())?;
        let each = match &text[digits..] {
            "B" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(wrong()),
        };
        number.checked_mul(each).map(Self).ok_or_else(wrong)
    }
}

/// So many per time, such as `100/s`, `5/m` or `1000/h`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u32,
    /// In which time.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not a rate; write it as a count per second, minute, hour or day, such as `100/s`"
            )
        };
        let (count, per) = text.split_once('/').ok_or_else(wrong)?;
        let count: u32 = whole(count).ok_or_else(wrong)?;
        if count == 0 {
            return Err(format!(
                "`{text}` allows nothing; write a count of 1 or more"
            ));
        }
        let per = match per {
            "s" => 1,
            "m" => 60,
            "h" => 3_600,
            "d" => 86_400,
            _ => return Err(wrong()),
        };
        Ok(Self {
            count,
            per: Duration::from_secs(per),
        })
    }
}

/// A share such as `20%`, from 0 to 100.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u8);

impl Percent {
    /// From a whole number of per cent; more than 100 counts as 100.
    pub const fn new(percent: u8) -> Self {
        Self(if percent > 100 { 100 } else { percent })
    }

    /// From 0 to 1.
    pub fn as_fraction(self) -> f64 {
        f64::from(self.0) / 100.0
    }
}

impl FromStr for Percent {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        text.strip_suffix('%')
            .and_then(whole::<u8>)
            .filter(|&number| number <= 100)
            .map(Self)
            .ok_or_else(|| {
                format!("`{text}` is not a share; write a whole number from `0%` to `100%`")
            })
    }
}

/// A number of digits only: the standard library also takes a sign in front.
fn whole<T: FromStr>(text: &str) -> Option<T> {
    let only_digits = text.bytes().all(|byte| byte.is_ascii_digit());
    only_digits.then(|| text.parse().ok()).flatten()
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_period(self.0, f)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_period(self.0, f)
    }
}

/// In the largest unit that leaves no rest, as somebody would write it: `90s` and not `1m30s`. Days begin at two.
fn write_period(period: Duration, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let millis = period.as_millis();
    let units = [
        ("d", 86_400_000, 2),
        ("h", 3_600_000, 1),
        ("m", 60_000, 2),
        ("s", 1_000, 1),
    ];
    let whole = units
        .iter()
        .find(|(_, each, least)| millis.is_multiple_of(*each) && millis / each >= *least);
    match whole {
        Some((unit, each, _)) => write!(f, "{}{unit}", millis / each),
        None if millis == 0 => f.write_str("0s"),
        None => write!(f, "{millis}ms"),
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        let whole = units
            .iter()
            .find(|(_, each)| self.0 > 0 && self.0.is_multiple_of(*each));
        match whole {
            Some((unit, each)) => write!(f, "{}{unit}", self.0 / each),
            None => write!(f, "{}B", self.0),
        }
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unit = match self.per.as_secs() {
            60 => "m",
            3_600 => "h",
            86_400 => "d",
            _ => "s",
        };
        write!(f, "{}/{unit}", self.count)
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0)
    }
}

/// A string in the file: read through `FromStr`, whose error already says what is wanted, and written through `Display`.
macro_rules! in_words {
    ($type:ident, $word:literal, $wanted:literal, $pattern:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl JsonSchema for $type {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "format": $word, "pattern": $pattern })
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct FromText;
                impl Visitor<'_> for FromText {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($wanted)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(FromText)
            }
        }
    };
}

in_words!(
    Period,
    "duration",
    "a duration with units, such as `5s`",
    r"^([0-9]+(ms|s|m|h|d))+$"
);
in_words!(
    Interval,
    "duration",
    "a duration with units, such as `5s`, other than zero",
    r"^([0-9]+(ms|s|m|h|d))+$"
);
in_words!(
    Size,
    "size",
    "a size with units, such as `64KiB`",
    r"^[0-9]+(B|KiB|MiB|GiB)$"
);
in_words!(
    Rate,
    "rate",
    "a rate, such as `100/s`",
    r"^[0-9]+/(s|m|h|d)$"
);
in_words!(
    Percent,
    "share",
    "a share, such as `20%`",
    r"^(100|[0-9]{1,2})%$"
);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[track_caller]
    fn good<T: FromStr<Err = String> + PartialEq + fmt::Debug>(text: &str, expected: T) {
        assert_eq!(text.parse(), Ok(expected), "{text}");
    }

    /// All of them are refused, with the text itself in the words.
    #[track_caller]
    fn bad<T: FromStr<Err = String> + fmt::Debug>(texts: &[&str]) {
        for text in texts {
            let error = text.parse::<T>().expect_err(text);
            assert!(error.starts_with(&format!("`{text}` ")), "{error}");
        }
    }

    #[test]
    fn periods() {
        good("5s", Period::seconds(5));
        good("500ms", Period::millis(500));
        good("1m30s", Period::seconds(90));
        good("1h1m1s1ms", Period::millis(3_661_001));
        good("30d", Period::seconds(30 * 86_400));
        good("0s", Period::seconds(0));
        bad::<Period>(&[
            "",
            "5",
            "s",
            "5 s",
            " 5s",
            "-5s",
            "+5s",
            "1.5s",
            "5S",
            "5sec",
            "5us",
            "5s3",
            "1e3s",
            "٣s",
            "99999999999999999999s",
            "18446744073709551615d",
            "36601d",
        ]);
    }

    #[test]
    fn what_is_written_is_read_as_the_same() {
        for text in [
            "0s", "1ms", "1500ms", "1s", "60s", "90s", "2m", "1h", "24h", "36h", "2d", "3650d",
        ] {
            assert_eq!(text.parse::<Period>().unwrap().to_string(), text);
        }
        for text in ["0B", "1B", "1KiB", "1025B", "64KiB", "10MiB", "3GiB"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        for text in ["100/s", "5/m", "1000/h", "1/d"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        assert_eq!(Percent::new(20).to_string(), "20%");
        assert_eq!(Interval::seconds(5).to_string(), "5s");
        assert_eq!(
            serde_json::to_string(&Period::seconds(86_400)).unwrap(),
            "\"24h\""
        );
    }

    #[test]
    fn intervals_are_not_zero() {
        good("1ms", Interval::millis(1));
        good("5s", Interval::seconds(5));
        bad::<Interval>(&["0s", "0d0ms", "5"]);
        assert_eq!(Interval::seconds(0), Interval::seconds(1));
    }

    #[test]
    fn sizes() {
        good("0B", Size::bytes(0));
        good("64KiB", Size::bytes(65_536));
        good("10MiB", Size::bytes(10 << 20));
        good("17179869183GiB", Size::bytes(u64::MAX - (1 << 30) + 1));
        bad::<Size>(&[
            "",
            "64",
            "64kb",
            "64KB",
            "-1B",
            "+1B",
            "1.5KiB",
            "17179869184GiB",
            "KiB",
            "1 B",
        ]);
    }

    #[test]
    fn rates() {
        let rate = |count, seconds| Rate {
            count,
            per: Duration::from_secs(seconds),
        };
        good("100/s", rate(100, 1));
        good("5/m", rate(5, 60));
        good("1000/h", rate(1_000, 3_600));
        good("1/d", rate(1, 86_400));
        bad::<Rate>(&[
            "",
            "100",
            "/s",
            "100/",
            "0/s",
            "-1/s",
            "+1/s",
            "1/2s",
            "1/S",
            "1/s/s",
            "4294967296/s",
        ]);
    }

    #[test]
    fn shares() {
        good("0%", Percent::new(0));
        good("20%", Percent::new(20));
        good("100%", Percent::new(100));
        bad::<Percent>(&["", "%", "20", "101%", "-1%", "+1%", "0.5%", "20 %", "256%"]);
        assert!((Percent::new(20).as_fraction() - 0.2).abs() < 1e-9);
        assert_eq!(Percent::new(200), Percent::new(100));
    }
}
