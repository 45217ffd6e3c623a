//! All routes of a listener, made for finding.
//!
//! One hash table from host to a tree of path segments. A request's host is probed as it is, then without its first
//! label, and so on, then the routes for any host; in each tree the path is followed segment by segment, the more
//! specific branch first, so the first route whose method and headers fit is the one that wins. The cost grows with the
//! number of labels and segments in the request that any route has, never with the number of routes; only routes that differ in
//! nothing but methods and headers are tried one by one.

use std::collections::HashMap;

use foldhash::fast::RandomState;
use http::{HeaderMap, Method};
use weft_runtime::config::{Path, Problems};

use super::check::check_overlaps;
use super::host::{Host, lowered};
use super::matching::{Checked, Conditions, Match};
use crate::head::Head;
use crate::path::Segment;

/// Routes by host, path, method and headers; `T` is what a route leads to.
#[derive(Debug)]
pub struct Table<T> {
    routes: Vec<Route<T>>,
    exact: HashMap<Box<str>, Tree, RandomState>,
    /// `*.` hosts by the name below which they match.
    below: HashMap<Box<str>, Tree, RandomState>,
    any: Tree,
}

#[derive(Debug)]
struct Route<T> {
    conditions: Conditions,
    target: T,
}

impl<T> Table<T> {
    /// Builds the table from the place of each `match:` in the file, the match, and where it leads, in the order of
    /// the file. Reports every match that is wrong or could never be the one that is found; `None` when any is.
    pub fn build(routes: Vec<(&Path, &Match, T)>, problems: &mut Problems) -> Option<Self> {
        let before = problems.len();
        let mut checked: Vec<(&Path, Checked, T)> = Vec::with_capacity(routes.len());
        for (place, matching, target) in routes {
            if let Some(one) = matching.check(place, problems) {
                checked.push((place, one, target));
            }
        }
        check_overlaps(&checked, problems);
        if problems.len() > before {
            return None;
        }
        let mut table = Self {
            routes: Vec::with_capacity(checked.len()),
            exact: HashMap::default(),
            below: HashMap::default(),
            any: Tree::default(),
        };
        for (_, one, target) in checked {
            let index = table.routes.len();
            table.routes.push(Route {
                conditions: one.conditions,
                target,
            });
            let tree = match one.host {
                Host::Any => &mut table.any,
                Host::Below(name) => table.below.entry(name).or_default(),
                Host::Exact(name) => table.exact.entry(name).or_default(),
            };
            tree.insert(one.path.segments(), one.path.is_open(), index);
        }
        table.sort();
        Some(table)
    }

    /// The route that `head` takes.
    pub fn find(&self, head: &Head) -> Option<&T> {
        self.find_parts(head.host(), head.path.path(), &head.method, &head.headers)
    }

    /// The same from its parts: the host without a port, the normal path without a query.
    pub fn find_parts(
        &self,
        host: &str,
        path: &str,
        method: &Method,
        headers: &HeaderMap,
    ) -> Option<&T> {
        let fits = |&index: &usize| self.routes[index].conditions.fit(method, headers);
        // `*` of a server-wide OPTIONS has no segments and no exact path.
        let in_tree = |tree: &Tree| match path.strip_prefix('/') {
            Some(rest) => tree.find(Some(rest), &fits),
            None => tree.open.iter().copied().find(fits),
        };
        let named = |host: Option<&str>| {
            let host = host?;
            if let Some(found) = self.exact.get(host).and_then(in_tree) {
                return Some(found);
            }
            if self.below.is_empty() {
                return None;
            }
            // From the longest name to the shortest.
            host.match_indices('.')
                // A dot at the front has no label before it that `*` could stand for.
                .filter(|&(dot, _)| dot > 0)
                .filter_map(|(dot, _)| self.below.get(&host[dot + 1..]))
                .find_map(in_tree)
        };
        let has_hosts = !(self.exact.is_empty() && self.below.is_empty());
        has_hosts
            .then(|| lowered(host, named))
            .flatten()
            .or_else(|| in_tree(&self.any))
            .map(|index| &self.routes[index].target)
    }

    /// What all routes lead to, in the order of the file.
    pub fn targets(&self) -> impl Iterator<Item = &T> {
        self.routes.iter().map(|route| &route.target)
    }

    /// Puts routes of the same host and path in the order in which they are to be tried.
    fn sort(&mut self) {
        let routes = &self.routes;
        let rank = |index: &usize| {
            let conditions = &routes[*index].conditions;
            (
                conditions.methods.is_empty(),
                std::cmp::Reverse(conditions.headers.len()),
                *index,
            )
        };
        let trees = self.exact.values_mut().chain(self.below.values_mut());
        for tree in trees.chain([&mut self.any]) {
            tree.sort(&rank);
        }
    }
}

/// A node of a tree of path segments, and all below it.
#[derive(Debug, Default)]
struct Tree {
    literals: HashMap<Box<str>, Tree, RandomState>,
    parameter: Option<Box<Tree>>,
    /// Routes whose path ends here.
    closed: Vec<usize>,
    /// Routes whose path ends here with `/*`.
    open: Vec<usize>,
}

impl Tree {
    fn insert(&mut self, segments: &[Segment], open: bool, route: usize) {
        let node = match segments {
            [] if open => return self.open.push(route),
            [] => return self.closed.push(route),
            [Segment::Literal(text), ..] => self.literals.entry(text.clone()).or_default(),
            [Segment::Parameter, ..] => self.parameter.get_or_insert_default().as_mut(),
        };
        node.insert(&segments[1..], open, route);
    }

    /// The first route that fits below this node, the most specific path first. `rest` is the path that is left, or
    /// `None` when the path ended at this node. As deep as the deepest route at most; each node is seen once at most.
    fn find(&self, rest: Option<&str>, fits: &impl Fn(&usize) -> bool) -> Option<usize> {
        let Some(rest) = rest else {
            return self.closed.iter().chain(&self.open).copied().find(fits);
        };
        if !self.literals.is_empty() || self.parameter.is_some() {
            let (segment, rest) = match rest.split_once('/') {
                Some((segment, rest)) => (segment, Some(rest)),
                None => (rest, None),
            };
            let literal = self.literals.get(segment);
            let parameter = self.parameter.as_deref().filter(|_| !segment.is_empty());
            for node in [literal, parameter].into_iter().flatten() {
                if let Some(found) = node.find(rest, fits) {
                    return Some(found);
                }
            }
        }
        self.open.iter().copied().find(fits)
    }

    fn sort<K: Ord>(&mut self, rank: &impl Fn(&usize) -> K) {
        self.closed.sort_by_key(rank);
        self.open.sort_by_key(rank);
        let nodes = self.literals.values_mut();
        for node in nodes.chain(self.parameter.as_deref_mut()) {
            node.sort(rank);
        }
    }
}
