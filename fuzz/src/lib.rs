//! One function for each input that crosses a trust boundary, and what a fuzzer needs beside it.
//!
//! A target must take any bytes without a panic, without growing beyond its limits and without
//! taking long. What it returns tells apart kinds of behaviour, so that the driver keeps inputs
//! that did something new.
//!
//! What it does not do: judge whether what was accepted is right; the rooms' own tests do.
#![forbid(unsafe_code)]

mod frames;
pub mod mutate;
mod review;

use rdmesh_config::{Config, DirectoryFile, Faults};
use std::hash::{DefaultHasher, Hash, Hasher};

/// A trust boundary.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]) -> u64,
    pub seeds: fn() -> Vec<Vec<u8>>,
}

pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: frames::run, seeds: frames::seeds },
    Target { name: "frame", run: frame, seeds: frames::seeds },
    Target { name: "handoff", run: handoff, seeds: handoff_seeds },
    Target { name: "handshake", run: handshake, seeds: handshake_seeds },
    Target { name: "review", run: review::run, seeds: review::seeds },
    Target { name: "config", run: config, seeds: config_seeds },
    Target { name: "directory", run: directory, seeds: directory_seeds },
];

/// Fails on purpose for a few inputs: a driver that does not find them is broken.
pub const CANARY: Target =
    Target { name: "canary", run: canary, seeds: || vec![b"the canary sings".to_vec()] };

fn canary(bytes: &[u8]) -> u64 {
    let sings = !matches!(bytes, [b't', _, _, _, 0x7f, .., b's']);
    assert!(sings, "the canary is dead, as it should be");
    u64::from(bytes.first() == Some(&b't')) | u64::from(bytes.get(4) == Some(&0x7f)) << 1
}

/// Behaviour as the words of its description, without the numbers in it.
pub(crate) fn behaviour(description: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    for byte in description.bytes().filter(u8::is_ascii_alphabetic) {
        byte.hash(&mut hasher);
    }
    hasher.finish()
}

/// One frame or header, decoded and encoded again.
fn frame(bytes: &[u8]) -> u64 {
    rdmesh_proxy::mux::fuzz::decode(bytes);
    bytes.first().map_or(0, |kind| u64::from(*kind % 16))
}

fn handoff(bytes: &[u8]) -> u64 {
    rdmesh_proxy::handoff::fuzz_decode(bytes);
    bytes.first_chunk::<2>().map_or(0, |kind| u64::from(u16::from_le_bytes(*kind)))
}

fn handoff_seeds() -> Vec<Vec<u8>> {
    use rdmesh_proxy::handoff::{Family, Message, PassthroughReason, ToNode, ToSidecar, VERSION};
    use std::net::SocketAddr;
    let v4 = SocketAddr::from(([10, 42, 0, 5], 8080));
    let v6 = SocketAddr::from(([0xfd00, 0, 0, 0, 0, 0, 0, 5], 443));
    fn encode<M: Message>(message: &M) -> Vec<u8> {
        let mut bytes = Vec::new();
        message.encode(&mut bytes);
        bytes
    }
    vec![
        encode(&ToNode::Hello { version: VERSION, worker: 1 }),
        encode(&ToNode::Open { id: 7, orig_dst: v4, src: v6 }),
        encode(&ToNode::Dialed { id: 7 }),
        encode(&ToNode::Spare { family: Family::V4, ports: (32_768, 60_999) }),
        encode(&ToSidecar::Welcome { version: VERSION, workers: 2, node: "node-a".into() }),
        encode(&ToSidecar::Taken { id: 7 }),
        encode(&ToSidecar::Passthrough {
            id: 7,
            reason: PassthroughReason::NotInMesh,
            early: b"GET / HTTP/1.1\r\n".to_vec(),
        }),
        encode(&ToSidecar::Dial { id: 7, src: v6, dst: v6, timeout_ms: 1000 }),
        encode(&ToSidecar::Spares { family: Family::V6, count: 4 }),
    ]
}

fn handshake(bytes: &[u8]) -> u64 {
    behaviour(&format!(
        "{:?}",
        rdmesh_proxy::node::peers::wire::decode_handshake(bytes).map(|_| ())
    ))
}

fn handshake_seeds() -> Vec<Vec<u8>> {
    use rdmesh_proxy::node::peers::wire::{ControlHello, ControlMessage, Preamble};
    let hello = ControlMessage::Hello(ControlHello {
        version_min: 1,
        version_max: 1,
        node: "node-a".into(),
        incarnation: 7,
        workers: 2,
        encrypt: true,
        features: 0,
        fabrics: vec!["tcp".into()],
    });
    [hello, ControlMessage::WantLane { lane: 3 }]
        .iter()
        .map(ControlMessage::encode)
        .map(|message| [Preamble::Control.encode().to_vec(), message].concat())
        .chain([Preamble::LinkTls.encode().to_vec()])
        .collect()
}

fn config(bytes: &[u8]) -> u64 {
    outcome(
        Config::from_yaml(&String::from_utf8_lossy(bytes), "fuzz").map(|config| config.to_yaml()),
    )
}

fn directory(bytes: &[u8]) -> u64 {
    outcome(
        DirectoryFile::from_yaml(&String::from_utf8_lossy(bytes), "fuzz")
            .map(|file| file.to_yaml()),
    )
}

fn outcome(result: Result<String, Faults>) -> u64 {
    match result {
        Ok(_) => 1,
        Err(faults) => {
            assert!(!faults.faults.is_empty() && faults.to_string().len() < 64 << 10);
            faults.faults.iter().fold(0, |all, fault| all ^ behaviour(&fault.problem))
        }
    }
}

fn config_seeds() -> Vec<Vec<u8>> {
    [
        include_str!("../../config/examples/full.yaml"),
        include_str!("../../config/examples/node.yaml"),
        include_str!("../../config/examples/sidecar.yaml"),
        "node: {limits: {streams_max: 1}, tls: &t {ca: a}}\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}

fn directory_seeds() -> Vec<Vec<u8>> {
    [
        include_str!("../../config/examples/directory.yaml"),
        "nodes: [{name: a, address: '10.0.0.1:1'}]\npods: [{name: p, uid: u, node: a, addresses: &x [10.1.1.1]}]\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into()
}
