//! Finds everything that is wrong with the shape of a file in one go, although serde stops at the first thing.
//!
//! Decode; when it fails, report the fault with its place, take the culprit out of a copy of the tree, and decode again, until
//! nothing is wrong any more or nothing is left. What is taken out must not cause complaints of its own: a key that was removed for its
//! bad value is not "missing" afterwards, and a value whose inside was removed is not "of the wrong shape". A missing key is stood in
//! for by a guess, so that the next missing key of the same mapping is found too.

use std::collections::HashSet;

use serde::de::DeserializeOwned;

use super::document::{Document, PROBLEM_LIMIT};
use super::fault::{Fault, FaultKind};
use super::node::{Entry, Kind, Node};
use super::problem::{Path, Problem, Problems, Step};
use super::suggest;
use super::tree::{At, GUESSES};

/// How often a file is decoded at most. Some rounds only clean up after others, so this is more than the number of problems.
const ROUND_LIMIT: usize = 4 * PROBLEM_LIMIT;

/// What is left of a file when everything of the wrong shape is taken out.
pub(super) struct Left<T> {
    pub(super) value: T,
    pub(super) holes: Holes,
}

/// Where something was taken out of a file, or stands in for what is missing.
#[derive(Default)]
pub(super) struct Holes(Vec<Vec<Step>>);

impl Holes {
    /// Whether `problem` may only be there because of a hole: it is about what is gone, about something around it, or it
    /// names it.
    pub(super) fn may_cause(&self, problem: &Problem) -> bool {
        let about: Vec<&[Step]> = std::iter::once(&problem.path)
            .chain(&problem.others)
            .map(Path::steps)
            .collect();
        self.0.iter().any(|hole| {
            let (last, list) = match hole.split_last() {
                Some((last, list)) => (last, list),
                None => return true,
            };
            let named = match last {
                // The items after it have moved up.
                Step::Index(_) => about.iter().any(|about| about.starts_with(list)),
                Step::Key(name) => problem.names(name),
            };
            let near = |about: &&[Step]| about.starts_with(hole) || hole.starts_with(about);
            named || about.iter().any(near)
        })
    }
}

/// See [`Document::decode`] and [`Document::check`].
pub(super) fn decode<T: DeserializeOwned>(
    document: &Document,
    root: &Node,
    problems: &mut Problems,
) -> Option<Left<T>> {
    let fault = match T::deserialize(At(root)) {
        Ok(value) => {
            return Some(Left {
                value,
                holes: Holes::default(),
            });
        }
        Err(fault) => fault,
    };
    let mut search = Search {
        original: root,
        tree: root.clone(),
        gone: HashSet::new(),
        guessed: HashSet::new(),
        holes: Holes::default(),
        found: Problems::of(document.name()),
    };
    let mut fault = fault;
    let mut left = None;
    for _ in 0..ROUND_LIMIT {
        if !search.take_out(fault) || search.found.len() >= PROBLEM_LIMIT {
            break;
        }
        match T::deserialize(At(&search.tree)) {
            Ok(value) => {
                left = Some(value);
                break;
            }
            Err(next) => fault = next,
        }
    }
    search.found.sort();
    problems.append(search.found);
    left.map(|value| Left {
        value,
        holes: search.holes,
    })
}

struct Search<'a> {
    /// For the positions and words.
    original: &'a Node,
    /// What is left to find problems in.
    tree: Node,
    /// What was taken out, or is not worth a complaint.
    gone: HashSet<Vec<Step>>,
    /// Where a guess was put in. One that did not help is not put in again.
    guessed: HashSet<Vec<Step>>,
    /// What of that may be missed.
    holes: Holes,
    found: Problems,
}

