//! What all pods get, and what one pod's annotations change of it.
//!
//! What it does not do: read files.

use crate::annotations::Overrides;
use rdmesh_config::{Config, LogFormat, Quantity, ROUTING_SYSCTLS};
use serde_json::{Map, Value, json};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(
        "injector.image is not set: give the image of the injected containers, such as \
         ghcr.io/rdmesh/rdmesh:0.1.0 (--image does so too)"
    )]
    NoImage,
}

/// The injector's settings; whoever has them knows that they can be used.
#[derive(Debug, Clone)]
pub struct Settings {
    config: Config,
}

impl Settings {
    /// # Errors
    /// When the image is not known.
    pub fn new(mut config: Config) -> Result<Self, SettingsError> {
        if config.injector.image.is_empty() {
            return Err(SettingsError::NoImage);
        }
        // kubelet asks the probes at the pod's address, and Prometheus its metrics.
        if config.sidecar.admin.ip() == IpAddr::V4(Ipv4Addr::LOCALHOST) {
            config.sidecar.admin.set_ip(Ipv4Addr::UNSPECIFIED.into());
        }
        Ok(Self { config })
    }

    #[must_use]
    pub fn excludes(&self, namespace: &str) -> bool {
        self.config.injector.exclude_namespaces.iter().any(|name| name == namespace)
    }

    #[must_use]
    pub fn native_sidecar(&self) -> bool {
        self.config.injector.native_sidecar
    }

    #[must_use]
    pub fn pod_sysctls(&self) -> &'static [&'static str] {
        if self.config.injector.pod_sysctls { &ROUTING_SYSCTLS } else { &[] }
    }

    /// The ports that the sidecar takes in the pod.
    #[must_use]
    pub fn proxy_ports(&self) -> [u16; 2] {
        [self.config.sidecar.listen_port, self.config.sidecar.admin.port()]
    }

    /// The values of the template's placeholders.
    ///
    /// # Errors
    /// When the annotations do not go together.
    pub fn values(&self, overrides: &Overrides) -> Result<Map<String, Value>, String> {
        let injector = &self.config.injector;
        let path = |path: &Path| path.display().to_string();
        let socket = &self.config.sidecar.node_socket;
        let values = json!({
            "image": injector.image,
            "image_pull_policy": injector.image_pull_policy,
            "config": self.pod_config(overrides)?,
            "pods_dir": path(&self.config.node.pods_dir),
            "socket_dir": path(socket.parent().unwrap_or(Path::new("/"))),
            "proxy_uid": injector.proxy_uid,
            "proxy_resources": self.resources(overrides),
            "admin_port": self.config.sidecar.admin.port(),
        });
        match values {
            Value::Object(values) => Ok(values),
            _ => Ok(Map::new()),
        }
    }

    /// The configuration of one pod: what differs from the defaults, as JSON, which is YAML.
    fn pod_config(&self, overrides: &Overrides) -> Result<String, String> {
        let mut config = Config {
            log: self.config.log.clone(),
            capture: self.config.capture.clone(),
            sidecar: self.config.sidecar.clone(),
            ..Config::default()
        };
        let level = overrides.log_level.as_ref().unwrap_or(&self.config.injector.proxy_log_level);
        config.log.level.clone_from(level);
        let capture = &mut config.capture;
        set(&mut capture.include_outbound_ports, overrides.include_outbound_ports.as_ref());
        set(&mut capture.exclude_outbound_ports, overrides.exclude_outbound_ports.as_ref());
        set(&mut capture.include_outbound_cidrs, overrides.include_outbound_cidrs.as_ref());
        set(&mut capture.exclude_outbound_cidrs, overrides.exclude_outbound_cidrs.as_ref());
        set(&mut capture.exclude_inbound_ports, overrides.exclude_inbound_ports.as_ref());
        let text = differing(&config);
        // What init and sidecar will do: a pod that they would refuse is better not made.
        Config::from_yaml(&text, "the pod's annotations and the injector's configuration")
            .map_err(|faults| faults.to_string())?;
        Ok(text)
    }

    fn resources(&self, overrides: &Overrides) -> Value {
        let injector = &self.config.injector;
        let cpu = overrides.proxy_cpu.as_ref().unwrap_or(&injector.proxy_cpu);
        let cpu_limit = at_least(&injector.proxy_cpu_limit, cpu);
        // Memory beyond what was asked for is what a node takes back by killing.
        let memory = overrides.proxy_memory.as_ref();
        let memory_limit = memory.unwrap_or(&injector.proxy_memory_limit);
        let memory = memory.unwrap_or(&injector.proxy_memory);
        let mut limits = Map::new();
        for (name, limit) in [("cpu", cpu_limit), ("memory", memory_limit)] {
            if !limit.is_empty() {
                limits.insert(name.to_owned(), json!(limit));
            }
        }
        let mut resources = json!({ "requests": { "cpu": cpu, "memory": memory } });
        if !limits.is_empty() {
            resources["limits"] = Value::Object(limits);
        }
        resources
    }
}

