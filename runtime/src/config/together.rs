//! Files that are taken together, such as a certificate and its key: what changed is taken when they go together, and not
//! before.
//!
//! They are rarely written in one go, so a change that does not fit is not called a problem until it has stayed for a look.

use std::hash::{DefaultHasher, Hash, Hasher};

/// What the looks at such files have found so far.
#[derive(Debug, Default)]
pub struct Together {
    /// What they held when they were last taken.
    taken: Option<Fingerprint>,
    /// What they held when they last did not fit, where they could be read, and how often in a row that was seen.
    bad: Option<(Option<Fingerprint>, u32)>,
    /// Whether a problem was told that is not over.
    told: bool,
}

/// Kept instead of what files held, for one of them may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fingerprint(u64);

impl Fingerprint {
    /// Of these contents, in this order.
    pub fn of<'a>(contents: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hasher = DefaultHasher::new();
        contents
            .into_iter()
            .for_each(|content| content.hash(&mut hasher));
        Self(hasher.finish())
    }
}

/// What one look at the files has found.
#[derive(Debug, PartialEq, Eq)]
pub enum Look<T, E> {
    /// They hold what was taken last.
    Same {
        /// Whether that is the end of a problem.
        mended: bool,
    },
    /// They hold something else that is good.
    Taken(T),
    /// They are not good; it may be that somebody is writing them, or it was told already.
    Unfit,
    /// They are not good, and that is to be told.
    Problem(E),
}

impl Together {
    /// They held this when they were taken first.
    pub fn taken(print: Fingerprint) -> Self {
        Self {
            taken: Some(print),
            ..Self::default()
        }
    }

    /// One look: `print` is of what they hold, if they could be read, and `take` makes something of it.
    pub fn look<T, E>(
        &mut self,
        print: Option<Fingerprint>,
        take: impl FnOnce() -> Result<T, E>,
    ) -> Look<T, E> {
        if print.is_some() && print == self.taken {
            self.bad = None;
            return Look::Same {
                mended: std::mem::take(&mut self.told),
            };
        }
        match take() {
            Ok(value) => {
                *self = Self {
                    taken: print,
                    ..Self::default()
                };
                Look::Taken(value)
            }
            Err(problem) => {
                let looks = match self.bad {
                    Some((last, looks)) if last == print => looks.saturating_add(1),
                    _ => 1,
                };
                self.bad = Some((print, looks));
                if looks != 2 {
                    return Look::Unfit;
                }
                self.told = true;
                Look::Problem(problem)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What looks at these contents find; `!` is what no file may hold, and `?` a file that cannot be read.
    fn story(contents: &str) -> String {
        let mut together = Together::taken(Fingerprint::of([&b"a"[..]]));
        let look = |content: char| {
            let text = content.to_string();
            let print = (content != '?').then(|| Fingerprint::of([text.as_bytes()]));
            let taken = match content {
                '!' | '?' => Err(()),
                good => Ok(good),
            };
            match together.look(print, || taken) {
                Look::Same { mended: false } => '=',
                Look::Same { mended: true } => 'm',
                Look::Taken(_) => 't',
                Look::Unfit => '-',
                Look::Problem(()) => 'p',
            }
        };
        contents.chars().map(look).collect()
    }

    #[test]
    fn a_problem_is_told_once_when_it_has_stayed_for_a_look() {
        for (contents, expected) in [
            ("aab", "==t"),
            ("a!bb", "=-t="),
            ("!!!!b!!", "-p--t-p"),
            ("!!?a", "-p-m"),
            ("!aa", "-=="),
            ("!?!?", "----"),
            ("??", "-p"),
            ("!!aa!!", "-pm=-p"),
        ] {
            assert_eq!(story(contents), expected, "{contents}");
        }
    }

    #[test]
    fn what_moves_from_one_file_to_the_next_is_a_change() {
        let of = |one: &'static str, other: &'static str| {
            Fingerprint::of([one.as_bytes(), other.as_bytes()])
        };
        assert_eq!(of("ab", "c"), of("ab", "c"));
        assert_ne!(of("ab", "c"), of("a", "bc"));
    }
}
