//! What the API server, or anybody in its name, sends to the webhook.

use crate::behaviour;
use rdmesh_config::Config;
use rdmesh_injector::decision::Scope;
use rdmesh_injector::patch::{apply, patch};
use rdmesh_injector::review::review;
use rdmesh_injector::settings::Settings;
use rdmesh_injector::template::Template;
use serde_json::{Value, json};
use std::sync::OnceLock;

fn injector() -> &'static (Template, Settings) {
    static INJECTOR: OnceLock<(Template, Settings)> = OnceLock::new();
    INJECTOR.get_or_init(|| {
        let mut config = Config::default();
        config.injector.image = "example.org/rdmesh:fuzz".into();
        (Template::built_in().expect("valid"), Settings::new(config).expect("it has an image"))
    })
}

/// What is patched stays as it is at a second look.
pub(crate) fn run(bytes: &[u8]) -> u64 {
    let (template, settings) = injector();
    let answer = match review(bytes, Scope::Namespace, template, settings) {
        Ok(answer) => answer,
        Err(reason) => return behaviour(&reason),
    };
    assert!(answer.body["response"]["uid"].is_string());
    let object =
        serde_json::from_slice::<Value>(bytes).unwrap_or_default()["request"]["object"].take();
    if let Ok(first) = patch(&object, template, settings) {
        let mut pod = object;
        apply(&mut pod, &first.operations).expect("a patch has a place for what it adds");
        let second = patch(&pod, template, settings).expect("what was patched is a pod");
        assert!(second.operations.is_empty(), "patched twice: {second:?}");
    }
    behaviour(&format!("{:?} {}", answer.outcome, answer.reason))
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let pods = [
        json!({"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}),
        json!({
            "metadata": {
                "generateName": "a-",
                "labels": {"rdmesh.io/inject": "enabled", "app": "a"},
                "annotations": {
                    "rdmesh.io/include-outbound-ports": "80,443", "rdmesh.io/exclude-outbound-cidrs": "10.0.0.0/8",
                    "rdmesh.io/proxy-cpu": "250m", "rdmesh.io/proxy-memory": "64Mi", "rdmesh.io/fabric": "tcp",
                    "rdmesh.io/log-level": "debug",
                }
            },
            "spec": {
                "initContainers": [{"name": "rdmesh-init"}], "hostNetwork": false, "os": {"name": "linux"},
                "containers": [{"name": "a", "ports": [{"containerPort": 15701}]}], "volumes": [{"name": "v"}],
            }
        }),
    ];
    let review = |pod: Value| {
        json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "namespace": "n",
                "operation": "CREATE", "object": pod,
            }
        })
    };
    pods.into_iter().map(|pod| review(pod).to_string().into_bytes()).collect()
}
