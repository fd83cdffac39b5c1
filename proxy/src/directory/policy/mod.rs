//! NetworkPolicy as the node proxy enforces it: tunnelled traffic never meets the CNI, so what the
//! CNI would have refused is refused here.
//!
//! Pure: policies, labels and addresses go in, a [`Verdict`] comes out. What it does not do: know
//! Kubernetes' objects or the directory file (their rooms translate), look at the clock, or decide
//! what follows from a verdict. Something that it cannot judge is [`Verdict::Unknown`], which the
//! callers take for «not through the mesh»: the CNI judges then.

mod rule;
mod selector;
mod table;

pub use rule::{Peer, PortMatch, Rule};
pub use selector::{Requirement, Selector};
pub use table::PolicyTable;

use std::net::IpAddr;
use std::sync::Arc;

/// What the policies of one pod say about a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Allow,
    Deny,
    /// Some policy that bears on it cannot be evaluated.
    Unknown,
}

/// True, false, or not to be told (Kleene's logic).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Match {
    Yes,
    No,
    Unknown,
}

impl Match {
    fn and(self, other: impl FnOnce() -> Self) -> Self {
        match self {
            Self::No => Self::No,
            Self::Yes => other(),
            Self::Unknown if other() == Self::No => Self::No,
            Self::Unknown => Self::Unknown,
        }
    }

    /// Whether one of them matches.
    fn any(all: impl Iterator<Item = Self>) -> Self {
        let mut found = Self::No;
        for one in all {
            match one {
                Self::Yes => return Self::Yes,
                Self::Unknown => found = Self::Unknown,
                Self::No => {}
            }
        }
        found
    }
}

impl From<bool> for Match {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No }
    }
}

/// Labels of a pod or namespace.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Labels(Box<[(Arc<str>, Arc<str>)]>);

impl Labels {
    #[must_use]
    pub fn new(mut labels: Vec<(Arc<str>, Arc<str>)>) -> Self {
        labels.sort_unstable();
        labels.dedup_by(|a, b| a.0 == b.0);
        Self(labels.into())
    }

    fn get(&self, key: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(known, _)| (**known).cmp(key)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }
}

/// What policies can see of a pod, besides its addresses. Pods of one workload share it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Subject {
    pub namespace: Arc<str>,
    pub labels: Labels,
    /// Ports of its containers that have a name.
    pub ports: Box<[(Arc<str>, u16)]>,
}

/// A policy that bears on pods of its own namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    /// Which pods it isolates.
    pub pods: Selector,
    /// `None`: it says nothing about this direction. Empty: nothing is allowed.
    pub ingress: Option<Box<[Rule]>>,
    pub egress: Option<Box<[Rule]>>,
}

/// The far end of a connection, as the rules see it.
#[derive(Debug, Clone, Copy)]
pub struct End<'a> {
    /// `None`: the address belongs to no pod that is known.
    pub subject: Option<&'a Subject>,
    pub address: IpAddr,
}

#[cfg(test)]
mod tests;
