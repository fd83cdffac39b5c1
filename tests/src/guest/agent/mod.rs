//! The agent of a node: sets its machine up as a node, then does what the driver asks, each request
//! on a thread of its own.
//!
//! What it does not do: judge; it answers with what it saw, and the driver compares.

mod held;
pub mod node;
mod smc;
mod streams;
mod talk;

use super::wire::{Call, READY, Reply, Request};
use crate::Lab;
use crate::netns::Netns;
use anyhow::{Context, Result, anyhow, bail};
use held::Held;
use serde_json::Value;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Everything that lives between requests.
#[derive(Debug, Default)]
struct Agent {
    /// Where the node is, unless it has a machine to itself.
    netns: Option<Netns>,
    listeners: Mutex<HashMap<u64, Arc<TcpListener>>>,
    streams: Mutex<HashMap<u64, Arc<TcpStream>>>,
    held: Mutex<HashMap<u64, Arc<Mutex<Held>>>>,
    programs: Mutex<Vec<crate::process::Process>>,
    meshed: Mutex<bool>,
    next: AtomicU64,
    // Last: it takes the namespaces that all else is in.
    lab: OnceLock<Lab>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Serves the driver until it closes the line.
///
/// # Errors
/// When this is no guest of the lab.
pub fn serve() -> Result<()> {
    node::prepare()?;
    let line = File::options().read(true).write(true).open(port()?).context("open the line")?;
    answer_all(line, Agent::default())
}

/// The same for a node in a namespace of the driver's own machine.
///
/// # Errors
/// When the line fails.
pub fn serve_in(netns: Netns, line: UnixStream) -> Result<()> {
    let agent = Agent { netns: Some(netns), ..Agent::default() };
    answer_all(OwnedFd::from(line).into(), agent)
}

fn answer_all(line: File, agent: Agent) -> Result<()> {
    let writer = Arc::new(Mutex::new(line.try_clone().context("share the line")?));
    answer(&writer, READY, Ok(Value::Null));
    let agent = Arc::new(agent);
    for request in BufReader::new(line).lines() {
        let request: Request =
            serde_json::from_str(&request.context("read the line")?).context("a request")?;
        let (agent, writer) = (Arc::clone(&agent), Arc::clone(&writer));
        std::thread::spawn(move || {
            let Request { number, call } = request;
            // A test's own check panics: that is an answer, too.
            let work = std::thread::spawn(move || agent.handle(call));
            let result = work.join().unwrap_or_else(|panic| Err(anyhow!(panic_text(&*panic))));
            answer(&writer, number, result.map_err(|error| format!("{error:#}")));
        });
    }
    Ok(())
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
        .unwrap_or_else(|| "a panic without words".into())
}

fn answer(writer: &Mutex<File>, number: u64, result: Result<Value, String>) {
    let mut line = serde_json::to_vec(&Reply { number, result }).unwrap_or_default();
    line.push(b'\n');
    if let Err(error) = lock(writer).write_all(&line) {
        eprintln!("agent: answer {number}: {error}");
    }
}

/// The virtio port to the driver.
fn port() -> Result<PathBuf> {
    let ports = std::fs::read_dir("/sys/class/virtio-ports");
    for port in ports.context("no virtio port: is this a guest?")?.flatten() {
        let name = std::fs::read_to_string(port.path().join("name")).unwrap_or_default();
        if name.trim() == "rdmesh.agent" {
            return Ok(PathBuf::from("/dev").join(port.file_name()));
        }
    }
    bail!("no virtio port rdmesh.agent: is this a guest of the lab?")
}

impl Agent {
    fn lab(&self) -> Result<&Lab> {
        self.lab.get().context("Call::Build was not called")
    }

    fn pod(&self, name: &str) -> Result<&crate::Pod> {
        let lab = self.lab()?;
        lab.pods()
            .iter()
            .find(|pod| pod.name == name)
            .with_context(|| format!("no pod {name} here"))
    }

    fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn handle(&self, call: Call) -> Result<Value> {
        match call {
            Call::Build { number, plan, proxy, certs } => self.build(number, &plan, &proxy, &certs),
            Call::Mesh { config, ipv6 } => self.mesh(*config, ipv6),
            Call::Wish { fabric } => self.wish(fabric),
            Call::Underlay { up } => self.underlay(up),
            Call::KillNode => {
                self.node()?.kill();
                Ok(Value::Null)
            }
            Call::StartNode => self.start_node(),
            Call::NodeState => self.node_state(),
            Call::NodeLog => self.node_log(),
            Call::NodeMetrics => self.node_metrics(),
            Call::SidecarMetrics { pod } => self.sidecar_metrics(&pod),
            Call::Run { place, command, within_ms } => self.run(&place, &command, within_ms),
            Call::Spawn { place, name, command, port } => self.spawn(&place, &name, &command, port),
            Call::Workload { from, to, workload } => self.workload(&from, to, workload),
            Call::Serve { pod, server } => self.serve(&pod, server),
            Call::Listen { pod } => self.listen(&pod),
            Call::Dial { pod, from, to } => self.dial(&pod, from, to),
            Call::Accept { listener } => self.accept(listener),
            Call::Write { stream, seed, bytes, step, leave } => {
                self.write(stream, seed, bytes, step, leave)
            }
            Call::Check { stream, seed } => self.check(stream, seed),
            Call::CheckExact { stream, seed, bytes } => self.check_exact(stream, seed, bytes),
            Call::Stall { stream } => self.stall(stream),
            Call::WriteUntilError { stream } => self.write_until_error(stream),
            Call::Leave { stream, leave } => self.leave(stream, leave),
            Call::Smc => smc::prepare(),
            Call::Hear { place, sockets, port } => self.hear(&place, sockets, port),
            Call::Relay { hears, speaks } => self.relay(hears, speaks),
            Call::Talk { place, sockets, to, talk, for_ms } => {
                self.talk(&place, sockets, to, talk, for_ms)
            }
            Call::Churn { pod, to, connections } => self.churn(&pod, to, connections),
            Call::Hold { pod, to, streams } => self.hold(&pod, to, streams),
            Call::EchoHeld { held } => self.echo_held(held),
            Call::DropHeld { held } => self.drop_held(held),
        }
    }
}
