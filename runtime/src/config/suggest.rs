//! Which of the known words somebody may have meant.

/// The known word nearest to `given`, if one is near enough to be what was meant.
pub fn nearest<'a>(given: &str, known: &[&'a str]) -> Option<&'a str> {
    let given = plain(given);
    known
        .iter()
        .filter_map(|&candidate| {
            let word = plain(candidate);
            let distance = strsim::damerau_levenshtein(&given, &word);
            // A third of the letters may differ, as cargo and git have it; or only the end is missing.
            let near = distance <= word.chars().count().max(3) / 3;
            let begun = given.len() >= 3 && word.starts_with(&given);
            (near || begun).then_some((distance, candidate))
        })
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, candidate)| candidate)
}

/// `trustDomain`, `trust-domain` and `trust_domain` are the same word to people.
fn plain(word: &str) -> String {
    word.chars()
        .take(128)
        .filter(|letter| !matches!(letter, '-' | '_'))
        .flat_map(char::to_lowercase)
        .collect()
}

/// `a`, `b` and `c`.
pub(super) fn list(words: &[&str]) -> String {
    match words {
        [] => String::new(),
        [one] => format!("`{one}`"),
        [firsts @ .., last] => {
            let firsts: Vec<_> = firsts.iter().map(|word| format!("`{word}`")).collect();
            format!("{} and `{last}`", firsts.join(", "))
        }
    }
}

/// Says which keys there are.
pub(super) fn keys(known: &[&str]) -> String {
    match known {
        [only] => format!("the only key known here is `{only}`"),
        _ => format!("the keys known here are {}", list(known)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant_and_nothing_else() {
        let known = ["routes", "listeners", "trust_domain", "to", "timeout"];
        let check = |given: &str, expected: Option<&str>| {
            assert_eq!(nearest(given, &known), expected, "{given}");
        };
        check("rout", Some("routes"));
        check("route", Some("routes"));
        check("listner", Some("listeners"));
        check("trustDomain", Some("trust_domain"));
        check("trust-domain", Some("trust_domain"));
        check("tiemout", Some("timeout"));
        check("tp", Some("to"));
        check("upstream", None);
        check("", None);
        check(&"x".repeat(100_000), None);
    }

    #[test]
    fn lists_read_as_a_sentence() {
        assert_eq!(list(&[]), "");
        assert_eq!(list(&["a"]), "`a`");
        assert_eq!(list(&["a", "b", "c"]), "`a`, `b` and `c`");
    }
}
