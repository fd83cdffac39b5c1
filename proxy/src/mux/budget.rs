//! The receive-window budget that all lanes of a worker share.
//!
//! What it does not do: know streams. A lane that reserved something gives back exactly that.

use std::cell::Cell;

/// Bytes that peers may have in flight towards this worker. Single thread: share it by `Rc`.
#[derive(Debug)]
pub struct Budget {
    bytes_max: u64,
    granted: Cell<u64>,
}

impl Budget {
    #[must_use]
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, granted: Cell::new(0) }
    }

    #[must_use]
    pub fn granted(&self) -> u64 {
        self.granted.get()
    }

    #[must_use]
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// For the initial window of a new stream.
    pub(super) fn reserve(&self, bytes: u32) -> bool {
        self.reserve_below(bytes, self.bytes_max)
    }

    /// For the growth of a window: only from the first half, the other is for new streams.
    pub(super) fn reserve_growth(&self, bytes: u32) -> bool {
        self.reserve_below(bytes, self.bytes_max / 2)
    }

    /// Whether grown windows have to go back to their initial size. Higher than the limit for
    /// growth, or windows would flap between the two.
    pub(super) fn under_pressure(&self) -> bool {
        self.granted.get() > self.bytes_max / 4 * 3
    }

    pub(super) fn release(&self, bytes: u64) {
        debug_assert!(self.granted.get() >= bytes, "released more than was reserved");
        self.granted.set(self.granted.get().saturating_sub(bytes));
    }

    fn reserve_below(&self, bytes: u32, bytes_max: u64) -> bool {
        let granted = self.granted.get() + u64::from(bytes);
        if granted > bytes_max {
            return false;
        }
        self.granted.set(granted);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_leaves_half_for_new_streams() {
        let budget = Budget::new(100);
        assert!(budget.reserve_growth(50));
        assert!(!budget.reserve_growth(1));
        assert!(budget.reserve(25));
        assert!(!budget.under_pressure());
        assert!(budget.reserve(25));
        assert!(budget.under_pressure());
        assert!(!budget.reserve(1));
        budget.release(100);
        assert_eq!(budget.granted(), 0);
    }
}
