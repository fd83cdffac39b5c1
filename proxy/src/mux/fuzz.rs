//! A way for a fuzzer to drive a lane with what it likes.
//!
//! What it does not do: check more than that nothing panics and that the bounds hold.

use super::Payload;
use std::rc::Rc;

/// Bytes by reference count.
#[derive(Debug, Clone)]
pub struct Shared {
    bytes: Rc<[u8]>,
    start: usize,
    end: usize,
}

impl Shared {
    #[must_use]
    pub fn new(bytes: &[u8]) -> Self {
        Self { bytes: bytes.into(), start: 0, end: bytes.len() }
    }
}

impl AsRef<[u8]> for Shared {
    fn as_ref(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }
}

impl Payload for Shared {
    fn split_to(&mut self, n: usize) -> Self {
        let middle = self.start + n.min(self.end - self.start);
        let front = Self { bytes: Rc::clone(&self.bytes), start: self.start, end: middle };
        self.start = middle;
        front
    }
}
