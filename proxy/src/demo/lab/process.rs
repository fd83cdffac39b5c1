//! Programs in a namespace: started with their output in a log file, waited for with a deadline,
//! stopped as a group on drop.
//!
//! What it does not do: know what the programs are.

use super::netns::Netns;
use super::site::Site;
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, kill_process_group, pidfd_open};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// How often conditions that no descriptor tells of are looked at.
pub const POLL_INTERVAL: Duration = Duration::from_millis(3);
/// Ticks of `/proc/<pid>/stat` (USER_HZ, which is 100 on every Linux port).
const TICKS_PER_SECOND: f64 = 100.0;

/// A running program; dropping it kills its whole process group.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
}

/// What a program that has ended left.
#[derive(Debug)]
pub struct Finished {
    pub status: ExitStatus,
    pub stdout: String,
    pub stderr: String,
}

/// Starts `command` inside `netns`; both its outputs go to the log file `name`.log.
pub fn spawn(site: &Site, netns: &Netns, name: &str, mut command: Command) -> Result<Process> {
    let log = log_path(site, name)?;
    let file = File::options().create(true).append(true).open(&log).context("open a log file")?;
    command
        .stdin(Stdio::null())
        .stdout(file.try_clone().context("share a log file")?)
        .stderr(file)
        .process_group(0);
    let child = start(site, netns, &mut command)?;
    Ok(Process { name: name.to_owned(), child, log })
}

/// Runs `command` inside `netns` to its end; a time-out or an exit code other than 0 is an error
/// that carries the program's last words.
pub fn run(
    site: &Site,
    netns: &Netns,
    command: &mut Command,
    within: Duration,
) -> Result<Finished> {
    let finished = run_any(site, netns, command, within)?;
    if !finished.status.success() {
        bail!(
            "{} failed ({}): {}{}",
            describe(command),
            finished.status,
            tail(&finished.stderr),
            tail(&finished.stdout)
        );
    }
    Ok(finished)
}

/// Like [`run`], whatever the exit code is.
pub fn run_any(
    site: &Site,
    netns: &Netns,
    command: &mut Command,
    within: Duration,
) -> Result<Finished> {
    let out = scratch_file(site)?;
    let err = scratch_file(site)?;
    command
        .stdin(Stdio::null())
        .stdout(out.1.try_clone().context("share an output file")?)
        .stderr(err.1.try_clone().context("share an output file")?)
        .process_group(0);
    let child = start(site, netns, command)?;
    let mut process = Process { name: describe(command), child, log: err.0.clone() };
    let status = process.wait(within);
    let read =
        |path: &Path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into();
    let (stdout, stderr): (String, String) = (read(&out.0), read(&err.0));
    for path in [&out.0, &err.0] {
        let _ = std::fs::remove_file(path);
    }
    let status = status.with_context(|| format!("{}{}", tail(&stderr), tail(&stdout)))?;
    Ok(Finished { status, stdout, stderr })
}

fn start(site: &Site, netns: &Netns, command: &mut Command) -> Result<Child> {
    site.while_open(|| {
        netns
            .run(|| command.spawn())
            .with_context(|| format!("start {} (`make setup` installs it)", describe(command)))
    })
}

impl Process {
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn log(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    pub fn has_ended(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(_)) | Err(_))
    }

    /// Waits for the end; at the deadline the process group is killed and this is an error.
    pub fn wait(&mut self, within: Duration) -> Result<ExitStatus> {
        if let Some(status) = self.child.try_wait().context("wait for a program")? {
            return Ok(status);
        }
        if let Some(pid) = self.raw_pid() {
            let fd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
            let deadline = Instant::now() + within;
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            loop {
                let left = deadline.saturating_duration_since(Instant::now());
                let timeout = Timespec::try_from(left).ok();
                match poll(&mut fds, timeout.as_ref()) {
                    Ok(0) => {
                        self.kill();
                        bail!("{} did not end within {within:?}", self.name);
                    }
                    Ok(_) => break,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error).context("wait for a program"),
                }
            }
        }
        self.child.wait().context("wait for a program")
    }

    /// SIGTERM, then the end awaited.
    pub fn terminate(&mut self, within: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.wait(within)
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.raw_pid().context("a process id")?;
        kill_process(pid, signal).with_context(|| format!("signal {}", self.name))
    }

    /// SIGKILL to the process group, and the zombie collected.
    pub fn kill(&mut self) {
        if let Some(pid) = self.raw_pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until something listens on the TCP port in the process's namespace.
    pub fn wait_listening(&mut self, netns: &Netns, port: u16, within: Duration) -> Result<()> {
        self.wait_until(within, &format!("listen on port {port}"), || is_listening(netns, port))
    }

    /// Waits until `condition` holds; an error when the process ends before, or at the deadline.
    pub fn wait_until(
        &mut self,
        within: Duration,
        what: &str,
        condition: impl Fn() -> bool,
    ) -> Result<()> {
        let deadline = Instant::now() + within;
        while !condition() {
            if self.has_ended() {
                bail!("{} ended before it could {what}: {}", self.name, tail(&self.log()));
            }
            if Instant::now() > deadline {
                bail!("{} did not {what} in {within:?}: {}", self.name, tail(&self.log()));
            }
            std::thread::sleep(POLL_INTERVAL);
        }
        Ok(())
    }

    /// User and system CPU time so far.
    pub fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.pid()).unwrap_or(0.0)
    }

    pub fn rss_bytes(&self) -> u64 {
        let path = format!("/proc/{}/status", self.pid());
        let status = std::fs::read_to_string(path).unwrap_or_default();
        let kib = status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().split(' ').next());
        kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) << 10
    }

    pub fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }

    fn raw_pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// User and system CPU time of a process with all its threads.
pub fn cpu_seconds(pid: u32) -> Option<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: f64 = fields.next()?.parse().ok()?;
    let system: f64 = fields.next()?.parse().ok()?;
    Some((user + system) / TICKS_PER_SECOND)
}

/// Whether a TCP socket in the namespace listens on `port`. Unlike a connection attempt it does
/// not disturb servers that serve just one client.
pub fn is_listening(netns: &Netns, port: u16) -> bool {
    let suffix = format!(":{port:04X}");
    netns.run(|| {
        ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"].iter().any(|path| {
            std::fs::read_to_string(path).unwrap_or_default().lines().any(|line| {
                let mut fields = line.split_whitespace();
                let local = fields.nth(1).unwrap_or_default();
                let state = fields.nth(1).unwrap_or_default();
                state == "0A" && local.ends_with(&suffix)
            })
        })
    })
}

fn log_path(site: &Site, name: &str) -> Result<PathBuf> {
    let dir = site.dir().join("logs");
    std::fs::create_dir_all(&dir).context("create the log directory")?;
    Ok(dir.join(format!("{name}.log")))
}

fn scratch_file(site: &Site) -> Result<(PathBuf, File)> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = site.dir().join(format!("out-{number}"));
    let file = File::create(&path).context("create an output file")?;
    Ok((path, file))
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// The last lines of a program's output, for an error message.
pub fn tail(text: &str) -> String {
    const LINES: usize = 12;
    let lines: Vec<&str> = text.trim_end().lines().collect();
    let from = lines.len().saturating_sub(LINES);
    lines[from..].iter().fold(String::new(), |all, line| all + "\n    " + line)
}
