//! What the sidecar counts. Every series exists from the start, so that a zero can be seen.

use crate::handoff::{DialFailure, PassthroughReason};
use prometheus::core::Collector;
use prometheus::{IntCounterVec, IntGauge, Opts};

/// What became of a connection that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handoff {
    /// The node proxy took it.
    Taken,
    /// The node proxy sent it back before it took it.
    Passthrough,
    /// The node proxy took it and gave it back.
    Returned,
    /// A policy forbids it.
    Denied,
    /// Nobody redirected it here: someone dialled the sidecar's own port.
    Direct,
    /// Its owner cannot be told after a fault of the protocol; it was reset.
    Lost,
}

impl Handoff {
    const ALL: [Self; 6] =
        [Self::Taken, Self::Passthrough, Self::Returned, Self::Denied, Self::Direct, Self::Lost];

    fn label(self) -> &'static str {
        match self {
            Self::Taken => "taken",
            Self::Passthrough => "passthrough",
            Self::Returned => "returned",
            Self::Denied => "denied",
            Self::Direct => "direct",
            Self::Lost => "lost",
        }
    }
}

const DIAL_OPENED: &str = "opened";

/// Counters of one sidecar; clones share them.
#[derive(Debug, Clone)]
pub struct SidecarMetrics {
    passthrough: IntCounterVec,
    handoff: IntCounterVec,
    dials: IntCounterVec,
    node_connected: IntGauge,
    relays_active: IntGauge,
}

impl SidecarMetrics {
    /// # Errors
    /// When a metric's name is not valid: a fault of this file.
    pub fn new() -> prometheus::Result<Self> {
        let counter = |name: &str, help: &str, label: &str| {
            IntCounterVec::new(Opts::new(name, help), &[label])
        };
        let metrics = Self {
            passthrough: counter(
                "rdmesh_passthrough_total",
                "Connections relayed by plain TCP.",
                "reason",
            )?,
            handoff: counter(
                "rdmesh_handoff_total",
                "Redirected connections that the node proxy did not accept itself, by what became of them.",
                "outcome",
            )?,
            dials: counter(
                "rdmesh_sidecar_dials_total",
                "Sockets to the application that the node proxy asked for.",
                "outcome",
            )?,
            node_connected: IntGauge::new(
                "rdmesh_sidecar_node_connected",
                "Channels to the node proxy that are up.",
            )?,
            relays_active: IntGauge::new(
                "rdmesh_sidecar_relays_active",
                "Connections that the sidecar relays by plain TCP now.",
            )?,
        };
        for reason in PassthroughReason::ALL {
            metrics.passthrough.with_label_values(&[reason.label()]);
        }
        for outcome in Handoff::ALL {
            metrics.handoff.with_label_values(&[outcome.label()]);
        }
        metrics.dials.with_label_values(&[DIAL_OPENED]);
        for reason in DialFailure::ALL {
            metrics.dials.with_label_values(&[reason.label()]);
        }
        Ok(metrics)
    }

    /// For a registry, which shows them at `/metrics`.
    #[must_use]
    pub fn collectors(&self) -> Vec<Box<dyn Collector>> {
        vec![
            Box::new(self.passthrough.clone()),
            Box::new(self.handoff.clone()),
            Box::new(self.dials.clone()),
            Box::new(self.node_connected.clone()),
            Box::new(self.relays_active.clone()),
        ]
    }

    pub(super) fn passed_through(&self, reason: PassthroughReason) {
        self.passthrough.with_label_values(&[reason.label()]).inc();
    }

    pub(super) fn handoff(&self, outcome: Handoff) {
        self.handoff.with_label_values(&[outcome.label()]).inc();
    }

    pub(super) fn dialled(&self, outcome: Result<(), DialFailure>) {
        let label = outcome.err().map_or(DIAL_OPENED, DialFailure::label);
        self.dials.with_label_values(&[label]).inc();
    }

    /// Counts a channel to the node proxy as up until the guard goes.
    pub(super) fn node_connected(&self) -> GaugeGuard {
        GaugeGuard::new(&self.node_connected)
    }

    /// Counts a relay until the guard goes.
    pub(super) fn relay(&self) -> GaugeGuard {
        GaugeGuard::new(&self.relays_active)
    }

    #[cfg(test)]
    pub(super) fn count(&self, name: &str, label: &str) -> u64 {
        let family = match name {
            "passthrough" => &self.passthrough,
            "handoff" => &self.handoff,
            _ => &self.dials,
        };
        family.with_label_values(&[label]).get()
    }
}

pub(super) struct GaugeGuard(IntGauge);

impl GaugeGuard {
    fn new(gauge: &IntGauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for GaugeGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_series_is_there_from_the_start() {
        let metrics = SidecarMetrics::new().unwrap();
        let registry = prometheus::Registry::new();
        for collector in metrics.collectors() {
            registry.register(collector).unwrap();
        }
        metrics.passed_through(PassthroughReason::NodeAway);
        metrics.dialled(Err(DialFailure::Refused));
        let guard = metrics.relay();
        let text = prometheus::TextEncoder::new().encode_to_string(&registry.gather()).unwrap();
        for line in [
            "rdmesh_passthrough_total{reason=\"node_proxy_away\"} 1",
            "rdmesh_passthrough_total{reason=\"outside_mesh\"} 0",
            "rdmesh_handoff_total{outcome=\"taken\"} 0",
            "rdmesh_sidecar_dials_total{outcome=\"refused\"} 1",
            "rdmesh_sidecar_dials_total{outcome=\"opened\"} 0",
            "rdmesh_sidecar_node_connected 0",
            "rdmesh_sidecar_relays_active 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        drop(guard);
        assert_eq!(metrics.relays_active.get(), 0);
    }
}
