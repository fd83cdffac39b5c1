//! Waiting times between attempts: doubling, bounded, with jitter so that the sidecars of a node
//! do not come back all at once.

use std::time::Duration;

pub(super) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
}

impl Backoff {
    pub fn new(min: Duration, max: Duration) -> Self {
        Self { min, max, next: min.min(max) }
    }

    /// How long to wait now: between half of the current step and all of it.
    pub fn step(&mut self) -> Duration {
        let step = self.next;
        self.next = step.saturating_mul(2).min(self.max);
        // Without randomness the wait is merely regular.
        let random = getrandom::u32().unwrap_or(u32::MAX);
        step / 2 + (step / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }

    pub fn reset(&mut self) {
        self.next = self.min.min(self.max);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_to_its_bound_and_starts_again() {
        let ms = Duration::from_millis;
        let mut backoff = Backoff::new(ms(20), ms(100));
        for step in [20, 40, 80, 100, 100] {
            let wait = backoff.step();
            assert!(wait >= ms(step / 2) && wait <= ms(step), "{wait:?} of {step}");
        }
        backoff.reset();
        assert!(backoff.step() <= ms(20));
    }
}
