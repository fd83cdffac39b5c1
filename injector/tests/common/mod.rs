//! What the tests share.
#![allow(dead_code)] // each test uses its part

pub mod chart;
pub mod client;
pub mod injector;

use rdmesh_config::Config;
use rdmesh_injector::settings::Settings;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub fn settings(yaml: &str) -> Settings {
    let mut config = Config::from_yaml(yaml, "test").unwrap();
    config.injector.image = "example.org/rdmesh:test".into();
    Settings::new(config).unwrap()
}

/// Reads `value` as a `T` and panics when that loses or changes anything: an unknown or misplaced field.
pub fn strict<T: DeserializeOwned + Serialize>(value: &Value, title: &str) -> T {
    let typed: T = serde_json::from_value(value.clone())
        .unwrap_or_else(|error| panic!("{title}: {error}\n{value:#}"));
    let again = serde_json::to_value(&typed).unwrap();
    lost(value, &again, title, "");
    typed
}

fn lost(value: &Value, again: &Value, title: &str, path: &str) {
    match (value, again) {
        (Value::Object(value), Value::Object(again)) => {
            for (key, value) in value.iter().filter(|(_, value)| !value.is_null()) {
                let path = format!("{path}.{key}");
                let again =
                    again.get(key).unwrap_or_else(|| panic!("{title}: unknown field {path}"));
                lost(value, again, title, &path);
            }
        }
        (Value::Array(value), Value::Array(again)) => {
            assert_eq!(value.len(), again.len(), "{title}: {path}");
            for (at, (value, again)) in value.iter().zip(again).enumerate() {
                lost(value, again, title, &format!("{path}[{at}]"));
            }
        }
        _ => assert_eq!(value, again, "{title}: {path}"),
    }
}
