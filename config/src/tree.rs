//! A YAML document with the line of every key and value.
//!
//! What it does not do: know the schema. See `collect` for that.

use crate::yaml;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::cell::Cell;
use std::fmt;

#[derive(Debug)]
pub(crate) struct Tree {
    pub line: usize,
    /// At fault and reported: left out when the rest is read.
    pub removed: bool,
    pub kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Tree>),
    Map(Vec<Entry>),
}

#[derive(Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub line: usize,
    pub value: Tree,
}

/// One step of a key's path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Key(String),
    Index(usize),
}

impl From<&str> for Step {
    fn from(key: &str) -> Self {
        Self::Key(key.to_owned())
    }
}

impl From<usize> for Step {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

pub(crate) fn show_path(path: &[Step]) -> String {
    let mut text = String::new();
    for step in path {
        match step {
            Step::Key(key) if text.is_empty() => text.push_str(&shorten(key)),
            Step::Key(key) => text.push_str(&format!(".{}", shorten(key))),
            Step::Index(index) => text.push_str(&format!("[{index}]")),
        }
    }
    text
}

/// Keeps a value from flooding the terminal or driving it by control characters.
pub(crate) fn shorten(text: &str) -> String {
    const CHARS_MAX: usize = 80;
    let mut short: String = text.chars().take(CHARS_MAX).flat_map(char::escape_debug).collect();
    if text.chars().nth(CHARS_MAX).is_some() {
        short.push('…');
    }
    short
}

impl Tree {
    pub fn parse(text: &str) -> Result<Self, yaml::Syntax> {
        // Without aliases a document has fewer values than bytes, so this bounds only what aliases
        // blow up.
        let left = Cell::new(text.len() + 16);
        yaml::read(text, Seed { left: &left })
    }

    pub fn children_mut(&mut self) -> impl Iterator<Item = (Step, usize, &mut Tree)> {
        let (list, map) = match &mut self.kind {
            Kind::List(list) => (list.as_mut_slice(), [].as_mut_slice()),
            Kind::Map(map) => ([].as_mut_slice(), map.as_mut_slice()),
            _ => ([].as_mut_slice(), [].as_mut_slice()),
        };
        let list = list.iter_mut().enumerate().map(|(at, tree)| (Step::Index(at), tree.line, tree));
        let map = map
            .iter_mut()
            .map(|entry| (Step::Key(entry.key.clone()), entry.line, &mut entry.value));
        list.chain(map)
    }

    /// The value at `path`, and the line to show for it. Indices count all elements.
    pub fn find_mut(&mut self, path: &[Step]) -> Option<(usize, &mut Tree)> {
        let mut at = (self.line, self);
        for step in path {
            at = match (step, &mut at.1.kind) {
                (Step::Index(index), Kind::List(list)) => {
                    list.get_mut(*index).map(|t| (t.line, t))?
                }
                (Step::Key(key), Kind::Map(map)) => map
                    .iter_mut()
                    .find(|entry| &entry.key == key && !entry.value.removed)
                    .map(|entry| (entry.line, &mut entry.value))?,
                _ => return None,
            };
        }
        Some(at)
    }

