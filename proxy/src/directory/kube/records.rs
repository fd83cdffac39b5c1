//! What is kept of the cluster's objects: as little as a snapshot needs.
//!
//! What it does not do: read Kubernetes' types (`convert` does).

use crate::directory::policy::{Labels, Policy, Subject};
use crate::directory::{NodeName, Pod};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// By `namespace/name`, or `name`.
pub(super) type Table<R> = HashMap<Arc<str>, R>;

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PodRecord {
    pub uid: Arc<str>,
    pub node: NodeName,
    /// Of two pods with one address the younger has it: the other is about to be forgotten.
    pub created_seconds: i64,
    /// `None`: it has no address yet.
    pub pod: Option<Arc<Pod>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NodeRecord {
    pub address: IpAddr,
    pub zone: Option<Arc<str>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServiceRecord {
    pub addresses: Box<[IpAddr]>,
    /// TCP ports; the name is what endpoint slices know them by.
    pub ports: Box<[(u16, Arc<str>)]>,
    /// Session affinity by the client's address.
    pub sticky: bool,
    /// `internalTrafficPolicy: Local`.
    pub local_only: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct SliceRecord {
    pub service: Arc<str>,
    pub is_v6: bool,
    /// TCP ports. The name is empty where there is none.
    pub ports: Box<[(Arc<str>, u16)]>,
    pub endpoints: Box<[EndpointRecord]>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EndpointRecord {
    pub address: IpAddr,
    pub ready: bool,
    /// Would be ready, were it not terminating.
    pub serving_last: bool,
    pub node: Option<Arc<str>>,
    pub for_zones: Box<[Arc<str>]>,
    pub for_nodes: Box<[Arc<str>]>,
}

/// One for each watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Pods,
    Nodes,
    Services,
    Slices,
    Namespaces,
    Policies,
}

impl Kind {
    const COUNT: usize = 6;
}

#[derive(Debug, Default)]
pub(super) struct Records {
    pub names: Names,
    pub pods: Table<PodRecord>,
    pub nodes: Table<NodeRecord>,
    pub services: Table<ServiceRecord>,
    pub slices: Table<SliceRecord>,
    pub namespaces: Table<Labels>,
    pub policies: Table<Arc<Policy>>,
    listed: [bool; Kind::COUNT],
}

impl Records {
    /// True the first time.
    pub fn set_listed(&mut self, kind: Kind) -> bool {
        !std::mem::replace(&mut self.listed[kind as usize], true)
    }

    /// Whether each kind was listed at least once: before, a snapshot would be half of one.
    pub fn synced(&self) -> bool {
        self.listed.iter().all(|listed| *listed)
    }
}

/// Equal texts and subjects are kept once.
#[derive(Debug, Default)]
pub(super) struct Names {
    texts: HashSet<Arc<str>>,
    subjects: HashSet<Arc<Subject>>,
    /// Where forgotten ones are dropped next.
    sweep_at: usize,
}

impl Names {
    const SWEEP_MIN: usize = 4096;

    pub fn text(&mut self, text: &str) -> Arc<str> {
        if let Some(known) = self.texts.get(text) {
            return known.clone();
        }
        self.sweep();
        let new: Arc<str> = text.into();
        self.texts.insert(new.clone());
        new
    }

    pub fn subject(&mut self, subject: Subject) -> Arc<Subject> {
        if let Some(known) = self.subjects.get(&subject) {
            return known.clone();
        }
        self.sweep();
        let new = Arc::new(subject);
        self.subjects.insert(new.clone());
        new
    }

    fn sweep(&mut self) {
        if self.texts.len() + self.subjects.len() < self.sweep_at.max(Self::SWEEP_MIN) {
            return;
        }
        // Subjects first: they hold texts.
        self.subjects.retain(|subject| Arc::strong_count(subject) > 1);
        self.texts.retain(|text| Arc::strong_count(text) > 1);
        self.sweep_at = 2 * (self.texts.len() + self.subjects.len());
    }
}

/// The records, shared by the watches and by who makes snapshots of them.
#[derive(Debug)]
pub(super) struct Store {
    records: Mutex<Records>,
    pub changed: Notify,
}

impl Store {
    pub fn new() -> Self {
        Self { records: Mutex::new(Records::default()), changed: Notify::new() }
    }

    pub fn lock(&self) -> MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
