//! The tree that a YAML file is read into: like any tree of values, but each key and value knows where it stands.

use super::problem::{Path, Position, Step};

/// So many bytes of text count as a value more when values are counted, or a few megabytes repeated by aliases would be gigabytes.
const LONG_TEXT: usize = 64;

/// A value and where it begins.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) position: Position,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone)]
pub(super) enum Kind {
    /// A scalar as written, quotes and escapes resolved.
    Scalar {
        text: String,
        /// Without quotes: only then may it mean a number, a boolean or null.
        plain: bool,
    },
    /// Items keep the index they have in the file, because decoding takes broken ones out.
    Sequence(Vec<(usize, Node)>),
    Mapping(Vec<Entry>),
    /// Stands for a value whose absence is already known or reported, so that decoding can go on to find what else is
    /// missing: it answers whatever it is asked with guess number `n`.
    Guess(usize),
}

/// A key and its value.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) position: Position,
    pub(super) value: Node,
}

impl Node {
    /// Where a reader looks for the value at `path`: a scalar itself; a list or a mapping at its key. For a path that does not
    /// exist, the nearest ancestor that does.
    pub(super) fn locate(&self, path: &Path) -> Position {
        let mut node = self;
        let mut found = self.position;
        for step in path.steps() {
            match (step, &node.kind) {
                (Step::Key(key), Kind::Mapping(entries)) => {
                    let Some(entry) = entries.iter().find(|entry| entry.key == *key) else {
                        break;
                    };
                    node = &entry.value;
                    found = if entry.value.is_collection() || entry.value.is_absent() {
                        entry.position
                    } else {
                        entry.value.position
                    };
                }
                (Step::Index(index), Kind::Sequence(items)) => {
                    let Some((_, item)) = items.iter().find(|(at, _)| at == index) else {
                        break;
                    };
                    node = item;
                    found = item.position;
                }
                _ => break,
            }
        }
        found
    }

    /// Where the key at the end of `path` stands, when there is one.
    pub(super) fn locate_key(&self, path: &Path) -> Option<Position> {
        let (last, parents) = path.steps().split_last()?;
        let Step::Key(wanted) = last else { return None };
        match &self.find(parents)?.kind {
            Kind::Mapping(entries) => entries
                .iter()
                .find(|entry| entry.key == *wanted)
                .map(|entry| entry.position),
            _ => None,
        }
    }

    pub(super) fn find(&self, steps: &[Step]) -> Option<&Node> {
        steps
            .iter()
            .try_fold(self, |node, step| match (step, &node.kind) {
                (Step::Key(key), Kind::Mapping(entries)) => entries
                    .iter()
                    .find(|entry| entry.key == *key)
                    .map(|entry| &entry.value),
                (Step::Index(index), Kind::Sequence(items)) => items
                    .iter()
                    .find(|(at, _)| at == index)
                    .map(|(_, item)| item),
                _ => None,
            })
    }

    pub(super) fn find_mut(&mut self, steps: &[Step]) -> Option<&mut Node> {
        steps
            .iter()
            .try_fold(self, |node, step| match (step, &mut node.kind) {
                (Step::Key(key), Kind::Mapping(entries)) => entries
                    .iter_mut()
                    .find(|entry| entry.key == *key)
                    .map(|entry| &mut entry.value),
                (Step::Index(index), Kind::Sequence(items)) => items
                    .iter_mut()
                    .find(|(at, _)| at == index)
                    .map(|(_, item)| item),
                _ => None,
            })
    }

    /// Takes the entry or item at the end of `steps` out. False for the root and for what is not there.
    pub(super) fn prune(&mut self, steps: &[Step]) -> bool {
        let Some((last, parents)) = steps.split_last() else {
            return false;
        };
        let Some(parent) = self.find_mut(parents) else {
            return false;
        };
        match (last, &mut parent.kind) {
            (Step::Key(key), Kind::Mapping(entries)) => {
                let before = entries.len();
                entries.retain(|entry| entry.key != *key);
                entries.len() < before
            }
            (Step::Index(index), Kind::Sequence(items)) => {
                let before = items.len();
                items.retain(|(at, _)| at != index);
                items.len() < before
            }
            _ => false,
        }
    }

    pub(super) fn is_collection(&self) -> bool {
        matches!(self.kind, Kind::Sequence(_) | Kind::Mapping(_))
    }

    /// `key:` with nothing after it.
    pub(super) fn is_absent(&self) -> bool {
        matches!(&self.kind, Kind::Scalar { text, plain: true } if text.is_empty())
    }

    /// How many values there are in it, itself included, where long text counts as several.
    pub(super) fn count(&self) -> usize {
        1 + match &self.kind {
            Kind::Sequence(items) => items.iter().map(|(_, item)| item.count()).sum(),
            Kind::Mapping(entries) => entries
                .iter()
                .map(|entry| entry.key.len() / LONG_TEXT + entry.value.count())
                .sum(),
            Kind::Scalar { text, .. } => text.len() / LONG_TEXT,
            Kind::Guess(_) => 0,
        }
    }

    /// How many levels of values there are in it, itself included.
    pub(super) fn depth(&self) -> usize {
        1 + match &self.kind {
            Kind::Sequence(items) => items.iter().map(|(_, item)| item.depth()).max(),
            Kind::Mapping(entries) => entries.iter().map(|entry| entry.value.depth()).max(),
            Kind::Scalar { .. } | Kind::Guess(_) => None,
        }
        .unwrap_or(0)
    }
}
