//! Slab memory of one worker: equal buffers in one anonymous mapping, handed out by reference
//! count, reused last in first out so that the hot set stays in the cache.
//!
//! A buffer is written by exactly one [`BufMut`]; what is written becomes [`Payload`] slices that
//! only read. A slab belongs to one thread: neither type is `Send`.
//! What it does not do: block or grow. An empty slab answers `None`; the caller stops reading.

use crate::pipe::Piped;
use rustix::io::Errno;
use std::cell::{Cell, RefCell};
use std::io;
use std::ops::Deref;
use std::os::fd::AsFd;
use std::ptr::NonNull;
use std::rc::Rc;

struct Inner {
    base: NonNull<u8>,
    buffer_bytes: usize,
    references: Box<[Cell<u32>]>,
    free: RefCell<Vec<u32>>,
}

impl Inner {
    fn retain(&self, index: u32) {
        let count = &self.references[index as usize];
        count.set(count.get().checked_add(1).expect("fewer than 2^32 slices of one buffer"));
    }

    fn release(&self, index: u32) {
        let count = &self.references[index as usize];
        count.set(count.get() - 1);
        if count.get() == 0 {
            self.free.borrow_mut().push(index);
        }
    }

    fn mapping_bytes(&self) -> usize {
        self.buffer_bytes * self.references.len()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `base` was returned by mmap with exactly this length, and no slice can be alive:
        // each holds an `Rc` of this `Inner`.
        let unmapped =
            unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.mapping_bytes()) };
        debug_assert!(unmapped.is_ok());
    }
}

/// The memory of one worker.
#[derive(Clone)]
pub struct Slab {
    inner: Rc<Inner>,
}

impl Slab {
    /// Maps `buffers` buffers of `buffer_bytes` each. Pages are touched on first use only.
    ///
    /// # Errors
    /// What `mmap` says, or `InvalidInput` for a size of nothing or too much.
    pub fn new(buffers: u32, buffer_bytes: usize) -> io::Result<Self> {
        let total = (buffers as usize)
            .checked_mul(buffer_bytes)
            .filter(|bytes| *bytes > 0)
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        // SAFETY: a fresh anonymous private mapping with no address wish aliases nothing.
        let base = unsafe {
            rustix::mm::mmap_anonymous(
                std::ptr::null_mut(),
                total,
                rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE,
                rustix::mm::MapFlags::PRIVATE,
            )?
        };
        let base =
            NonNull::new(base.cast::<u8>()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        let references = (0..buffers).map(|_| Cell::new(0)).collect();
        let free = RefCell::new((0..buffers).rev().collect());
        Ok(Self { inner: Rc::new(Inner { base, buffer_bytes, references, free }) })
    }

    /// Takes a free buffer, or `None` when all are in use.
    #[must_use]
    pub fn take(&self) -> Option<BufMut> {
        let index = self.inner.free.borrow_mut().pop()?;
        self.inner.retain(index);
        Some(BufMut { inner: Rc::clone(&self.inner), index, filled: 0 })
    }

    #[must_use]
    pub fn buffer_bytes(&self) -> usize {
        self.inner.buffer_bytes
    }

    /// The whole mapping, for registration with a device. Whoever registers keeps a clone of the
    /// slab for as long.
    #[cfg(feature = "verbs")]
    pub(crate) fn region(&self) -> (NonNull<u8>, usize) {
        (self.inner.base, self.inner.mapping_bytes())
    }

    #[cfg(feature = "verbs")]
    pub(crate) fn holds(&self, payload: &Payload) -> bool {
        matches!(&payload.memory, Memory::Buffer { inner, .. } if Rc::ptr_eq(&self.inner, inner))
    }

    #[cfg(feature = "verbs")]
    pub(crate) fn owns(&self, buffer: &BufMut) -> bool {
        Rc::ptr_eq(&self.inner, &buffer.inner)
    }

    #[must_use]
    pub fn buffers_free(&self) -> usize {
        self.inner.free.borrow().len()
    }

    #[must_use]
    pub fn buffers_total(&self) -> usize {
        self.inner.references.len()
    }
}

/// The one writer of a buffer. What is filled can be cut off as [`Payload`]; the rest stays
/// writable.
pub struct BufMut {
    inner: Rc<Inner>,
    index: u32,
    filled: usize,
}

impl BufMut {
    fn start(&self) -> *mut u8 {
        // SAFETY: `index` is below the number of buffers, so the offset stays in the mapping.
        unsafe { self.inner.base.as_ptr().add(self.index as usize * self.inner.buffer_bytes) }
    }

    /// The part that nothing was written to yet.
    pub fn spare(&mut self) -> &mut [u8] {
        let len = self.inner.buffer_bytes - self.filled;
        // SAFETY: the range lies in this buffer, is initialised (anonymous pages are zero), and no
        // `Payload` covers it: those end at `filled`. `&mut self` makes this the only writer.
        unsafe { std::slice::from_raw_parts_mut(self.start().add(self.filled), len) }
    }

    #[must_use]
    pub fn spare_bytes(&self) -> usize {
        self.inner.buffer_bytes - self.filled
    }

    #[must_use]
    pub fn filled(&self) -> usize {
        self.filled
    }

    /// Counts the first `n` bytes of the spare part as written. More than there are is cut.
    pub fn advance(&mut self, n: usize) {
        self.filled += n.min(self.spare_bytes());
    }

    /// Appends as much of `bytes` as fits and returns how much that was.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let n = bytes.len().min(self.spare_bytes());
        self.spare()[..n].copy_from_slice(&bytes[..n]);
        self.filled += n;
        n
    }

