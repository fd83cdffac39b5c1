//! Real, unmodified programs in pods: their servers, one measurement with each, and what their
//! output says.
//!
//! What it does not do: know whether there is a mesh between client and server.

use super::lab::netns::Netns;
use super::lab::process::{Finished, POLL_INTERVAL, Process};
use super::lab::{Lab, Pod};
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

pub const IPERF_PORT: u16 = 5201;
pub const SOCKPERF_PORT: u16 = 11_111;
/// The longest message that sockperf knows.
pub const SOCKPERF_BYTES_MAX: u32 = (1 << 20) - 1;
pub const HTTP_PORT: u16 = 8080;
pub const REDIS_PORT: u16 = 6379;

/// A server that does not listen by then is broken.
const START_WITHIN: Duration = Duration::from_secs(10);
/// What a client program may take beyond its own running time.
const GRACE: Duration = Duration::from_secs(15);

/// The first of `programs` that are not on this machine, as one line for the user.
///
/// # Errors
/// When any is missing.
pub fn check_programs(programs: &[&str]) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    dirs.push("/usr/sbin".into());
    dirs.push("/sbin".into());
    let missing: Vec<&str> = programs
        .iter()
        .copied()
        .filter(|program| !dirs.iter().any(|dir| dir.join(program).is_file()))
        .collect();
    if !missing.is_empty() {
        anyhow::bail!("missing programs: {} (run `make setup`)", missing.join(", "));
    }
    Ok(())
}

/// Where a client program finds its server.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub ip: IpAddr,
    pub port: u16,
}

impl Target {
    fn url(&self, path: &str) -> String {
        match self.ip {
            IpAddr::V4(ip) => format!("http://{ip}:{}{path}", self.port),
            IpAddr::V6(ip) => format!("http://[{ip}]:{}{path}", self.port),
        }
    }
}

fn serve(lab: &Lab, pod: &Pod, name: &str, port: u16, command: Command) -> Result<Process> {
    let mut process = lab.spawn(&pod.netns, name, command)?;
    process.wait_listening(&pod.netns, port, START_WITHIN)?;
    Ok(process)
}

pub fn iperf_server(lab: &Lab, pod: &Pod) -> Result<Process> {
    let mut command = Command::new("iperf3");
    command.args(["-s", "-p", &IPERF_PORT.to_string(), "--forceflush"]);
    serve(lab, pod, "iperf3", IPERF_PORT, command)
}

pub fn sockperf_server(lab: &Lab, pod: &Pod) -> Result<Process> {
    let mut command = Command::new("sockperf");
    command.args(["server", "--tcp", "-i", "0.0.0.0", "-p", &SOCKPERF_PORT.to_string()]);
    command.args(["--msg-size", &SOCKPERF_BYTES_MAX.to_string()]);
    serve(lab, pod, "sockperf", SOCKPERF_PORT, command)
}

pub fn redis_server(lab: &Lab, pod: &Pod) -> Result<Process> {
    let mut command = Command::new("redis-server");
    command.args(["--port", &REDIS_PORT.to_string(), "--bind", "0.0.0.0"]);
    command.args(["--save", "", "--appendonly", "no", "--protected-mode", "no"]);
    command.current_dir(lab.dir());
    serve(lab, pod, "redis", REDIS_PORT, command)
}

