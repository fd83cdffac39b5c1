//! Streams whose socket gathers small pieces (see [`super::flow`]) are read when it is time.

use super::Worker;
use super::engine::Token;
use super::flow::Change;
use super::slots::Key;
use std::time::Instant;
use tracing::debug;

impl Worker {
    /// So many bytes were read from a stream's socket.
    pub(super) fn flow_read(&mut self, key: Key, bytes: usize) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if let Some(change) = stream.flow.read(bytes, self.now) {
            self.flow_changes(key, change);
        }
        if let Some(stream) = self.streams.get_mut(key)
            && !stream.gathering
            && let Some(due) = stream.flow.due()
        {
            stream.gathering = true;
            self.gathering.push_back((due, key));
        }
    }

    /// Bytes went to a stream's application.
    pub(super) fn flow_answered(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        if let Some(change) = stream.flow.answered() {
            self.flow_changes(key, change);
        }
    }

    fn flow_changes(&mut self, key: Key, change: Change) {
        let Some(socket) = self.streams.get(key).and_then(|stream| stream.socket.as_ref()) else {
            return;
        };
        // What has come meanwhile is an event as soon as it is listened for.
        let on = change == Change::ReadAtOnce;
        if let Err(error) = self.engine.listen(socket, Token::Stream(key), on) {
            debug!(%error, "socket does not gather");
        }
    }

    pub(super) fn gather_due(&self) -> Option<Instant> {
        self.gathering.front().map(|(at, _)| *at)
    }

    /// Reads what was gathered for long enough.
    pub(super) fn read_gathered(&mut self) {
        while let Some((at, key)) = self.gathering.front().copied()
            && at <= self.now
        {
            self.gathering.pop_front();
            let Some(stream) = self.streams.get_mut(key) else { continue };
            stream.gathering = false;
            if stream.flow.due().is_some() {
                stream.readable = true;
                self.read_later(key);
            }
        }
    }
}
