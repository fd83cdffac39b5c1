//! Plain reads and writes of a link's own connection, which never wait.

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;

/// Sends without blocking; `None` when the socket takes nothing now. `more`: something follows at
/// once, so that the last segment may wait for it.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    slices: &[IoSlice<'_>],
    more: bool,
) -> io::Result<Option<usize>> {
    let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    flags.set(SendFlags::MORE, more);
    loop {
        match rustix::net::sendmsg(
            socket,
            slices,
            &mut rustix::net::SendAncillaryBuffer::default(),
            flags,
        ) {
            Ok(n) => return Ok(Some(n)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives without blocking; `None` when nothing is there, `Some(0)` at the end.
pub(super) fn receive(socket: BorrowedFd<'_>, space: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        match rustix::net::recv(socket, &mut *space, RecvFlags::DONTWAIT) {
            Ok((n, _)) => return Ok(Some(n)),
            Err(Errno::AGAIN) => return Ok(None),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