/// nginx with `/small` (1 KiB) and `/big` (`big_bytes`).
pub fn nginx(lab: &Lab, pod: &Pod, big_bytes: u64) -> Result<Process> {
    let dir = lab.dir().join(format!("nginx-{}", pod.name));
    std::fs::create_dir_all(dir.join("www")).context("create nginx's directory")?;
    std::fs::write(dir.join("www/small"), vec![b'x'; 1024]).context("write nginx's file")?;
    let big = std::fs::File::create(dir.join("www/big")).context("create nginx's file")?;
    big.set_len(big_bytes).context("size nginx's file")?;
    // Into the page cache, lest the first download be slower than all others.
    let mut cached = std::fs::File::open(dir.join("www/big")).context("open nginx's file")?;
    std::io::copy(&mut cached, &mut std::io::sink()).context("read nginx's file")?;
    let root = dir.display();
    let config = format!(
        "daemon off;\nworker_processes 1;\nuser root;\npid {root}/pid;\nerror_log {root}/error.log;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  sendfile on;\n  keepalive_requests 100000000;\n\
         \x20 client_body_temp_path {root}/t1;\n  proxy_temp_path {root}/t2;\n\
         \x20 fastcgi_temp_path {root}/t3;\n  uwsgi_temp_path {root}/t4;\n  scgi_temp_path {root}/t5;\n\
         \x20 server {{ listen {HTTP_PORT} backlog=4096; listen [::]:{HTTP_PORT} backlog=4096;\n\
         \x20   root {root}/www; default_type application/octet-stream; }}\n}}\n"
    );
    let path = dir.join("nginx.conf");
    std::fs::write(&path, config).context("write nginx's config")?;
    let mut command = Command::new(program("nginx"));
    command.arg("-e").arg(dir.join("error.log")).arg("-p").arg(&dir).arg("-c").arg(&path);
    serve(lab, pod, "nginx", HTTP_PORT, command)
}

/// Debian keeps servers out of an ordinary user's PATH, and so does a sudo without one.
pub fn program(name: &str) -> PathBuf {
    let sbin = PathBuf::from("/usr/sbin").join(name);
    if sbin.is_file() { sbin } else { name.into() }
}

/// One run of iperf3.
#[derive(Debug, Clone, Copy)]
pub struct Bulk {
    pub gbit_per_second: f64,
    /// Payload that arrived.
    pub bytes: f64,
}

pub fn iperf(
    lab: &Lab,
    from: &Netns,
    to: Target,
    streams: u32,
    time: Duration,
    more: &[&str],
) -> Result<Bulk> {
    let mut command = Command::new("iperf3");
    command.args(["-c", &to.ip.to_string(), "-p", &to.port.to_string(), "-J"]);
    command.args(["-t", &time.as_secs().max(1).to_string(), "-P", &streams.to_string()]);
    command.args(more);
    let listened = iperf_listened(lab);
    let finished = lab.run(from, &mut command, time + GRACE)?;
    let report: Value = serde_json::from_str(&finished.stdout).context("iperf3's report")?;
    if let Some(error) = report.get("error") {
        bail!("iperf3 says {error}");
    }
    wait_for_iperf_server(lab, listened)?;
    let number = |path: &str| report.pointer(path).and_then(Value::as_f64);
    let sum = |key: &str| number(&format!("/end/sum_received/{key}"));
    let (bits, bytes) = (sum("bits_per_second"), sum("bytes"));
    let (bits, bytes) = bits.zip(bytes).context("iperf3's report has no sum")?;
    let both_ways = number("/end/sum_received_bidir_reverse/bytes").unwrap_or(0.0);
    Ok(Bulk { gbit_per_second: bits / 1e9, bytes: bytes + both_ways })
}

/// How many times the servers of this lab have begun to listen; they do so after each test.
fn iperf_listened(lab: &Lab) -> usize {
    let log = lab.dir().join("logs/iperf3.log");
    std::fs::read_to_string(log).map_or(0, |text| text.matches("Server listening").count())
}

/// A server that still clears up after a test turns the next client away, or resets it.
/// One in another machine is not waited for: the way to it takes long enough.
fn wait_for_iperf_server(lab: &Lab, listened: usize) -> Result<()> {
    let deadline = Instant::now() + GRACE;
    while listened > 0 && iperf_listened(lab) == listened {
        ensure!(Instant::now() < deadline, "iperf3's server does not listen again");
        std::thread::sleep(POLL_INTERVAL);
    }
    Ok(())
}

/// One run of sockperf's ping-pong.
#[derive(Debug, Clone, Copy)]
pub struct PingPong {
    /// One way, as sockperf counts.
    pub p50_us: f64,
    pub p99_us: f64,
    pub messages: f64,
}

