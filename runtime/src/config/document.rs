//! A configuration file, parsed: every key and value with its line and column.
//!
//! The YAML events come from the parser underneath serde-saphyr; the tree is built here, because serde would hide the keys' positions
//! and stop at the first duplicate. What YAML can do and a configuration does not need is refused with a reason: tags,
//! merge keys, keys that are not text, several documents. Aliases work, within the bound on the number of values.

use std::collections::HashMap;

use serde::de::DeserializeOwned;
use serde_saphyr::granit_parser::{self, Event, Marker, Options, Parser, ScalarStyle, Span};

use super::decode;
use super::node::{Entry, Kind, Node};
use super::problem::{Path, Position, Problems, Step};

/// How many levels of lists and mappings a file may have. The deepest real one has about eight.
const DEPTH_LIMIT: usize = 48;
/// How many values a file may hold once aliases are resolved: room for tens of thousands of routes, and the end of alias bombs.
const VALUE_LIMIT: usize = 500_000;
/// How many problems are collected before the rest is left for the next run.
pub(super) const PROBLEM_LIMIT: usize = 100;

/// A YAML file in memory, with the position of all that is in it.
#[derive(Debug, Clone)]
pub struct Document {
    name: String,
    root: Node,
}

impl Document {
    /// Reads the text of the file `name`. Everything that is wrong with the YAML itself comes back with its place.
    pub fn parse(name: &str, text: &str) -> Result<Self, Problems> {
        let mut tree = Tree::new(name);
        tree.read(text);
        let Tree {
            root, mut problems, ..
        } = tree;
        if !problems.is_empty() {
            problems.sort();
            return Err(problems);
        }
        match root {
            Some(root) if !root.is_absent() => Ok(Self {
                name: name.to_owned(),
                root,
            }),
            _ => {
                problems.placed(
                    &Path::root(),
                    Position { line: 1, column: 1 },
                    "the file is empty",
                    "write at least the keys that have no default",
                );
                Err(problems)
            }
        }
    }

    /// The name it was parsed under, as it stands in front of problems.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Fills a `T`, or adds everything that is wrong with the shape to `problems`.
    ///
    /// Unquoted scalars mean what YAML 1.2 says: `true` and `false` are booleans, `yes` and `on` are text, `0x10` is a number.
    /// A field of text takes an unquoted number or boolean as it is written (`version: 1.10` is "1.10"); a quoted scalar
    /// is text and nothing else. A key without a value is refused, because it could mean "none" as well as "the defaults":
    /// `null` says the first to an optional field, `{}` the second.
    pub fn decode<T: DeserializeOwned>(&self, problems: &mut Problems) -> Option<T> {
        let before = problems.len();
        let left = decode::decode(self, &self.root, problems)?;
        (problems.len() == before).then_some(left.value)
    }

    /// Fills a `T` and hands it to `check`, which adds what is wrong with the meaning. When the shape is wrong somewhere,
    /// `check` gets what is left, so that one run finds both kinds; what it says then counts for nothing where it could
    /// only follow from what was taken out. Something comes back when nothing is wrong at all.
    pub fn check<T: DeserializeOwned, R>(
        &self,
        problems: &mut Problems,
        check: impl FnOnce(T, &mut Problems) -> Option<R>,
    ) -> Option<R> {
        let before = problems.len();
        let left = decode::decode(self, &self.root, problems)?;
        let mut meant = Problems::new();
        let checked = check(left.value, &mut meant);
        meant.retain(|problem| !left.holes.may_cause(problem));
        problems.append(meant);
        checked.filter(|_| problems.len() == before)
    }

    pub(super) fn root(&self) -> &Node {
        &self.root
    }

    /// Whether there is a value at `path`.
    pub(super) fn has(&self, path: &Path) -> bool {
        self.root.find(path.steps()).is_some()
    }

    /// Where the value at `path` stands: a scalar itself, a list or a mapping at its key. The nearest ancestor when it is not there.
    pub fn position(&self, path: &Path) -> Position {
        self.root.locate(path)
    }
}

/// The tree while it grows.
struct Tree {
    problems: Problems,
    /// Lists and mappings that are still open, outermost first.
    open: Vec<Open>,
    root: Option<Node>,
    /// Values that an alias may repeat. `None` while the value is still open: it would contain itself.
    anchors: HashMap<usize, Option<Node>>,
    values: usize,
}

/// A list or mapping that is still open.
struct Open {
    position: Position,
    anchor: usize,
    content: Content,
}

enum Content {
    Sequence(Vec<(usize, Node)>),
    Mapping {
        entries: Vec<Entry>,
        seen: HashMap<String, Position>,
        /// The key whose value comes next.
        key: Option<(Key, Position)>,
    },
}

enum Key {
    /// The value goes in under this key.
    Wanted(String),
    /// The key is refused and reported; its value is read and dropped.
    Refused,
}

/// Reading cannot go on; the reason is among the problems.
struct Stop;