impl Search<'_> {
    /// Reports a fault, unless it only follows from an earlier one, and makes sure that it does not come again. False when that is impossible.
    fn take_out(&mut self, fault: Fault) -> bool {
        let (steps, on_key, kind) = fault.into_parts();
        if let Some(guess) = self.guess_above(&steps) {
            return self.guess_again(&guess, &kind);
        }
        match kind {
            FaultKind::Missing(name) => self.missing(steps, name),
            FaultKind::UnknownKey { ref key, known } => {
                if let Some(near) = suggest::nearest(key, known) {
                    let mut meant = steps.clone();
                    meant.pop();
                    meant.push(Step::Key(near.to_owned()));
                    self.holes.0.push(meant.clone());
                    self.gone.insert(meant);
                }
                self.report(&steps, true, kind);
                // Nobody misses a key that nobody knows.
                self.prune(steps)
            }
            _ => {
                let follows = self
                    .gone
                    .iter()
                    .any(|gone| gone.len() > steps.len() && gone.starts_with(&steps));
                if !follows {
                    self.report(&steps, on_key, kind);
                }
                self.remove(steps)
            }
        }
    }

    fn missing(&mut self, parent: Vec<Step>, name: &'static str) -> bool {
        let mut child = parent.clone();
        child.push(Step::Key(name.to_owned()));
        self.holes.0.push(child.clone());
        // In what only stands in for something nothing is missed.
        let stands_in = self.gone.iter().any(|gone| parent.starts_with(gone));
        if self.gone.insert(child.clone()) && !stands_in {
            self.report(&parent, false, FaultKind::Missing(name));
        }
        if self.guessed.insert(child) && insert_guess(&mut self.tree, &parent, name) {
            return true;
        }
        self.remove(parent)
    }

    /// The nearest guess on the way to `steps`.
    fn guess_above(&self, steps: &[Step]) -> Option<Vec<Step>> {
        (0..=steps.len())
            .map(|length| &steps[..length])
            .find(|prefix| {
                matches!(
                    self.tree.find(prefix).map(|node| &node.kind),
                    Some(Kind::Guess(_))
                )
            })
            .map(<[Step]>::to_vec)
    }

    /// A guess did not suit the type: another one, or, when there is none, the mapping it is in goes. Nobody hears of it.
    fn guess_again(&mut self, steps: &[Step], kind: &FaultKind) -> bool {
        let Some(node) = self.tree.find_mut(steps) else {
            return false;
        };
        if let FaultKind::Missing(name) = kind {
            node.kind = Kind::Mapping(Vec::new());
            let mut child = steps.to_vec();
            child.push(Step::Key((*name).to_owned()));
            self.gone.insert(child);
            return insert_guess(&mut self.tree, steps, name);
        }
        if let Kind::Guess(number) = &mut node.kind
            && *number + 1 < GUESSES.len()
        {
            *number += 1;
            return true;
        }
        match steps.split_last() {
            Some((_, parent)) => self.remove(parent.to_vec()),
            None => false,
        }
    }

    fn remove(&mut self, steps: Vec<Step>) -> bool {
        self.holes.0.push(steps.clone());
        self.prune(steps)
    }

    fn prune(&mut self, steps: Vec<Step>) -> bool {
        let removed = self.tree.prune(&steps);
        self.gone.insert(steps);
        removed
    }

    fn report(&mut self, steps: &[Step], on_key: bool, kind: FaultKind) {
        let path = Path::from_steps(steps.to_vec());
        let position = match self.original.locate_key(&path) {
            Some(position) if on_key => position,
            _ => self.original.locate(&path),
        };
        let scalar = match self.original.find(steps).map(|node| &node.kind) {
            _ if on_key => None,
            Some(Kind::Scalar { text, .. }) => Some(text.as_str()),
            _ => None,
        };
        let about = match kind {
            FaultKind::Missing(name) => path.key(name),
            _ => path.clone(),
        };
        let (what, cure) = kind.words(&path.to_string(), scalar);
        self.found.placed(&about, position, what, cure);
    }
}

fn insert_guess(tree: &mut Node, parent: &[Step], name: &str) -> bool {
    let Some(node) = tree.find_mut(parent) else {
        return false;
    };
    let position = node.position;
    let Kind::Mapping(entries) = &mut node.kind else {
        return false;
    };
    // Twice the same would loop.
    if entries.iter().any(|entry| entry.key == name) {
        return false;
    }
    entries.push(Entry {
        key: name.to_owned(),
        position,
        value: Node {
            position,
            kind: Kind::Guess(0),
        },
    });
    true
}
