//! Whether many streams have traffic at the same time: then a worker that is late for one of them
//! is early for the next, and what can wait a little may find company.
//!
//! What it does not do: count streams that are open and silent.

use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_millis(20);
/// Streams with traffic within a window.
const FEW_MAX: u32 = 8;

/// The window in which a stream last had traffic.
#[derive(Debug, Default)]
pub(super) struct Seen(u32);

pub(super) struct Crowd {
    window: u32,
    since: Instant,
    active: u32,
    many: bool,
}

impl Crowd {
    pub(super) fn new(now: Instant) -> Self {
        Self { window: 1, since: now, active: 0, many: false }
    }

    pub(super) fn many(&self) -> bool {
        self.many
    }

    pub(super) fn tick(&mut self, now: Instant) {
        let passed = now.duration_since(self.since);
        if passed >= WINDOW {
            self.many = self.active > FEW_MAX && passed < 2 * WINDOW;
            self.active = 0;
            self.since = now;
            self.window = self.window.wrapping_add(1);
        }
    }

    /// A stream has traffic.
    pub(super) fn note(&mut self, seen: &mut Seen) {
        if seen.0 != self.window {
            seen.0 = self.window;
            self.active += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn many_after(streams: usize, each: u32, passed: Duration) -> bool {
        let now = Instant::now();
        let mut crowd = Crowd::new(now);
        for _ in 0..streams {
            let mut seen = Seen::default();
            (0..each).for_each(|_| crowd.note(&mut seen));
        }
        assert!(!crowd.many());
        crowd.tick(now + passed);
        crowd.many()
    }

    #[test]
    fn streams_are_counted_and_not_their_messages() {
        assert!(!many_after(8, 100, WINDOW));
        assert!(many_after(9, 1, WINDOW));
    }

    #[test]
    fn what_came_in_a_long_time_did_not_come_together() {
        assert!(!many_after(9, 1, 3 * WINDOW));
    }

    #[test]
    fn a_stream_counts_again_in_the_next_window() {
        let start = Instant::now();
        let mut crowd = Crowd::new(start);
        let mut streams: Vec<Seen> = (0..9).map(|_| Seen::default()).collect();
        for window in 1..4 {
            streams.iter_mut().for_each(|seen| crowd.note(seen));
            crowd.tick(start + window * WINDOW);
            assert!(crowd.many());
        }
        crowd.tick(start + 4 * WINDOW);
        assert!(!crowd.many());
    }
}
