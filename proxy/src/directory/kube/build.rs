//! A snapshot of the records.
//!
//! A cluster is never quite consistent: a pod whose node is not known yet, or whose address a newer
//! pod has, is left out and reached without the mesh until the contradiction is gone.

use super::records::{PodRecord, Records, SliceRecord};
use super::services::{self, Place};
use crate::directory::snapshot::{Assembly, NodeInfo, NodeName, Snapshot};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

pub(super) fn snapshot(records: &Records, me: &str, listen: SocketAddr) -> Snapshot {
    let nodes = nodes(records, me, listen);
    // The name as the records have it: comparing equal names is faster when they are the same.
    let me = nodes.get(me).map_or_else(|| NodeName::from(me), |node| node.name.clone());
    let seed = super::super::random_seed();
    let mut assembly = Assembly::new(me.clone(), nodes, records.pods.len(), seed);
    let waiting = add_pods(&mut assembly, records, &me);
    assembly.waiting(waiting);
    add_services(&mut assembly, records, &me);
    assembly.finish(records.policies.values().cloned(), records.namespaces.clone())
}

fn nodes(records: &Records, me: &str, listen: SocketAddr) -> HashMap<Arc<str>, NodeInfo> {
    let mut nodes: HashMap<Arc<str>, NodeInfo> = records
        .nodes
        .iter()
        .map(|(name, node)| {
            let address = SocketAddr::new(node.address, listen.port());
            (name.clone(), NodeInfo { name: NodeName::from(name.clone()), address })
        })
        .collect();
    let own: Arc<str> = me.into();
    nodes
        .entry(own.clone())
        .or_insert_with(|| NodeInfo { name: NodeName::from(own), address: listen });
    nodes
}

/// Gives the uids of pods of this node that could not be taken.
fn add_pods(assembly: &mut Assembly, records: &Records, me: &NodeName) -> Vec<Arc<str>> {
    let mut left_out: Vec<&PodRecord> = Vec::new();
    let mut usable: Vec<&PodRecord> = Vec::with_capacity(records.pods.len());
    for record in records.pods.values() {
        let known = record.node == *me || records.nodes.contains_key(&*record.node);
        if known && record.pod.is_some() {
            usable.push(record);
        } else {
            left_out.push(record);
        }
    }
    // The youngest first: of two with one address it is the one that lives.
    usable.sort_unstable_by(|a, b| {
        b.created_seconds.cmp(&a.created_seconds).then_with(|| a.uid.cmp(&b.uid))
    });
    for record in usable {
        let Some(pod) = &record.pod else { continue };
        if let Err(address) = assembly.pod(pod.clone()) {
            tracing::debug!(pod = &*pod.name, %address, "another pod has the address; left out");
            left_out.push(record);
        }
    }
    left_out.iter().filter(|record| record.node == *me).map(|record| record.uid.clone()).collect()
}

fn add_services(assembly: &mut Assembly, records: &Records, me: &str) {
    let mut slices: HashMap<&str, Vec<&SliceRecord>> = HashMap::with_capacity(records.slices.len());
    for slice in records.slices.values() {
        slices.entry(&slice.service).or_default().push(slice);
    }
    let zone = records.nodes.get(me).and_then(|node| node.zone.as_deref());
    let place = Place { node: me, zone };
    for (name, service) in &records.services {
        let slices = slices.get(&**name).map(Vec::as_slice).unwrap_or_default();
        for (number, port) in &service.ports {
            for is_v6 in [false, true] {
                let mut addresses = service
                    .addresses
                    .iter()
                    .filter(|address| address.is_ipv6() == is_v6)
                    .peekable();
                if addresses.peek().is_none() {
                    continue;
                }
                let endpoints = services::endpoints(service, port, is_v6, slices, place);
                let targets = assembly.targets(endpoints.into_iter(), service.sticky);
                for address in addresses {
                    let at = SocketAddr::new(*address, *number);
                    if let Err(taken) = assembly.service(at, &targets) {
                        tracing::debug!(service = &**name, %at, ?taken, "service left out");
                    }
                }
            }
        }
    }
}
