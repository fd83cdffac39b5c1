//! From Kubernetes' objects to records. Pure; what cannot be used gives `None`.

use super::records::{
    EndpointRecord, Kind, Names, NodeRecord, PodRecord, Records, ServiceRecord, SliceRecord, Table,
};
use super::{policies, watch::Watched};
use crate::directory::from_file::is_foul;
use crate::directory::policy::{Labels, Policy, Subject};
use crate::directory::{Pod, uid_is_safe};
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use rdmesh_config::Fabric;
use serde::Deserialize;
use serde::de::{IntoDeserializer, value::StrDeserializer};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

const EXCLUDE_INBOUND_PORTS: &str = "rdmesh.io/exclude-inbound-ports";
const FABRIC: &str = "rdmesh.io/fabric";
const ZONE: &str = "topology.kubernetes.io/zone";
const SERVICE_NAME: &str = "kubernetes.io/service-name";

impl Watched for core::Pod {
    type Record = PodRecord;
    const KIND: Kind = Kind::Pods;
    const LABELS: Option<&'static str> = Some("rdmesh.io/injected=true");
    const FIELDS: Option<&'static str> = Some("status.phase!=Succeeded,status.phase!=Failed");

    fn table(records: &mut Records) -> &mut Table<PodRecord> {
        &mut records.pods
    }

    fn record(&self, names: &mut Names) -> Option<PodRecord> {
        let spec = self.spec.as_ref()?;
        let status = self.status.as_ref();
        let ended = matches!(
            status.and_then(|status| status.phase.as_deref()),
            Some("Succeeded" | "Failed")
        );
        let uid = self.metadata.uid.as_deref().filter(|uid| uid_is_safe(uid))?;
        // A pod of the host network has the node's address, and its traffic is not captured.
        if ended || spec.host_network == Some(true) {
            return None;
        }
        let node = spec.node_name.as_deref()?.to_owned();
        let node = crate::directory::NodeName::from(names.text(&node));
        let uid: Arc<str> = uid.into();
        let created = self.metadata.creation_timestamp.as_ref();
        let addresses = pod_addresses(status);
        let pod = (!addresses.is_empty()).then(|| {
            Arc::new(Pod {
                name: full_name(&self.metadata).into(),
                uid: uid.clone(),
                node: node.clone(),
                addresses: addresses.into(),
                exclude_inbound_ports: excluded_ports(&self.metadata),
                fabric: fabric(&self.metadata),
                subject: subject(self, names),
            })
        });
        let created_seconds = created.map_or(0, |time| time.0.as_second());
        Some(PodRecord { uid, node, created_seconds, pod })
    }
}

pub(super) fn full_name(metadata: &kube::api::ObjectMeta) -> String {
    let name = metadata.name.as_deref().unwrap_or_default();
    format!("{}/{name}", metadata.namespace.as_deref().unwrap_or_default())
}

fn pod_addresses(status: Option<&core::PodStatus>) -> Vec<IpAddr> {
    let Some(status) = status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str());
    let mut addresses = Vec::new();
    for address in listed.chain(status.pod_ip.as_deref()) {
        if let Ok(address) = address.parse::<IpAddr>()
            && !is_foul(address)
            && !addresses.contains(&address.to_canonical())
        {
            addresses.push(address.to_canonical());
        }
    }
    addresses
}

/// Ports and ranges (`8080,9000-9010`). The injector refuses what is wrong; here it is left out.
fn excluded_ports(metadata: &kube::api::ObjectMeta) -> Box<[u16]> {
    let text = metadata.annotations.as_ref().and_then(|all| all.get(EXCLUDE_INBOUND_PORTS));
    let mut ports = Vec::new();
    for part in text.map(String::as_str).unwrap_or_default().split(',').map(str::trim) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        if let (Ok(first), Ok(last)) = (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
            ports.extend(first..=last);
        }
    }
    ports.sort_unstable();
    ports.dedup();
    ports.into()
}

/// The injector refuses other words; here they are `auto`.
fn fabric(metadata: &kube::api::ObjectMeta) -> Fabric {
    let text = metadata.annotations.as_ref().and_then(|all| all.get(FABRIC));
    let word: StrDeserializer<'_, serde::de::value::Error> =
        text.map(String::as_str).unwrap_or_default().trim().into_deserializer();
    Fabric::deserialize(word).unwrap_or_default()
}

fn subject(pod: &core::Pod, names: &mut Names) -> Arc<Subject> {
    let labels = labels(pod.metadata.labels.as_ref(), names);
    let namespace = names.text(pod.metadata.namespace.as_deref().unwrap_or_default());
    let spec = pod.spec.as_ref();
    // Native sidecars are init containers, and may have ports too.
    let containers = spec
        .into_iter()
        .flat_map(|s| s.containers.iter().chain(s.init_containers.iter().flatten()));
    let mut ports = Vec::new();
    for port in containers.flat_map(|container| container.ports.iter().flatten()) {
        let is_tcp = port.protocol.as_deref().is_none_or(|protocol| protocol == "TCP");
        if let (true, Some(name), Ok(number)) =
            (is_tcp, &port.name, u16::try_from(port.container_port))
        {
            ports.push((names.text(name), number));
        }
    }
    names.subject(Subject { namespace, labels, ports: ports.into() })
}

pub(super) fn labels(labels: Option<&BTreeMap<String, String>>, names: &mut Names) -> Labels {
    let labels = labels.into_iter().flatten();
    Labels::new(labels.map(|(key, value)| (names.text(key), names.text(value))).collect())
}

