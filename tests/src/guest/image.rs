//! What a guest boots: a kernel of Debian's, which `tests/setup.sh` has unpacked below
//! `target/guest`, and an initial file system made afresh: busybox, a few modules, a script.
//!
//! What it does not do: build a root file system. The guest's is the host's by 9p, read-only, with a
//! file system in memory above it.

use super::vm::tool;
use anyhow::{Context, Result, bail};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What must be there before the root file system is: modprobe sorts out what these need.
const MODULES: [&str; 6] =
    ["virtio_pci", "virtio_net", "virtio_console", "9pnet_virtio", "9p", "overlay"];
/// The guest's scratch space, and TMPDIR there.
pub const SCRATCH: &str = "/rdmesh";

/// Which kernel a guest boots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kernel {
    /// That of the release.
    Stable,
    /// That of backports: SMC-R's links over Soft-RoCE fail with the other.
    Backports,
}

impl Kernel {
    /// Where it is below the target directory, and the group of `tests/setup.sh` that fetches it.
    fn place(self) -> (&'static str, &'static str) {
        match self {
            Self::Stable => ("guest/kernel", "guest"),
            Self::Backports => ("guest/kernel-smc", "smc"),
        }
    }
}

#[derive(Debug)]
pub struct Image {
    pub kernel: PathBuf,
    pub initrd: PathBuf,
}

impl Image {
    /// Makes the image below `dir`; the guest will run `agent` and power off when that ends.
    pub fn make(dir: &Path, agent: &Path, kernel: Kernel) -> Result<Self> {
        let unpacked = unpacked_kernel(kernel)?;
        let kernel = only_entry(&unpacked.join("boot"), "vmlinuz-")?;
        let modules = only_entry(&unpacked.join("lib/modules"), "")?;
        let release = modules.file_name().context("a kernel release")?.to_string_lossy();
        let stage = dir.join("initrd.d");
        for sub in ["bin", "m", "proc", "sys", "dev", "lower", "rw", "root"] {
            std::fs::create_dir_all(stage.join(sub)).context("stage the initial file system")?;
        }
        std::fs::copy("/bin/busybox", stage.join("bin/busybox"))
            .context("copy /bin/busybox (package busybox-static; `make setup` installs it)")?;
        let mut inserts = String::new();
        for (number, module) in needed(&unpacked, &release)?.iter().enumerate() {
            let name = format!("m/{number:02}.ko");
            std::fs::copy(module, stage.join(&name)).with_context(|| format!("copy {module}"))?;
            let _ = writeln!(inserts, "$b insmod /{name}");
        }
        let init = init_script(&inserts, &modules, agent);
        std::fs::write(stage.join("init"), init).context("write the init script")?;
        executable(&stage.join("init"))?;
        executable(&stage.join("bin/busybox"))?;
        let initrd = dir.join("initrd");
        pack(&stage, &initrd)?;
        std::fs::remove_dir_all(&stage).context("remove the stage")?;
        Ok(Self { kernel, initrd })
    }
}

/// In the target directory that this program is in.
fn unpacked_kernel(kernel: Kernel) -> Result<PathBuf> {
    let (place, group) = kernel.place();
    let me = std::env::current_exe().context("find this program's own file")?;
    let found = me.ancestors().map(|dir| dir.join(place)).find(|dir| dir.is_dir());
    found.with_context(|| format!("no kernel in target/{place}: run `tests/setup.sh {group}`"))
}

fn only_entry(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(dir)
        .with_context(|| format!("read {} (run `tests/setup.sh guest`)", dir.display()))?;
    let names = entries.flatten().filter(|e| e.file_name().to_string_lossy().starts_with(prefix));
    let mut paths: Vec<PathBuf> = names.map(|entry| entry.path()).collect();
    match (paths.pop(), paths.is_empty()) {
        (Some(path), true) => Ok(path),
        _ => bail!("{} must hold exactly one {prefix}*", dir.display()),
    }
}

/// The files of [`MODULES`] and of what they need, in the order of their loading.
fn needed(unpacked: &Path, release: &str) -> Result<Vec<String>> {
    let mut files: Vec<String> = Vec::new();
    for module in MODULES {
        let mut modprobe = Command::new(tool("modprobe"));
        modprobe.arg("-d").arg(unpacked).args(["-S", release, "--show-depends", module]);
        let output = modprobe.output().context("run modprobe (package kmod)")?;
        if !output.status.success() {
            bail!("modprobe {module}: {}", String::from_utf8_lossy(&output.stderr).trim());
        }
        let text = String::from_utf8_lossy(&output.stdout);
        for file in text.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let file = file.trim().to_owned();
            if !files.contains(&file) {
                files.push(file);
            }
        }
    }
    Ok(files)
}

fn init_script(inserts: &str, modules: &Path, agent: &Path) -> String {
    let release = modules.file_name().unwrap_or_default().to_string_lossy();
    let (modules, agent) = (modules.display(), agent.display());
    format!(
        "#!/bin/busybox sh\n\
         b=/bin/busybox\n\
         $b mount -t proc proc /proc; $b mount -t sysfs sysfs /sys; $b mount -t devtmpfs dev /dev\n\
         {inserts}\
         $b mount -t tmpfs -o mode=755 rw /rw; $b mkdir /rw/upper /rw/work\n\
         $b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=262144,cache=loose root /lower\n\
         $b mount -t overlay -o lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work root /root\n\
         cd /root\n\
         $b mkdir -p rdmesh dev/pts lib/modules\n\
         $b mount -t tmpfs run run; $b mount -t tmpfs rdmesh rdmesh\n\
         $b mount -t proc proc proc; $b mount -t sysfs sysfs sys; $b mount -t devtmpfs dev dev\n\
         [ -e lib/modules/{release} ] || $b ln -s {modules} lib/modules/{release}\n\
         $b mkdir -p run/netns run/lock\n\
         cat > rdmesh/start <<'END'\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n\
         export TMPDIR={SCRATCH} HOME=/root RUST_BACKTRACE=0\n\
         ulimit -n 20000; ulimit -l unlimited\n\
         {agent}\n\
         echo \"the agent ended with $?\"\n\
         busybox poweroff -f\n\
         END\n\
         exec $b switch_root /root /bin/busybox sh /rdmesh/start\n"
    )
    .replace("\ncat > ", "\n$b cat > ")
}

fn executable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))
        .with_context(|| format!("make {} executable", path.display()))
}

fn pack(stage: &Path, initrd: &Path) -> Result<()> {
    let mut names = Command::new("find")
        .arg(".")
        .current_dir(stage)
        .stdout(Stdio::piped())
        .spawn()
        .context("run find")?;
    let list = names.stdout.take().context("find's output")?;
    let file = std::fs::File::create(initrd).context("create the initrd")?;
    let mut cpio = Command::new("cpio");
    cpio.args(["-o", "-H", "newc", "--quiet", "-R", "0:0"]).current_dir(stage);
    let status = cpio.stdin(list).stdout(file).status().context("run cpio (package cpio)")?;
    if !(names.wait().context("wait for find")?.success() && status.success()) {
        bail!("cpio could not pack the initial file system");
    }
    Ok(())
}