    /// Turns a path in what was read (which lacks the removed elements) into one of this tree.
    pub fn original_path(&self, path: &[Step]) -> Vec<Step> {
        let mut original = path.to_vec();
        let mut at = Some(self);
        for step in &mut original {
            at = match (&mut *step, at.map(|tree| &tree.kind)) {
                (Step::Index(index), Some(Kind::List(list))) => {
                    let kept =
                        list.iter().enumerate().filter(|(_, tree)| !tree.removed).nth(*index);
                    kept.map(|(all, tree)| {
                        *index = all;
                        tree
                    })
                }
                (Step::Key(key), Some(Kind::Map(map))) => {
                    map.iter().find(|e| e.key == *key && !e.value.removed).map(|entry| &entry.value)
                }
                _ => None,
            };
        }
        original
    }
}

impl Kind {
    /// The value as written; none for sections and lists.
    pub fn show(&self) -> Option<String> {
        match self {
            Self::Null => Some("(nothing)".into()),
            Self::Bool(value) => Some(value.to_string()),
            Self::Int(value) => Some(value.to_string()),
            Self::Float(value) => Some(value.to_string()),
            Self::Text(text) => Some(format!("\"{}\"", shorten(text))),
            Self::List(_) | Self::Map(_) => None,
        }
    }
}

struct Seed<'a> {
    left: &'a Cell<usize>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Tree;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Tree, D::Error> {
        let Some(left) = self.left.get().checked_sub(1) else {
            return Err(de::Error::custom(
                "aliases (`*name`) make the document too large: write it out",
            ));
        };
        self.left.set(left);
        let scalar = Cell::new(None);
        match deserializer.deserialize_any(Probe { scalar: &scalar, left: self.left }) {
            Ok(tree) => Ok(tree),
            // The error was made by `Probe` to learn the scalar's line; any other goes up.
            Err(error) => match scalar.take() {
                Some(kind) => Ok(Tree { line: yaml::line_of(&error), removed: false, kind }),
                None => Err(error),
            },
        }
    }
}

struct Probe<'a> {
    scalar: &'a Cell<Option<Kind>>,
    left: &'a Cell<usize>,
}

impl Probe<'_> {
    fn scalar<E: de::Error>(&self, kind: Kind) -> Result<Tree, E> {
        self.scalar.set(Some(kind));
        Err(E::custom(""))
    }
}

impl<'de> Visitor<'de> for Probe<'_> {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a plain value, a list or a map (YAML tags are not used here)")
    }
    fn visit_bool<E: de::Error>(self, value: bool) -> Result<Tree, E> {
        self.scalar(Kind::Bool(value))
    }
    fn visit_i64<E: de::Error>(self, value: i64) -> Result<Tree, E> {
        self.scalar(Kind::Int(value.into()))
    }
    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Tree, E> {
        self.scalar(Kind::Int(value.into()))
    }
    fn visit_i128<E: de::Error>(self, value: i128) -> Result<Tree, E> {
        self.scalar(Kind::Int(value))
    }
    fn visit_u128<E: de::Error>(self, value: u128) -> Result<Tree, E> {
        self.scalar(Kind::Int(i128::try_from(value).unwrap_or(i128::MAX)))
    }
    fn visit_f64<E: de::Error>(self, value: f64) -> Result<Tree, E> {
        self.scalar(Kind::Float(value))
    }
    fn visit_str<E: de::Error>(self, value: &str) -> Result<Tree, E> {
        self.scalar(Kind::Text(value.to_owned()))
    }
    fn visit_unit<E: de::Error>(self) -> Result<Tree, E> {
        self.scalar(Kind::Null)
    }
    fn visit_none<E: de::Error>(self) -> Result<Tree, E> {
        self.scalar(Kind::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut list = Vec::new();
        while let Some(tree) = access.next_element_seed(Seed { left: self.left })? {
            list.push(tree);
        }
        let line = list.first().map_or(0, |tree: &Tree| tree.line);
        Ok(Tree { line, removed: false, kind: Kind::List(list) })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Tree, A::Error> {
        let mut map: Vec<Entry> = Vec::new();
        while let Some(key) = access.next_key_seed(Seed { left: self.left })? {
            let text = match &key.kind {
                Kind::Text(text) => text.clone(),
                Kind::List(_) | Kind::Map(_) => {
                    return Err(de::Error::custom(
                        "a key must be a plain word, not a list or a map",
                    ));
                }
                other => other.show().unwrap_or_default(),
            };
            let value = access.next_value_seed(Seed { left: self.left })?;
            map.push(Entry { key: text, line: key.line, value });
        }
        let line = map.first().map_or(0, |entry| entry.line);
        Ok(Tree { line, removed: false, kind: Kind::Map(map) })
    }
}
