//! Commands on their way to the workers' mailboxes, when those are full.
//!
//! News that must not be lost waits here, once per peer and kind; a link that finds no room is
//! given up, and made again later.

use crate::node::messages::{Command, Mailbox, lane_index};
use std::collections::VecDeque;

pub struct Outbox {
    workers: Vec<Worker>,
}

struct Worker {
    mailbox: Mailbox<Command>,
    owed: VecDeque<Command>,
}

impl Outbox {
    #[must_use]
    pub fn new(mailboxes: Vec<Mailbox<Command>>) -> Self {
        let worker = |mailbox| Worker { mailbox, owed: VecDeque::new() };
        Self { workers: mailboxes.into_iter().map(worker).collect() }
    }

    /// To the worker of a lane. Answers false if the command was a link and had to be dropped.
    pub fn send_lane(&mut self, lane: u16, command: Command) -> bool {
        let count = self.workers.len().max(1);
        match self.workers.get_mut(usize::from(lane_index(lane)) % count) {
            Some(worker) => worker.send(command),
            None => false,
        }
    }

    pub fn send_all(&mut self, mut command: impl FnMut() -> Command) {
        for worker in &mut self.workers {
            worker.send(command());
        }
    }

    /// Tries again what is owed; answers whether something still is.
    pub fn flush(&mut self) -> bool {
        for worker in &mut self.workers {
            worker.flush();
        }
        self.owing()
    }

    #[must_use]
    pub fn owing(&self) -> bool {
        self.workers.iter().any(|worker| !worker.owed.is_empty())
    }
}

impl Worker {
    fn send(&mut self, command: Command) -> bool {
        // Order counts: the end of a peer must not overtake, nor be overtaken by, its next link.
        let command = if self.flush() {
            command
        } else {
            match self.mailbox.push(command) {
                Ok(()) => return true,
                Err(command) => command,
            }
        };
        if matches!(command, Command::LinkUp { .. }) {
            return false;
        }
        if !self.owed.iter().any(|owed| same(owed, &command)) {
            self.owed.push_back(command);
        }
        true
    }

    fn flush(&mut self) -> bool {
        while let Some(command) = self.owed.pop_front() {
            if let Err(command) = self.mailbox.push(command) {
                self.owed.push_front(command);
                return true;
            }
        }
        false
    }
}

fn same(one: &Command, other: &Command) -> bool {
    match (one, other) {
        (Command::PeerGone { peer: a }, Command::PeerGone { peer: b })
        | (Command::PeerDraining { peer: a }, Command::PeerDraining { peer: b })
        | (Command::PeerUnavailable { peer: a, .. }, Command::PeerUnavailable { peer: b, .. }) => {
            a == b
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::messages::UnavailableReason;

    #[test]
    fn news_waits_for_room_once_and_in_order() {
        let mailbox = Mailbox::new(1).expect("eventfd");
        let mut outbox = Outbox::new(vec![mailbox.clone()]);
        let gone = || Command::PeerGone { peer: "b".into() };
        let reason = UnavailableReason::Refused;
        for _ in 0..3 {
            outbox.send_all(gone);
            outbox.send_lane(7, Command::PeerUnavailable { peer: "b".into(), reason });
        }
        assert!(outbox.owing());
        let mut got = Vec::new();
        while outbox.owing() || !mailbox.is_empty() {
            mailbox.drain(&mut got);
            outbox.flush();
        }
        let kinds: Vec<_> = got.iter().map(|c| matches!(c, Command::PeerGone { .. })).collect();
        assert_eq!(kinds, [true, false, true]);
    }
}
