//! The scenarios, in the order in which they run: the life of a release from installation to removal.
//!
//! Each answers with what it saw, in a few words.

mod lifecycle;
mod monitoring;
mod policy;
mod reach;
mod rollout;

use super::Cluster;
use anyhow::Result;

/// How a scenario's words begin when the cluster is not made for it.
pub const NOT_RUN: &str = "NOT RUN";

type Scenario = fn(&Cluster) -> Result<String>;

pub const ALL: &[(&str, Scenario)] = &[
    ("helm install and helm test", lifecycle::install),
    ("a namespace without the label is untouched", reach::untouched),
    ("a labelled namespace is meshed", reach::meshed),
    (
        "pod address, ClusterIP, name and headless name are reached through the mesh",
        reach::through_the_mesh,
    ),
    ("the same by the other address of dual-stack pods", reach::by_the_other_family),
    ("what is not in the mesh is reached as before", reach::outside),
    ("a Job completes", reach::job),
    ("a pod has the fabric that its annotation wants", reach::wanted_fabric),
    ("Prometheus scrapes all targets", monitoring::targets),
    ("an ingress policy denies and is lifted within a second", policy::ingress),
    ("an egress policy denies and is lifted within a second", policy::egress),
    ("a restart of all node proxies under traffic", rollout::restart),
    ("a node proxy that is killed under traffic", rollout::killed),
    ("the injectors are restarted while pods are made", rollout::injectors),
    ("every query of the dashboard returns data, and no rule is broken", monitoring::dashboard),
    ("helm upgrade under traffic", lifecycle::upgrade),
    ("helm uninstall leaves nothing", lifecycle::uninstall),
];
