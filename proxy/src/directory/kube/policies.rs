//! NetworkPolicy objects in the form that they are evaluated in.
//!
//! What is not understood becomes `Unknown` at its place and is never left out: leaving out part of
//! a policy would allow or forbid what it does not.

use super::records::Names;
use crate::directory::policy::{Peer, Policy, PortMatch, Requirement, Rule, Selector};
use ipnet::IpNet;
use k8s_openapi::api::networking::v1::{
    IPBlock, NetworkPolicy, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use std::sync::Arc;

pub(super) fn policy(object: &NetworkPolicy, names: &mut Names) -> Policy {
    let none = NetworkPolicySpec::default();
    let spec = object.spec.as_ref().unwrap_or(&none);
    let ingress =
        spec.ingress.iter().flatten().map(|r| rule(r.from.as_ref(), r.ports.as_ref(), names));
    let mut ingress: Vec<Rule> = ingress.collect();
    let egress = spec.egress.iter().flatten().map(|r| rule(r.to.as_ref(), r.ports.as_ref(), names));
    let mut egress: Vec<Rule> = egress.collect();
    let types = spec.policy_types.as_deref().unwrap_or_default();
    let (mut of_ingress, mut of_egress) = if types.is_empty() {
        (true, !egress.is_empty())
    } else {
        (types.iter().any(|t| t == "Ingress"), types.iter().any(|t| t == "Egress"))
    };
    if types.iter().any(|t| t != "Ingress" && t != "Egress") {
        for (concerned, rules) in [(&mut of_ingress, &mut ingress), (&mut of_egress, &mut egress)] {
            *concerned = true;
            rules.push(Rule { peers: Some([Peer::Unknown].into()), ports: None });
        }
    }
    Policy {
        name: object.metadata.name.as_deref().unwrap_or_default().into(),
        namespace: names.text(object.metadata.namespace.as_deref().unwrap_or_default()),
        pods: spec.pod_selector.as_ref().map(|s| selector(s, names)).unwrap_or_default(),
        ingress: of_ingress.then(|| ingress.into()),
        egress: of_egress.then(|| egress.into()),
    }
}

fn rule(
    peers: Option<&Vec<NetworkPolicyPeer>>,
    ports: Option<&Vec<NetworkPolicyPort>>,
    names: &mut Names,
) -> Rule {
    // An empty list is as good as none, for both.
    let peers = peers.filter(|peers| !peers.is_empty());
    let ports = ports.filter(|ports| !ports.is_empty());
    Rule {
        peers: peers.map(|peers| peers.iter().map(|one| peer(one, names)).collect()),
        ports: ports.map(|ports| ports.iter().filter_map(|one| port(one, names)).collect()),
    }
}

fn peer(peer: &NetworkPolicyPeer, names: &mut Names) -> Peer {
    match (&peer.ip_block, &peer.namespace_selector, &peer.pod_selector) {
        (Some(found), None, None) => block(found).unwrap_or(Peer::Unknown),
        (Some(_), _, _) | (None, None, None) => Peer::Unknown,
        (None, namespaces, pods) => Peer::Pods {
            namespaces: namespaces.as_ref().map(|s| selector(s, names)),
            pods: pods.as_ref().map(|s| selector(s, names)).unwrap_or_default(),
        },
    }
}

fn block(block: &IPBlock) -> Option<Peer> {
    let cidr: IpNet = block.cidr.parse().ok()?;
    let except = block.except.iter().flatten().map(|net| net.parse().ok());
    Some(Peer::Block { cidr, except: except.collect::<Option<Box<[IpNet]>>>()? })
}

/// `None`: of another protocol.
fn port(port: &NetworkPolicyPort, names: &mut Names) -> Option<PortMatch> {
    match port.protocol.as_deref() {
        None | Some("TCP") => {}
        Some("UDP" | "SCTP") => return None,
        Some(_) => return Some(PortMatch::Unknown),
    }
    let number = |n: i32| u16::try_from(n).ok();
    let found = match (&port.port, port.end_port) {
        (None, None) => Some(PortMatch::Range(0, u16::MAX)),
        (Some(IntOrString::Int(first)), None) => {
            number(*first).map(|first| PortMatch::Range(first, first))
        }
        (Some(IntOrString::Int(first)), Some(last)) => {
            number(*first).zip(number(last)).map(|(first, last)| PortMatch::Range(first, last))
        }
        (Some(IntOrString::String(name)), None) => Some(PortMatch::Named(names.text(name))),
        (_, Some(_)) => None,
    };
    Some(found.unwrap_or(PortMatch::Unknown))
}

fn selector(selector: &LabelSelector, names: &mut Names) -> Selector {
    let mut all = Vec::new();
    for (key, value) in selector.match_labels.iter().flatten() {
        all.push(Requirement::Equals(names.text(key), names.text(value)));
    }
    for one in selector.match_expressions.iter().flatten() {
        all.push(requirement(one, names));
    }
    Selector(all.into())
}

fn requirement(found: &LabelSelectorRequirement, names: &mut Names) -> Requirement {
    let key = names.text(&found.key);
    let values: Box<[Arc<str>]> = found.values.iter().flatten().map(|v| names.text(v)).collect();
    match (found.operator.as_str(), values.is_empty()) {
        ("In", false) => Requirement::In(key, values),
        ("NotIn", false) => Requirement::NotIn(key, values),
        ("Exists", true) => Requirement::Exists(key),
        ("DoesNotExist", true) => Requirement::Absent(key),
        _ => Requirement::Unknown,
    }
}
