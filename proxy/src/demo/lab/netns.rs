//! Network namespaces: made by name, entered by threads, searched for processes.
//!
//! What it does not do: addresses and routes; see `topology`.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

const NETNS_DIR: &str = "/run/netns";

/// A network namespace known to `ip netns` under its name.
#[derive(Clone, Debug)]
pub struct Netns {
    name: String,
    file: Arc<File>,
}

impl Netns {
    /// Opens a namespace that exists already.
    pub fn open(name: &str) -> Result<Self> {
        let path = path_of(name);
        let file = File::open(&path).with_context(|| format!("open {}", path.display()))?;
        Ok(Self { name: name.to_owned(), file: Arc::new(file) })
    }

    /// Gives the namespace that this process lives in a name, and opens it.
    pub fn name_own(name: &str) -> Result<Self> {
        ip_batch(&[], &format!("netns attach {name} {}\n", std::process::id()))?;
        Self::open(name)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `f` on a thread inside this namespace. Sockets made there stay in it wherever they are
    /// used afterwards; children started there live in it.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                self.enter().expect("the namespace exists as long as its handle");
                f()
            });
            match thread.join() {
                Ok(value) => value,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Moves the calling thread, for good.
    pub fn enter(&self) -> Result<()> {
        move_into_link_name_space(self.file.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("enter network namespace {} (needs root)", self.name))
    }

    /// Feeds `ip -b` with one command a line, inside this namespace.
    pub fn ip(&self, batch: &str) -> Result<()> {
        ip_batch(&["-n", &self.name], batch)
    }

    /// Sets a sysctl below `/proc/sys/net`, e.g. `ipv4/ip_forward`.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.run(|| std::fs::write(&path, value)).with_context(|| format!("set {path}={value}"))
    }

    /// The processes whose main thread lives here.
    pub fn pids(&self) -> Vec<i32> {
        let Ok(here) = self.file.metadata() else { return Vec::new() };
        let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
        entries
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
            .filter(|pid| {
                std::fs::metadata(format!("/proc/{pid}/ns/net"))
                    .is_ok_and(|there| (there.dev(), there.ino()) == (here.dev(), here.ino()))
            })
            .collect()
    }
}

fn path_of(name: &str) -> PathBuf {
    Path::new(NETNS_DIR).join(name)
}

/// The namespaces whose names start with `prefix`.
pub fn names_with_prefix(prefix: &str) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(NETNS_DIR) else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| name.starts_with(prefix))
        .collect()
}

/// Makes all the named namespaces at once.
pub fn create(names: &[String]) -> Result<Vec<Netns>> {
    let batch: String = names.iter().map(|name| format!("netns add {name}\n")).collect();
    ip_batch(&[], &batch)?;
    names.iter().map(|name| Netns::open(name)).collect()
}

/// Kills every process in the namespaces, then deletes them. Best effort: it runs in drops.
pub fn destroy(names: &[String]) {
    let handles: Vec<Netns> = names.iter().filter_map(|name| Netns::open(name).ok()).collect();
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        let pids: Vec<i32> = handles.iter().flat_map(Netns::pids).collect();
        if pids.is_empty() || Instant::now() > deadline {
            break;
        }
        for pid in pids {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    let batch: String = names
        .iter()
        .filter(|name| path_of(name).exists())
        .map(|name| format!("netns del {name}\n"))
        .collect();
    if !batch.is_empty()
        && let Err(error) = ip_batch(&["-force"], &batch)
    {
        eprintln!("lab: {error:#}");
    }
}

fn ip_batch(options: &[&str], batch: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(options)
        .args(["-b", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("start `ip` (package iproute2; `make setup` installs it)")?;
    child.stdin.take().context("stdin of ip")?.write_all(batch.as_bytes()).context("feed ip -b")?;
    let output = child.wait_with_output().context("wait for ip")?;
    if !output.status.success() {
        bail!(
            "ip {} failed: {}; the commands were:\n{batch}",
            options.join(" "),
            String::from_utf8_lossy(&output.stderr).trim(),
        );
    }
    Ok(())
}
