//! Whether a worker that has nothing to do sleeps or looks again at once.
//!
//! A wake-up from sleep costs more than most messages take; a worker that looks again and again
//! costs a CPU, if nobody else wants it: between looks the worker offers it. `adaptive` looks for a
//! while after it has dealt with an event, and in any window of time for a share of it at most. Who had
//! much to do moves bulk: the next event is far, and others want the CPU.
//! What it does not do: look.

use rdmesh_config::{Node, Polling};
use std::time::{Duration, Instant};

const WINDOW: Duration = Duration::from_millis(20);
/// Where many streams have traffic a CPU is worth more than the time to the next message.
const PATIENCE_WITH_MANY: u32 = 4;
/// A look that takes longer has given the CPU to somebody else.
const LOOK: Duration = Duration::from_micros(5);

pub(super) struct Spin {
    mode: Polling,
    patience: Duration,
    /// Of the window.
    spun_max: Duration,
    window_start: Instant,
    /// Time in this window in which it looked in vain.
    spun: Duration,
    /// When it last had an event, and when it had dealt with that.
    busy_at: Instant,
    idle_since: Instant,
    busy: bool,
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
            busy_at: now,
            idle_since: now,
            busy: false,
            looked_at: None,
        }
    }

    /// Whether it looks again rather than sleeps. `many`: see [`super::crowd`].
    pub(super) fn wanted(&self, now: Instant, many: bool) -> bool {
        match self.mode {
            Polling::Off => false,
            Polling::Always => true,
            Polling::Adaptive => {
                let patient = if many {
                    now.duration_since(self.busy_at) < self.patience / PATIENCE_WITH_MANY
                } else {
                    self.idle_since.duration_since(self.busy_at) < self.patience
                        && now.duration_since(self.idle_since) < self.patience
                };
                patient && self.spun < self.spun_max
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
            self.spun += now.duration_since(before).min(LOOK);
        }
        self.looked_at = (!busy && !slept).then_some(now);
        // The first vain look is at the end of the work.
        if std::mem::replace(&mut self.busy, busy) || busy {
            self.idle_since = now;
        }
        if busy {
            self.busy_at = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_micros(5);

    fn spin(polling: Polling, share: u32) -> (Spin, Instant) {
        let node =
            Node { polling, polling_spin_us: 100, polling_share_percent: share, ..Node::default() };
        let now = Instant::now();
        (Spin::new(&node, now), now)
    }

    /// How long it looks after an event that took `work`.
    fn looks_after(work: Duration) -> Duration {
        let (mut spin, start) = spin(Polling::Adaptive, 100);
        spin.looked(start, true, true);
        let end = start + work;
        spin.looked(end, false, false);
        let mut now = end;
        while spin.wanted(now, false) {
            now += STEP;
            spin.looked(now, false, false);
        }
        now - end
    }

    #[test]
    fn adaptive_looks_for_a_while_after_it_has_dealt_with_an_event() {
        let patience = Duration::from_micros(100);
        assert_eq!(looks_after(Duration::ZERO), patience);
        assert_eq!(looks_after(patience - STEP), patience);
        assert_eq!(looks_after(patience), Duration::ZERO);
    }

    #[test]
    fn among_many_the_work_counts_too() {
        let (mut spin, start) = spin(Polling::Adaptive, 100);
        spin.looked(start, true, true);
        spin.looked(start + Duration::from_micros(20), false, false);
        assert!(spin.wanted(start + Duration::from_micros(24), true));
        assert!(!spin.wanted(start + Duration::from_micros(25), true));
    }

    /// Of its time until it first wants to sleep, where each look takes so long.
    fn spun_before_sleep(look: Duration) -> Duration {
        let (mut spin, start) = spin(Polling::Adaptive, 25);
        let mut now = start;
        // Something comes all the time, just before the patience ends.
        while spin.wanted(now, false) && now < start + WINDOW - look {
            now += look;
            spin.looked(now, false, false);
            (spin.busy_at, spin.idle_since) = (now, now);
        }
        now - start
    }

    #[test]
    fn adaptive_keeps_to_its_share_of_what_nobody_else_used() {
        assert_eq!(spun_before_sleep(LOOK), WINDOW / 4 + LOOK);
        assert!(spun_before_sleep(4 * LOOK) > WINDOW - 8 * LOOK);
    }

    #[test]
    fn each_window_has_its_share() {
        let (mut spin, start) = spin(Polling::Adaptive, 25);
        let (mut now, mut spun) = (start, Duration::ZERO);
        while now < start + 50 * WINDOW {
            let looks = spin.wanted(now, false);
            now += STEP;
            spun += if looks { STEP } else { Duration::ZERO };
            spin.looked(now, !looks, false);
            (spin.busy_at, spin.idle_since) = (now, now);
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
