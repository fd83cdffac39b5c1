//! Whether a pod is meshed.
//!
//! What it does not do: read labels of namespaces; which way a pod came (`Scope`) tells what its
//! namespace wants.

use crate::annotations::shorten;
use crate::settings::Settings;
use serde_json::Value;

/// On namespaces and on pods.
pub const LABEL: &str = "rdmesh.io/inject";
const ENABLED: &str = "enabled";
const DISABLED: &str = "disabled";
/// Kubernetes itself must come up without us.
const NEVER: [&str; 3] = ["kube-system", "kube-public", "kube-node-lease"];

/// What is known of the pod's namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// It has the label: pods are meshed unless they say no.
    Namespace,
    /// It has not: pods are meshed when they say so themselves.
    Pod,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    Inject,
    Skip(Skip),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skip {
    PodDisabled,
    NotAsked,
    NamespaceExcluded,
    HostNetwork,
    Windows,
}

impl Skip {
    /// For the audit log and for people.
    #[must_use]
    pub fn why(self) -> &'static str {
        match self {
            Self::PodDisabled => "the pod's label rdmesh.io/inject says disabled",
            Self::NotAsked => "neither namespace nor pod asks for it by the label rdmesh.io/inject",
            Self::NamespaceExcluded => "pods of this namespace are never meshed",
            Self::HostNetwork => "the pod uses the node's network",
            Self::Windows => "the pod runs on Windows",
        }
    }
}

/// # Errors
/// When the pod's label is neither `enabled` nor `disabled`.
pub fn decide(
    pod: &Value,
    namespace: &str,
    scope: Scope,
    settings: &Settings,
) -> Result<Decision, String> {
    let skip = |why| Ok(Decision::Skip(why));
    if NEVER.contains(&namespace) || settings.excludes(namespace) {
        return skip(Skip::NamespaceExcluded);
    }
    let asked = match pod.pointer("/metadata/labels").and_then(|labels| labels.get(LABEL)) {
        None | Some(Value::Null) => scope == Scope::Namespace,
        Some(Value::String(text)) if text == ENABLED => true,
        Some(Value::String(text)) if text == DISABLED => return skip(Skip::PodDisabled),
        Some(other) => {
            let shown = other.as_str().map_or_else(|| other.to_string(), str::to_owned);
            let shown = shorten(&shown);
            return Err(format!(
                "label {LABEL}: {shown:?} is not allowed; allowed is enabled or disabled"
            ));
        }
    };
    if !asked {
        return skip(Skip::NotAsked);
    }
    let at = |path: &str| pod.pointer(path);
    if at("/spec/hostNetwork") == Some(&Value::Bool(true)) {
        return skip(Skip::HostNetwork);
    }
    let os = at("/spec/os/name").or_else(|| at("/spec/nodeSelector/kubernetes.io~1os"));
    if os.and_then(Value::as_str) == Some("windows") {
        return skip(Skip::Windows);
    }
    Ok(Decision::Inject)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::settings;
    use serde_json::json;

    fn decided(pod: &Value, namespace: &str, scope: Scope) -> Result<Decision, String> {
        decide(pod, namespace, scope, &settings("injector: {exclude_namespaces: [rdmesh-system]}"))
    }

    #[test]
    fn labels() {
        let label = |value| json!({"metadata": {"labels": {LABEL: value}}, "spec": {}});
        let none = json!({"metadata": {}, "spec": {}});
        let skip = |why| Ok(Decision::Skip(why));
        let inject = Ok(Decision::Inject);
        assert_eq!(decided(&none, "a", Scope::Namespace), inject);
        assert_eq!(decided(&none, "a", Scope::Pod), skip(Skip::NotAsked));
        assert_eq!(decided(&label("enabled"), "a", Scope::Pod), inject);
        assert_eq!(decided(&label("disabled"), "a", Scope::Namespace), skip(Skip::PodDisabled));
        let fault = decided(&label("true"), "a", Scope::Namespace).unwrap_err();
        assert!(fault.contains("\"true\"") && fault.contains("enabled or disabled"), "{fault}");
        for namespace in ["kube-system", "kube-public", "rdmesh-system"] {
            let decision = decided(&label("enabled"), namespace, Scope::Namespace);
            assert_eq!(decision, skip(Skip::NamespaceExcluded));
        }
    }

    #[test]
    fn pods_that_cannot_be_meshed() {
        let skip = |spec: Value| decided(&json!({"spec": spec}), "a", Scope::Namespace);
        assert_eq!(skip(json!({"hostNetwork": true})), Ok(Decision::Skip(Skip::HostNetwork)));
        assert_eq!(skip(json!({"os": {"name": "windows"}})), Ok(Decision::Skip(Skip::Windows)));
        let selector = json!({"nodeSelector": {"kubernetes.io/os": "windows"}});
        assert_eq!(skip(selector), Ok(Decision::Skip(Skip::Windows)));
        assert_eq!(skip(json!({"hostNetwork": false, "os": null})), Ok(Decision::Inject));
    }
}
