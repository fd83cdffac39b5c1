//! Connections of one client to one application arrive there in the order in which they were made:
//! some programs tell theirs apart by it (`iperf3 --bidir`). The client's own connect was over before
//! the stream was opened, so only the worker can keep the order.
//!
//! A connection that the sidecar is to make takes longer than one over a spare socket, a spare socket
//! may have to be waited for, and the kernel may put a handshake off. Those that come meanwhile stand
//! in line.
//! What it does not do: connect.

use super::slots::Key;
use crate::handoff::Family;
use crate::mux::Open;
use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

/// What is not connected by then is held up by the application: the others go on.
const HELD_MAX: Duration = Duration::from_millis(100);

/// A stream that has to be connected to the application.
#[derive(Debug, Clone, Copy)]
pub(super) struct Arrival {
    pub stream: Key,
    pub open: Open,
}

impl Arrival {
    pub(super) fn pair(&self) -> Pair {
        Pair { client: self.open.src.ip(), application: self.open.dst }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Pair {
    client: IpAddr,
    application: SocketAddr,
}

/// Of one pod; only where somebody waits or is being connected.
#[derive(Default)]
pub(super) struct Lines {
    lines: HashMap<Pair, Line>,
    /// Lines whose first waits for a spare socket.
    for_spares: VecDeque<Pair>,
}

#[derive(Default)]
struct Line {
    /// Begun and not over.
    under_way: u32,
    waiting: VecDeque<Arrival>,
    held_until: Option<Instant>,
}

impl Line {
    /// Tells until when, if what is under way holds somebody up from now on.
    fn hold(&mut self, now: Instant) -> Option<Instant> {
        if self.under_way == 0 || self.waiting.is_empty() || self.held_until.is_some() {
            return None;
        }
        self.held_until = Some(now + HELD_MAX);
        self.held_until
    }
}

impl Lines {
    /// Whether somebody stands in line.
    pub(super) fn waits(&self, pair: Pair) -> bool {
        self.lines.get(&pair).is_some_and(|line| !line.waiting.is_empty())
    }

    /// Whether a connection is under way.
    pub(super) fn busy(&self, pair: Pair) -> bool {
        self.lines.get(&pair).is_some_and(|line| line.under_way > 0)
    }

    /// To the end of its line. See [`Line::hold`].
    pub(super) fn join(&mut self, arrival: Arrival, now: Instant) -> Option<Instant> {
        let line = self.lines.entry(arrival.pair()).or_default();
        line.waiting.push_back(arrival);
        line.hold(now)
    }

    /// To the front of its line, until a spare socket arrives.
    pub(super) fn wait_for_spare(&mut self, arrival: Arrival) {
        let pair = arrival.pair();
        self.lines.entry(pair).or_default().waiting.push_front(arrival);
        self.for_spares.push_back(pair);
    }

    /// The line that has waited longest for a spare socket.
    pub(super) fn next_for_spare(&mut self, family: Family) -> Option<Pair> {
        let of = |pair: &Pair| Family::of(pair.application) == family;
        let at = self.for_spares.iter().position(of)?;
        self.for_spares.remove(at)
    }

    /// A connection is under way. See [`Line::hold`].
    pub(super) fn begun(&mut self, pair: Pair, now: Instant) -> Option<Instant> {
        let line = self.lines.entry(pair).or_default();
        line.under_way += 1;
        line.hold(now)
    }

    /// A connection is made, or will not be.
    pub(super) fn over(&mut self, pair: Pair) {
        if let Some(line) = self.lines.get_mut(&pair) {
            line.under_way = line.under_way.saturating_sub(1);
        }
    }

    /// They have held the line up for too long.
    pub(super) fn forget(&mut self, pair: Pair, held_until: Instant) {
        if let Some(line) = self.lines.get_mut(&pair)
            && line.held_until == Some(held_until)
        {
            line.under_way = 0;
        }
    }

    /// Whose turn it is, if anybody's.
    pub(super) fn next(&mut self, pair: Pair) -> Option<Arrival> {
        let line = self.lines.get_mut(&pair)?;
        if line.under_way > 0 {
            return None;
        }
        line.held_until = None;
        let next = line.waiting.pop_front();
        if line.waiting.is_empty() {
            self.lines.remove(&pair);
        }
        next
    }

    /// Everybody, when the sidecar is gone.
    pub(super) fn dissolve(&mut self) -> impl Iterator<Item = Arrival> + use<> {
        self.for_spares.clear();
        std::mem::take(&mut self.lines).into_values().flat_map(|line| line.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arrival(index: u32, application: &str) -> Arrival {
        let port = 40_000 + u16::try_from(index).unwrap();
        let open = Open {
            src: SocketAddr::from(([10, 0, 0, 1], port)),
            dst: application.parse().unwrap(),
        };
        Arrival { stream: Key { index, generation: 0 }, open }
    }

    fn index(arrival: Option<Arrival>) -> Option<u32> {
        arrival.map(|arrival| arrival.stream.index)
    }

    #[test]
    fn nobody_overtakes_those_that_are_being_connected() {
        let now = Instant::now();
        let mut lines = Lines::default();
        let [first, second, third] = [0, 1, 2].map(|index| arrival(index, "10.0.0.2:80"));
        let pair = first.pair();
        assert_eq!(lines.begun(pair, now), None);
        assert_eq!(lines.begun(pair, now), None);
        assert!(lines.busy(pair) && !lines.waits(pair));
        assert!(!lines.busy(arrival(3, "10.0.0.2:81").pair()));
        assert_eq!(lines.join(second, now), Some(now + HELD_MAX));
        assert_eq!(lines.join(third, now), None);
        lines.over(pair);
        assert_eq!(index(lines.next(pair)), None);
        lines.over(pair);
        assert_eq!(index(lines.next(pair)), Some(1));
        // It is sent back: no spare socket is there.
        lines.wait_for_spare(second);
        assert_eq!(lines.next_for_spare(Family::V6), None);
        assert_eq!(lines.next_for_spare(Family::V4), Some(pair));
        assert_eq!(index(lines.next(pair)), Some(1));
        assert!(lines.waits(pair));
        assert_eq!(index(lines.next(pair)), Some(2));
        assert_eq!(index(lines.next(pair)), None);
        assert!(lines.lines.is_empty() && lines.for_spares.is_empty());
    }

    #[test]
    fn one_holds_the_others_up_for_a_while_only() {
        let now = Instant::now();
        let mut lines = Lines::default();
        let (one, two) = (arrival(1, "10.0.0.2:80"), arrival(2, "10.0.0.2:80"));
        let pair = one.pair();
        assert_eq!(lines.begun(pair, now), None);
        let until = lines.join(one, now).unwrap();
        lines.over(pair);
        assert_eq!(index(lines.next(pair)), Some(1));
        // That was another time.
        assert_eq!(lines.begun(pair, now), None);
        let later = lines.join(two, now + HELD_MAX / 2).unwrap();
        lines.forget(pair, until);
        assert_eq!(index(lines.next(pair)), None);
        lines.forget(pair, later);
        assert_eq!(index(lines.next(pair)), Some(2));
        lines.over(pair);
        assert!(lines.lines.is_empty());
    }

    #[test]
    fn a_line_without_anybody_is_none() {
        let (mut lines, now) = (Lines::default(), Instant::now());
        let pair = arrival(0, "10.0.0.2:80").pair();
        assert_eq!(lines.begun(pair, now), None);
        lines.over(pair);
        assert_eq!(index(lines.next(pair)), None);
        assert!(lines.lines.is_empty());
        lines.wait_for_spare(arrival(0, "10.0.0.2:80"));
        assert_eq!(lines.dissolve().count(), 1);
        assert!(!lines.waits(pair) && lines.next_for_spare(Family::V4).is_none());
    }
}
