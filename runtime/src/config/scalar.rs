//! What an unquoted scalar means, by the core schema of YAML 1.2.
//!
//! Not YAML 1.1: `yes`, `on` and `no` are text there is no way to mistake for a boolean (Norway), and `0777` is a decimal number.

/// What an unquoted scalar means.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Meaning<'a> {
    /// Nothing written at all.
    Absent,
    Null,
    Bool(bool),
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Text(&'a str),
}

/// What `text`, written without quotes, means.
pub(super) fn meaning(text: &str) -> Meaning<'_> {
    match text {
        "" => Meaning::Absent,
        "~" | "null" | "Null" | "NULL" => Meaning::Null,
        "true" | "True" | "TRUE" => Meaning::Bool(true),
        "false" | "False" | "FALSE" => Meaning::Bool(false),
        _ => number(text).unwrap_or(Meaning::Text(text)),
    }
}

fn number(text: &str) -> Option<Meaning<'_>> {
    let based = |digits: &str, base| {
        u64::from_str_radix(digits, base)
            .ok()
            .filter(|_| !digits.starts_with('+'))
            .map(Meaning::Unsigned)
    };
    if let Some(digits) = text.strip_prefix("0x") {
        return based(digits, 16);
    }
    if let Some(digits) = text.strip_prefix("0o") {
        return based(digits, 8);
    }
    if let Ok(number) = text.parse() {
        return Some(Meaning::Unsigned(number));
    }
    if let Ok(number) = text.parse() {
        return Some(Meaning::Signed(number));
    }
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    match unsigned {
        ".inf" | ".Inf" | ".INF" => {
            let infinity = if text.starts_with('-') {
                f64::NEG_INFINITY
            } else {
                f64::INFINITY
            };
            Some(Meaning::Float(infinity))
        }
        ".nan" | ".NaN" | ".NAN" => Some(Meaning::Float(f64::NAN)),
        // Rust also takes `inf` and `infinity`, which are text here.
        _ if unsigned.starts_with(|c: char| c.is_ascii_digit() || c == '.') => {
            text.parse().ok().map(Meaning::Float)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unquoted_scalars_mean_what_yaml_1_2_says() {
        let check =
            |text: &str, expected: Meaning<'_>| assert_eq!(meaning(text), expected, "{text}");
        check("", Meaning::Absent);
        check("~", Meaning::Null);
        check("null", Meaning::Null);
        check("true", Meaning::Bool(true));
        check("FALSE", Meaning::Bool(false));
        for text in [
            "yes", "no", "on", "off", "y", "N", "inf", "infinity", "nan", "0x", "0xg", "0x+1",
            "1_000", "1:30", "-", "+", ".", "1.2.3", "tRUE",
        ] {
            check(text, Meaning::Text(text));
        }
        check("0", Meaning::Unsigned(0));
        check("0777", Meaning::Unsigned(777));
        check("+3", Meaning::Unsigned(3));
        check("0o17", Meaning::Unsigned(15));
        check("0x1F", Meaning::Unsigned(31));
        check("-7", Meaning::Signed(-7));
        check("1.5", Meaning::Float(1.5));
        check("1e3", Meaning::Float(1000.0));
        check("-.5", Meaning::Float(-0.5));
        check("18446744073709551615", Meaning::Unsigned(u64::MAX));
        check(
            "18446744073709551616",
            Meaning::Float(18_446_744_073_709_551_616.0),
        );
        check("-.inf", Meaning::Float(f64::NEG_INFINITY));
    }
}
