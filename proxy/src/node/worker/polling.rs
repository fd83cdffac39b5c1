//! Whether a worker that has nothing to do sleeps or looks again at once.
//!
//! A wake-up from sleep costs more than most messages take; a worker that looks again and again
//! costs a CPU, if nobody else wants it: between looks the worker offers it. `adaptive` looks for a
//! while after each event, and in any window of time for a share of it at most. What it does not
//! do: look.

use rdmesh_config::{Node, Polling};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_millis(20);
/// Where many streams have traffic a CPU is worth more than the time to the next message.
const PATIENCE_WITH_MANY: u32 = 4;

pub(super) struct Spin {
    mode: Polling,
    patience: Duration,
    /// Of the window.
    spun_max: Duration,
    window_start: Instant,
    /// Time in this window in which it looked in vain.
    spun: Duration,
    last_busy: Instant,
    /// When it last looked in vain, if it has not slept or worked since.
    looked_at: Option<Instant>,
}

impl Spin {
    pub(super) fn new(node: &Node, now: Instant) -> Self {
        Self {
            mode: node.polling,
            patience: Duration::from_micros(node.polling_spin_us),
            spun_max: WINDOW * node.polling_share_percent / 100,
            window_start: now,
            spun: Duration::ZERO,
            last_busy: now,
            looked_at: None,
        }
    }

    /// Whether it looks again rather than sleeps. `many`: see [`super::crowd`].
    pub(super) fn wanted(&self, now: Instant, many: bool) -> bool {
        match self.mode {
            Polling::Off => false,
            Polling::Always => true,
            Polling::Adaptive => {
                let patience =
                    if many { self.patience / PATIENCE_WITH_MANY } else { self.patience };
                now.duration_since(self.last_busy) < patience && self.spun < self.spun_max
            }
        }
    }

    /// It has looked, or slept, and is `busy` if there was something.
    pub(super) fn looked(&mut self, now: Instant, slept: bool, busy: bool) {
        if now.duration_since(self.window_start) >= WINDOW {
            (self.window_start, self.spun) = (now, Duration::ZERO);
        } else if let Some(before) = self.looked_at
            && !slept
        {
            self.spun += now.duration_since(before);
        }
        self.looked_at = (!busy && !slept).then_some(now);
        if busy {
            self.last_busy = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_micros(10);

    fn spin(polling: Polling, share: u32) -> (Spin, Instant) {
        let node =
            Node { polling, polling_spin_us: 100, polling_share_percent: share, ..Node::default() };
        let now = Instant::now();
        (Spin::new(&node, now), now)
    }

    #[test]
    fn adaptive_sleeps_when_nothing_came_for_a_while() {
        let (mut spin, start) = spin(Polling::Adaptive, 100);
        spin.looked(start, false, true);
        let mut now = start;
        while spin.wanted(now, false) {
            now += STEP;
            spin.looked(now, false, false);
        }
        assert_eq!(now - start, Duration::from_micros(100));
        assert!(spin.wanted(start + Duration::from_micros(24), true));
        assert!(!spin.wanted(start + Duration::from_micros(25), true));
    }

    #[test]
    fn adaptive_keeps_to_its_share() {
        let (mut spin, start) = spin(Polling::Adaptive, 25);
        let (mut now, mut spun) = (start, Duration::ZERO);
        // Something comes all the time, just before the patience ends.
        while now < start + 50 * WINDOW {
            let looks = spin.wanted(now, false);
            now += STEP;
            spun += if looks { STEP } else { Duration::ZERO };
            spin.looked(now, !looks, false);
            spin.last_busy = now;
        }
        let share = spun.as_secs_f64() / (now - start).as_secs_f64();
        assert!((0.24..0.27).contains(&share), "{share}");
    }

    #[test]
    fn off_and_always_are_what_they_say() {
        let (off, now) = spin(Polling::Off, 100);
        assert!(!off.wanted(now, false));
        let (mut always, now) = spin(Polling::Always, 1);
        for step in 0..10_000 {
            let now = now + STEP * step;
            assert!(always.wanted(now, false));
            always.looked(now, false, false);
        }
    }
}
