//! Whether the directory file's policies make sense: nothing in them may mean less than it says.
//!
//! What it does not do: judge connections; the proxy's directory does.

use crate::load::{Finding, finding};
use crate::schema::{LabelOperator, PolicyEntry, PolicyPeer, PolicyPort, PolicyRule, Selector};
use crate::tree::{Step, shorten};
use std::collections::HashSet;

/// Each fault is told, but not without end.
const FOUND_MAX: usize = crate::fault::FAULTS_MAX + 1;

pub(crate) fn check(policies: &[PolicyEntry]) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut names = HashSet::new();
    for (at, policy) in policies.iter().enumerate() {
        let path = path(&[], ["policies".into(), at.into()]);
        if policy.name.is_empty() || !names.insert((&policy.namespace, &policy.name)) {
            let problem = format!(
                "{}: each policy of a namespace needs a name of its own",
                shorten(&policy.name)
            );
            found.push(finding(below(&path, "name"), problem));
        }
        if policy.ingress.is_none() && policy.egress.is_none() {
            let problem = "allows and forbids nothing: give it ingress, egress or both \
                           (an empty list forbids all)";
            found.push(finding(path.clone(), problem));
        }
        selector(&below(&path, "pods"), &policy.pods, &mut found);
        for (key, rules) in [("ingress", &policy.ingress), ("egress", &policy.egress)] {
            for (index, one) in rules.iter().flatten().enumerate() {
                rule(&self::path(&path, [key.into(), index.into()]), one, &mut found);
            }
        }
        if found.len() >= FOUND_MAX {
            break;
        }
    }
    found
}

fn path<const N: usize>(before: &[Step], more: [Step; N]) -> Vec<Step> {
    before.iter().cloned().chain(more).collect()
}

fn below(before: &[Step], key: &'static str) -> Vec<Step> {
    path(before, [key.into()])
}

fn rule(at: &[Step], rule: &PolicyRule, found: &mut Vec<Finding>) {
    for (index, one) in rule.peers.iter().flatten().enumerate() {
        peer(&path(at, ["peers".into(), index.into()]), one, found);
    }
    for (index, one) in rule.ports.iter().flatten().enumerate() {
        port(&path(at, ["ports".into(), index.into()]), one, found);
    }
}

fn peer(at: &[Step], peer: &PolicyPeer, found: &mut Vec<Finding>) {
    let is_pods = peer.namespaces.is_some() || peer.pods.is_some();
    if is_pods == peer.cidr.is_some() {
        let problem = "must be either pods (`namespaces`, `pods` or both) or a `cidr`";
        found.push(finding(at.to_vec(), problem));
    }
    if let Some(namespaces) = &peer.namespaces {
        selector(&below(at, "namespaces"), namespaces, found);
    }
    if let Some(pods) = &peer.pods {
        selector(&below(at, "pods"), pods, found);
    }
    for (index, except) in peer.except.iter().enumerate() {
        if peer.cidr.is_none_or(|cidr| !cidr.contains(except)) {
            let problem = "is not within the `cidr` that it is an exception of";
            found.push(finding(path(at, ["except".into(), index.into()]), problem));
        }
    }
}

fn port(at: &[Step], port: &PolicyPort, found: &mut Vec<Finding>) {
    let problem = match (port.port, port.end_port, &port.name) {
        (Some(0), _, _) => "the port must be 1..=65535",
        (Some(first), Some(last), None) if last < first => "end_port must not be less than port",
        (Some(_), _, None) | (None, None, Some(_)) => return,
        _ => "must be a `port`, a `port` with an `end_port`, or a `name`",
    };
    found.push(finding(at.to_vec(), problem));
}

fn selector(at: &[Step], selector: &Selector, found: &mut Vec<Finding>) {
    for (index, expression) in selector.match_expressions.iter().enumerate() {
        let needs_values = matches!(expression.operator, LabelOperator::In | LabelOperator::NotIn);
        if needs_values == expression.values.is_empty() {
            let problem = if needs_values { "needs `values`" } else { "takes no `values`" };
            found.push(finding(path(at, ["match_expressions".into(), index.into()]), problem));
        }
    }
}
