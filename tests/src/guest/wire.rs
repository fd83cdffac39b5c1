//! What the driver asks of an agent: one JSON line a request, one a reply, matched by number.
//!
//! What it does not do: guard against a hostile other end; both are this crate.

use crate::{End, Plan, config};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::net::SocketAddr;
use std::path::PathBuf;

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    pub number: u64,
    pub call: Call,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    pub number: u64,
    pub result: Result<Value, String>,
}

/// The number of the reply that an agent sends by itself when it is ready for requests.
pub const READY: u64 = 0;

/// Where a program runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Place {
    Node,
    Pod(String),
}

/// How a stream's writer leaves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Leave {
    Open,
    Shutdown,
    Close,
    Reset,
}

#[derive(Debug, Serialize, Deserialize)]
pub enum Call {
    /// Makes this guest node `number` of the plan; no process of the mesh runs yet.
    Build {
        number: u8,
        plan: Plan,
        proxy: PathBuf,
        certs: PathBuf,
    },
    /// (Re)starts the node proxy with this config, and the sidecars the first time.
    Mesh {
        config: Box<config::Config>,
        ipv6: bool,
    },
    /// What carries the connections of every pod of node 2 from now on.
    Wish {
        fabric: config::Fabric,
    },
    /// Sets the interface between the nodes down, or up again with what it lost.
    Underlay {
        up: bool,
    },
    KillNode,
    StartNode,
    /// The node proxy's state as the kernel sees it: [`NodeState`].
    NodeState,
    NodeLog,
    NodeMetrics,
    SidecarMetrics {
        pod: String,
    },
    /// Runs a program to its end: [`Ended`].
    Run {
        place: Place,
        command: Vec<String>,
        within_ms: u64,
    },
    /// Starts a program that stays; it is given up with the guest. Waits for its port, if any.
    Spawn {
        place: Place,
        name: String,
        command: Vec<String>,
        port: Option<u16>,
    },
    Workload {
        from: String,
        to: SocketAddr,
        workload: Workload,
    },
    Serve {
        pod: String,
        server: Server,
    },

    /// Answers with [`Opened`]; `stream` is the listener's number.
    Listen {
        pod: String,
    },
    Dial {
        pod: String,
        from: Option<SocketAddr>,
        to: SocketAddr,
    },
    Accept {
        listener: u64,
    },
    /// The first `bytes` of the pattern `seed`, in writes of `step`, and then what `leave` says.
    Write {
        stream: u64,
        seed: u64,
        bytes: u64,
        step: usize,
        leave: Leave,
    },
    /// Reads to the end and compares with the pattern: [`Checked`].
    Check {
        stream: u64,
        seed: u64,
    },
    /// Reads exactly so much and compares.
    CheckExact {
        stream: u64,
        seed: u64,
        bytes: u64,
    },
    /// Writes until nothing more goes in; answers how much did.
    Stall {
        stream: u64,
    },
    /// Writes until the peer's end is noticed.
    WriteUntilError {
        stream: u64,
    },
    Leave {
        stream: u64,
        leave: Leave,
    },

    /// Makes SMC-R ready: modules, and the name that both ends must have in common.
    Smc,
    /// Answers whoever connects and talks.
    Hear {
        place: Place,
        sockets: Sockets,
        port: u16,
    },
    /// Joins whoever connects with a connection of its own: a relay between two places of this node.
    Relay {
        hears: (Place, Sockets, u16),
        speaks: (Place, Sockets, SocketAddr),
    },
    /// Talks to a node or pod that hears; answers with [`Measured`].
    Talk {
        place: Place,
        sockets: Sockets,
        to: SocketAddr,
        talk: Talk,
        for_ms: u64,
    },

    /// Short connections to an echo server, one byte each way; answers with the seconds taken.
    Churn {
        pod: String,
        to: SocketAddr,
        connections: u32,
    },
    /// Opens streams to an echo server and keeps them under one number.
    Hold {
        pod: String,
        to: SocketAddr,
        streams: u32,
    },
    /// One byte there and back on every held stream.
    EchoHeld {
        held: u64,
    },
    DropHeld {
        held: u64,
    },
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Server {
    Iperf,
    Sockperf,
    Nginx { big_bytes: u64 },
}

/// One measurement with a real program; answers with [`Measured`].
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub enum Workload {
    Iperf { streams: u32, seconds: u64 },
    Sockperf { message_bytes: u32, seconds: u64 },
    CurlBig,
    CurlSmall { requests: u32 },
}

/// Makes a program's sockets rsockets.
pub const PRELOAD: &str = "/usr/lib/x86_64-linux-gnu/rsocket/librspreload.so";

/// What a program makes its sockets of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Sockets {
    Tcp,
    Smc,
    /// A relay's alone, by the library that is preloaded for them.
    Rsocket,
}

/// What our own programs at both ends do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Talk {
    /// Messages of so many bytes there and back, one at a time.
    PingPong { bytes: u32 },
    /// One stream, one way.
    Bulk,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Measured {
    /// The figure: Gbit/s, median µs, bytes/s, requests/s.
    pub value: f64,
    /// A second one: the 99th percentile of a ping-pong.
    pub second: f64,
    /// Payload moved.
    pub bytes: f64,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Opened {
    pub stream: u64,
    pub local: SocketAddr,
    /// `getpeername`; a listener's is its own address.
    pub peer: SocketAddr,
    /// The address that `accept` gave; else as `peer`.
    pub from: SocketAddr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checked {
    pub bytes: u64,
    pub end: End,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct NodeState {
    pub pid: u32,
    pub rss_bytes: u64,
    pub open_files: u64,
    pub cpu_seconds: f64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}
