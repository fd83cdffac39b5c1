//! The scenarios, in the order in which they run: those of one setting together, as a change of the
//! setting restarts the node proxies.

mod failover;
mod host;
mod load;
pub mod proof;
mod semantics;

use crate::config::Fabric;
use crate::guest::{Cluster, Setting};
use anyhow::Result;

pub struct Scenario {
    pub name: &'static str,
    pub fabric: Fabric,
    pub ipv6: bool,
    pub workers: u32,
    pub lane_idle_ms: Option<u64>,
    /// Whether every byte of the scenario must be on verbs, and none passes through.
    pub all_on_verbs: bool,
    /// Answers with the reason when it could not be run.
    pub run: fn(&mut Cluster) -> Result<Option<String>>,
}

impl Scenario {
    #[must_use]
    pub fn setting(&self) -> Setting {
        let mut setting = Setting::new(self.fabric);
        setting.ipv6 = self.ipv6;
        setting.workers = self.workers;
        setting.lane_idle_ms = self.lane_idle_ms;
        setting
    }
}

pub const FORCED: Fabric = Fabric::Verbs;

type Run = fn(&mut Cluster) -> Result<Option<String>>;

/// With verbs forced: tcp is no way out.
const fn forced(name: &'static str, run: Run) -> Scenario {
    let fabric = FORCED;
    Scenario { name, fabric, ipv6: false, workers: 1, lane_idle_ms: None, all_on_verbs: true, run }
}

const fn over_ipv6(name: &'static str, run: Run) -> Scenario {
    Scenario { ipv6: true, ..forced(name, run) }
}

const fn two_workers(name: &'static str, run: Run) -> Scenario {
    Scenario { workers: 2, ..forced(name, run) }
}

/// Lanes are idle soon.
const fn short_idle(name: &'static str, run: Run) -> Scenario {
    Scenario { lane_idle_ms: Some(3_000), ..forced(name, run) }
}

/// With `fabric: auto`: verbs, and tcp while there is none.
const fn auto(name: &'static str, run: Run) -> Scenario {
    Scenario { fabric: Fabric::Auto, all_on_verbs: false, ..forced(name, run) }
}

pub const ALL: &[Scenario] = &[
    forced("payloads of all sizes, both ways", semantics::payloads),
    forced("payloads between IPv6 addresses of pods", semantics::payloads_of_ipv6_pods),
    forced("writes of one byte", semantics::writes_of_one_byte),
    forced("64 MiB both ways at once", semantics::bulk),
    forced("half-close while data flows the other way", semantics::half_close),
    forced("bytes before a close arrive", semantics::bytes_before_a_close),
    forced("resets before, after and amid data", semantics::resets),
    forced("a reset reaches a writer", semantics::reset_reaches_a_writer),
    forced("both sides see the real addresses", semantics::addresses),
    forced("servers that speak first", semantics::server_first),
    forced("a closed port is a reset", semantics::closed_port),
    forced("a stopped reader stops nobody else", load::stopped_reader),
    forced("short connections leave nothing", load::churn),
    forced("1,000 streams on one queue pair", load::thousand_streams),
    forced("1 % loss of RoCE packets", failover::loss),
    over_ipv6("payloads over an IPv6 underlay", semantics::payloads),
    over_ipv6("64 MiB both ways over an IPv6 underlay", semantics::bulk),
    two_workers("1,000 streams on two queue pairs of two workers", load::thousand_streams),
    short_idle("an idle lane gives its queue pair back", load::idle_lane),
    auto("pods have the fabric that they want", semantics::wishes),
    auto("the RDMA device is removed amid 64 MiB", failover::device_removed),
    auto("the interface is down for 2 s amid 64 MiB", failover::interface_down),
    auto("the queue pair fails amid 64 MiB", failover::queue_pair_error),
    auto("the devices of one machine, as with RDMA=host", host::on_one_machine),
    auto("a node proxy is killed", failover::node_killed),
    auto("restarts leak nothing", failover::restarts),
];
