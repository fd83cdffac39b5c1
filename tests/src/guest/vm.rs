//! One QEMU guest as a value: started, watched, powered off, and killed at the latest when it is
//! dropped or its parent dies.
//!
//! What it does not do: know what runs inside, beyond the agent at the end of its line.

use super::image::Image;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// An emulated CPU on a busy machine boots slowly, but not slower than this.
const BOOT_WITHIN: Duration = Duration::from_secs(90);
const POWER_OFF_WITHIN: Duration = Duration::from_secs(10);
const MEMORY_MIB: u32 = 1536;

/// The host's files, read-only. Without `remap` its /sys would land over the guest's /proc.
const FILES: &str = "local,id=files,path=/,security_model=none,readonly=on,multidevs=remap";

#[derive(Debug)]
pub struct Vm {
    child: Child,
    line: PathBuf,
    console: PathBuf,
}

/// Debian keeps some programs out of an ordinary user's PATH, and so does a sudo without one.
pub(super) fn tool(name: &str) -> PathBuf {
    let sbin = Path::new("/usr/sbin").join(name);
    if sbin.exists() { sbin } else { PathBuf::from(name) }
}

impl Vm {
    /// Starts guest 1 or 2 with its files in `dir`. From the main thread only: the kernel kills the
    /// guest when the thread that started it ends.
    pub fn start(number: u8, image: &Image, dir: &Path) -> Result<Self> {
        let (own, other) = (number, if number == 1 { 2 } else { 1 });
        let line = dir.join(format!("agent{own}"));
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let wire = |n: u8| text(&dir.join(format!("wire{n}")));
        let mut qemu = Command::new("setpriv");
        qemu.args(["--pdeathsig", "KILL", "--", "qemu-system-x86_64", "-nodefaults", "-no-reboot"]);
        // Two processors that poll for each other on an emulated machine are slower than one.
        qemu.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "1"]);
        qemu.args(["-m", &MEMORY_MIB.to_string(), "-display", "none", "-monitor", "none"]);
        qemu.args(["-serial", "stdio", "-kernel", &text(&image.kernel)]);
        qemu.args(["-initrd", &text(&image.initrd)]);
        qemu.args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0"]);
        qemu.args(["-fsdev", FILES, "-device", "virtio-9p-pci,fsdev=files,mount_tag=root"]);
        // `-netdev socket` carries TCP and hangs RDMA.
        let netdev = format!(
            "dgram,id=wire,local.type=unix,local.path={},remote.type=unix,remote.path={}",
            wire(own),
            wire(other)
        );
        let device = format!("virtio-net-pci,netdev=wire,romfile=,mac=52:54:00:72:64:0{own}");
        qemu.args(["-netdev", &netdev, "-device", &device]);
        let chardev = format!("socket,id=agent,path={},server=on,wait=off", text(&line));
        qemu.args(["-chardev", &chardev, "-device", "virtio-serial-pci"]);
        qemu.args(["-device", "virtserialport,chardev=agent,name=rdmesh.agent"]);
        qemu.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = qemu.spawn().context("start qemu (package qemu-system-x86)")?;
        let console = dir.join(format!("console{own}.log"));
        record(&mut child, &console)?;
        Ok(Self { child, line, console })
    }

    /// The line to the guest's agent, and what is left of the time that a boot may take.
    pub fn connect(&mut self) -> Result<(UnixStream, Duration)> {
        let deadline = Instant::now() + BOOT_WITHIN;
        loop {
            match UnixStream::connect(&self.line) {
                Ok(line) => return Ok((line, deadline.saturating_duration_since(Instant::now()))),
                Err(error) if Instant::now() > deadline => {
                    return Err(error).context("connect to the guest");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(20)),
            }
            if let Some(status) = self.child.try_wait().context("look at qemu")? {
                bail!("qemu ended ({status}): {}", self.last_words());
            }
        }
    }

    /// The end of the console's log.
    pub fn last_words(&self) -> String {
        let text = std::fs::read(&self.console).unwrap_or_default();
        crate::process::tail(&String::from_utf8_lossy(&text))
    }

    /// Waits until the guest has ended: its kernel powers off when the agent's line is closed.
    pub fn wait_off(&mut self) -> Result<()> {
        let deadline = Instant::now() + POWER_OFF_WITHIN;
        while Instant::now() < deadline {
            if let Some(status) = self.child.try_wait().context("look at qemu")? {
                if status.success() {
                    return Ok(());
                }
                bail!("qemu ended with {status}: {}", self.last_words());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        bail!("it did not power off: {}", self.last_words())
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Copies what the guest's console and qemu say to a log, each line with its time.
fn record(child: &mut Child, log: &Path) -> Result<()> {
    let started = Instant::now();
    let file =
        File::options().create(true).append(true).open(log).context("open the console's log")?;
    let stdout = child.stdout.take().context("the guest's console")?;
    let stderr = child.stderr.take().context("qemu's messages")?;
    let mut second = file.try_clone().context("share the console's log")?;
    let mut first = file;
    let copy = move |from: &mut dyn BufRead, to: &mut File| {
        let mut line = Vec::new();
        while matches!(from.read_until(b'\n', &mut line), Ok(n) if n > 0) {
            let text = String::from_utf8_lossy(&line);
            let _ = writeln!(to, "[{:9.3}] {}", started.elapsed().as_secs_f64(), text.trim_end());
            line.clear();
        }
    };
    let spawn = |name: &str, work: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(work).context("start a thread")
    };
    spawn("console", Box::new(move || copy(&mut BufReader::new(stdout), &mut first)))?;
    spawn("qemu", Box::new(move || copy(&mut BufReader::new(stderr), &mut second)))?;
    Ok(())
}
