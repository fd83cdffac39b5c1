//! Payload moves between applications' sockets and pipes with splice, which waits on a socket that
//! is blocking. Ours are not; but a sidecar keeps a copy of each, and a pod that has taken its
//! sidecar over could make one blocking and stop the worker with it. So a signal ends every such
//! wait, and the pod is served with plain calls from then on.
//!
//! What it does not do: run while nothing is moved.

use rdmesh_sys::interrupt::Interrupter;
use std::time::{Duration, Instant};

/// How long a pod can stop the worker, once.
const INTERVAL: Duration = Duration::from_millis(50);
/// Without a move for so long the timer stops, so that an idle worker is not woken.
const REST: Duration = Duration::from_secs(1);

pub(super) struct Watchdog {
    /// `None` where the system gives no timer: then nothing is moved.
    interrupter: Option<Interrupter>,
    used: Instant,
}

impl Watchdog {
    /// For the calling thread.
    pub(super) fn new() -> Self {
        let interrupter = Interrupter::new();
        if let Err(error) = &interrupter {
            tracing::warn!(%error, "no timer for this worker: payload is copied, not moved");
        }
        Self { interrupter: interrupter.ok(), used: Instant::now() }
    }

    /// To be asked before each move: false if it must not be.
    pub(super) fn watches(&mut self, now: Instant) -> bool {
        self.used = now;
        match &mut self.interrupter {
            None => false,
            Some(interrupter) => interrupter.is_on() || interrupter.set(Some(INTERVAL)).is_ok(),
        }
    }

    pub(super) fn rest(&mut self, now: Instant) {
        if let Some(interrupter) = &mut self.interrupter
            && interrupter.is_on()
            && now.saturating_duration_since(self.used) > REST
        {
            // Failing that, it wakes the worker for nothing.
            let _ = interrupter.set(None);
        }
    }
}
