//! `RDMA=host`: the devices of this machine in the place of emulated ones. The nodes are two network
//! namespaces, joined by a wire that carries their TCP; the queue pairs are on the devices as they
//! are, over whatever network these are on. Both nodes may be on one device: it then talks to itself.
//!
//! What it does not do: change anything about a device, its network interface or its addresses.

use crate::netns::Netns;
use crate::topology;
use anyhow::{Context, Result, bail};
use rdmesh_proxy::demo::lab::site::Site;
use std::path::Path;

const DEVICES: &str = "/sys/class/infiniband";

#[derive(Debug)]
pub struct Host {
    /// What is left when this is dropped is nothing.
    _site: Site,
    nodes: Vec<Netns>,
    devices: [String; 2],
}

impl Host {
    /// When the environment says `RDMA=host`.
    pub fn wanted() -> Result<Option<Self>> {
        match variable("RDMA").as_deref() {
            None => Ok(None),
            Some("host") => Self::new().map(Some),
            Some(other) => bail!(
                "RDMA is {other}: `host` is for this machine's devices; emulated machines want none"
            ),
        }
    }

    fn new() -> Result<Self> {
        let devices = devices(variable("RDMA_DEVICES").as_deref(), Path::new(DEVICES))?;
        let site = Site::new()?;
        let nodes = site.namespaces(&["n1", "n2"]).context("create the network namespaces")?;
        topology::wire(&nodes[0], &nodes[1])?;
        Ok(Self { _site: site, nodes, devices })
    }

    /// The namespace and the device of node 1 or 2.
    pub fn node(&self, number: u8) -> (&Netns, &str) {
        let index = usize::from(number - 1);
        (&self.nodes[index], &self.devices[index])
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// `wanted` has a name for both nodes or one for each; else both get the first that is up.
fn devices(wanted: Option<&str>, dir: &Path) -> Result<[String; 2]> {
    let mut names: Vec<String> = std::fs::read_dir(dir)
        .map(|entries| entries.flatten().map(|e| e.file_name().to_string_lossy().into()).collect())
        .unwrap_or_default();
    names.sort();
    let there = if names.is_empty() { "no device".to_owned() } else { names.join(", ") };
    let Some(wanted) = wanted else {
        let up = names.into_iter().find(|name| is_up(&dir.join(name)));
        let Some(up) = up else {
            bail!("RDMA=host: no device of this machine has a port that is up (there is {there})")
        };
        return Ok([up.clone(), up]);
    };
    let chosen: Vec<&str> = wanted.split(',').map(str::trim).collect();
    if let Some(missing) = chosen.iter().find(|name| !names.iter().any(|there| there == *name)) {
        bail!("RDMA_DEVICES names {missing}, which does not exist (there is {there})");
    }
    match chosen[..] {
        [both] => Ok([both.to_owned(), both.to_owned()]),
        [first, second] => Ok([first.to_owned(), second.to_owned()]),
        _ => bail!("RDMA_DEVICES is {wanted}: one device, or two with a comma, are wanted"),
    }
}

fn is_up(device: &Path) -> bool {
    let Ok(ports) = std::fs::read_dir(device.join("ports")) else { return false };
    ports.flatten().any(|port| {
        std::fs::read_to_string(port.path().join("state"))
            .is_ok_and(|state| state.contains("ACTIVE"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_those_named_or_the_first_that_is_up() {
        let dir = std::env::temp_dir().join(format!("rdmesh-devices-{}", std::process::id()));
        for (name, state) in [("mlx5_0", "1: DOWN"), ("mlx5_1", "4: ACTIVE"), ("rxe0", "4: ACTIVE")]
        {
            std::fs::create_dir_all(dir.join(name).join("ports/1")).expect("make a port");
            std::fs::write(dir.join(name).join("ports/1/state"), state).expect("write its state");
        }
        let chosen = |wanted| devices(wanted, &dir).map_err(|error| error.to_string());
        assert_eq!(chosen(None), Ok(["mlx5_1".into(), "mlx5_1".into()]));
        assert_eq!(chosen(Some("mlx5_0")), Ok(["mlx5_0".into(), "mlx5_0".into()]));
        assert_eq!(chosen(Some("rxe0, mlx5_1")), Ok(["rxe0".into(), "mlx5_1".into()]));
        let error = chosen(Some("mlx5_2")).expect_err("there is none");
        assert!(error.contains("mlx5_2") && error.contains("mlx5_0, mlx5_1, rxe0"), "{error}");
        let error = chosen(Some("rxe0,rxe0,rxe0")).expect_err("two nodes");
        assert!(error.contains("one device, or two"), "{error}");
        std::fs::remove_dir_all(&dir).expect("remove it");
        let error = devices(None, &dir).expect_err("nothing").to_string();
        assert!(error.contains("no device"), "{error}");
    }
}
