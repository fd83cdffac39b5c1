//! The chart: linted, rendered under several sets of values, every object read strictly, and what it renders
//! for the programs read by them; the alerts tried by promtool. Needs helm (`make tools`) and promtool (Debian's
//! `prometheus`).

mod common;

use common::chart::{helm, render, root};
use common::client::{Client, pod};
use common::injector::{SOON, start};
use common::strict;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use rdmesh_config::{Config, read_documents};
use rdmesh_injector::annotations::Overrides;
use rdmesh_injector::settings::Settings;
use rdmesh_injector::template::Template;
use rdmesh_proxy::trust::Ca;
use serde_json::Value;
use std::io::Write;
use std::process::{Command, Stdio};

const SETS: [&str; 6] = [
    "",
    "certificates.webhook=certManager,monitoring.podMonitor=true,monitoring.prometheusRule=true,\
     monitoring.dashboard=true,monitoring.labels.release=prometheus",
    "certificates.webhook=certManager,certificates.issuer.name=ours,certificates.issuer.kind=ClusterIssuer",
    "node.rdma.mode=devicePlugin,node.rdma.resource=example.com/hca,injector.replicas=1,sidecar.native=false",
    "node.rdma.mode=hostPath,networkPolicy.enabled=false,monitoring.annotations=false,\
     injector.excludeNamespaces={a,b},injector.failurePolicy=Fail,imagePullSecrets[0].name=pull",
    "sidecar.config.capture.exclude_outbound_ports={25},sidecar.config.sidecar.connections_max=100,\
     node.config.workers=4,node.config.encrypt=false,logFormat=text,sidecar.cpuLimit=",
];

fn check(object: &Value, title: &str) {
    let kind = object["kind"].as_str().unwrap();
    match kind {
        "ClusterRole" => drop(strict::<ClusterRole>(object, title)),
        "ClusterRoleBinding" => drop(strict::<ClusterRoleBinding>(object, title)),
        "ConfigMap" => drop(strict::<ConfigMap>(object, title)),
        "DaemonSet" => drop(strict::<DaemonSet>(object, title)),
        "Deployment" => drop(strict::<Deployment>(object, title)),
        "MutatingWebhookConfiguration" => {
            drop(strict::<MutatingWebhookConfiguration>(object, title));
        }
        "NetworkPolicy" => drop(strict::<NetworkPolicy>(object, title)),
        "Pod" => drop(strict::<Pod>(object, title)),
        "PodDisruptionBudget" => drop(strict::<PodDisruptionBudget>(object, title)),
        "Role" => drop(strict::<Role>(object, title)),
        "RoleBinding" => drop(strict::<RoleBinding>(object, title)),
        "Secret" => {
            let secret = strict::<Secret>(object, title);
            assert!(
                secret.data.is_none() && secret.string_data.is_none(),
                "{title}: a rendered secret"
            );
        }
        "Service" => drop(strict::<Service>(object, title)),
        "ServiceAccount" => drop(strict::<ServiceAccount>(object, title)),
        // Of others' definitions, which are not here to be held against.
        "Certificate" | "Issuer" | "PodMonitor" | "PrometheusRule" => {
            assert!(object["spec"].is_object(), "{title}");
        }
        other => panic!("{title}: {other} is not known to this test"),
    }
}