    /// The written bytes from `from` to `to`, shared. Ranges beyond what is filled are cut.
    #[must_use]
    pub fn slice(&self, from: usize, to: usize) -> Payload {
        let to = to.min(self.filled);
        let from = from.min(to);
        self.inner.retain(self.index);
        Payload {
            memory: Memory::Buffer { inner: Rc::clone(&self.inner), index: self.index },
            start: u32::try_from(from).expect("buffers are smaller than 4 GiB"),
            len: u32::try_from(to - from).expect("buffers are smaller than 4 GiB"),
        }
    }
}

impl Drop for BufMut {
    fn drop(&mut self) {
        self.inner.release(self.index);
    }
}

enum Memory {
    Buffer { inner: Rc<Inner>, index: u32 },
    Pipe(Rc<Piped>),
}

impl Clone for Memory {
    fn clone(&self) -> Self {
        match self {
            Self::Buffer { inner, index } => {
                inner.retain(*index);
                Self::Buffer { inner: Rc::clone(inner), index: *index }
            }
            Self::Pipe(piped) => Self::Pipe(Rc::clone(piped)),
        }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        if let Self::Buffer { inner, index } = self {
            inner.release(*index);
        }
    }
}

/// A slice of written bytes; keeps its buffer alive. Or bytes that are still in a pipe: to read
/// those makes a copy of them.
#[derive(Clone)]
pub struct Payload {
    memory: Memory,
    start: u32,
    len: u32,
}

impl Payload {
    pub(crate) fn in_pipe(piped: Piped) -> Self {
        let len = u32::try_from(piped.len()).expect("pipes are smaller than 4 GiB");
        Self { memory: Memory::Pipe(Rc::new(piped)), start: 0, len }
    }

    /// Cuts off and returns the first `n` bytes (all, if there are fewer).
    pub fn split_to(&mut self, n: usize) -> Self {
        let mut head = self.clone();
        let n = u32::try_from(n).unwrap_or(u32::MAX).min(self.len);
        head.len = n;
        self.start += n;
        self.len -= n;
        head
    }

    /// As of the slice, without looking at bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len as usize
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size of the buffer that this slice keeps from being reused.
    #[must_use]
    pub fn pinned_bytes(&self) -> usize {
        match &self.memory {
            Memory::Buffer { inner, .. } => inner.buffer_bytes,
            Memory::Pipe(_) => self.len as usize,
        }
    }

    /// The pipe, if this payload is all that is in it.
    pub(crate) fn piped(&self) -> Option<&Rc<Piped>> {
        match &self.memory {
            Memory::Pipe(piped)
                if piped.holds_from(self.start as usize)
                    && (self.start + self.len) as usize == piped.len() =>
            {
                Some(piped)
            }
            _ => None,
        }
    }

    /// Whether this is the whole content of a pipe, which can be moved or shared without a copy.
    #[must_use]
    pub fn is_piped(&self) -> bool {
        self.piped().is_some()
    }

    /// Whether [`Payload::move_to`] can be used.
    #[must_use]
    pub fn can_move(&self) -> bool {
        self.piped().is_some_and(|piped| Rc::strong_count(piped) == 1)
    }

    /// Moves bytes from the pipe to a socket; what is left is the rest.
    ///
    /// # Errors
    /// `AGAIN` when the socket takes nothing now; `BADF` when they are in no pipe or are shared.
    pub fn move_to(&mut self, socket: impl AsFd) -> Result<usize, Errno> {
        if !self.can_move() {
            return Err(Errno::BADF);
        }
        let Some(piped) = self.piped() else { return Err(Errno::BADF) };
        let n = piped.move_to(socket)?;
        // Never more than were asked for.
        let moved = u32::try_from(n).unwrap_or(self.len).min(self.len);
        self.start += moved;
        self.len -= moved;
        Ok(n)
    }
}

impl Deref for Payload {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.memory {
            // SAFETY: the range was filled before this slice was made, and `BufMut` writes only
            // beyond what is filled; the mapping lives as long as `inner`.
            Memory::Buffer { inner, index } => unsafe {
                let start = inner.base.as_ptr().add(*index as usize * inner.buffer_bytes);
                std::slice::from_raw_parts(start.add(self.start as usize), self.len as usize)
            },
            Memory::Pipe(piped) => &piped.bytes_from(self.start as usize)[..self.len as usize],
        }
    }
}

impl AsRef<[u8]> for Payload {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_returns_when_its_last_slice_goes() {
        let slab = Slab::new(1, 4096).unwrap();
        let mut buffer = slab.take().unwrap();
        assert!(slab.take().is_none());
        buffer.put(b"hello world");
        let mut all = buffer.slice(0, usize::MAX);
        drop(buffer);
        let hello = all.split_to(5);
        assert_eq!((&*hello, &*all), (&b"hello"[..], &b" world"[..]));
        drop(all);
        assert_eq!(slab.buffers_free(), 0);
        drop(hello);
        assert_eq!(slab.buffers_free(), 1);
    }

    #[test]
    fn writer_goes_on_behind_slices() {
        let slab = Slab::new(2, 8).unwrap();
        let mut buffer = slab.take().unwrap();
        buffer.put(b"abcd");
        let first = buffer.slice(0, 4);
        assert_eq!(buffer.put(b"efghij"), 4);
        assert_eq!(&*first, b"abcd");
        assert_eq!(&*buffer.slice(4, 8), b"efgh");
    }

    #[test]
    fn slices_outlive_the_slab() {
        let slab = Slab::new(1, 16).unwrap();
        let mut buffer = slab.take().unwrap();
        buffer.put(b"still here");
        let slice = buffer.slice(0, 10);
        drop((slab, buffer));
        assert_eq!(&*slice, b"still here");
    }
}
