//! Reads the schema's types from a [`Tree`], with errors that carry the path.
//!
//! What it does not do: go on after the first error; `collect` does.

use crate::tree::{Entry, Kind, Step, Tree};
use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeSeed, Deserializer, Expected, IntoDeserializer, MapAccess, SeqAccess,
    Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;
use std::fmt;

#[derive(Debug)]
pub(crate) struct TreeError {
    /// Innermost step first.
    path: Vec<Step>,
    pub what: What,
}

/// What the types of the schema can object to.
#[derive(Debug)]
pub(crate) enum What {
    UnknownKey {
        key: String,
        known: &'static [&'static str],
    },
    MissingKey(&'static str),
    NotOneOf(&'static [&'static str]),
    /// Wrong type or out of the type's range.
    Expected(String),
    Other(String),
}

impl TreeError {
    fn new(what: What) -> Self {
        Self { path: Vec::new(), what }
    }

    fn below(mut self, step: Step) -> Self {
        self.path.push(step);
        self
    }

    pub fn path(&self) -> Vec<Step> {
        self.path.iter().rev().cloned().collect()
    }
}

impl fmt::Display for TreeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.what)
    }
}

impl std::error::Error for TreeError {}

impl de::Error for TreeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(What::Other(message.to_string()))
    }
    fn invalid_type(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(What::Expected(expected.to_string()))
    }
    fn invalid_value(_: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self::new(What::Expected(expected.to_string()))
    }
    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::new(What::NotOneOf(expected))
    }
    fn unknown_field(field: &str, known: &'static [&'static str]) -> Self {
        Self::new(What::UnknownKey { key: field.to_owned(), known })
    }
    fn missing_field(field: &'static str) -> Self {
        Self::new(What::MissingKey(field))
    }
}

impl<'de> Deserializer<'de> for &'de Tree {
    type Error = TreeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match &self.kind {
            Kind::Null => visitor.visit_unit(),
            Kind::Bool(value) => visitor.visit_bool(*value),
            Kind::Int(value) => match (u64::try_from(*value), i64::try_from(*value)) {
                (Ok(value), _) => visitor.visit_u64(value),
                (_, Ok(value)) => visitor.visit_i64(value),
                _ => Err(TreeError::new(What::Expected("a smaller number".into()))),
            },
            Kind::Float(value) => visitor.visit_f64(*value),
            Kind::Text(text) => visitor.visit_borrowed_str(text),
            Kind::List(list) => visitor.visit_seq(List { rest: list, index: 0 }),
            Kind::Map(map) => visitor.visit_map(Map { rest: map, at: None }),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        let Kind::Text(text) = &self.kind else {
            return Err(TreeError::new(What::NotOneOf(variants)));
        };
        let name: StrDeserializer<'_, TreeError> = text.as_str().into_deserializer();
        visitor.visit_enum(name)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, TreeError> {
        // Else a list would do, its elements taken for the fields in their order.
        if matches!(self.kind, Kind::List(_)) {
            return Err(TreeError::new(What::Expected("struct ".into())));
        }
        self.deserialize_any(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, TreeError> {
        match self.kind {
            Kind::Null => visitor.visit_none(),
            _ => visitor.visit_some(self),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct newtype_struct seq tuple tuple_struct map identifier ignored_any
    }
}

struct List<'de> {
    rest: &'de [Tree],
    index: usize,
}

impl<'de> SeqAccess<'de> for List<'de> {
    type Error = TreeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, TreeError> {
        while let Some((tree, rest)) = self.rest.split_first() {
            let index = self.index;
            self.rest = rest;
            self.index += 1;
            if !tree.removed {
                let value =
                    seed.deserialize(tree).map_err(|error| error.below(Step::Index(index)))?;
                return Ok(Some(value));
            }
        }
        Ok(None)
    }
}

struct Map<'de> {
    rest: &'de [Entry],
    at: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Map<'de> {
    type Error = TreeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, TreeError> {
        while let Some((entry, rest)) = self.rest.split_first() {
            self.rest = rest;
            if !entry.value.removed {
                self.at = Some(entry);
                let key: StrDeserializer<'_, TreeError> = entry.key.as_str().into_deserializer();
                return seed.deserialize(key).map(Some);
            }
        }
        Ok(None)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, TreeError> {
        let Some(entry) = self.at.take() else {
            return Err(de::Error::custom("a value was read before its key"));
        };
        seed.deserialize(&entry.value).map_err(|error| error.below(Step::Key(entry.key.clone())))
    }
}
