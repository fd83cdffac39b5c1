//! The test of a lane on the link: pieces of streams, as a worker takes them from applications,
//! packed into messages by the state machine.
//!
//! What it does not do: read sockets. A piece is there already.

use super::end::{End, SHORTEST};
use super::{Error, SILENCE_MAX};
use crate::mux::{Budget, Event, Lane, LaneConfig, Open, Side, StreamId};
use rdmesh_config::Node;
use rdmesh_sys::slab::Payload;
use std::net::{Ipv4Addr, SocketAddr};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// Time until `pieces` of `bytes` each, over `streams`, have arrived and been taken in order.
pub(super) fn pour(
    end: &mut End,
    node: &Node,
    bytes: u32,
    pieces: u32,
    streams: u32,
) -> Result<Duration, Error> {
    end.say(SHORTEST)?;
    end.await_message()?;
    let mut lane = lane(end, node, Side::Dialer)?;
    let mut feed = Feed { bytes: bytes as usize, left: pieces, streams: Vec::new() };
    let mut closed = 0;
    let mut start = Instant::now();
    transmit(end, &mut lane, start)?;
    loop {
        let now = turn(end, &mut lane)?;
        while let Some(event) = lane.poll_event() {
            match event {
                Event::Attached { .. } => {
                    start = now;
                    for _ in 0..streams {
                        let nowhere = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
                        let open = Open { src: nowhere, dst: nowhere };
                        let stream = lane.open(open, now);
                        feed.streams.push(stream.map_err(|_| Error::Lane("has no more streams"))?);
                    }
                }
                Event::Closed { .. } => closed += 1,
                other => unless_fatal(&other)?,
            }
        }
        if closed == streams {
            return Ok(start.elapsed());
        }
        feed.fill(&mut lane, &end.memory.payload)?;
        transmit(end, &mut lane, now)?;
    }
}

/// The other end of [`pour`].
pub(super) fn take(end: &mut End, node: &Node, streams: u32) -> Result<(), Error> {
    // Neither end may take a message of the lane for one of the link's own tests: each says that it
    // has sent the last of those, and this one then waits for the first of the lane.
    end.await_message()?;
    end.say(SHORTEST)?;
    let mut lane = lane(end, node, Side::Acceptor)?;
    while end.arrived.is_empty() {
        end.turn()?;
    }
    let (mut closed, mut now) = (0, Instant::now());
    loop {
        transmit(end, &mut lane, now)?;
        // Sending a FIN may close a stream, and then nothing more comes.
        closed += serve(&mut lane)?;
        if closed == streams {
            return Ok(());
        }
        now = turn(end, &mut lane)?;
        closed += serve(&mut lane)?;
    }
}

/// Takes what has come, in place of an application; how many streams were closed.
fn serve(lane: &mut Lane<Payload>) -> Result<u32, Error> {
    let mut closed = 0;
    while let Some(event) = lane.poll_event() {
        match event {
            Event::Incoming { id, .. } => lane.accept(id),
            Event::Data { id, payload } => lane.consumed(id, payload.len()),
            Event::Fin { id } => lane.finish(id),
            Event::Closed { .. } => closed += 1,
            other => unless_fatal(&other)?,
        }
    }
    Ok(closed)
}

/// What the streams have still to send.
struct Feed {
    bytes: usize,
    left: u32,
    streams: Vec<StreamId>,
}

impl Feed {
    /// A piece for each stream in turn, as long as any takes one.
    fn fill(&mut self, lane: &mut Lane<Payload>, payload: &Payload) -> Result<(), Error> {
        let mut taken = true;
        while taken && self.left > 0 {
            taken = false;
            for id in &self.streams {
                if self.left > 0 && lane.writable(*id) >= self.bytes {
                    let piece = payload.clone().split_to(self.bytes);
                    lane.send(*id, piece).map_err(|_| Error::Lane("took less than it said"))?;
                    self.left -= 1;
                    taken = true;
                }
            }
        }
        if self.left == 0 {
            for id in self.streams.drain(..) {
                lane.finish(id);
            }
        }
        Ok(())
    }
}

fn lane(end: &End, node: &Node, side: Side) -> Result<Lane<Payload>, Error> {
    let limits = &node.limits;
    let config = LaneConfig {
        message_bytes_max: limits.message_bytes_max,
        credits: limits.lane_credits,
        unacked_messages_max: limits.lane_credits,
        window_initial_bytes: limits.window_initial_bytes,
        window_max_bytes: limits.window_max_bytes,
        keepalive_timeout: SILENCE_MAX,
        ..LaneConfig::default()
    };
    let budget = Rc::new(Budget::new(limits.window_budget_bytes));
    // It names this life of the lane, which has no other.
    let mut lane = Lane::new(config, side, budget, 1);
    lane.link_up_with(end.credits(), Instant::now());
    Ok(lane)
}

/// Takes in what has come, or is due, after a wait for one of them.
fn turn(end: &mut End, lane: &mut Lane<Payload>) -> Result<Instant, Error> {
    let due = lane.poll_timeout().map(|at| at.saturating_duration_since(Instant::now()));
    end.turn_within(due.unwrap_or(SILENCE_MAX))?;
    let now = Instant::now();
    for message in end.arrived.drain(..) {
        message.deliver(lane, now)?;
    }
    lane.grant(end.link.granted());
    lane.on_timeout(now);
    Ok(now)
}

/// As a worker puts messages on a link.
fn transmit(end: &mut End, lane: &mut Lane<Payload>, now: Instant) -> Result<(), Error> {
    let End { link, memory, .. } = end;
    loop {
        while link.has_room() {
            let Some(message) = lane.poll_transmit(now, &mut |head| memory.keep(head)) else {
                break;
            };
            link.post_send(message);
        }
        let full = !link.has_room();
        link.flush()?;
        if !full || !link.has_room() {
            return Ok(());
        }
    }
}

fn unless_fatal(event: &Event<Payload>) -> Result<(), Error> {
    match event {
        Event::LinkDead { reason } => Err(Error::Lane(reason.as_str())),
        Event::Lost { reason } => Err(Error::Lane(reason.as_str())),
        Event::Reset { .. } | Event::Refused { .. } => Err(Error::Lane("lost a stream")),
        _ => Ok(()),
    }
}