#[test]
fn it_has_no_lint() {
    for set in SETS {
        let output = helm(&["lint", "--strict", "charts/rdmesh", "--set", set]);
        assert!(output.status.success(), "{set}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn every_object_is_read_strictly() {
    for set in SETS {
        let objects = render(set);
        assert!(objects.len() >= 15, "{set}: {}", objects.len());
        for object in &objects {
            let title = format!("[{set}] {} {}", object["kind"], object["metadata"]["name"]);
            check(object, &title);
            let labels = &object["metadata"]["labels"];
            assert_eq!(labels["app.kubernetes.io/name"], "rdmesh", "{title}");
        }
    }
}

#[test]
fn the_programs_take_what_is_rendered_for_them() {
    for set in SETS {
        let objects = render(set);
        let config =
            objects.iter().find(|object| object["metadata"]["name"] == "rdmesh-config").unwrap();
        let text = |key: &str| config["data"][key].as_str().unwrap().to_owned();
        let injector = Config::from_yaml(&text("injector.yaml"), set).unwrap();
        let template = Template::from_yaml(&text("template.yaml"), set).unwrap();
        let settings = Settings::new(injector).unwrap();
        assert!(settings.excludes("rdmesh-system"));
        template.fill(&settings.values(&Overrides::default()).unwrap()).unwrap();
        let mut node = Config::from_yaml(&text("node.yaml"), set).unwrap();
        node.node.name = "a".into();
        node.check_node(set).unwrap();
    }
}

#[test]
fn wrong_values_are_refused() {
    for set in [
        "injector.failurePolicy=Maybe",
        "injector.replicas=0",
        "sidecar.memory=lots",
        "node.rdma.mode=magic",
        "node.podsDir=relative",
        "imagee.tag=1",
        "sidecar.config.node.workers=1",
    ] {
        let output = helm(&["template", "rdmesh", "charts/rdmesh", "--set", set]);
        assert!(!output.status.success(), "{set}");
    }
}

/// What a release changes is seen in a review. `RDMESH_GOLDEN=write` writes it anew.
#[test]
fn the_default_rendering() {
    let output = helm(&["template", "rdmesh", "charts/rdmesh", "--namespace", "rdmesh-system"]);
    let text = String::from_utf8(output.stdout).unwrap();
    let file = root().join("injector/tests/chart/default.yaml");
    if std::env::var_os("RDMESH_GOLDEN").is_some_and(|value| value == "write") {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, &text).unwrap();
    }
    // The order of kinds is the helm version's.
    let objects = |text: &str| {
        let mut all: Vec<String> = read_documents::<Value>(text, "rendering")
            .unwrap()
            .iter()
            .map(ToString::to_string)
            .collect();
        all.sort();
        all
    };
    let golden = std::fs::read_to_string(&file).unwrap_or_default();
    assert!(objects(&golden) == objects(&text), "RDMESH_GOLDEN=write writes the rendering anew");
}

#[test]
fn rules_and_dashboard_name_metrics_that_exist() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for file in ["rules.yaml", "dashboard.json"] {
        let text = std::fs::read_to_string(root().join("charts/rdmesh/files").join(file)).unwrap();
        let mut found = 0;
        for (at, prefix) in text.match_indices("rdmesh_") {
            let rest = &text[at + prefix.len()..];
            let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap();
            let name = format!("rdmesh_{}", &rest[..end]);
            let name = name.strip_suffix("_bucket").unwrap_or(&name);
            assert!(
                readme.contains(&format!("`{name}`")),
                "{file}: {name} is no metric of README.md"
            );
            found += 1;
        }
        assert!(found > 5);
    }
}

/// What promtool has to say; nothing is good.
fn promtool(arguments: &[&str], stdin: &[u8]) -> Result<(), String> {
    let mut child = Command::new("promtool")
        .args(arguments)
        .current_dir(root())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("promtool: {error}; `make setup` installs it"));
    let _ = child.stdin.take().unwrap().write_all(stdin);
    let output = child.wait_with_output().unwrap();
    if output.status.success() {
        return Ok(());
    }
    let [told, more] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    Err(format!("{told}{more}"))
}

#[test]
fn the_alerts_fire_when_they_should() {
    promtool(&["check", "rules", "--lint-fatal", "charts/rdmesh/files/rules.yaml"], b"").unwrap();
    promtool(&["test", "rules", "injector/tests/chart/rules_test.yaml"], b"").unwrap();
    let rules = std::fs::read_to_string(root().join("charts/rdmesh/files/rules.yaml")).unwrap();
    let tests =
        std::fs::read_to_string(root().join("injector/tests/chart/rules_test.yaml")).unwrap();
    for (_, rest) in
        rules.match_indices("alert: ").map(|(at, found)| rules.split_at(at + found.len()))
    {
        let name = rest.lines().next().unwrap();
        assert!(tests.matches(&format!("alertname: {name}")).count() >= 2, "{name} has no tests");
    }
}

/// A label's value that does not exist makes an alert that never fires, or always.
#[test]
fn rules_name_labels_that_exist() {
    let rules = std::fs::read_to_string(root().join("charts/rdmesh/files/rules.yaml")).unwrap();
    let sources = ["proxy/src/metrics/labels.rs", "injector/src/review.rs"]
        .map(|file| std::fs::read_to_string(root().join(file)).unwrap())
        .join("");
    let mut found = 0;
    for operator in ["=\"", "=~\"", "!~\""] {
        for (at, _) in rules.match_indices(operator) {
            let (values, _) = rules[at + operator.len()..].split_once('"').unwrap();
            for value in values.split('|') {
                assert!(sources.contains(&format!("\"{value}\"")), "{value}");
                found += 1;
            }
        }
    }
    assert!(found >= 4, "{found}");
}

#[tokio::test]
async fn prometheus_takes_the_metrics_of_the_injector() {
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "promtool").await;
    let (mut client, _) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
    client.review("/inject/namespace", &pod()).await;
    let metrics = rdmesh_proxy::admin::get(injector.admin, "/metrics", SOON).await.unwrap();
    promtool(&["check", "metrics"], &metrics).unwrap();
    assert!(promtool(&["check", "metrics"], b"rdmesh_wrong_total 1\n").is_err(), "it says nothing");
}
