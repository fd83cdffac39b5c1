//! YAML that is not ours, such as manifests: read with the limits of the rest, into any type.
//!
//! What it does not do: judge the contentor write any.

use crate::fault::Faults;
use crate::load::{too_costly, too_large};
use crate::yaml;
use serde::de::DeserializeOwned;

/// Largest text of documents that is read.
pub const DOCUMENTS_BYTES_MAX: usize = 32 << 20;

/// Reads all documents of `text`; `origin` is what the faults call it.
///
/// # Errors
/// When the text is too large or no YAML, or a document is no `T`.
pub fn read_documents<T: DeserializeOwned>(text: &str, origin: &str) -> Result<Vec<T>, Faults> {
    if text.len() > DOCUMENTS_BYTES_MAX {
        return Err(too_large(origin, DOCUMENTS_BYTES_MAX));
    }
    if let Some((line, problem)) = too_costly(text) {
        return Err(Faults::whole(origin, Some(line), problem));
    }
    yaml::read_all(text).map_err(|syntax| {
        let problem = format!("not valid YAML: {}", syntax.message);
        Faults::whole(origin, syntax.line, problem)
    })
}

/// The texts between the lines `---`, each with the number of its first line.
#[must_use]
pub fn split_documents(text: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    let (mut start, mut start_line, mut at) = (0, 1, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        if line.trim_end() == "---" || line.starts_with("--- ") {
            parts.push((start_line, text.get(start..at).unwrap_or_default()));
            // What follows on the line itself belongs to the document.
            let skipped = if line.trim_end() == "---" { line.len() } else { "--- ".len() };
            (start, start_line) = (at + skipped, number + 1 + usize::from(skipped == line.len()));
        }
        at += line.len();
    }
    parts.push((start_line, text.get(start..).unwrap_or_default()));
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn splits_as_yaml_does() {
        let text = "a: 1\n---\nb: |\n  ---\n  x\n--- \n--- # comment\nc: 3\n";
        let parts = split_documents(text);
        let texts: Vec<&str> = parts.iter().map(|(_, text)| *text).collect();
        assert_eq!(texts, ["a: 1\n", "b: |\n  ---\n  x\n", "", "# comment\nc: 3\n"]);
        assert_eq!(parts.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 3, 7, 7]);
    }

    #[test]
    fn limits_and_faults() {
        let deep = "[".repeat(100);
        read_documents::<BTreeMap<String, u8>>(&deep, "deep").unwrap_err();
        let faults = read_documents::<BTreeMap<String, u8>>("a: 1\n---\nb: x\n", "f").unwrap_err();
        assert!(faults.to_string().starts_with("f: line 3"), "{faults}");
        let all = read_documents::<BTreeMap<String, u8>>("a: 1\n---\nb: 2\n", "f").unwrap();
        assert_eq!(all.len(), 2);
    }
}
