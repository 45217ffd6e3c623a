//! What is wrong with a configuration, where in the file, and what to do about it.

use std::collections::HashSet;
use std::fmt;

use super::Document;

/// A place in the configuration as a path of keys and indices, such as `ingress.routes[3].to`.
#[derive(Debug, Clone, PartialEq, Eq, Default, Hash)]
pub struct Path(Vec<Step>);

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl Path {
    /// The whole document.
    pub fn root() -> Self {
        Self::default()
    }

    /// The value of `key` in the mapping at this path.
    pub fn key(&self, key: impl Into<String>) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Key(key.into()));
        Self(steps)
    }

    /// The item `index` of the sequence at this path.
    pub fn index(&self, index: usize) -> Self {
        let mut steps = self.0.clone();
        steps.push(Step::Index(index));
        Self(steps)
    }

    pub(crate) fn from_steps(steps: Vec<Step>) -> Self {
        Self(steps)
    }

    pub(crate) fn steps(&self) -> &[Step] {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, step) in self.0.iter().enumerate() {
            match step {
                Step::Key(key) if position == 0 => write!(f, "{key}")?,
                Step::Key(key) => write!(f, ".{key}")?,
                Step::Index(index) => write!(f, "[{index}]")?,
            }
        }
        Ok(())
    }
}

/// Line and column, both from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Position {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// Which value.
    pub path: Path,
    /// Where it stands in the file.
    pub position: Position,
    /// What is wrong, values included.
    pub what: String,
    /// What to do about it.
    pub cure: String,
    /// Other places that `what` names as `` `path` ``; their lines are put beside them.
    pub(super) others: Vec<Path>,
}

impl Problem {
    /// Whether its words name the key `name`: as `` `name` ``, `` `name: …` `` or at the end of a path.
    pub(super) fn names(&self, name: &str) -> bool {
        let forms = [
            format!("`{name}`"),
            format!("`{name}:"),
            format!(".{name}`"),
        ];
        let texts = [&self.what, &self.cure];
        forms
            .iter()
            .any(|form| texts.iter().any(|text| text.contains(form.as_str())))
    }
}

/// All that is wrong. After [`Problems::locate`] in the order of the file, each thing once.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Problems {
    /// Of the file, as it stands before each line of [`Problems::render`].
    source: String,
    list: Vec<Problem>,
}

impl Problems {
    /// Nothing wrong so far.
    pub fn new() -> Self {
        Self::default()
    }

    /// Nothing wrong so far with the file `source`.
    pub(crate) fn of(source: &str) -> Self {
        Self {
            source: source.to_owned(),
            list: Vec::new(),
        }
    }

    /// Adds a problem with the value at `path`; its position is filled in by the document.
    pub fn at(&mut self, path: &Path, what: impl Into<String>, cure: impl Into<String>) {
        self.placed(path, Position::default(), what, cure);
    }

    /// The same, of a value that does not go with those at `others`: where `what` names one of them as `` `path` ``, its
    /// line is put beside it, or that it is a default. When `path` itself is one, the problem stands at the first other
    /// that is not.
    pub fn conflict(
        &mut self,
        path: &Path,
        others: &[&Path],
        what: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.at(path, what, cure);
        if let Some(problem) = self.list.last_mut() {
            problem.others = others.iter().map(|&other| other.clone()).collect();
        }
    }

    /// Adds a problem whose place is already known.
    pub(crate) fn placed(
        &mut self,
        path: &Path,
        position: Position,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.list.push(Problem {
            path: path.clone(),
            position,
            what: what.into(),
            cure: cure.into(),
            others: Vec::new(),
        });
    }

    /// Keeps only those that `keep` says.
    pub(super) fn retain(&mut self, keep: impl FnMut(&Problem) -> bool) {
        self.list.retain(keep);
    }

    /// Looks up where each problem stands that does not know it yet, sorts all by place, and drops repetitions.
    pub fn locate(&mut self, document: &Document) {
        self.source = document.name().to_owned();
        for problem in &mut self.list {
            if problem.position == Position::default() {
                // Of two that do not go together one may be a default, which stands nowhere.
                let place = std::iter::once(&problem.path)
                    .chain(&problem.others)
                    .find(|place| document.has(place));
                problem.position = document.position(place.unwrap_or(&problem.path));
            }
            for other in std::mem::take(&mut problem.others) {
                let named = format!("`{other}`");
                let place = match document.has(&other) {
                    true => format!("line {}", document.position(&other).line),
                    false => "its default".to_owned(),
                };
                problem.what = problem.what.replace(&named, &format!("{named} ({place})"));
            }
        }
        self.sort();
    }

    pub(crate) fn sort(&mut self) {
        // At the same place the outer comes first.
        self.list
            .sort_by_key(|problem| (problem.position, problem.path.0.len()));
        // An alias brings the same wrong value in at several paths: one place, one report.
        let mut seen = HashSet::new();
        self.list
            .retain(|problem| seen.insert((problem.position, problem.what.clone())));
    }

    /// Takes over all problems of `other`.
    pub fn append(&mut self, other: Self) {
        if self.source.is_empty() {
            self.source = other.source;
        }
        self.list.extend(other.list);
    }

    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// How many things are wrong.
    pub fn len(&self) -> usize {
        self.list.len()
    }

    /// One by one.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.list.iter()
    }

    /// For people: `weft.yaml:12:7: what is wrong`, and what to do about it on the next line, indented.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for problem in &self.list {
            let Position { line, column } = problem.position;
            if !self.source.is_empty() {
                text.push_str(&self.source);
                text.push(':');
            }
            if line > 0 {
                text.push_str(&format!("{line}:{column}:"));
            }
            if !text.is_empty() && !text.ends_with('\n') {
                text.push(' ');
            }
            text.push_str(&problem.what);
            text.push('\n');
            for cure in problem.cure.lines() {
                text.push_str("    ");
                text.push_str(cure);
                text.push('\n');
            }
        }
        text
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_reads_as_one_would_write_it() {
        let path = Path::root().key("ingress").key("routes").index(3).key("to");
        assert_eq!(path.to_string(), "ingress.routes[3].to");
        assert_eq!(Path::root().to_string(), "");
    }

    #[test]
    fn a_conflict_says_where_the_other_stands() {
        let document = Document::parse("weft.yaml", "a: 1\nb:\n  c: 2\n").expect("valid");
        let (a, c) = (Path::root().key("a"), Path::root().key("b").key("c"));
        let mut problems = Problems::new();
        problems.conflict(&c, &[&a], "this is the same as `a`", "change one");
        problems.locate(&document);
        problems.locate(&document);
        assert_eq!(
            problems.render(),
            "weft.yaml:3:6: this is the same as `a` (line 1)\n    change one\n"
        );
    }

    #[test]
    fn problems_come_in_the_order_of_the_file_and_each_once() {
        let document = Document::parse("weft.yaml", "a: 1\nb:\n  c: 2\n").expect("valid");
        let mut problems = Problems::new();
        problems.at(&Path::root().key("b").key("c"), "second", "do\nboth");
        problems.at(&Path::root().key("a"), "first", "");
        problems.at(&Path::root().key("a"), "first", "");
        problems.locate(&document);
        assert_eq!(
            problems.render(),
            "weft.yaml:1:4: first\nweft.yaml:3:6: second\n    do\n    both\n"
        );
        assert_eq!(problems.len(), 2);
    }
}
