//! Proxies of others as paths: one process beside the client and one beside the server for each port,
//! started by the command lines of a small file.
//!
//! ```yaml
//! name: socat
//! near: [socat, "TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr", "TCP:{node}:{between}"]
//! far: [socat, "TCP-LISTEN:{between},bind={node},fork,reuseaddr", "TCP:{server}:{port}"]
//! ```
//! `near` runs in the client's pod, `far` (if any) on the server's node, whose address is `{node}`.
//! With `same_node: true` both pods are on one node.

use super::paths::UNDERLAY_OFFSET;
use crate::process::Process;
use crate::{Lab, topology};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const START_WITHIN: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub name: String,
    near: Vec<String>,
    far: Option<Vec<String>>,
    #[serde(default)]
    pub same_node: bool,
}

impl Peer {
    pub fn read(path: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let peer: Self = serde_yaml::from_str(&text)
            .with_context(|| format!("{} is no peer file", path.display()))?;
        for (key, command) in [("near", Some(&peer.near)), ("far", peer.far.as_ref())] {
            let empty = command.is_some_and(Vec::is_empty);
            ensure!(!empty, "{}: {key} has no program", path.display());
        }
        let apart = peer.far.is_none() || !peer.same_node;
        ensure!(apart, "{}: with same_node there is no node for far to run on", path.display());
        Ok(peer)
    }

    /// The relay of this suite: what two redirect hops cost at least when a thread reads and writes.
    pub fn relay() -> Result<Self> {
        Ok(Self {
            name: "relay".into(),
            near: relay(&["tcp:127.0.0.1:{port}", "tcp:{node}:{between}"])?,
            far: Some(relay(&["tcp:{node}:{between}", "tcp:{server}:{port}"])?),
            same_node: false,
        })
    }

    /// What two connections cost at least within a node: both over the loopback interface of their pod,
    /// as rdmesh's are, and what comes from one is spliced to the other.
    pub fn splice_same_node() -> Result<Self> {
        let near = ["--splice", "--connect-in", "{server_netns}", HERE, HERE];
        Ok(Self {
            name: "splice-same-node".into(),
            near: relay(&near)?,
            far: None,
            same_node: true,
        })
    }

    /// Far ends first. Answers with the processes of node 1 and of node 2.
    pub fn start(&self, lab: &Lab, ports: &[u16]) -> Result<[Vec<Process>; 2]> {
        let (client, server) = (lab.pod("client"), lab.pod("server"));
        let [mut near, mut far] = [Vec::new(), Vec::new()];
        for port in ports {
            let between = port + UNDERLAY_OFFSET;
            let fill = |words: &[String]| {
                let mut words = words.iter().map(|word| {
                    word.replace("{port}", &port.to_string())
                        .replace("{between}", &between.to_string())
                        .replace("{node}", &topology::node_v4(2).to_string())
                        .replace("{server}", &server.v4.to_string())
                        .replace("{server_netns}", server.netns.name())
                });
                let mut command = Command::new(words.next().unwrap_or_default());
                command.args(words);
                command
            };
            for (words, netns, port, all) in [
                (self.far.as_ref(), &lab.node(2).netns, between, &mut far),
                (Some(&self.near), &client.netns, *port, &mut near),
            ] {
                let Some(words) = words else { continue };
                let name = format!("{}-{port}", self.name);
                let mut process = lab.spawn(netns, &name, fill(words))?;
                process.wait_listening(netns, port, START_WITHIN)?;
                all.push(process);
            }
        }
        Ok([near, far])
    }
}

/// In the pod, at the application's own port.
const HERE: &str = "tcp:127.0.0.1:{port}";

fn relay(arguments: &[&str]) -> Result<Vec<String>> {
    let program = std::env::current_exe()?.with_file_name("relay").display().to_string();
    Ok([program].into_iter().chain(arguments.iter().map(ToString::to_string)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_are_read() {
        for (name, same_node) in
            [("socat", false), ("haproxy-one-hop", false), ("haproxy-same-node", true)]
        {
            let path = format!("{}/peers/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
            let peer = Peer::read(Path::new(&path)).unwrap();
            assert_eq!((peer.name.as_str(), peer.same_node), (name, same_node));
        }
    }

    #[test]
    fn a_peer_without_a_program_or_a_place_is_refused() {
        let path = std::env::temp_dir().join(format!("rdmesh-peer-{}.yaml", std::process::id()));
        for (rest, word) in [
            ("near: []", "near has no program"),
            ("near: [a]\nfar: []", "far has no program"),
            ("near: [a]\nfar: [b]\nsame_node: true", "no node for far"),
        ] {
            std::fs::write(&path, format!("name: x\n{rest}\n")).unwrap();
            let error = Peer::read(&path).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
        std::fs::remove_file(&path).unwrap();
    }
}