impl Tree {
    fn new(name: &str) -> Self {
        Self {
            problems: Problems::of(name),
            open: Vec::new(),
            root: None,
            anchors: HashMap::new(),
            values: 0,
        }
    }

    fn read(&mut self, text: &str) {
        let mut options = Options::default();
        options.set_emit_comments(false);
        // A little more than our own limits, so that ours speak first.
        options.flow_nesting_limit = DEPTH_LIMIT + 8;
        options.block_nesting_limit = DEPTH_LIMIT + 8;
        let mut documents = 0;
        for event in Parser::new_from_str_with_options(text, options) {
            let step = match event {
                Ok((Event::DocumentStart(..), span)) => {
                    documents += 1;
                    if documents > 1 {
                        Err(self.stop(
                            start(&span),
                            "a second document begins here",
                            "write everything in one document, without a line `---` between",
                        ))
                    } else {
                        Ok(())
                    }
                }
                Ok((event, span)) => self.event(event, &span),
                Err(error) => Err(self.syntax(&error)),
            };
            if step.is_err() {
                return;
            }
        }
    }

    fn event(&mut self, event: Event<'_>, span: &Span) -> Result<(), Stop> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_tag(tag.is_some(), span)?;
                let plain = style == ScalarStyle::Plain;
                // The parser hands out `~` for what is not there at all; the difference matters to us.
                let absent = plain && span.is_empty();
                let node = Node {
                    position: start(span),
                    kind: Kind::Scalar {
                        text: if absent {
                            String::new()
                        } else {
                            text.into_owned()
                        },
                        plain,
                    },
                };
                self.scalar(node, anchor)
            }
            Event::SequenceStart(_, anchor, tag) => {
                self.refuse_tag(tag.is_some(), span)?;
                self.begin(span, anchor, Content::Sequence(Vec::new()))
            }
            Event::MappingStart(_, anchor, tag) => {
                self.refuse_tag(tag.is_some(), span)?;
                let content = Content::Mapping {
                    entries: Vec::new(),
                    seen: HashMap::new(),
                    key: None,
                };
                self.begin(span, anchor, content)
            }
            Event::SequenceEnd | Event::MappingEnd => self.end(),
            Event::Alias(anchor) => self.alias(anchor, span),
            _ => Ok(()),
        }
    }

    /// A scalar is the next key, or a value.
    fn scalar(&mut self, node: Node, anchor: usize) -> Result<(), Stop> {
        let awaits_key = matches!(
            self.open.last(),
            Some(Open {
                content: Content::Mapping { key: None, .. },
                ..
            })
        );
        self.count(1, node.position)?;
        if anchor > 0 {
            self.anchors.insert(anchor, Some(node.clone()));
        }
        if awaits_key {
            let Kind::Scalar { text, plain } = node.kind else {
                return Ok(());
            };
            self.key(text, plain, node.position)
        } else {
            self.value(node)
        }
    }

    fn key(&mut self, text: String, plain: bool, position: Position) -> Result<(), Stop> {
        let path = self.path();
        let Some(Open {
            content: Content::Mapping { seen, key, .. },
            ..
        }) = self.open.last_mut()
        else {
            return Ok(());
        };
        if plain && text == "<<" {
            *key = Some((Key::Refused, position));
            return self.report(
                &path,
                position,
                "merge keys (`<<`) are not supported",
                "write the keys out, or repeat a whole value with `&name` and `*name`",
            );
        }
        if plain && text.is_empty() {
            *key = Some((Key::Refused, position));
            return self.report(
                &path,
                position,
                "a value without a key",
                "write `key: value`",
            );
        }
        if let Some(first) = seen.get(&text) {
            let what = format!(
                "key `{text}` is given twice; the first is on line {}",
                first.line
            );
            *key = Some((Key::Refused, position));
            return self.report(&path.key(text), position, what, "keep one of the two");
        }
        seen.insert(text.clone(), position);
        *key = Some((Key::Wanted(text), position));
        Ok(())
    }

    /// Puts a complete value where it belongs.
    fn value(&mut self, node: Node) -> Result<(), Stop> {
        let Some(parent) = self.open.last_mut() else {
            self.root = Some(node);
            return Ok(());
        };
        match &mut parent.content {
            Content::Sequence(items) => {
                let index = items.len();
                items.push((index, node));
            }
            Content::Mapping { entries, key, .. } => match key.take() {
                Some((Key::Wanted(key), position)) => entries.push(Entry {
                    key,
                    position,
                    value: node,
                }),
                Some((Key::Refused, _)) => {}
                // Keys that are scalars went through `key`; this one is a list or a mapping.
                None => {
                    *key = Some((Key::Refused, node.position));
                    let path = self.path();
                    return self.report(
                        &path,
                        node.position,
                        "a key is a list or a mapping",
                        "write a key as text; a value that begins with `{`, `[` or `*` needs quotes to be text",
                    );
                }
            },
        }
        Ok(())
    }

    fn begin(&mut self, span: &Span, anchor: usize, content: Content) -> Result<(), Stop> {
        let position = start(span);
        self.count(1, position)?;
        if self.open.len() >= DEPTH_LIMIT {
            return Err(self.too_deep(position));
        }
        if anchor > 0 {
            self.anchors.insert(anchor, None);
        }
        self.open.push(Open {
            position,
            anchor,
            content,
        });
        Ok(())
    }

    fn end(&mut self) -> Result<(), Stop> {
        let Some(open) = self.open.pop() else {
            return Ok(());
        };
        let node = Node {
            position: open.position,
            kind: match open.content {
                Content::Sequence(items) => Kind::Sequence(items),
                Content::Mapping { entries, .. } => Kind::Mapping(entries),
            },
        };
        if open.anchor > 0 {
            // A copy for the aliases: it counts like what is written.
            self.count(node.count(), open.position)?;
            self.anchors.insert(open.anchor, Some(node.clone()));
        }
        self.value(node)
    }

    fn alias(&mut self, anchor: usize, span: &Span) -> Result<(), Stop> {
        let position = start(span);
        let Some(Some(node)) = self.anchors.get(&anchor) else {
            return Err(self.stop(
                position,
                "a value contains itself",
                "write the value out instead of the alias",
            ));
        };
        // Checked before anything is copied.
        let (count, depth) = (node.count(), node.depth());
        self.count(count, position)?;
        if self.open.len() + depth > DEPTH_LIMIT {
            return Err(self.too_deep(position));
        }
        let Some(Some(node)) = self.anchors.get(&anchor) else {
            return Ok(());
        };
        let node = Node {
            position,
            kind: node.kind.clone(),
        };
        if node.is_collection() {
            self.value(node)
        } else {
            self.scalar(node, 0)
        }
    }

    fn count(&mut self, more: usize, position: Position) -> Result<(), Stop> {
        self.values += more;
        if self.values > VALUE_LIMIT {
            return Err(self.stop(
                position,
                format!("more than {VALUE_LIMIT} values, aliases included"),
                "make the file smaller; an alias counts as all that it stands for",
            ));
        }
        Ok(())
    }

    /// Keeps on reading, unless there are too many problems already.
    fn report(
        &mut self,
        path: &Path,
        position: Position,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) -> Result<(), Stop> {
        self.problems.placed(path, position, what, cure);
        if self.problems.len() >= PROBLEM_LIMIT {
            return Err(Stop);
        }
        Ok(())
    }

    fn stop(
        &mut self,
        position: Position,
        what: impl Into<String>,
        cure: impl Into<String>,
    ) -> Stop {
        let path = self.path();
        self.problems.placed(&path, position, what, cure);
        Stop
    }

    fn too_deep(&mut self, position: Position) -> Stop {
        self.stop(
            position,
            format!("more than {DEPTH_LIMIT} levels of lists and mappings"),
            "nothing in the configuration is that deep: look for brackets that are not closed",
        )
    }

    fn refuse_tag(&mut self, tagged: bool, span: &Span) -> Result<(), Stop> {
        if !tagged {
            return Ok(());
        }
        let position = span
            .tag_start()
            .map_or_else(|| start(span), |mark| at(&mark));
        let path = self.path();
        self.report(
            &path,
            position,
            "tags (`!name`) are not supported",
            "remove the tag; write the value in quotes if it is text that begins with `!`",
        )
    }

    fn syntax(&mut self, error: &granit_parser::ScanError) -> Stop {
        let position = at(error.marker());
        let what = error.info();
        if what.contains("nesting") || what.contains("recursion") {
            return self.too_deep(position);
        }
        let cure = way_out(&what);
        self.stop(position, format!("not valid YAML: {what}"), cure)
    }

    /// Where reading is now.
    fn path(&self) -> Path {
        let steps = self.open.iter().filter_map(|open| match &open.content {
            Content::Sequence(items) => Some(Step::Index(items.len())),
            Content::Mapping {
                key: Some((Key::Wanted(key), _)),
                ..
            } => Some(Step::Key(key.clone())),
            Content::Mapping { .. } => None,
        });
        Path::from_steps(steps.collect())
    }
}

/// What to do about an error of the parser, by what is behind it most of the time.
fn way_out(what: &str) -> &'static str {
    let about = |word| what.contains(word);
    if about("tab") {
        "indent with spaces"
    } else if about("anchor") {
        "define it first with `&name`; text that begins with `*` needs quotes"
    } else if about("quoted") {
        "close the quotes; a quote inside needs to be doubled in single quotes, or `\\\"` in double quotes"
    } else if about("bracket") || about("flow") {
        "each `[` needs its `]`, and each `{` its `}`"
    } else if about("mapping values") || about("block sequence") {
        "indent the keys of a mapping, and the items of a list, all the same; text with `: ` in it needs quotes"
    } else {
        "look at the indentation, and quote text with special characters"
    }
}

fn start(span: &Span) -> Position {
    at(&span.start)
}

fn at(mark: &Marker) -> Position {
    Position {
        line: mark.line(),
        column: mark.col() + 1,
    }
}
