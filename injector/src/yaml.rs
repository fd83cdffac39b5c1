//! Writes YAML that every reader understands in the same way: what could be taken for anything but a
//! string is quoted, also for readers of YAML 1.1, for which `yes` is a boolean.
//!
//! What it does not do: read it; the config crate does.

use serde_json::Value;

/// One document, without a `---`.
#[must_use]
pub fn to_yaml(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut text),
        Value::Array(list) if !list.is_empty() => block(value, 0, &mut text),
        _ => {
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
    text
}

/// A map or list that is not empty; the cursor is where its first line begins.
fn block(value: &Value, indent: usize, text: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) => {
            for (at, (key, value)) in map.iter().enumerate() {
                if at > 0 {
                    text.push_str(&pad);
                }
                text.push_str(&plain_or_quoted(key));
                text.push(':');
                after_key(value, indent, text);
            }
        }
        Value::Array(list) => {
            for (at, value) in list.iter().enumerate() {
                if at > 0 {
                    text.push_str(&pad);
                }
                text.push_str("- ");
                if is_block(value) {
                    block(value, indent + 2, text);
                } else {
                    text.push_str(&scalar(value));
                    text.push('\n');
                }
            }
        }
        _ => {}
    }
}

fn after_key(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::String(string) if is_literal(string) => literal(string, indent + 2, text),
        _ if is_block(value) => {
            text.push('\n');
            let inner = if value.is_array() { indent } else { indent + 2 };
            text.push_str(&" ".repeat(inner));
            block(value, inner, text);
        }
        _ => {
            text.push(' ');
            text.push_str(&scalar(value));
            text.push('\n');
        }
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(list) => !list.is_empty(),
        _ => false,
    }
}

fn scalar(value: &Value) -> String {
    match value {
        Value::String(text) => plain_or_quoted(text),
        // Numbers, booleans, null, {} and [] are the same in JSON.
        other => other.to_string(),
    }
}

/// A script or a file in a manifest, which a person wants to read.
fn is_literal(text: &str) -> bool {
    text.contains('\n')
        && !text.starts_with([' ', '\n', '\t'])
        && text.chars().all(|c| c == '\n' || c == '\t' || !(c.is_control() || c == '\u{feff}'))
        && !text.ends_with("\n\n")
        && text.lines().all(|line| !line.ends_with([' ', '\t']))
}

fn literal(string: &str, indent: usize, text: &mut String) {
    text.push_str(if string.ends_with('\n') { " |\n" } else { " |-\n" });
    for line in string.lines() {
        if !line.is_empty() {
            text.push_str(&" ".repeat(indent));
            text.push_str(line);
        }
        text.push('\n');
    }
}

fn plain_or_quoted(text: &str) -> String {
    if is_plain(text) {
        return text.to_owned();
    }
    // A JSON string is a double-quoted one of YAML, but for these, which YAML takes for line breaks or
    // does not take at all.
    let mut quoted = String::new();
    for c in Value::String(text.to_owned()).to_string().chars() {
        match c {
            '\u{7f}'..='\u{9f}' | '\u{2028}' | '\u{2029}' | '\u{feff}' => {
                quoted.push_str(&format!("\\u{:04x}", u32::from(c)));
            }
            _ => quoted.push(c),
        }
    }
    quoted
}

/// Surely a string to every reader.
fn is_plain(text: &str) -> bool {
    const TAKEN: [&str; 9] = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let first = text.chars().next();
    let inner = |c: char| c.is_ascii_alphanumeric() || "-_./:$()@ ,=+*%".contains(c);
    // Letters only: whatever begins like a number, date or sign is quoted.
    first.is_some_and(|c| c.is_ascii_alphabetic() || c == '/' || c == '$' || c == '_')
        && text.chars().all(inner)
        && !text.contains(": ")
        && !text.ends_with([':', ' '])
        && !TAKEN.contains(&text.to_ascii_lowercase().as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use rdmesh_config::read_documents;
    use serde_json::json;

    fn round(value: &Value) -> Value {
        let text = to_yaml(value);
        read_documents(&text, &text).unwrap().pop().unwrap_or(Value::Null)
    }

    #[test]
    fn what_is_written_is_read_again() {
        let texts = [
            "",
            " ",
            "a",
            "a: b",
            "a:",
            "- a",
            "#a",
            "a #b",
            "yes",
            "No",
            "null",
            "~",
            "1",
            "1e3",
            "0x1",
            "010",
            "12:30",
            "2001-01-01",
            "a\n",
            "a\nb",
            "a\n\n",
            " a\nb",
            "a\r\nb",
            "a \nb",
            "\n",
            "ä\u{85}\u{feff}",
            "{a}",
            "[a]",
            "*a",
            "&a",
            "!a",
            "|",
            ">",
            "%a",
            "@a",
            "`a",
            "'a'",
            "\"a\"",
            "\u{7}",
            "a\n  b\n\nc\n",
            "$(POD_UID)",
            "-",
            "---",
            ".",
            "=",
            "<<",
            "\ta",
            "a\tb",
            "a\n\tb\n",
        ];
        for text in texts {
            for value in [
                json!({"key": text}),
                json!([text]),
                json!({text: 1}),
                json!([[text], {"a": [text]}]),
            ] {
                assert_eq!(round(&value), value, "{}", to_yaml(&value));
            }
        }
        let value = json!({
            "a": {"b": [1, 2.5, -3, null, true, {}, [], {"c": {}}], "d": []}, "e": [[1, [2]], {"f": 1, "g": [{"h": 2}]}],
            "big": 18_446_744_073_709_551_615_u64,
        });
        assert_eq!(round(&value), value, "{}", to_yaml(&value));
    }

    #[test]
    fn what_old_readers_take_for_a_boolean_is_quoted() {
        for text in
            ["yes", "No", "on", "OFF", "y", "N", "true", "~", "1", ".5", "0o7", "1_000", "1:30"]
        {
            assert!(to_yaml(&json!({"k": text})).contains('"'), "{text}");
        }
    }

    #[test]
    fn it_reads_well() {
        let value = json!({"spec": {"containers": [{"name": "web", "args": ["a", "b"]}]}, "script": "a\nb\n"});
        let text = "script: |\n  a\n  b\nspec:\n  containers:\n  - args:\n    - a\n    - b\n    name: web\n";
        assert_eq!(to_yaml(&value), text);
    }
}
