//! All policies, prepared for the pods of this node: a connection meets only those that bear on it.

use super::{End, Labels, Match, Policy, Rule, Subject, Verdict};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// The policies of one direction that bear on one pod.
#[derive(Debug, Default)]
struct Side {
    policies: Vec<Arc<Policy>>,
    /// A policy may bear on the pod besides; whether it does cannot be told.
    uncertain: bool,
}

#[derive(Debug, Default)]
struct Isolation {
    ingress: Side,
    egress: Side,
}

/// See the module.
#[derive(Debug, Default)]
pub struct PolicyTable {
    namespaces: HashMap<Arc<str>, Labels>,
    /// By uid; only pods that some policy bears on.
    isolated: HashMap<Arc<str>, Isolation>,
}

impl PolicyTable {
    /// `pods` are those of this node, with their uids.
    pub fn build<'a>(
        policies: impl IntoIterator<Item = Arc<Policy>>,
        namespaces: HashMap<Arc<str>, Labels>,
        pods: impl IntoIterator<Item = (&'a Arc<str>, &'a Subject)>,
    ) -> Self {
        let mut by_namespace: HashMap<Arc<str>, Vec<Arc<Policy>>> = HashMap::new();
        for policy in policies {
            by_namespace.entry(policy.namespace.clone()).or_default().push(policy);
        }
        let mut isolated = HashMap::new();
        for (uid, subject) in pods {
            let Some(policies) = by_namespace.get(&subject.namespace) else { continue };
            let isolation = Isolation::of(subject, policies);
            if isolation.ingress.bears() || isolation.egress.bears() {
                isolated.insert(uid.clone(), isolation);
            }
        }
        Self { namespaces, isolated }
    }

    /// Whether the pod `uid` of this node may connect to `other`. The ports with names are those
    /// of `other`.
    #[must_use]
    pub fn egress(&self, uid: &str, other: End<'_>, port: u16) -> Verdict {
        let Some(isolation) = self.isolated.get(uid) else { return Verdict::Allow };
        let named = other.subject.map(|subject| &*subject.ports);
        self.judge(&isolation.egress, |policy| policy.egress.as_deref(), other, named, port)
    }

    /// Whether `other` may connect to the pod `uid` of this node.
    #[must_use]
    pub fn ingress(&self, uid: &str, own: &Subject, other: End<'_>, port: u16) -> Verdict {
        let Some(isolation) = self.isolated.get(uid) else { return Verdict::Allow };
        let named = Some(&*own.ports);
        self.judge(&isolation.ingress, |policy| policy.ingress.as_deref(), other, named, port)
    }

    fn judge<'a>(
        &'a self,
        side: &'a Side,
        rules: impl Fn(&'a Policy) -> Option<&'a [Rule]>,
        other: End<'a>,
        named: Option<&[(Arc<str>, u16)]>,
        port: u16,
    ) -> Verdict {
        if !side.bears() {
            return Verdict::Allow;
        }
        let namespaces = |name: &str| self.namespaces.get(name);
        let found = Match::any(side.policies.iter().flat_map(|policy| {
            rules(policy)
                .unwrap_or_default()
                .iter()
                .map(|rule| rule.admits(&policy.namespace, other, named, port, &namespaces))
        }));
        match found {
            // Policies add up: what one of them allows is allowed.
            Match::Yes => Verdict::Allow,
            Match::Unknown => Verdict::Unknown,
            Match::No if side.uncertain => Verdict::Unknown,
            Match::No => Verdict::Deny,
        }
    }

    /// The other end of a connection, for [`Self::egress`] and [`Self::ingress`].
    #[must_use]
    pub fn end(subject: Option<&Subject>, address: IpAddr) -> End<'_> {
        End { subject, address }
    }

    /// Pods of this node that some policy bears on.
    #[must_use]
    pub fn isolated_len(&self) -> usize {
        self.isolated.len()
    }
}

impl Isolation {
    fn of(subject: &Subject, policies: &[Arc<Policy>]) -> Self {
        let mut isolation = Self::default();
        for policy in policies {
            let selected = policy.pods.matches(&subject.labels);
            let sides = [
                (policy.ingress.is_some(), &mut isolation.ingress),
                (policy.egress.is_some(), &mut isolation.egress),
            ];
            for (_, side) in sides.into_iter().filter(|(concerned, _)| *concerned) {
                match selected {
                    Match::Yes => side.policies.push(policy.clone()),
                    Match::Unknown => side.uncertain = true,
                    Match::No => {}
                }
            }
        }
        isolation
    }
}

impl Side {
    fn bears(&self) -> bool {
        self.uncertain || !self.policies.is_empty()
    }
}
