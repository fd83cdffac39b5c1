//! Bounds how long a call can block its thread: a timer sends the thread a signal at an interval,
//! and a call that waits ends with `EINTR`.
//!
//! It is needed where a socket's file is shared with somebody who may make it blocking, and the
//! call (splice) has no flag of its own that says not to wait.
//! What it does not do: anything in the signal's handler.

use std::io;
use std::ptr;
use std::time::Duration;

/// A timer that interrupts the thread that made it. It stops when dropped.
pub struct Interrupter {
    timer: libc::timer_t,
    on: bool,
}

extern "C" fn nothing(_: libc::c_int) {}

fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 3
}

impl Interrupter {
    /// For the calling thread; it does not run yet.
    ///
    /// # Errors
    /// When the system has no timer left.
    pub fn new() -> io::Result<Self> {
        // SAFETY: all zeroes is a valid sigaction (no handler, no flags, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        let handler: extern "C" fn(libc::c_int) = nothing;
        action.sa_sigaction = handler as libc::sighandler_t;
        // SAFETY: the handler does nothing, so it is safe at any moment; without SA_RESTART a
        // call that waits is not taken up again.
        if unsafe { libc::sigaction(signal(), &raw const action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: all zeroes is a valid sigevent.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = signal();
        event.sigev_notify_thread_id = rustix::thread::gettid().as_raw_nonzero().get();
        let mut timer: libc::timer_t = ptr::null_mut();
        // SAFETY: both pointers are to live values of the right type.
        let made =
            unsafe { libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) };
        if made != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { timer, on: false })
    }

    #[must_use]
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// Interrupts every `interval` from now on, or no more.
    ///
    /// # Errors
    /// What `timer_settime` says.
    pub fn set(&mut self, interval: Option<Duration>) -> io::Result<()> {
        let nanoseconds = interval.unwrap_or_default().as_nanos();
        let time = libc::timespec {
            tv_sec: (nanoseconds / 1_000_000_000).try_into().unwrap_or(libc::time_t::MAX),
            tv_nsec: (nanoseconds % 1_000_000_000) as libc::c_long,
        };
        let setting = libc::itimerspec { it_interval: time, it_value: time };
        // SAFETY: the timer is ours and alive, the setting lives through the call.
        let set =
            unsafe { libc::timer_settime(self.timer, 0, &raw const setting, ptr::null_mut()) };
        if set != 0 {
            return Err(io::Error::last_os_error());
        }
        self.on = interval.is_some();
        Ok(())
    }
}

impl Drop for Interrupter {
    fn drop(&mut self) {
        // SAFETY: the timer is ours, alive, and not used after this.
        unsafe { libc::timer_delete(self.timer) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipe::Pipes;
    use rustix::io::Errno;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn a_splice_from_a_blocking_socket_ends() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let _far = listener.accept().unwrap();
        let mut interrupter = Interrupter::new().unwrap();
        interrupter.set(Some(Duration::from_millis(10))).unwrap();
        let mut filling = Pipes::new(1).unwrap().take().unwrap();
        assert_eq!(filling.fill(&near, 4096), Err(Errno::INTR));
        interrupter.set(None).unwrap();
        near.set_nonblocking(true).unwrap();
        assert_eq!(filling.fill(&near, 4096), Err(Errno::AGAIN));
    }
}
