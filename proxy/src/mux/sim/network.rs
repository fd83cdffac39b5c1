//! The link between the two lanes, which dies at any moment, and the passing of time.

use super::*;

impl World {
    pub(super) fn make_link(&mut self) {
        if self.link.is_none() {
            self.note(|| "link made".into());
            let posted = [0, 1].map(|side: usize| u64::from(self.configs[side].credits));
            self.link = Some(SimLink {
                up: [false; 2],
                cut: false,
                pipes: [VecDeque::new(), VecDeque::new()],
                posted,
                sent: [0; 2],
                held: [0; 2],
            });
        }
    }

    pub(super) fn link_up(&mut self, side: usize) {
        if let Some(link) = &mut self.link
            && !link.up[side]
            && !link.cut
        {
            link.up[side] = true;
            self.lanes[side].link_up(self.now);
            self.note(|| format!("link up at {side}"));
        }
    }

    /// What is under way is lost, but for the first few.
    pub(super) fn cut(&mut self) {
        if let Some(link) = &mut self.link
            && !link.cut
        {
            link.cut = true;
            for pipe in &mut link.pipes {
                let survive = self.rng.below(pipe.len() as u64 + 1) as usize;
                pipe.truncate(survive);
            }
            self.note(|| "cut".into());
        }
        self.drop_dead_link();
    }

    pub(super) fn notice_cut(&mut self, side: usize) {
        if let Some(link) = &mut self.link
            && link.cut
            && link.up[side]
        {
            link.up[side] = false;
            link.pipes[side].clear();
            self.lanes[side].link_down(self.now);
            if self.attached_once[side] {
                self.down_since[side].get_or_insert(self.now);
            }
            self.note(|| format!("cut noticed at {side}"));
        }
        self.drop_dead_link();
    }

    pub(super) fn drop_dead_link(&mut self) {
        if self.link.as_ref().is_some_and(|link| link.cut && link.up == [false; 2]) {
            self.link = None;
        }
    }

    pub(super) fn deliver(&mut self, to: usize) -> bool {
        let Some(link) = &mut self.link else { return false };
        if !link.up[to] || link.pipes[to].front().is_none_or(|message| message.at > self.now) {
            return false;
        }
        let message = link.pipes[to].pop_front().unwrap();
        self.heard_life[to] = message.life;
        let in_pieces = self.rng.one_in(3);
        let result = if in_pieces {
            self.lanes[to].on_parts(message.head, message.tails.into_iter(), self.now)
        } else {
            let mut whole = message.head.to_vec();
            message.tails.iter().for_each(|tail| whole.extend_from_slice(tail));
            assert_eq!(message_length(&whole), Ok(Some(whole.len())));
            self.lanes[to].on_message(whole.into(), self.now)
        };
        result.unwrap_or_else(|error| panic!("side {to}: {error}"));
        link.held[to] += 1;
        if self.calm || self.rng.one_in(2) {
            self.repost(to);
        }
        self.events(to);
        true
    }

    pub(super) fn repost(&mut self, side: usize) {
        if let Some(link) = &mut self.link
            && link.up[side]
        {
            let n = if self.calm {
                link.held[side]
            } else {
                self.rng.below(u64::from(link.held[side]) + 1) as u32
            };
            link.held[side] -= n;
            link.posted[side] += u64::from(n);
            self.lanes[side].grant(n);
        }
    }

    pub(super) fn transmit(&mut self, from: usize) -> bool {
        let to = 1 - from;
        let slab_full = !self.calm && self.rng.one_in(8);
        let mut alloc =
            |head: &[u8]| if slab_full { None } else { Some(Bytes::copy_from_slice(head)) };
        let Some(transmit) = self.lanes[from].poll_transmit(self.now, &mut alloc) else {
            self.seen.slab_full += u64::from(slab_full);
            self.events(from);
            return false;
        };
        self.messages += 1;
        let bytes = transmit.head.len() + transmit.tails.iter().map(Payload::len).sum::<usize>();
        assert_eq!(bytes, transmit.bytes);
        assert_eq!(message_length(&transmit.head), Ok(Some(bytes)));
        assert!(transmit.tails.len() <= TAILS_MAX);
        assert!(
            bytes
                <= self.configs[0].message_bytes_max.min(self.configs[1].message_bytes_max)
                    as usize
        );
        let link = self.link.as_mut().expect("nothing is sent without a link");
        assert!(link.up[from]);
        link.sent[to] += 1;
        assert!(link.sent[to] <= link.posted[to], "receiver not ready: {from} sent too much");
        if !link.cut {
            let latency_us = 1 + self.rng.below(self.latency_us);
            let earliest = link.pipes[to].back().map_or(self.now, |last| last.at);
            link.pipes[to].push_back(InFlight {
                life: self.lives[from],
                at: earliest.max(self.now + Duration::from_micros(latency_us)),
                head: transmit.head,
                tails: transmit.tails.into_vec(),
            });
        }
        self.events(from);
        true
    }

    pub(super) fn next_time(&self) -> Option<Instant> {
        let deliveries = self.link.iter().flat_map(|link| {
            (0..2).filter(|to| link.up[*to]).filter_map(|to| link.pipes[to].front().map(|m| m.at))
        });
        let timeouts = self.lanes.iter().filter_map(Lane::poll_timeout);
        deliveries.chain(timeouts).min()
    }

    pub(super) fn advance_to(&mut self, now: Instant) {
        self.now = self.now.max(now);
        for side in 0..2 {
            if self.lanes[side].poll_timeout().is_some_and(|at| at <= self.now) {
                self.lanes[side].on_timeout(self.now);
                let next = self.lanes[side].poll_timeout();
                assert!(next.is_none_or(|at| at > self.now), "side {side} is busy with time");
            }
            self.events(side);
        }
    }
}
