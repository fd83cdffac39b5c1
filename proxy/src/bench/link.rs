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
        post(end, bytes)?;
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
        post(end, bytes)?;
    }
    Ok(())
}

fn post(end: &mut End, bytes: u32) -> Result<(), Error> {
    while !(end.may_send() && end.send(bytes)) {
        end.turn()?;
        end.read()?;
    }
    Ok(end.link.flush()?)
}

/// Sends so many one way; the time until the other end has said that it has them all.
pub(super) fn pour(end: &mut End, bytes: u32, messages: u32) -> Result<Duration, Error> {
    let last = end.sent + u64::from(messages);
    let start = Instant::now();
    loop {
        transmit(end, bytes, last)?;
        if end.sent == last && end.peer_received >= last {
            let took = start.elapsed();
            // However many it took to tell.
            end.counted = end.received;
            return Ok(took);
        }
        end.turn()?;
        end.read()?;
    }
}

/// As a worker fills a link: what it takes, in one batch, and again when that has made room.
fn transmit(end: &mut End, bytes: u32, last: u64) -> Result<(), Error> {
    loop {
        while end.sent < last && end.may_send() && end.send(bytes) {}
        let full = !end.link.has_room();
        end.link.flush()?;
        if !full || !end.link.has_room() || end.sent == last {
            return Ok(());
        }
    }
}

/// The other end of [`pour`].
pub(super) fn take(end: &mut End, messages: u32) -> Result<(), Error> {
    let last = end.counted + u64::from(messages);
    end.counted = last;
    while end.received < last {
        end.turn()?;
        end.read()?;
        if end.has_to_tell() && end.received < last {
            end.tell()?;
        }
    }
    // The other end goes on as soon as it knows: it must not be told twice.
    if end.told_received < end.received {
        end.tell()?;
    }
    Ok(())
}
