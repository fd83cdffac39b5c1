//! The only place that knows which YAML library is used.
//!
//! What it does not do: judge what was read.

use serde::Serialize;
use serde::de::{DeserializeOwned, DeserializeSeed};

/// The text is not YAML, or not what the seed takes.
#[derive(Debug)]
pub(crate) struct Syntax {
    pub line: Option<usize>,
    pub message: String,
}

/// Reads one document.
pub(crate) fn read<'de, S: DeserializeSeed<'de>>(
    text: &'de str,
    seed: S,
) -> Result<S::Value, Syntax> {
    let mut documents = serde_yaml::Deserializer::from_str(text);
    // An empty text yields one empty document, so there always is a first one.
    let Some(first) = documents.next() else {
        return Err(Syntax { line: None, message: "the file is empty".into() });
    };
    let value = seed.deserialize(first).map_err(|error| Syntax {
        line: error.location().map(|location| location.line()),
        message: error.to_string(),
    })?;
    if documents.next().is_some() {
        let message =
            "something follows the first YAML document: keep only one, without `---` after it";
        return Err(Syntax { line: None, message: message.into() });
    }
    Ok(value)
}

/// Reads a text that may hold several documents.
pub(crate) fn read_all<T: DeserializeOwned>(text: &str) -> Result<Vec<T>, Syntax> {
    let syntax = |error: serde_yaml::Error| Syntax {
        line: error.location().map(|location| location.line()),
        message: error.to_string(),
    };
    serde_yaml::Deserializer::from_str(text)
        .map(|document| T::deserialize(document).map_err(syntax))
        .collect()
}

/// Line of the position that the library appends to the text of every error that passes through it.
///
/// The library tells the position of a value in no other way than by an error.
pub(crate) fn line_of(error: &impl std::fmt::Display) -> usize {
    let text = error.to_string();
    let Some((_, position)) = text.rsplit_once(" at line ") else { return 1 };
    position.split(' ').next().and_then(|line| line.parse().ok()).unwrap_or(1)
}

pub(crate) fn write<T: Serialize>(value: &T) -> String {
    // Writing to a string fails only for types that YAML cannot hold; the schema has none.
    serde_yaml::to_string(value).unwrap_or_else(|error| format!("# cannot be shown: {error}\n"))
}