pub fn sockperf(
    lab: &Lab,
    from: &Netns,
    to: Target,
    message_bytes: u32,
    time: Duration,
) -> Result<PingPong> {
    let mut command = Command::new("sockperf");
    command.args(["ping-pong", "--tcp", "-i", &to.ip.to_string(), "-p", &to.port.to_string()]);
    command.args(["-t", &time.as_secs().max(1).to_string()]);
    command.args(["--msg-size", &message_bytes.to_string()]);
    let finished = lab.run(from, &mut command, time + GRACE)?;
    let text = plain(&finished);
    let percentile = |p: &str| {
        let line = text.lines().find(|line| line.contains(&format!("percentile {p} ")))?;
        line.rsplit('=').next()?.trim().parse::<f64>().ok()
    };
    let p50_us = percentile("50.000").context("sockperf's output has no median")?;
    let p99_us = percentile("99.000").context("sockperf's output has no 99th percentile")?;
    let messages = after(&text, "ReceivedMessages=").unwrap_or(0.0);
    Ok(PingPong { p50_us, p99_us, messages })
}

/// Bytes per second of one download of `/big`, and its size.
pub fn curl_big(lab: &Lab, from: &Netns, to: Target) -> Result<(f64, f64)> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "-o", "/dev/null", "-w", "%{speed_download} %{size_download}"]);
    command.arg(to.url("/big"));
    let finished = lab.run(from, &mut command, GRACE * 4)?;
    let (speed, size) = finished.stdout.trim().split_once(' ').context("curl's figures")?;
    Ok((speed.parse().context("curl's speed")?, size.parse().context("curl's size")?))
}

/// Fetches `/small` on a new connection each time; returns requests per second and bytes.
pub fn curl_small(lab: &Lab, from: &Netns, to: Target, requests: u32) -> Result<(f64, f64)> {
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "-H", "Connection: close", "-o", "/dev/null"]);
    command.args(["-w", "%{size_download} %{time_total}\\n"]);
    command.arg(to.url(&format!("/small?[1-{requests}]")));
    let finished = lab.run(from, &mut command, GRACE * 2)?;
    let (mut bytes, mut seconds) = (0.0, 0.0);
    for line in finished.stdout.lines() {
        let (size, time) = line.split_once(' ').context("curl's figures")?;
        bytes += size.parse::<f64>().context("curl's size")?;
        seconds += time.parse::<f64>().context("curl's time")?;
    }
    Ok((f64::from(requests) / seconds, bytes))
}

/// Requests per second of `/small` over 16 connections, kept alive or closed after each.
pub fn wrk(lab: &Lab, from: &Netns, to: Target, keep_alive: bool, time: Duration) -> Result<f64> {
    let mut command = Command::new("wrk");
    command.args(["-t1", "-c16", &format!("-d{}s", time.as_secs().max(1))]);
    if !keep_alive {
        command.args(["-H", "Connection: close"]);
    }
    command.arg(to.url("/small"));
    let finished = lab.run(from, &mut command, time + GRACE)?;
    let rate = after(&finished.stdout, "Requests/sec:").context("wrk's output has no rate")?;
    if finished.stdout.contains("Socket errors") || finished.stdout.contains("Non-2xx") {
        anyhow::bail!("wrk saw errors: {}", finished.stdout.trim());
    }
    Ok(rate)
}

/// GET requests per second over 50 connections, one at a time on each.
pub fn redis(lab: &Lab, from: &Netns, to: Target, requests: u32) -> Result<f64> {
    let mut command = Command::new("redis-benchmark");
    command.args(["-h", &to.ip.to_string(), "-p", &to.port.to_string()]);
    command.args(["-t", "get", "-n", &requests.to_string(), "--csv"]);
    let finished = lab.run(from, &mut command, GRACE * 4)?;
    let line = finished.stdout.lines().find(|line| line.starts_with("\"GET\""));
    let rate = line.and_then(|line| line.split(',').nth(1)).context("redis-benchmark's figures")?;
    rate.trim_matches('"').parse().context("redis-benchmark's rate")
}

/// sockperf colours its output even in a file.
fn plain(finished: &Finished) -> String {
    let mut text = String::new();
    let mut rest = finished.stdout.as_str();
    while let Some((before, escape)) = rest.split_once('\u{1b}') {
        text.push_str(before);
        rest = escape.split_once('m').map_or("", |(_, tail)| tail);
    }
    text + rest
}

/// The number that follows `key` at its first place.
fn after(text: &str, key: &str) -> Option<f64> {
    let rest = text.split_once(key)?.1.trim_start();
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().ok()
}