impl Watched for core::Node {
    type Record = NodeRecord;
    const KIND: Kind = Kind::Nodes;

    fn table(records: &mut Records) -> &mut Table<NodeRecord> {
        &mut records.nodes
    }

    fn record(&self, names: &mut Names) -> Option<NodeRecord> {
        let listed = self.status.as_ref()?.addresses.as_deref().unwrap_or_default();
        let of = |kind: &str| {
            listed.iter().filter(|a| a.type_ == kind).find_map(|a| a.address.parse::<IpAddr>().ok())
        };
        let address = of("InternalIP").or_else(|| of("ExternalIP"))?;
        let zone = self.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE));
        Some(NodeRecord { address, zone: zone.map(|zone| names.text(zone)) })
    }
}

impl Watched for core::Service {
    type Record = ServiceRecord;
    const KIND: Kind = Kind::Services;
    // As kube-proxy asks for them: what has a proxy of its own, or no address, is not for us.
    const LABELS: Option<&'static str> =
        Some("!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless");

    fn table(records: &mut Records) -> &mut Table<ServiceRecord> {
        &mut records.services
    }

    fn record(&self, names: &mut Names) -> Option<ServiceRecord> {
        let spec = self.spec.as_ref()?;
        if spec.type_.as_deref() == Some("ExternalName") {
            return None;
        }
        let listed = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in listed.filter_map(|address| address.parse().ok()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        // Headless: its clients connect to the pods.
        if addresses.is_empty() {
            return None;
        }
        let ports = spec.ports.iter().flatten();
        let ports = ports.filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"));
        let ports = ports.filter_map(|port| {
            let name = names.text(port.name.as_deref().unwrap_or_default());
            Some((u16::try_from(port.port).ok()?, name))
        });
        Some(ServiceRecord {
            addresses: addresses.into(),
            ports: ports.collect(),
            sticky: spec.session_affinity.as_deref() == Some("ClientIP"),
            local_only: spec.internal_traffic_policy.as_deref() == Some("Local"),
        })
    }
}

impl Watched for EndpointSlice {
    type Record = SliceRecord;
    const KIND: Kind = Kind::Slices;
    const LABELS: Option<&'static str> =
        Some("!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless");

    fn table(records: &mut Records) -> &mut Table<SliceRecord> {
        &mut records.slices
    }

    fn record(&self, names: &mut Names) -> Option<SliceRecord> {
        let is_v6 = match self.address_type.as_str() {
            "IPv4" => false,
            "IPv6" => true,
            _ => return None,
        };
        let service = self.metadata.labels.as_ref()?.get(SERVICE_NAME)?;
        let namespace = self.metadata.namespace.as_deref().unwrap_or_default();
        let service = names.text(&format!("{namespace}/{service}"));
        let ports = self.ports.iter().flatten();
        let ports = ports.filter(|port| port.protocol.as_deref().is_none_or(|p| p == "TCP"));
        let ports = ports.filter_map(|port| {
            let name = names.text(port.name.as_deref().unwrap_or_default());
            Some((name, u16::try_from(port.port?).ok()?))
        });
        let ports = ports.collect();
        let listed = self.endpoints.iter().flatten();
        let endpoints = listed.filter_map(|endpoint| self::endpoint(endpoint, names)).collect();
        Some(SliceRecord { service, is_v6, ports, endpoints })
    }
}

fn endpoint(endpoint: &Endpoint, names: &mut Names) -> Option<EndpointRecord> {
    // All addresses of an endpoint are the same to kube-proxy, which takes the first.
    let address = endpoint.addresses.first()?.parse().ok()?;
    let conditions = endpoint.conditions.as_ref();
    let condition =
        |get: fn(&_) -> Option<bool>, default| conditions.and_then(get).unwrap_or(default);
    type Conditions = k8s_openapi::api::discovery::v1::EndpointConditions;
    let ready = condition(|c: &Conditions| c.ready, true);
    let serving = condition(|c: &Conditions| c.serving, true);
    let terminating = condition(|c: &Conditions| c.terminating, false);
    let hints = endpoint.hints.as_ref();
    let zones = hints.into_iter().flat_map(|hints| hints.for_zones.iter().flatten());
    let for_zones = zones.map(|zone| names.text(&zone.name)).collect();
    let nodes = hints.into_iter().flat_map(|hints| hints.for_nodes.iter().flatten());
    let for_nodes = nodes.map(|node| names.text(&node.name)).collect();
    Some(EndpointRecord {
        address,
        ready,
        serving_last: serving && terminating,
        node: endpoint.node_name.as_deref().map(|node| names.text(node)),
        for_zones,
        for_nodes,
    })
}

impl Watched for core::Namespace {
    type Record = Labels;
    const KIND: Kind = Kind::Namespaces;

    fn table(records: &mut Records) -> &mut Table<Labels> {
        &mut records.namespaces
    }

    fn record(&self, names: &mut Names) -> Option<Labels> {
        Some(labels(self.metadata.labels.as_ref(), names))
    }
}

impl Watched for NetworkPolicy {
    type Record = Arc<Policy>;
    const KIND: Kind = Kind::Policies;

    fn table(records: &mut Records) -> &mut Table<Arc<Policy>> {
        &mut records.policies
    }

    fn record(&self, names: &mut Names) -> Option<Arc<Policy>> {
        Some(Arc::new(policies::policy(self, names)))
    }
}
