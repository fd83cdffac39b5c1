//! Where outgoing bytes are kept: reads from applications and the heads of messages share the
//! buffers of the worker's slab, packed one behind the other.

use rdmesh_sys::slab::{BufMut, Payload, Slab};

/// A read gets at least this much room; a buffer with less left is given up.
const READ_BYTES_MIN: usize = 16 << 10;

pub(super) struct Arena {
    slab: Slab,
    current: Option<BufMut>,
    /// Buffers that only heads may take: acknowledgements must go out even when the data of
    /// applications has filled the slab, or two full nodes would wait for each other for ever.
    reserve: usize,
}

impl Arena {
    pub(super) fn new(slab: Slab) -> Self {
        let reserve = (slab.buffers_total() / 8).max(2);
        Self { slab, current: None, reserve }
    }

    pub(super) fn slab(&self) -> &Slab {
        &self.slab
    }

    /// A writer with room for a read, or `None` when data has used up its share.
    pub(super) fn for_read(&mut self) -> Option<&mut BufMut> {
        let roomy =
            self.current.as_ref().is_some_and(|buffer| buffer.spare_bytes() >= READ_BYTES_MIN);
        if !roomy {
            if self.slab.buffers_free() <= self.reserve {
                return None;
            }
            self.current = Some(self.slab.take()?);
        }
        self.current.as_mut()
    }

    /// Keeps a copy of `bytes`, or `None` when the slab is empty.
    pub(super) fn keep(&mut self, bytes: &[u8]) -> Option<Payload> {
        let fits = self.current.as_ref().is_some_and(|buffer| buffer.spare_bytes() >= bytes.len());
        if !fits {
            self.current = None;
            self.current = Some(self.slab.take()?);
        }
        let buffer = self.current.as_mut()?;
        let start = buffer.filled();
        let kept = buffer.put(bytes);
        (kept == bytes.len()).then(|| buffer.slice(start, start + kept))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_may_use_the_reserve_and_reads_may_not() {
        let mut arena = Arena::new(Slab::new(4, READ_BYTES_MIN * 2).unwrap());
        let mut held = Vec::new();
        while let Some(buffer) = arena.for_read() {
            let room = buffer.spare_bytes();
            buffer.advance(room);
            held.push(buffer.slice(0, room));
        }
        assert_eq!(held.len(), 2);
        assert!(arena.keep(&[7; READ_BYTES_MIN * 2]).is_some());
        held.clear();
        assert!(arena.for_read().is_some());
    }

    #[test]
    fn kept_bytes_are_packed() {
        let mut arena = Arena::new(Slab::new(2, READ_BYTES_MIN).unwrap());
        let slices: Vec<_> = (0..8u8).filter_map(|i| arena.keep(&[i; 100])).collect();
        assert_eq!(arena.slab().buffers_free(), 1);
        assert!(
            slices.iter().enumerate().all(|(i, slice)| slice.iter().all(|b| usize::from(*b) == i))
        );
    }
}
