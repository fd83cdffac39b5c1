//! From a pod to the JSON patch that makes it a pod of the mesh. A pure function.
//!
//! Only adds: nothing that a pod has is changed or taken away, except the one label and the one annotation
//! that are ours. Parts that a pod has already, by their names, are not added again, so a second call
//! changes nothing.
//!
//! What it does not do: decide whether a pod is meshed.

use crate::annotations::{self, STATUS};
use crate::settings::Settings;
use crate::template::{Parts, Template, name};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// By this label the directory finds the pods of the mesh.
pub const INJECTED: &str = "rdmesh.io/injected";

/// One operation of RFC 6902; `add` is all that is needed.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "op", rename = "add")]
pub struct Add {
    pub path: String,
    pub value: Value,
}

/// A patch, and what the author of the pod should know.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Patch {
    pub operations: Vec<Add>,
    pub warnings: Vec<String>,
}

/// # Errors
/// With a message for the author of the pod.
pub fn patch(pod: &Value, template: &Template, settings: &Settings) -> Result<Patch, String> {
    if !pod.get("spec").is_some_and(Value::is_object) {
        return Err("the pod has no spec".into());
    }
    let empty = Map::new();
    let given = map(pod, "/metadata/annotations")?.unwrap_or(&empty);
    let (overrides, unknown) = annotations::read(given).map_err(|faults| {
        let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
        faults.join("; ")
    })?;
    let mut parts = template.fill(&settings.values(&overrides)?)?;
    let mut patch = Patch::default();
    for name in unknown {
        let known: Vec<&str> = annotations::names().collect();
        let known = known.join(", ");
        patch.warnings.push(format!("annotation {name} is not known to rdmesh; known are {known}"));
    }
    if settings.native_sidecar() {
        parts.proxy["restartPolicy"] = json!("Always");
        native(pod, &parts, &mut patch)?;
    } else {
        ordinary(pod, &parts, &mut patch)?;
    }
    let volumes = list(pod, "/spec/volumes")?;
    if !has(volumes, name(&parts.volume)) {
        add_to_list(
            &mut patch,
            "/spec/volumes",
            volumes,
            volumes.len(),
            vec![parts.volume.clone()],
        );
    }
    sysctls(pod, settings, &mut patch)?;
    if !patch.operations.is_empty() {
        let status = status(&parts, settings.native_sidecar());
        add_to_map(pod, &mut patch, "annotations", STATUS, &json!(status))?;
    }
    add_to_map(pod, &mut patch, "labels", INJECTED, &json!("true"))?;
    clashes(pod, &parts, settings, &mut patch);
    Ok(patch)
}

/// First of the init containers, so that those of the pod are in the mesh too.
fn native(pod: &Value, parts: &Parts, patch: &mut Patch) -> Result<(), String> {
    const PATH: &str = "/spec/initContainers";
    let inits = list(pod, PATH)?;
    let init_at = inits.iter().position(|container| name(container) == name(&parts.init));
    let has_proxy =
        has(inits, name(&parts.proxy)) || has(list(pod, "/spec/containers")?, name(&parts.proxy));
    match (init_at, has_proxy) {
        (None, false) => {
            let both = vec![parts.init.clone(), parts.proxy.clone()];
            add_to_list(patch, PATH, inits, 0, both);
        }
        (None, true) => add_to_list(patch, PATH, inits, 0, vec![parts.init.clone()]),
        (Some(at), false) => add_to_list(patch, PATH, inits, at + 1, vec![parts.proxy.clone()]),
        (Some(_), true) => {}
    }
    Ok(())
}

/// Last of the init containers: while they run there is no sidecar yet that would take what is captured.
/// And last of the containers, whose first is the one that `kubectl logs` shows.
fn ordinary(pod: &Value, parts: &Parts, patch: &mut Patch) -> Result<(), String> {
    let inits = list(pod, "/spec/initContainers")?;
    if !has(inits, name(&parts.init)) {
        add_to_list(patch, "/spec/initContainers", inits, inits.len(), vec![parts.init.clone()]);
    }
    let containers = list(pod, "/spec/containers")?;
    if !has(containers, name(&parts.proxy)) && !has(inits, name(&parts.proxy)) {
        let proxy = vec![parts.proxy.clone()];
        add_to_list(patch, "/spec/containers", containers, containers.len(), proxy);
        if pod.pointer("/spec/restartPolicy").is_some_and(|policy| policy != "Always") {
            patch.warnings.push(
                "the rdmesh sidecar is an ordinary container here and does not end: the pod will not complete; \
                 use injector.native_sidecar, or label the pod rdmesh.io/inject: disabled"
                    .into(),
            );
        }
    }
    Ok(())
}

