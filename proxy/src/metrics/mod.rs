//! Metrics: counters that the data path can afford, and their text form for Prometheus.
//!
//! A worker writes its own [`WorkerMetrics`], the control side writes [`NodeMetrics`]; they meet at
//! scrape. What this room does not do: know any other room, serve HTTP, or build a label value from
//! foreign input.

mod collector;
mod control;
mod family;
mod labels;
mod process;
mod worker;

pub use control::NodeMetrics;
pub use labels::{
    CompletionStatus, Direction, FabricKind, FailoverReason, HandoffOutcome, Outcome,
    PassthroughReason, PeerRejected, PolicyDirection, ReloadOutcome, Role, SlabState,
};
pub use worker::WorkerMetrics;

use family::{Family, Kind, Sample};
use prometheus::TextEncoder;
use prometheus::core::{Collector, Desc};
use prometheus::proto::MetricFamily;
use std::sync::Arc;
use std::time::SystemTime;

/// What `/metrics` answers with.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, thiserror::Error)]
#[error("metric cannot be registered or shown (a defect of this program, please report it)")]
pub struct Error(#[from] prometheus::Error);

/// All metrics of a process.
#[derive(Debug, Clone, Default)]
pub struct Registry(prometheus::Registry);

impl Registry {
    /// A registry with the build's and the process's own metrics.
    ///
    /// # Errors
    /// When a metric's name is not valid or there twice.
    pub fn new() -> Result<Self, Error> {
        let registry = Self::default();
        registry.register(Box::new(ProcessCollector::new()?))?;
        Ok(registry)
    }

    /// The registry of a node proxy.
    ///
    /// # Errors
    /// When a metric's name is not valid or there twice.
    pub fn for_node(
        node: Arc<NodeMetrics>,
        workers: Vec<Arc<WorkerMetrics>>,
    ) -> Result<Self, Error> {
        let registry = Self::new()?;
        registry.register(Box::new(collector::NodeCollector::new(node, workers)?))?;
        Ok(registry)
    }

    /// Adds metrics of another kind, as the sidecar's.
    ///
    /// # Errors
    /// When a metric's name is not valid or there already.
    pub fn register(&self, collector: Box<dyn Collector>) -> Result<(), Error> {
        Ok(self.0.register(collector)?)
    }

    /// The text format.
    ///
    /// # Errors
    /// When a metric cannot be shown.
    pub fn render(&self) -> Result<String, Error> {
        Ok(TextEncoder::new().encode_to_string(&self.0.gather())?)
    }
}

const BUILD_INFO: Family = Family {
    name: "rdmesh_build_info",
    help: "Always 1; the version is in the label.",
    kind: Kind::Gauge,
    labels: &["version"],
};

#[derive(Debug)]
struct ProcessCollector {
    started: SystemTime,
    descs: Vec<Desc>,
}

impl ProcessCollector {
    fn new() -> Result<Self, Error> {
        let families = process::FAMILIES.iter().chain([&BUILD_INFO]);
        let descs = families.map(Family::desc).collect::<Result<_, _>>()?;
        Ok(Self { started: SystemTime::now(), descs })
    }
}

impl Collector for ProcessCollector {
    fn desc(&self) -> Vec<&Desc> {
        self.descs.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let build = Sample::new(&[env!("CARGO_PKG_VERSION")], 1.0);
        let process = process::FAMILIES.iter().zip(process::sample(self.started));
        process
            .map(|(family, sample)| family.collect(sample))
            .chain([BUILD_INFO.collect([build])])
            .collect()
    }
}

#[cfg(test)]
mod tests;
