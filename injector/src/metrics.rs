//! What the injector counts. Every series exists from the start, so that a zero can be seen.
//!
//! What it does not do: serve them.

use crate::review::Outcome;
use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts};
use std::time::Duration;

/// From what a cached answer takes to what an API server waits for.
const BOUNDS: [f64; 11] =
    [0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0];

/// Clones share the counters.
#[derive(Debug, Clone)]
pub struct Metrics {
    admissions: IntCounterVec,
    seconds: Histogram,
    authority_failures: IntCounter,
}

impl Metrics {
    /// # Errors
    /// When a metric's name is not valid: a fault of this file.
    pub fn new() -> prometheus::Result<Self> {
        let opts =
            Opts::new("rdmesh_injector_admissions_total", "Pods seen, by what became of them.");
        let admissions = IntCounterVec::new(opts, &["outcome"])?;
        for outcome in Outcome::ALL {
            admissions.with_label_values(&[outcome.label()]);
        }
        let seconds = HistogramOpts::new(
            "rdmesh_injector_admission_seconds",
            "Time for an admission, from the end of its request to its answer.",
        );
        let seconds = Histogram::with_opts(seconds.buckets(BOUNDS.to_vec()))?;
        let authority_failures = IntCounter::new(
            "rdmesh_injector_authority_failures_total",
            "Looks at the certificate authority that failed.",
        )?;
        Ok(Self { admissions, seconds, authority_failures })
    }

    pub fn count(&self, outcome: Outcome, took: Duration) {
        self.admissions.with_label_values(&[outcome.label()]).inc();
        self.seconds.observe(took.as_secs_f64());
    }

    pub fn authority_failed(&self) {
        self.authority_failures.inc();
    }

    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.admissions.clone()),
            Box::new(self.seconds.clone()),
            Box::new(self.authority_failures.clone()),
        ]
    }
}
