//! Notices that the node proxy's socket has appeared, so that nobody waits for a backoff to end.

use rustix::fd::OwnedFd;
use rustix::fs::inotify;
use std::io;
use std::mem::MaybeUninit;
use std::path::Path;
use tokio::io::unix::AsyncFd;

/// Watches the directory of a socket.
pub(super) struct SocketWatch(AsyncFd<OwnedFd>);

impl SocketWatch {
    pub fn new(socket: &Path) -> io::Result<Self> {
        let directory = match socket.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let fd = inotify::init(inotify::CreateFlags::NONBLOCK | inotify::CreateFlags::CLOEXEC)?;
        let events = inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO;
        inotify::add_watch(&fd, directory, events)?;
        Ok(Self(rdmesh_sys::readiness::watch(fd)?))
    }

    /// Returns when something was made in the directory since the last call.
    pub async fn changed(&self) -> io::Result<()> {
        let mut guard = self.0.readable().await?;
        let mut space = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(&self.0, &mut space);
        while events.next().is_ok() {}
        guard.clear_ready();
        Ok(())
    }
}
