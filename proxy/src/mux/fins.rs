//! FINs that wait for company: a message of its own for each costs one end a write and the other a
//! read, and few wait for a FIN.
//!
//! What it does not do: decide when that pays; the caller does.

use super::lane::{Lane, NEVER, make_ready, micros};
use super::streams::{Phase, Stream, Streams};
use super::types::{Payload, StreamId};
use std::time::{Duration, Instant};

/// Each of the streams is here once at most: a second `finish` of a stream does nothing.
pub(super) struct LateFins {
    ids: Vec<StreamId>,
    pub at_us: u64,
}

impl LateFins {
    pub fn new() -> Self {
        Self { ids: Vec::new(), at_us: NEVER }
    }
}

impl<P: Payload> Lane<P> {
    /// FIN after what was sent.
    pub fn finish(&mut self, id: StreamId) {
        if let Some(stream) = note_finished(&mut self.streams, id) {
            make_ready(&mut self.ready, id, stream);
        }
    }

    /// FIN after what was sent, with the next message that there is anyway; when there was none for
    /// so long, with one of its own.
    pub fn finish_within(&mut self, id: StreamId, wait: Duration, now: Instant) {
        self.tick(now);
        if note_finished(&mut self.streams, id).is_some() {
            self.late_fins.ids.push(id);
            self.late_fins.at_us = self.late_fins.at_us.min(self.now_us + micros(wait));
        }
    }

    pub(super) fn fins_due(&self) -> bool {
        self.late_fins.at_us <= self.now_us
    }

    /// Nothing that has waited waits any more.
    pub(super) fn let_fins_go(&mut self) {
        self.late_fins.at_us = NEVER;
        for id in self.late_fins.ids.drain(..) {
            if let Some(stream) = self.streams.get_mut(&id) {
                make_ready(&mut self.ready, id, stream);
            }
        }
    }
}

/// The stream, if it takes a FIN and had none.
fn note_finished<P>(streams: &mut Streams<P>, id: StreamId) -> Option<&mut Stream<P>> {
    let stream = streams.get_mut(&id)?;
    let takes = matches!(stream.phase, Phase::Opening | Phase::Open);
    (takes && !std::mem::replace(&mut stream.finish, true)).then_some(stream)
}
