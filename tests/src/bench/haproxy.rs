//! A pair of HAProxy in TCP mode in the places where rdmesh has its node proxies: one process per
//! node, which takes the client's connections inside the client's pod and makes the server's
//! inside the server's pod.
//!
//! By itself nothing redirects here: the client is told HAProxy's own ports on its loopback.

use crate::{Lab, process::Process, topology};
use anyhow::{Context, Result};
use rdmesh_proxy::demo::workload;
use std::fmt::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;
use std::time::Duration;

/// Between the nodes, HAProxy uses the application's port plus this.
const UNDERLAY_OFFSET: u16 = 20_000;

/// Enough for the idle workload.
const CONNECTIONS_WANTED: u64 = 15_000;

pub const CLIENT_SIDE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// With `tls` the two speak TLS to each other. Answers with the far one and the near one.
pub fn start(lab: &Lab, ports: &[u16], tls: bool) -> Result<Vec<Process>> {
    let (client, server) = (lab.pod("client"), lab.pod("server"));
    let (connect, accept) = if tls { tls_options(lab)? } else { Default::default() };
    let (mut near, mut far) = (head(), head());
    let underlay = topology::node_v4(2);
    for port in ports {
        let between = port + UNDERLAY_OFFSET;
        let inside = client.netns.name();
        writeln!(
            near,
            "listen p{port}\n  bind 127.0.0.1:{port} namespace {inside}\n  \
             server next {underlay}:{between}{connect}"
        )?;
        let inside = server.netns.name();
        let app = server.v4;
        writeln!(
            far,
            "listen p{port}\n  bind {underlay}:{between}{accept}\n  \
             server app {app}:{port} namespace {inside}"
        )?;
    }
    let mut all = Vec::new();
    for (number, config) in [(2_u8, far), (1, near)] {
        let path = lab.dir().join(format!("haproxy-{number}.cfg"));
        std::fs::write(&path, config).context("write HAProxy's config")?;
        let mut command = Command::new(workload::program("haproxy"));
        command.arg("-db").arg("-f").arg(&path);
        let node = lab.node(number);
        let mut process = lab.spawn(&node.netns, &format!("haproxy-{number}"), command)?;
        let (netns, offset) =
            if number == 1 { (&client.netns, 0) } else { (&node.netns, UNDERLAY_OFFSET) };
        for port in ports {
            process.wait_listening(netns, port + offset, Duration::from_secs(10))?;
        }
        all.push(process);
    }
    Ok(all)
}

/// Redirects what the client pod sends to the server's ports to the same ports of its loopback.
pub fn redirect(lab: &Lab, ports: &[u16]) -> Result<()> {
    let server = lab.pod("server").v4;
    let ports: Vec<String> = ports.iter().map(u16::to_string).collect();
    let rules = format!(
        "add table ip bench; \
         add chain ip bench output {{ type nat hook output priority -100; }}; \
         add rule ip bench output ip daddr {server} tcp dport {{ {} }} redirect",
        ports.join(", ")
    );
    let mut command = Command::new(workload::program("nft"));
    command.arg(rules);
    let client = &lab.pod("client").netns;
    lab.run(client, &mut command, Duration::from_secs(10)).context("redirect to HAProxy")?;
    Ok(())
}

/// One thread, as rdmesh has one worker; everything else as HAProxy comes.
fn head() -> String {
    let connections = connections_max();
    format!(
        "global\n  nbthread 1\n  maxconn {connections}\n  log stderr local0 err\n\
         defaults\n  mode tcp\n  maxconn {connections}\n  timeout connect 10s\n  \
         timeout client 1h\n  timeout server 1h\n"
    )
}

/// HAProxy does not start when two descriptors for each and a few more are not to be had.
fn connections_max() -> u64 {
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    files.map_or(CONNECTIONS_WANTED, |files| CONNECTIONS_WANTED.min(files.saturating_sub(200) / 2))
}

/// What the near one and the far one say for mutual TLS, with certificates as rdmesh makes them.
fn tls_options(lab: &Lab) -> Result<(String, String)> {
    let dir = lab.dir().join("haproxy-certs");
    let mut command = lab.proxy_command();
    command.arg("certs").arg("--dir").arg(&dir).args(["--node", "near", "--node", "far"]);
    lab.run(&lab.node(1).netns, &mut command, Duration::from_secs(10))?;
    for name in ["near", "far"] {
        let read = |kind: &str| std::fs::read_to_string(dir.join(format!("{name}.{kind}")));
        let both = read("crt")? + &read("key")?;
        std::fs::write(dir.join(format!("{name}.pem")), both).context("write a certificate")?;
    }
    let dir = dir.display();
    let options = |name: &str, verify: &str| {
        format!(" ssl crt {dir}/{name}.pem ca-file {dir}/ca.crt verify required{verify}")
    };
    Ok((options("near", " verifyhost far"), options("far", "")))
}
