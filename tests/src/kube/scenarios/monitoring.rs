//! A real Prometheus, and what the chart has for it.

use crate::kube::cluster::{Cluster, MESH, SYSTEM, WATCH, items, text};
use crate::kube::kubectl::eventually;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Duration;

const PROMETHEUS: &str = include_str!("../../../kube/prometheus.yaml");
const RULES: &str = include_str!("../../../../charts/rdmesh/files/rules.yaml");
const DASHBOARD: &str = include_str!("../../../../charts/rdmesh/files/dashboard.json");
const PORT: u16 = 9090;
const INJECTOR_MIB_MAX: f64 = 30.0;

fn ask(cluster: &Cluster, path: &str) -> Result<Value> {
    let pod = cluster.pod(WATCH, "prometheus")?;
    let answer: Value = serde_json::from_str(&cluster.kube.get(WATCH, &pod.name, PORT, path)?)?;
    ensure!(answer["status"] == "success", "{path}: {answer}");
    Ok(answer["data"].clone())
}

pub fn targets(cluster: &Cluster) -> Result<String> {
    cluster.namespace(WATCH, "")?;
    // As part of a ConfigMap.
    let rules = RULES.replace('\n', "\n    ");
    cluster.apply(WATCH, PROMETHEUS, &[("rules", rules.trim_end())])?;
    cluster.kube.rolled_out(WATCH, "deployment/prometheus")?;
    eventually(Duration::from_secs(30), "all targets are up", || {
        let injectors = cluster.pods(SYSTEM, "app.kubernetes.io/component=injector")?.len();
        let sidecars = cluster.pods(MESH, "rdmesh.io/injected=true")?.len();
        let data = ask(cluster, "/api/v1/targets?state=active")?;
        let targets = items(&data["activeTargets"]);
        for target in targets {
            let (url, health) = (text(&target["scrapeUrl"]), text(&target["health"]));
            ensure!(health == "up", "{url} is {health}: {}", target["lastError"]);
        }
        let wanted = injectors + cluster.nodes.len() + sidecars;
        ensure!(targets.len() == wanted, "{} targets, not {wanted}: {targets:?}", targets.len());
        Ok(format!(
            "{} node proxies, {injectors} injectors, {sidecars} sidecars",
            cluster.nodes.len()
        ))
    })
}

pub fn dashboard(cluster: &Cluster) -> Result<String> {
    let dashboard: Value = serde_json::from_str(DASHBOARD)?;
    let mut queries = 0;
    for panel in items(&dashboard["panels"]) {
        for target in items(&panel["targets"]) {
            let expression = text(&target["expr"]).replace("$__rate_interval", "10m");
            let title = text(&panel["title"]);
            queries += 1;
            eventually(Duration::from_secs(10), "a query returns data", || {
                let data = ask(cluster, &format!("/api/v1/query?query={}", encoded(&expression)))?;
                let values = items(&data["result"]);
                ensure!(!values.is_empty(), "{title}: no data for {expression}");
                ensure!(
                    values.iter().any(|v| v["value"][1] != "NaN"),
                    "{title}: only NaN for {expression}"
                );
                Ok(())
            })?;
        }
    }
    ensure!(queries > 0, "the dashboard has no queries");
    let mut rules = 0;
    for group in items(&ask(cluster, "/api/v1/rules")?["groups"]) {
        for rule in items(&group["rules"]) {
            let name = text(&rule["name"]);
            rules += 1;
            ensure!(rule["health"] == "ok", "{name} is {}: {}", rule["health"], rule["lastError"]);
            if rule["state"] == "firing" {
                bail!("{name} fires, and nothing was wrong for that long: {}", rule["alerts"]);
            }
        }
    }
    let written = RULES.matches("- alert:").count();
    ensure!(rules == written, "{rules} rules of {written} are evaluated");
    let memory = memory(cluster)?;
    let version = ask(cluster, "/api/v1/status/buildinfo")?;
    let version = version["version"].as_str().context("Prometheus tells no version")?.to_owned();
    Ok(format!("{queries} queries, {rules} rules, Prometheus {version}; {memory}"))
}

/// Resident memory of the largest of each kind, in MiB.
fn memory(cluster: &Cluster) -> Result<String> {
    let mut all = Vec::new();
    let kinds = [
        ("node proxy", SYSTEM, "rdmesh-node-.*", None),
        ("injector", SYSTEM, "rdmesh-injector-.*", Some(INJECTOR_MIB_MAX)),
        ("sidecar", MESH, ".*", None),
    ];
    for (kind, namespace, pods, limit) in kinds {
        let expression = format!(
            "max(process_resident_memory_bytes{{namespace=\"{namespace}\",pod=~\"{pods}\"}}) / 1048576"
        );
        let data = ask(cluster, &format!("/api/v1/query?query={}", encoded(&expression)))?;
        let value = text(&data["result"][0]["value"][1]);
        let value: f64 = value.parse().with_context(|| format!("no memory of a {kind}: {data}"))?;
        if let Some(limit) = limit {
            ensure!(value < limit, "a {kind} has {value:.1} MiB resident, more than {limit}");
        }
        all.push(format!("{kind} {value:.1} MiB"));
    }
    Ok(format!("resident: {}", all.join(", ")))
}

fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}