/// Those that the pod sets itself stay as they are.
fn sysctls(pod: &Value, settings: &Settings, patch: &mut Patch) -> Result<(), String> {
    const PATH: &str = "/spec/securityContext/sysctls";
    let given = list(pod, PATH)?;
    let missing = settings.pod_sysctls().iter().filter(|name| !has(given, name));
    let missing: Vec<_> = missing.map(|name| json!({ "name": name, "value": "1" })).collect();
    if missing.is_empty() {
        return Ok(());
    }
    let context = "/spec/securityContext";
    if map(pod, context)?.is_none() {
        patch.operations.push(Add { path: context.into(), value: json!({}) });
    }
    add_to_list(patch, PATH, given, given.len(), missing);
    Ok(())
}

/// JSON in a string, as annotations are.
fn status(parts: &Parts, native: bool) -> String {
    let (init, proxy, volume) = (name(&parts.init), name(&parts.proxy), name(&parts.volume));
    let (inits, containers) =
        if native { (vec![init, proxy], vec![]) } else { (vec![init], vec![proxy]) };
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "initContainers": inits,
        "containers": containers,
        "volumes": [volume],
    })
    .to_string()
}

/// Ports that the application says it listens on, and that the sidecar takes.
fn clashes(pod: &Value, parts: &Parts, settings: &Settings, patch: &mut Patch) {
    let lists = ["/spec/containers", "/spec/initContainers"].map(|path| list(pod, path));
    let containers = lists.into_iter().flatten().flatten();
    for container in containers.filter(|container| name(container) != name(&parts.proxy)) {
        let ports = container.get("ports").and_then(Value::as_array).into_iter().flatten();
        for port in ports.filter_map(|port| port.get("containerPort")?.as_u64()) {
            if settings.proxy_ports().iter().any(|taken| u64::from(*taken) == port) {
                patch
                    .warnings
                    .push(format!("port {port} is used by the rdmesh sidecar in this pod too"));
            }
        }
    }
}

/// A list that may be absent.
fn list<'a>(pod: &'a Value, path: &str) -> Result<&'a [Value], String> {
    match pod.pointer(path) {
        None | Some(Value::Null) => Ok(&[]),
        Some(Value::Array(list)) => Ok(list),
        Some(_) => {
            Err(format!("{} is not a list", path.get(1..).unwrap_or(path).replace('/', ".")))
        }
    }
}

/// A map that may be absent.
fn map<'a>(pod: &'a Value, path: &str) -> Result<Option<&'a Map<String, Value>>, String> {
    match pod.pointer(path) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(map)) => Ok(Some(map)),
        Some(_) => Err(format!("{} is not a map", path.get(1..).unwrap_or(path).replace('/', "."))),
    }
}

fn has(list: &[Value], wanted: &str) -> bool {
    list.iter().any(|part| name(part) == wanted)
}

/// Puts `parts` into the list before the element that is at `at` now.
fn add_to_list(patch: &mut Patch, path: &str, list: &[Value], at: usize, parts: Vec<Value>) {
    if list.is_empty() {
        patch.operations.push(Add { path: path.to_owned(), value: Value::Array(parts) });
        return;
    }
    for (offset, value) in parts.into_iter().enumerate() {
        patch.operations.push(Add { path: format!("{path}/{}", at + offset), value });
    }
}

/// Sets one label or annotation, unless it has that value.
fn add_to_map(
    pod: &Value,
    patch: &mut Patch,
    kind: &str,
    key: &str,
    value: &Value,
) -> Result<(), String> {
    if pod.get("metadata").is_none_or(Value::is_null) {
        let made = patch.operations.iter().any(|operation| operation.path == "/metadata");
        if !made {
            patch.operations.push(Add { path: "/metadata".into(), value: json!({}) });
        }
    } else if !pod.get("metadata").is_some_and(Value::is_object) {
        return Err("metadata is not a map".into());
    }
    let path = format!("/metadata/{kind}");
    match map(pod, &path)? {
        None => patch.operations.push(Add { path, value: json!({ key: value }) }),
        Some(map) if map.get(key) == Some(value) => {}
        Some(_) => {
            let path = format!("{path}/{}", key.replace('~', "~0").replace('/', "~1"));
            patch.operations.push(Add { path, value: value.clone() });
        }
    }
    Ok(())
}

/// Applies a patch, as the API server does.
///
/// # Errors
/// With the path that there is no place for.
pub fn apply(pod: &mut Value, operations: &[Add]) -> Result<(), String> {
    for Add { path, value } in operations {
        let wrong = || format!("no place for {path}");
        let (parent, key) = path.rsplit_once('/').ok_or_else(wrong)?;
        let key = key.replace("~1", "/").replace("~0", "~");
        match pod.pointer_mut(parent).ok_or_else(wrong)? {
            Value::Object(map) => {
                map.insert(key, value.clone());
            }
            Value::Array(list) => {
                let at = key.parse().ok().filter(|at| *at <= list.len()).ok_or_else(wrong)?;
                list.insert(at, value.clone());
            }
            _ => return Err(wrong()),
        }
    }
    Ok(())
}
