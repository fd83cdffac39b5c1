//! Growing, jittered pauses between attempts.

use std::time::Duration;

#[derive(Debug, Clone)]
pub struct Backoff {
    min: Duration,
    max: Duration,
    failures: u32,
    random: u64,
}

impl Backoff {
    #[must_use]
    pub fn new(min: Duration, max: Duration) -> Self {
        // Nodes must differ from each other; without randomness they merely do not.
        let random = getrandom::u64().unwrap_or(1) | 1;
        Self { min, max, failures: 0, random }
    }

    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }

    /// After a success that may not last: the next pause is short again, but not the shortest.
    pub fn forgive(&mut self) {
        self.failures = self.failures.min(4);
    }

    /// Counts a failure; the pause before the next attempt.
    pub fn fail(&mut self) -> Duration {
        let pause = self.min.saturating_mul(1 << self.failures.min(20)).min(self.max);
        self.failures = self.failures.saturating_add(1);
        self.jittered(pause)
    }

    /// Between a half and the whole of `pause`.
    pub fn jittered(&mut self, pause: Duration) -> Duration {
        // xorshift64
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        let share = u32::try_from(self.random >> 48).unwrap_or(0);
        pause / 2 + (pause / 2).saturating_mul(share) / (1 << 16)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_to_the_limit_and_stays_jittered() {
        let (min, max) = (Duration::from_millis(20), Duration::from_secs(2));
        let mut backoff = Backoff::new(min, max);
        for n in 0..40u32 {
            let whole = min.saturating_mul(1 << n.min(20)).min(max);
            let pause = backoff.fail();
            assert!(pause >= whole / 2 && pause <= whole, "{n}: {pause:?}");
        }
        backoff.reset();
        assert!(backoff.fail() <= min);
    }
}
