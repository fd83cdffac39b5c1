//! Pods, and the patches that they get. `RDMESH_GOLDEN=write` writes the patches anew.

mod common;

use common::{settings, strict};
use k8s_openapi::api::core::v1::Pod;
use rdmesh_injector::patch::{Patch, apply, patch};
use rdmesh_injector::settings::Settings;
use rdmesh_injector::template::Template;
use serde_json::{Value, json};
use std::path::PathBuf;

fn cases() -> Vec<(PathBuf, Value)> {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|end| end == "yaml"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "{files:?}");
    let read = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).unwrap();
        let pod = rdmesh_config::read_documents(&text, "golden").unwrap().pop().unwrap();
        (path, pod)
    };
    files.into_iter().map(read).collect()
}

fn patched(pod: &Value, settings: &Settings) -> Result<Patch, String> {
    patch(pod, &Template::built_in().unwrap(), settings)
}

#[test]
fn patches() {
    let mut faults = Vec::new();
    for (path, pod) in cases() {
        for (kind, settings) in [
            ("native", settings("{}")),
            ("ordinary", settings("injector: {native_sidecar: false, image_pull_policy: Always}")),
        ] {
            let made = match patched(&pod, &settings) {
                Ok(Patch { operations, warnings }) => {
                    json!({"patch": operations, "warnings": warnings})
                }
                Err(rejected) => json!({ "rejected": rejected }),
            };
            let made = format!("{made:#}\n");
            let file = path.with_extension(format!("{kind}.json"));
            if std::env::var_os("RDMESH_GOLDEN").is_some_and(|value| value == "write") {
                std::fs::write(&file, &made).unwrap();
            }
            let golden = std::fs::read_to_string(&file).unwrap_or_default();
            if golden != made {
                faults.push(format!("{}:\n{made}", file.display()));
            }
        }
    }
    assert!(faults.is_empty(), "RDMESH_GOLDEN=write writes these anew:\n{}", faults.join("\n"));
}

#[test]
fn patched_pods_are_pods_and_a_second_patch_changes_nothing() {
    for (native, sysctls) in [(true, false), (false, false), (true, true)] {
        let settings =
            settings(&format!("injector: {{native_sidecar: {native}, pod_sysctls: {sysctls}}}"));
        for (path, before) in cases() {
            let Ok(first) = patched(&before, &settings) else { continue };
            let mut pod = before.clone();
            apply(&mut pod, &first.operations).unwrap();
            strict::<Pod>(&pod, &path.display().to_string());
            let second = patched(&pod, &settings).unwrap();
            assert_eq!(second.operations, [], "{}", path.display());
            only_added(&before, &pod, "");
        }
    }
}

#[test]
fn a_pods_own_sysctls_stay() {
    let settings = settings("injector: {pod_sysctls: true}");
    let sysctl = |name: &str, value: &str| json!({"name": name, "value": value});
    let ours = ["tcp_fwmark_accept", "fwmark_reflect"]
        .map(|name| sysctl(&format!("net.ipv4.{name}"), "1"));
    let v6 = sysctl("net.ipv6.fwmark_reflect", "1");
    let own = [sysctl("net.core.somaxconn", "1024"), sysctl("net.ipv4.fwmark_reflect", "0")];
    for (context, expected) in [
        (json!(null), vec![&ours[0], &ours[1], &v6]),
        (json!({"runAsUser": 1}), vec![&ours[0], &ours[1], &v6]),
        (json!({"sysctls": own}), vec![&own[0], &own[1], &ours[0], &v6]),
    ] {
        let mut pod = json!({"spec": {"containers": [{"name": "a"}], "securityContext": context}});
        let made = patched(&pod, &settings).unwrap();
        apply(&mut pod, &made.operations).unwrap();
        assert_eq!(pod["spec"]["securityContext"]["sysctls"], json!(expected));
    }
}

/// Everything that was there is there, lists in their order.
fn only_added(before: &Value, after: &Value, path: &str) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            for (key, value) in before {
                let after = after.get(key).unwrap_or_else(|| panic!("{path}/{key} is gone"));
                only_added(value, after, &format!("{path}/{key}"));
            }
        }
        (Value::Array(before), Value::Array(after)) => {
            let mut rest = after.iter();
            for value in before {
                assert!(rest.any(|other| other == value), "{path}: {value} is gone");
            }
        }
        _ => assert_eq!(before, after, "{path}"),
    }
}

#[test]
fn what_the_api_server_asks_of_the_containers() {
    let pod = json!({"spec": {"containers": [{"name": "web", "image": "web"}]}});
    let mut patched_pod = pod.clone();
    apply(&mut patched_pod, &patched(&pod, &settings("{}")).unwrap().operations).unwrap();
    let pod: Pod = serde_json::from_value(patched_pod).unwrap();
    let spec = pod.spec.unwrap();
    let inits = spec.init_containers.unwrap();
    let [init, proxy] = inits.as_slice() else { panic!("{inits:?}") };
    assert_eq!((init.name.as_str(), proxy.name.as_str()), ("rdmesh-init", "rdmesh-proxy"));
    assert_eq!(proxy.restart_policy.as_deref(), Some("Always"));
    // Probes are allowed for init containers that keep running only.
    assert!(init.startup_probe.is_none() && proxy.startup_probe.is_some());
    for (container, added, root) in [(init, "NET_ADMIN", true), (proxy, "NET_RAW", false)] {
        let context = container.security_context.as_ref().unwrap();
        let capabilities = context.capabilities.as_ref().unwrap();
        assert_eq!(capabilities.drop.as_deref(), Some(&["ALL".to_owned()][..]));
        assert_eq!(capabilities.add.as_deref(), Some(&[added.to_owned()][..]));
        assert_eq!(context.read_only_root_filesystem, Some(true));
        assert_eq!(context.allow_privilege_escalation, Some(false));
        assert_eq!(context.run_as_user == Some(0), root);
        assert_eq!(context.run_as_non_root, Some(!root));
        assert!(container.resources.as_ref().unwrap().requests.is_some());
        assert!(container.resources.as_ref().unwrap().limits.is_some());
    }
    let volumes = spec.volumes.unwrap();
    for mount in proxy.volume_mounts.as_ref().unwrap() {
        assert!(volumes.iter().any(|volume| volume.name == mount.name));
    }
}