fn set<T: Clone>(slot: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        slot.clone_from(value);
    }
}

/// The limit, or the request where that is more. No limit stays none.
fn at_least<'a>(limit: &'a String, request: &'a String) -> &'a String {
    let more = Quantity::parse(request) > Quantity::parse(limit);
    if more && !limit.is_empty() { request } else { limit }
}

/// Only the keys that are not the default: pods stay readable.
fn differing(config: &Config) -> String {
    let default = Config::default();
    let mut all = Map::new();
    let mut log = Map::new();
    if config.log.level != default.log.level {
        log.insert("level".into(), json!(config.log.level));
    }
    if config.log.format != default.log.format {
        let format = if config.log.format == LogFormat::Json { "json" } else { "text" };
        log.insert("format".into(), json!(format));
    }
    let section = |section: Value, default: Value| match (section, default) {
        (Value::Object(section), Value::Object(default)) => section
            .into_iter()
            .filter(|(key, value)| default.get(key) != Some(value))
            .collect::<Map<String, Value>>(),
        _ => Map::new(),
    };
    let sections = [
        ("log", log),
        ("capture", section(json!(config.capture), json!(default.capture))),
        ("sidecar", section(json!(config.sidecar), json!(default.sidecar))),
    ];
    for (name, section) in sections.into_iter().filter(|(_, section)| !section.is_empty()) {
        all.insert(name.to_owned(), Value::Object(section));
    }
    Value::Object(all).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings;

    #[test]
    fn a_pod_gets_what_differs() {
        let settings = settings("{log: {format: json}, capture: {exclude_outbound_ports: [25]}}");
        let overrides = Overrides {
            include_outbound_ports: Some(vec![80]),
            log_level: Some("debug".into()),
            ..Overrides::default()
        };
        let text = settings.pod_config(&overrides).unwrap();
        let config = Config::from_yaml(&text, "pod").unwrap();
        assert_eq!(config.capture.exclude_outbound_ports, [25]);
        assert_eq!(config.capture.include_outbound_ports, [80]);
        assert_eq!((config.log.level.as_str(), config.log.format), ("debug", LogFormat::Json));
        assert!(!text.contains("route_table"), "{text}");
    }

    #[test]
    fn annotations_that_do_not_go_together() {
        let settings = settings("{}");
        let overrides = Overrides {
            include_outbound_ports: Some(vec![80]),
            exclude_outbound_ports: Some(vec![80]),
            ..Overrides::default()
        };
        let fault = settings.pod_config(&overrides).unwrap_err();
        assert!(fault.contains("capture.include_outbound_ports"), "{fault}");
    }

    #[test]
    fn resources() {
        let settings = settings("{injector: {proxy_cpu_limit: 500m, proxy_memory_limit: \"\"}}");
        let plain = settings.resources(&Overrides::default());
        let requests = json!({"cpu": "20m", "memory": "32Mi"});
        assert_eq!(plain, json!({"requests": requests, "limits": {"cpu": "500m"}}));
        let asked = settings.resources(&Overrides {
            proxy_cpu: Some("2".into()),
            proxy_memory: Some("1Gi".into()),
            ..Overrides::default()
        });
        let both = json!({"cpu": "2", "memory": "1Gi"});
        assert_eq!(asked, json!({"requests": both, "limits": both}));
    }
}
