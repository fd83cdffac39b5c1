//! The lab: two emulated nodes with pods on one machine, in network namespaces, as a value that
//! takes everything with it when it is dropped. The demo and the end-to-end tests stand on it.
//!
//! What it does not do: run workloads or judge results.

pub mod mesh;
pub mod netns;
pub mod process;
pub mod scrape;
pub mod site;
pub mod topology;

use anyhow::{Context, Result};
use netns::Netns;
use process::{Finished, Process};
use serde::{Deserialize, Serialize};
use site::Site;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

/// The first pod of a node; `.1` is the node's bridge.
const FIRST_POD: u8 = 10;

/// Which pods a lab has.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Plan {
    pods: Vec<PodPlan>,
    routing: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct PodPlan {
    name: String,
    node: u8,
    meshed: bool,
}

impl Plan {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A pod in the mesh, on node 1 or 2.
    #[must_use]
    pub fn pod(self, name: &str, node: u8) -> Self {
        self.with(name, node, true)
    }

    /// A pod without sidecar and without an entry in the directory: the world outside the mesh.
    #[must_use]
    pub fn outsider(self, name: &str, node: u8) -> Self {
        self.with(name, node, false)
    }

    /// All pods get the sysctls that let capture route, as a cluster may give them.
    #[must_use]
    pub fn routing(mut self, routing: bool) -> Self {
        self.routing = routing;
        self
    }

    fn with(mut self, name: &str, node: u8, meshed: bool) -> Self {
        assert!(node == 1 || node == 2, "there are nodes 1 and 2");
        self.pods.push(PodPlan { name: name.to_owned(), node, meshed });
        self
    }

    /// Where each pod is, the same on every machine that takes part.
    fn places(&self) -> Vec<Place> {
        let mut next = [FIRST_POD; 2];
        let place = |pod: &PodPlan| {
            let next = &mut next[usize::from(pod.node - 1)];
            let index = *next;
            *next += 1;
            Place { name: pod.name.clone(), node: pod.node, index, meshed: pod.meshed }
        };
        self.pods.iter().map(place).collect()
    }
}

/// A pod of the plan with its number within its node.
#[derive(Debug)]
struct Place {
    name: String,
    node: u8,
    index: u8,
    meshed: bool,
}

impl Place {
    fn uid(&self) -> String {
        format!("uid-{}", self.name)
    }
}

/// A built lab.
#[derive(Debug)]
pub struct Lab {
    // Processes go first when a lab is dropped, then namespaces and directory with `site`.
    nodes: Vec<Node>,
    pods: Vec<Pod>,
    mesh: Mutex<mesh::State>,
    proxy: PathBuf,
    site: Site,
}

#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub number: u8,
    pub netns: Netns,
    process: Mutex<Option<Process>>,
}

#[derive(Debug)]
pub struct Pod {
    pub name: String,
    pub uid: String,
    pub node: u8,
    pub meshed: bool,
    pub netns: Netns,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    sidecar: Mutex<Option<Process>>,
}

impl Lab {
    /// Builds namespaces, wires and addresses; no process runs yet. `proxy` is the `rdmesh-proxy`
    /// that [`Lab::mesh_up`] will start.
    pub fn new(plan: &Plan, proxy: &Path) -> Result<Self> {
        let site = Site::new()?;
        let spaces = site.namespaces(&["n1", "n2"]).context("create the network namespaces")?;
        topology::prepare(&spaces[0])?;
        topology::prepare(&spaces[1])?;
        topology::join_nodes(&spaces[0], &spaces[1])?;
        let nodes = (1..).zip(&spaces).map(|(number, netns)| Node::new(number, netns)).collect();
        Self::with_nodes(site, nodes, plan, proxy)
    }

    /// One node of a lab whose other node is another machine (a guest): `netns` is the node's
    /// namespace, and its interface [`topology::UNDERLAY`] leads to the other one. Only the pods of
    /// this node are made; the directory has them all.
    pub fn at_node(plan: &Plan, number: u8, netns: &Netns, proxy: &Path) -> Result<Self> {
        let site = Site::new()?;
        topology::prepare(netns)?;
        topology::node(netns, number, if number == 1 { 2 } else { 1 })?;
        Self::with_nodes(site, vec![Node::new(number, netns)], plan, proxy)
    }

