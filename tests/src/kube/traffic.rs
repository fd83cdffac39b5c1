//! What `e2e_pod` counts, and how the driver reads it.
//!
//! What it does not do: make traffic; see `bin/e2e_pod.rs`.

use super::kubectl::Kube;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

/// All since the start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Counts {
    /// New connections that did all that they should.
    pub good: u64,
    pub bad: u64,
    pub last_fault: String,
    /// Whether the last new connection was good.
    pub works: Option<bool>,
    /// How often the long connection was made.
    pub long_connections: u64,
    pub long_bytes: u64,
    pub last_long_fault: String,
}

/// Traffic made by a program that was started in a pod beside its own; it ends with this.
pub struct Watch {
    child: Child,
    lines: Receiver<(Instant, Counts)>,
}

impl Watch {
    /// # Errors
    /// When kubectl cannot be started.
    pub fn start(kube: &Kube, namespace: &str, pod: &str, address: &str) -> Result<Self> {
        let arguments = ["-n", namespace, "exec", pod, "-c", "client", "--", "e2e_pod", address];
        let mut command = kube.command(&arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().context("start kubectl exec")?;
        let stdout = child.stdout.take().context("kubectl exec has no output")?;
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let Ok(counts) = serde_json::from_str(&line) else { continue };
                if sender.send((Instant::now(), counts)).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, lines })
    }

    /// How long after `since` new connections became what `works` says.
    ///
    /// # Errors
    /// When they do not within `within`.
    pub fn until(&self, works: bool, since: Instant, within: Duration) -> Result<Duration> {
        let deadline = since + within;
        let mut last = None;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let Ok((at, counts)) = self.lines.recv_timeout(left) else {
                let state = if works { "good" } else { "refused" };
                bail!("new connections were not {state} within {within:?}: {last:?}");
            };
            if counts.works == Some(works) && at >= since {
                return Ok(at.saturating_duration_since(since));
            }
            last = Some(counts);
        }
    }

    /// What is counted during `time`; an error if nothing is told.
    ///
    /// # Errors
    /// When no counts come.
    pub fn during(&self, time: Duration) -> Result<(Counts, Counts)> {
        let (_, before) = self.lines.recv_timeout(Duration::from_secs(5)).context("no counts")?;
        let until = Instant::now() + time;
        let mut after = before.clone();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok((_, counts)) => after = counts,
                Err(_) => return Ok((before, after)),
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
