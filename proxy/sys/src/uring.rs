//! Ring operations that tokio-uring has no function for.

use io_uring::{cqueue, opcode, types};
use rustix::event::PollFlags;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::rc::Rc;
use tokio_uring::{InFlightOneshot, OneshotOutputTransform, UnsubmittedOneshot};

/// What a completed poll says.
pub struct Readiness;

impl OneshotOutputTransform for Readiness {
    type Output = io::Result<()>;
    type StoredData = Rc<OwnedFd>;

    fn transform_oneshot_output(self, _: Rc<OwnedFd>, completion: cqueue::Entry) -> io::Result<()> {
        match completion.result() {
            error if error < 0 => Err(io::Error::from_raw_os_error(-error)),
            _ => Ok(()),
        }
    }
}

/// Completes when `descriptor` can be read. Keep the future when something else comes first: the
/// operation stays in the kernel until it completes.
///
/// # Panics
/// Outside a tokio-uring runtime.
#[must_use]
pub fn readable(descriptor: Rc<OwnedFd>) -> InFlightOneshot<Rc<OwnedFd>, Readiness> {
    // The operation owns a share of the descriptor, so the number stays valid until it completes.
    let fd = types::Fd(descriptor.as_raw_fd());
    let poll = opcode::PollAdd::new(fd, PollFlags::IN.bits().into()).build();
    UnsubmittedOneshot::new(descriptor, Readiness, poll).submit()
}
