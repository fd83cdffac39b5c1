//! What a lab leaves on the machine (namespaces, processes, a directory), and its removal on
//! drop, on a signal, on a panic that aborts, and by the next lab after a SIGKILL.
//!
//! What it does not do: build anything inside the namespaces.

use super::netns::{self, Netns};
use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;

const PREFIX: &str = "rdmesh-lab-";
const LOCK: &str = "lock";
const KEEP: &str = "keep";
const CLEAN_UP_WITHIN: Duration = Duration::from_secs(20);

/// The labs of this process, for the signal handler and the panic hook.
static LIVE: Mutex<Live> = Mutex::new(Live { closing: false, labs: BTreeMap::new() });
static NEXT: AtomicU64 = AtomicU64::new(0);

struct Live {
    closing: bool,
    labs: BTreeMap<String, PathBuf>,
}

fn live() -> MutexGuard<'static, Live> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One lab's footprint; dropping it removes everything.
#[derive(Debug)]
pub struct Site {
    id: String,
    dir: PathBuf,
    keep: bool,
    /// Held as long as the lab lives; a sweeper that gets it knows that the lab's owner is dead.
    _lock: File,
}

impl Site {
    pub fn new() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("the lab needs root (it makes network namespaces): run it with sudo");
        }
        clean_up_on_signals();
        sweep(false);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{}-{number}", std::process::id());
        let dir = std::env::temp_dir().join(&id);
        std::fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
        // Renamed into place when it is locked: a sweeper never sees it unlocked.
        let unlocked = dir.join("lock.new");
        let lock = File::create(&unlocked).context("create the lab's lock file")?;
        flock(&lock, FlockOperation::LockExclusive).context("lock the lab's directory")?;
        std::fs::rename(unlocked, dir.join(LOCK)).context("name the lab's lock file")?;
        let mut live = live();
        if live.closing {
            bail!("interrupted");
        }
        live.labs.insert(id.clone(), dir.clone());
        Ok(Self { id, dir, keep: false, _lock: lock })
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn namespaces(&self, names: &[&str]) -> Result<Vec<Netns>> {
        let live = live();
        if live.closing {
            bail!("interrupted");
        }
        let names: Vec<String> = names.iter().map(|name| format!("{}-{name}", self.id)).collect();
        netns::create(&names)
    }

    /// Runs `start` unless the labs are being torn down, so that no process slips in afterwards.
    pub fn while_open<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let live = live();
        if live.closing {
            bail!("interrupted");
        }
        start()
    }

    /// Leaves everything where it is when this value is dropped; `sweep(true)` removes it.
    pub fn keep(&mut self) -> Result<()> {
        std::fs::write(self.dir.join(KEEP), "").context("mark the lab as kept")?;
        self.keep = true;
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if live().labs.remove(&self.id).is_none() {
            // The signal handler is at it, and will end the process: what this thread could say
            // now would be about programs that were killed under it.
            std::thread::sleep(CLEAN_UP_WITHIN);
        } else if !self.keep {
            tear_down(&self.id, &self.dir);
        }
    }
}

fn tear_down(id: &str, dir: &Path) {
    netns::destroy(&netns::names_with_prefix(&format!("{id}-")));
    if let Err(error) = std::fs::remove_dir_all(dir) {
        eprintln!("lab: cannot remove {}: {error}", dir.display());
    }
}

/// Removes the labs whose owners died without cleaning up; with `kept` also those that were left
/// standing on purpose. Returns how many were removed.
pub fn sweep(kept: bool) -> usize {
    let Ok(entries) = std::fs::read_dir(std::env::temp_dir()) else { return 0 };
    let mut removed = 0;
    for entry in entries.flatten() {
        let Ok(id) = entry.file_name().into_string() else { continue };
        let dir = entry.path();
        if !id.starts_with(PREFIX) || (!kept && dir.join(KEEP).exists()) {
            continue;
        }
        // No lock file: a lab in its first millisecond, or one being removed by its owner.
        let Ok(lock) = File::open(dir.join(LOCK)) else { continue };
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_ok() && dir.exists() {
            tear_down(&id, &dir);
            removed += 1;
        }
    }
    removed
}

/// Removes every lab of this process; afterwards none can be made or started.
pub fn tear_down_all() {
    let labs = {
        let mut live = live();
        live.closing = true;
        std::mem::take(&mut live.labs)
    };
    for (id, dir) in labs {
        tear_down(&id, &dir);
    }
}

/// From the first lab on SIGINT, SIGTERM and SIGHUP remove the labs and end the process.
fn clean_up_on_signals() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let thread = std::thread::Builder::new().name("lab-signals".into()).spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(wait_for_signal()),
                Err(error) => eprintln!("lab: no clean-up on signals: {error}"),
            }
        });
        if let Err(error) = thread {
            eprintln!("lab: no clean-up on signals: {error}");
        }
    });
}

async fn wait_for_signal() {
    use tokio::signal::unix::{SignalKind, signal};
    let (Ok(mut int), Ok(mut term), Ok(mut hup)) = (
        signal(SignalKind::interrupt()),
        signal(SignalKind::terminate()),
        signal(SignalKind::hangup()),
    ) else {
        eprintln!("lab: no clean-up on signals");
        return;
    };
    let code = tokio::select! {
        _ = int.recv() => 130,
        _ = term.recv() => 143,
        _ = hup.recv() => 129,
    };
    eprintln!("\ninterrupted: removing the lab");
    tear_down_all();
    std::process::exit(code);
}
