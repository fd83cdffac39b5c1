//! Descriptors that tokio has no type for, in its event loop.

use std::io;
use std::os::fd::OwnedFd;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Watches a descriptor for reading and writing. Needs a tokio runtime around it.
///
/// # Errors
/// What `epoll_ctl` says, as about a descriptor that cannot be polled.
pub fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    let interest = Interest::READABLE | Interest::WRITABLE;
    // SAFETY: an `OwnedFd` is open for as long as it lives and always tells the same descriptor.
    let watched = unsafe { AsyncFd::register_with_interest(fd, interest) };
    Ok(watched?)
}
