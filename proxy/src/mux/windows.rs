//! How much the peer may send: receive windows under the worker's budget.
//!
//! A window is renewed when half of it was consumed. It doubles when a whole window was consumed
//! within about two round trips, and falls back to its initial size while the budget is short.
//!
//! What it does not do: limit what we send; that is the peer's window.

use super::lane::{Control, Lane};
use super::streams::Phase;
use super::types::{Payload, StreamId};

/// Round trips shorter than this are noise of scheduling.
const RTT_MIN_US: u64 = 100;

impl<P: Payload> Lane<P> {
    /// The application took `n` bytes.
    pub fn consumed(&mut self, id: StreamId, n: usize) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if matches!(stream.phase, Phase::Resetting(_)) {
            return;
        }
        debug_assert!(stream.consumed + n as u64 <= stream.received, "consumed more than came");
        stream.consumed = stream.received.min(stream.consumed + n as u64);
        if stream.fin_received {
            self.settle(id);
            self.close_if_done(id);
            return;
        }
        self.adapt_window(id);
        self.renew_window(id);
        self.settle(id);
    }

    fn adapt_window(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if self.budget.under_pressure() {
            stream.window = stream.window.min(self.config.window_initial_bytes);
        }
        if stream.consumed - stream.epoch_consumed < u64::from(stream.window) {
            return;
        }
        let took_us = self.now_us - stream.epoch_us;
        stream.epoch_consumed = stream.consumed;
        stream.epoch_us = self.now_us;
        let round_trips_us = 2 * self.srtt_us.unwrap_or(0).max(RTT_MIN_US);
        let more = stream.window.min(self.config.window_max_bytes.saturating_sub(stream.window));
        if took_us <= round_trips_us && more > 0 && self.budget.reserve_growth(more) {
            stream.window += more;
            stream.reserved += more;
            self.granted += u64::from(more);
        }
    }

    fn renew_window(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let limit = stream.consumed + u64::from(stream.window);
        let step = u64::from(stream.window / 2).max(1);
        if limit < stream.receive_limit + step {
            return;
        }
        stream.receive_limit = limit;
        if !stream.window_queued {
            stream.window_queued = true;
            self.control.push_back(Control::Window { id });
        }
    }

    /// Gives back what the window shrank by.
    pub(super) fn settle(&mut self, id: StreamId) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let needed = if stream.fin_received {
            stream.received - stream.consumed
        } else {
            (stream.receive_limit - stream.consumed).max(u64::from(stream.window))
        };
        let spare = u64::from(stream.reserved).saturating_sub(needed) as u32;
        stream.reserved -= spare;
        self.give_back(spare);
    }
}
