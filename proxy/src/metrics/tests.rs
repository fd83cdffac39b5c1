use super::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

fn filled() -> Registry {
    let node = Arc::new(NodeMetrics::new());
    let workers: Vec<_> = (0..2).map(|_| Arc::new(WorkerMetrics::new())).collect();
    for w in &workers {
        w.stream_started(Role::Client, FabricKind::Tcp);
        w.stream_started(Role::Client, FabricKind::Tcp);
        w.stream_ended(Role::Client, FabricKind::Tcp, Outcome::Closed);
        w.bytes(Direction::Sent, FabricKind::Tcp, 1000);
        w.messages(Direction::Received, FabricKind::Tcp, 3);
        w.opened_in(Duration::from_micros(80));
        w.passthrough(PassthroughReason::OutsideMesh);
        w.slab_bytes(SlabState::Free, 4096);
        w.windows(10, 100);
    }
    node.passthrough(PassthroughReason::OutsideMesh);
    node.lane(&Arc::from("b"), 0, FabricKind::Tcp, false);
    node.lane(&Arc::from("b"), 0, FabricKind::Tcp, true);
    node.lane(&Arc::from("b"), 1, FabricKind::Tcp, true);
    node.lane_removed(&Arc::from("b"), 1);
    Registry::for_node(node, workers).unwrap()
}

#[test]
fn workers_are_summed() {
    let text = filled().render().unwrap();
    for line in [
        "rdmesh_streams_active{role=\"client\",fabric=\"tcp\"} 2",
        "rdmesh_streams_total{role=\"client\",fabric=\"tcp\",outcome=\"closed\"} 2",
        "rdmesh_stream_bytes_total{direction=\"sent\",fabric=\"tcp\"} 2000",
        "rdmesh_link_messages_total{direction=\"received\",fabric=\"tcp\"} 6",
        "rdmesh_stream_open_seconds_bucket{le=\"0.00005\"} 0",
        "rdmesh_stream_open_seconds_bucket{le=\"0.0001\"} 2",
        "rdmesh_stream_open_seconds_bucket{le=\"+Inf\"} 2",
        "rdmesh_stream_open_seconds_count 2",
        "rdmesh_passthrough_total{reason=\"outside_mesh\"} 3",
        "rdmesh_slab_bytes{state=\"free\"} 8192",
        "rdmesh_window_budget_bytes 200",
        "rdmesh_lane_up{peer=\"b\",lane=\"0\",fabric=\"tcp\"} 1",
    ] {
        assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
    }
    assert!(!text.contains("lane=\"1\""));
}

/// The rules that `promtool check metrics` applies.
#[test]
fn text_keeps_the_rules() {
    let text = filled().render().unwrap();
    let mut types = BTreeMap::new();
    let mut helps = BTreeSet::new();
    let mut series = BTreeSet::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(helps.insert(name.to_owned()), "{name} twice");
            assert!(!help.trim().is_empty(), "{name}");
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(kind == "counter", name.ends_with("_total"), "{name} is a {kind}");
            for unit in ["_ms", "_us", "_milliseconds", "_kilobytes"] {
                assert!(!name.contains(unit), "{name} is not in base units");
            }
            types.insert(name.to_owned(), kind.to_owned());
        } else {
            let (id, value) = line.rsplit_once(' ').unwrap();
            value.parse::<f64>().unwrap();
            assert!(series.insert(id.to_owned()), "{id} twice");
            let name = id.split('{').next().unwrap();
            let base = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|s| name.strip_suffix(s))
                .filter(|b| types.get(*b).is_some_and(|t| t == "histogram"))
                .unwrap_or(name);
            assert!(types.contains_key(base) && helps.contains(base), "{name} is not declared");
        }
    }
    assert!(types.contains_key("process_resident_memory_bytes"));
    assert!(text.contains("rdmesh_build_info{version="));
}

#[test]
fn the_same_metrics_twice_are_refused() {
    let registry = Registry::new().unwrap();
    assert!(registry.register(Box::new(ProcessCollector::new().unwrap())).is_err());
}
