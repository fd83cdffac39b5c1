//! The description of what is added to a pod: `template.yaml`, with placeholders.
//!
//! What it does not do: know pods.

use rdmesh_config::read_documents;
use serde_json::{Map, Value};

const BUILT_IN: &str = include_str!("../../charts/rdmesh/files/template.yaml");
const PARTS: [&str; 3] = ["init", "proxy", "volume"];

#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    #[error(transparent)]
    Yaml(#[from] rdmesh_config::Faults),
    #[error("{origin}: {problem}; start from the template.yaml of this version")]
    Content { origin: String, problem: String },
}

/// A description that has all its parts, each with a name.
#[derive(Debug, Clone)]
pub struct Template {
    init: Value,
    proxy: Value,
    volume: Value,
}

/// What is added to one pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Parts {
    pub init: Value,
    pub proxy: Value,
    pub volume: Value,
}

impl Template {
    /// The description that comes with this version.
    ///
    /// # Errors
    /// Never, as a test says.
    pub fn built_in() -> Result<Self, TemplateError> {
        Self::from_yaml(BUILT_IN, "the built-in template")
    }

    /// # Errors
    /// When the text is no YAML, or a part is missing, has no name, or is unknown.
    pub fn from_yaml(text: &str, origin: &str) -> Result<Self, TemplateError> {
        let wrong = |problem: String| TemplateError::Content { origin: origin.to_owned(), problem };
        let mut documents: Vec<Map<String, Value>> = read_documents(text, origin)?;
        let (Some(mut parts), true) = (documents.pop(), documents.is_empty()) else {
            return Err(wrong("it must be one YAML document".into()));
        };
        if let Some(key) = parts.keys().find(|key| !PARTS.contains(&key.as_str())) {
            return Err(wrong(format!("the key {key} is unknown")));
        }
        let mut part = |key: &str| {
            let part = parts.remove(key).unwrap_or_default();
            if name(&part).is_empty() {
                return Err(wrong(format!("{key} is missing or has no name")));
            }
            Ok(part)
        };
        let [init, proxy, volume] = PARTS.map(&mut part);
        Ok(Self { init: init?, proxy: proxy?, volume: volume? })
    }

    /// The parts with these values in the place of placeholders.
    ///
    /// # Errors
    /// With the name of a placeholder that is not known.
    pub fn fill(&self, values: &Map<String, Value>) -> Result<Parts, String> {
        let fill = |part: &Value| {
            let mut part = part.clone();
            fill(&mut part, values).map(|()| part)
        };
        Ok(Parts {
            init: fill(&self.init)?,
            proxy: fill(&self.proxy)?,
            volume: fill(&self.volume)?,
        })
    }
}

/// The name of a container or volume; empty where there is none.
#[must_use]
pub fn name(part: &Value) -> &str {
    part.get("name").and_then(Value::as_str).unwrap_or_default()
}

fn fill(part: &mut Value, values: &Map<String, Value>) -> Result<(), String> {
    match part {
        Value::String(text) => {
            let placeholder = text.strip_prefix("${").and_then(|rest| rest.strip_suffix('}'));
            if let Some(name) = placeholder {
                let value = values.get(name).cloned();
                *part = value.ok_or_else(|| format!("the template's ${{{name}}} is unknown"))?;
            }
            Ok(())
        }
        Value::Array(list) => list.iter_mut().try_for_each(|part| fill(part, values)),
        Value::Object(map) => map.values_mut().try_for_each(|part| fill(part, values)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::annotations::Overrides;
    use crate::testing::settings;

    #[test]
    fn the_built_in_template_uses_every_value() {
        let values = settings("{}").values(&Overrides::default()).unwrap();
        Template::built_in().unwrap().fill(&values).unwrap();
        for name in values.keys() {
            assert!(BUILT_IN.contains(&format!("${{{name}}}")), "{name}");
        }
    }

    #[test]
    fn faults_are_told() {
        for (text, told) in [
            ("init: {name: a}\nproxy: {name: b}\n", "volume is missing"),
            ("init: {name: a}\nproxy: {}\nvolume: {name: c}\n", "proxy is missing or has no name"),
            ("other: {}\n", "other is unknown"),
            ("a: 1\n---\nb: 2\n", "one YAML document"),
            ("[", "not valid YAML"),
        ] {
            let error = Template::from_yaml(text, "t").unwrap_err().to_string();
            assert!(error.contains(told), "{error}");
        }
        let text = "init: {name: a, x: '${y}'}\nproxy: {name: b}\nvolume: {name: c}\n";
        let error = Template::from_yaml(text, "t").unwrap().fill(&Map::new()).unwrap_err();
        assert!(error.contains("${y}"), "{error}");
    }
}
