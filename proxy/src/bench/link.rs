//! The tests of the link alone: messages that no lane has made.

use super::Error;
use super::end::End;
use std::time::{Duration, Instant};

/// Before the first figure counts.
const WARM_UP: u32 = 16;

/// Times of one message there and back.
pub(super) fn ping(end: &mut End, bytes: u32, messages: u32) -> Result<Vec<Duration>, Error> {
    let mut times = Vec::with_capacity(messages as usize);
    for number in 0..WARM_UP + messages {
        let start = Instant::now();
        end.say(bytes)?;
        end.await_message()?;
        if number >= WARM_UP {
            times.push(start.elapsed());
        }
    }
    Ok(times)
}

/// The other end of [`ping`].
pub(super) fn answer_pings(end: &mut End, bytes: u32, messages: u32) -> Result<(), Error> {
    for _ in 0..WARM_UP + messages {
        end.await_message()?;
        end.say(bytes)?;
    }
    Ok(())
}

/// Sends so many one way; the time until the other end has said that it has them all.
pub(super) fn pour(end: &mut End, bytes: u32, messages: u32) -> Result<Duration, Error> {
    let mut left = messages;
    let mut last = u64::MAX;
    let start = Instant::now();
    loop {
        if left > 0 {
            transmit(end, bytes, &mut left)?;
            if left == 0 {
                last = end.sent;
            }
        }
        if end.peer_received >= last {
            return Ok(start.elapsed());
        }
        end.turn()?;
        end.read()?;
        end.tell_credits()?;
    }
}

/// As a worker fills a link: what it takes, in one batch, and again when that has made room.
fn transmit(end: &mut End, bytes: u32, left: &mut u32) -> Result<(), Error> {
    loop {
        while *left > 0 && end.may_send() && end.send(bytes) {
            *left -= 1;
        }
        let full = !end.link.has_room();
        end.link.flush()?;
        if !full || !end.link.has_room() || *left == 0 {
            return Ok(());
        }
    }
}

/// The other end of [`pour`].
pub(super) fn take(end: &mut End, messages: u32) -> Result<(), Error> {
    end.await_messages(messages)?;
    end.tell()
}
