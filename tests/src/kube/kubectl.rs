//! kubectl and helm as an operator runs them, with a time limit for every call.
//!
//! What it does not do: speak to the API server itself.

use anyhow::{Context, Result, bail};
use serde_json::Value;
use std::ffi::OsStr;
use std::io::{Seek, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Seconds after which a call is killed.
const LIMIT_SECONDS: u32 = 120;

#[derive(Debug, Clone, Default)]
pub struct Kube;

impl Kube {
    /// # Errors
    /// When KUBECONFIG is not set, or the cluster behind it does not answer.
    pub fn new() -> Result<Self> {
        if std::env::var_os("KUBECONFIG").is_none_or(|value| value.is_empty()) {
            bail!(
                "KUBECONFIG is not set: these tests install rdmesh in a cluster, and take none by default. Set it to \
                 the file of a cluster with two nodes or more that nobody else needs"
            );
        }
        let kube = Self;
        kube.run(&["get", "--raw", "/readyz"])
            .context("the cluster of KUBECONFIG does not answer")?;
        Ok(kube)
    }

    #[must_use]
    pub fn command<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Command {
        let mut command = Command::new("kubectl");
        command.args(arguments);
        command
    }

    /// # Errors
    /// When kubectl fails, with what it said.
    pub fn run<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        limited("kubectl", arguments, None)
    }

    /// # Errors
    /// When helm fails, with what it said.
    pub fn helm<S: AsRef<OsStr>>(&self, arguments: &[S]) -> Result<String> {
        limited("helm", arguments, None)
    }

    /// # Errors
    /// When kubectl fails, or what it prints is no JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.run(&arguments)?).context("what kubectl printed is no JSON")
    }

    /// # Errors
    /// When the API server refuses the manifest.
    pub fn apply(&self, manifest: &str) -> Result<()> {
        limited("kubectl", &["apply", "-f", "-"], Some(manifest)).map(drop)
    }

    /// kubectl with a file on its standard input.
    ///
    /// # Errors
    /// When kubectl fails, with what it said.
    pub fn with_input(&self, arguments: &[&str], input: &str) -> Result<String> {
        limited("kubectl", arguments, Some(input))
    }

    /// What a program in a container prints.
    ///
    /// # Errors
    /// When it fails.
    pub fn exec(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        program: &[&str],
    ) -> Result<String> {
        let mut arguments = vec!["-n", namespace, "exec", pod, "-c", container, "--"];
        arguments.extend(program);
        self.run(&arguments)
    }

    /// Waits until a rollout is complete.
    ///
    /// # Errors
    /// When it is not in time.
    pub fn rolled_out(&self, namespace: &str, what: &str) -> Result<()> {
        self.run(&["-n", namespace, "rollout", "status", what, "--timeout=110s"]).map(drop)
    }

    /// GET through the API server's proxy to a port of a pod.
    ///
    /// # Errors
    /// When it cannot be had.
    pub fn get(&self, namespace: &str, pod: &str, port: u16, path: &str) -> Result<String> {
        self.run(&[
            "get",
            "--raw",
            &format!("/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy{path}"),
        ])
    }
}

fn limited<S: AsRef<OsStr>>(program: &str, arguments: &[S], input: Option<&str>) -> Result<String> {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &LIMIT_SECONDS.to_string(), program]).args(arguments);
    command.stdin(match input {
        None => Stdio::null(),
        Some(text) => {
            // A file: a pipe could fill while nobody reads.
            let mut file = std::fs::File::from(rustix::fs::memfd_create(
                "manifest",
                rustix::fs::MemfdFlags::CLOEXEC,
            )?);
            file.write_all(text.as_bytes())?;
            file.rewind()?;
            file.into()
        }
    });
    let output = command.output().context("start `timeout` of coreutils")?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let words: Vec<_> = arguments.iter().map(|word| word.as_ref().to_string_lossy()).collect();
    let why = match output.status.code() {
        Some(124 | 137) => format!("not within {LIMIT_SECONDS} s"),
        Some(127) => format!("{program} is not on PATH (`make tools` brings it)"),
        _ => output.status.to_string(),
    };
    bail!(
        "{program} {}: {why}: {}{}",
        words.join(" "),
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
}

/// Looks at `condition` until it gives a value.
///
/// # Errors
/// When it does not within `within`; with its last error.
pub fn eventually<T>(
    within: Duration,
    what: &str,
    mut condition: impl FnMut() -> Result<T>,
) -> Result<T> {
    let deadline = Instant::now() + within;
    loop {
        match condition() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= deadline => {
                return Err(error.context(format!("not within {within:?}: {what}")));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}
