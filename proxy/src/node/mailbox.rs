//! A bounded queue into a worker thread that wakes it through an eventfd, so that the worker can
//! wait for it in the same place as for its sockets.
//!
//! What it does not do: wait for room. A full mailbox gives the value back and the sender decides.

use rustix::event::{EventfdFlags, eventfd};
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

struct Inner<T> {
    queue: Mutex<VecDeque<T>>,
    /// Mirror of the queue's length, for a worker that polls.
    len: AtomicUsize,
    capacity: usize,
    event: OwnedFd,
}

/// Both ends of the queue; clones share it.
pub struct Mailbox<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self { inner: Arc::clone(&self.inner) }
    }
}

impl<T> Mailbox<T> {
    /// # Errors
    /// What the kernel says when it has no descriptor left.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let queue = Mutex::new(VecDeque::new());
        Ok(Self { inner: Arc::new(Inner { queue, len: AtomicUsize::new(0), capacity, event }) })
    }

    /// Puts `value` in and wakes the reader.
    ///
    /// # Errors
    /// The value itself, when the mailbox is full.
    pub fn push(&self, value: T) -> Result<(), T> {
        let mut queue = self.lock();
        if queue.len() >= self.inner.capacity {
            return Err(value);
        }
        queue.push_back(value);
        self.inner.len.store(queue.len(), Ordering::Release);
        let first = queue.len() == 1;
        drop(queue);
        if first {
            // The counter is cleared at every drain, so it cannot overflow and the write succeeds.
            let _ = rustix::io::write(&self.inner.event, &1u64.to_ne_bytes());
        }
        Ok(())
    }

    /// Clears the wake-up and appends everything that waits to `into`.
    pub fn drain(&self, into: &mut Vec<T>) {
        // Cleared first: a push after this either is taken below or wakes again.
        let mut counter = [0u8; 8];
        let _ = rustix::io::read(&self.inner.event, &mut counter);
        let mut queue = self.lock();
        into.extend(queue.drain(..));
        self.inner.len.store(0, Ordering::Release);
    }

    /// Cheap look without a system call.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.inner.len.load(Ordering::Acquire) == 0
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        // No code runs under the lock that could leave the queue half changed.
        self.inner.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> AsFd for Mailbox<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.event.as_fd()
    }
}

impl<T> AsRawFd for Mailbox<T> {
    fn as_raw_fd(&self) -> RawFd {
        self.inner.event.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::event::{PollFd, PollFlags, Timespec, poll};

    fn readable<T>(mailbox: &Mailbox<T>) -> bool {
        let mut fds = [PollFd::new(mailbox, PollFlags::IN)];
        poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).expect("poll") == 1
    }

    #[test]
    fn wakes_once_and_is_clear_after_drain() {
        let mailbox = Mailbox::new(8).expect("eventfd");
        assert!(!readable(&mailbox) && mailbox.is_empty());
        mailbox.push(1).expect("room");
        mailbox.clone().push(2).expect("room");
        assert!(readable(&mailbox) && !mailbox.is_empty());
        let mut got = Vec::new();
        mailbox.drain(&mut got);
        assert_eq!(got, [1, 2]);
        assert!(!readable(&mailbox) && mailbox.is_empty());
        mailbox.push(3).expect("room");
        assert!(readable(&mailbox));
    }

    #[test]
    fn full_gives_the_value_back() {
        let mailbox = Mailbox::new(1).expect("eventfd");
        mailbox.push("a").expect("room");
        assert_eq!(mailbox.push("b"), Err("b"));
    }

    #[test]
    fn nothing_is_lost_between_threads() {
        let mailbox = Mailbox::new(64).expect("eventfd");
        let sender = mailbox.clone();
        let thread = std::thread::spawn(move || {
            for value in 0..10_000u32 {
                let mut value = value;
                while let Err(back) = sender.push(value) {
                    value = back;
                    std::thread::yield_now();
                }
            }
        });
        let mut got = Vec::new();
        while got.len() < 10_000 {
            let mut fds = [PollFd::new(&mailbox, PollFlags::IN)];
            poll(&mut fds, None).expect("poll");
            mailbox.drain(&mut got);
        }
        thread.join().expect("sender");
        assert!(got.iter().copied().eq(0..10_000));
    }
}
