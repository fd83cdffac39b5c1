//! Which endpoints of a service are in use, as kube-proxy chooses them.
//!
//! What it does not do: choose one for a connection.

use super::records::{EndpointRecord, ServiceRecord, SliceRecord};
use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};

/// Where this node is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place<'a> {
    pub node: &'a str,
    pub zone: Option<&'a str>,
}

/// The endpoints in use of one port of a service, of one address family.
pub(super) fn endpoints(
    service: &ServiceRecord,
    port: &str,
    is_v6: bool,
    slices: &[&SliceRecord],
    place: Place<'_>,
) -> Vec<SocketAddr> {
    let mut seen: HashSet<(IpAddr, u16)> = HashSet::new();
    let mut all: Vec<(&EndpointRecord, u16)> = Vec::new();
    for slice in slices.iter().filter(|slice| slice.is_v6 == is_v6) {
        let numbers = slice.ports.iter().filter(|(name, _)| **name == *port);
        for (_, number) in numbers {
            // An endpoint may be in two slices for a moment.
            let fresh = slice.endpoints.iter().filter(|e| seen.insert((e.address, *number)));
            all.extend(fresh.map(|endpoint| (endpoint, *number)));
        }
    }
    let near = |endpoint: &EndpointRecord| endpoint.node.as_deref() == Some(place.node);
    if service.local_only {
        all.retain(|(endpoint, _)| near(endpoint));
    }
    let ready: Vec<(&EndpointRecord, u16)> =
        all.iter().filter(|(endpoint, _)| endpoint.ready).copied().collect();
    let mut used = if service.local_only { ready } else { by_hints(ready, place) };
    if used.is_empty() {
        // Better one that is about to end than none.
        used = all.into_iter().filter(|(endpoint, _)| endpoint.serving_last).collect();
    }
    used.into_iter().map(|(endpoint, port)| SocketAddr::new(endpoint.address, port)).collect()
}

/// Hints count only when every endpoint has one, and one is for this place.
fn by_hints<'a>(
    ready: Vec<(&'a EndpointRecord, u16)>,
    place: Place<'_>,
) -> Vec<(&'a EndpointRecord, u16)> {
    let for_node = |e: &EndpointRecord| e.for_nodes.iter().any(|node| **node == *place.node);
    let for_zone =
        |e: &EndpointRecord| place.zone.is_some_and(|z| e.for_zones.iter().any(|n| **n == *z));
    let all_hint_nodes = ready.iter().all(|(e, _)| !e.for_nodes.is_empty());
    let all_hint_zones = ready.iter().all(|(e, _)| !e.for_zones.is_empty());
    if all_hint_nodes && ready.iter().any(|(e, _)| for_node(e)) {
        ready.into_iter().filter(|(e, _)| for_node(e)).collect()
    } else if all_hint_zones && ready.iter().any(|(e, _)| for_zone(e)) {
        ready.into_iter().filter(|(e, _)| for_zone(e)).collect()
    } else {
        ready
    }
}