    fn with_nodes(site: Site, nodes: Vec<Node>, plan: &Plan, proxy: &Path) -> Result<Self> {
        let places = plan.places();
        let here = |number: u8| nodes.iter().find(|node| node.number == number);
        let local: Vec<&Place> = places.iter().filter(|pod| here(pod.node).is_some()).collect();
        let names: Vec<&str> = local.iter().map(|pod| pod.name.as_str()).collect();
        let spaces = site.namespaces(&names).context("create the network namespaces")?;
        let mut pods = Vec::new();
        for (place, netns) in local.iter().zip(spaces) {
            let node = here(place.node).context("the pod's node is here")?;
            topology::prepare(&netns)?;
            topology::attach_pod(&node.netns, &netns, place.node, place.index)?;
            if plan.routing {
                topology::let_capture_route(&netns)?;
            }
            pods.push(Pod::new(place, netns));
        }
        let mesh = Mutex::new(mesh::State::new(&places));
        Ok(Self { nodes, pods, mesh, proxy: proxy.to_owned(), site })
    }

    /// # Panics
    /// When the plan has no such pod.
    pub fn pod(&self, name: &str) -> &Pod {
        self.pods.iter().find(|pod| pod.name == name).expect("a pod of the plan")
    }

    /// Node 1 or 2.
    ///
    /// # Panics
    /// When the lab does not have it.
    pub fn node(&self, number: u8) -> &Node {
        self.nodes.iter().find(|node| node.number == number).expect("a node of this lab")
    }

    pub fn pods(&self) -> &[Pod] {
        &self.pods
    }

    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// A directory that goes away with the lab.
    pub fn dir(&self) -> &Path {
        self.site.dir()
    }

    pub fn id(&self) -> &str {
        self.site.id()
    }

    /// Starts a program that keeps running, with its output in `logs/<name>.log`.
    pub fn spawn(&self, netns: &Netns, name: &str, command: Command) -> Result<Process> {
        process::spawn(&self.site, netns, name, command)
    }

    /// Runs a program to its successful end.
    pub fn run(&self, netns: &Netns, command: &mut Command, within: Duration) -> Result<Finished> {
        process::run(&self.site, netns, command, within)
    }

    /// Runs a program to its end, whatever its exit code.
    pub fn run_any(
        &self,
        netns: &Netns,
        command: &mut Command,
        within: Duration,
    ) -> Result<Finished> {
        process::run_any(&self.site, netns, command, within)
    }

    /// Leaves the lab standing with its processes. `site::sweep(true)` takes it down later.
    pub fn keep(mut self) -> Result<()> {
        self.site.keep()?;
        // Drops of processes kill them: their handles are given up instead.
        for node in &mut self.nodes {
            std::mem::forget(node.process.get_mut().ok().and_then(Option::take));
        }
        for pod in &mut self.pods {
            std::mem::forget(pod.sidecar.get_mut().ok().and_then(Option::take));
        }
        Ok(())
    }
}

impl Node {
    fn new(number: u8, netns: &Netns) -> Self {
        let name = topology::node_name(number);
        Self { name, number, netns: netns.clone(), process: Mutex::new(None) }
    }
}

impl Pod {
    fn new(place: &Place, netns: Netns) -> Self {
        Self {
            name: place.name.clone(),
            uid: place.uid(),
            node: place.node,
            meshed: place.meshed,
            netns,
            v4: topology::pod_v4(place.node, place.index),
            v6: topology::pod_v6(place.node, place.index),
            sidecar: Mutex::new(None),
        }
    }

    /// Runs `f` on a thread inside the pod; see [`Netns::run`].
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.netns.run(f)
    }

    /// The pod's IPv4 or IPv6 address.
    pub fn ip(&self, ipv6: bool) -> IpAddr {
        if ipv6 { self.v6.into() } else { self.v4.into() }
    }
}
