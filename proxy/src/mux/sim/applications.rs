//! What the applications at both ends do, and the restart of a process.

use super::*;

/// How long a FIN may wait.
const FIN_WAITS_MAX_US: u64 = 500;

impl World {
    pub(super) fn open(&mut self, side: usize) {
        let key = self.flows.len() as u32;
        let open = Open {
            src: SocketAddr::from((Ipv4Addr::from(key), side as u16)),
            dst: "[2001:db8::7]:443".parse().unwrap(),
        };
        match self.lanes[side].open(open, self.now) {
            Ok(id) => {
                let mut flow = Flow {
                    opener: side,
                    opened_at: self.now,
                    ends: [End::default(), End::default()],
                };
                flow.ends[side].id = Some(id);
                flow.ends[side].accepted = true;
                flow.ends[side].stalled = self.rng.one_in(5);
                flow.ends[1 - side].stalled = self.rng.one_in(5);
                assert!(self.ids[side].insert(id, key as usize).is_none(), "id used twice");
                self.flows.push(flow);
                self.note(|| format!("{side} opens {id} as flow {key}"));
            }
            Err(OpenError::Limits) => {}
            Err(OpenError::Draining) => assert!(self.goaway[side] || self.goaway[1 - side]),
        }
    }

    pub(super) fn answer(&mut self, flow: usize, side: usize) {
        let end = &mut self.flows[flow].ends[side];
        let Some(id) = end.live() else { return };
        if end.accepted {
            return;
        }
        if !self.calm && self.rng.one_in(6) {
            self.lanes[side].refuse(id, RefuseReason::Unreachable);
            end.refused_by_us = true;
            end.ended = Some(Ended::Myself);
            self.note(|| format!("{side} refuses {id}"));
        } else {
            self.lanes[side].accept(id);
            end.accepted = true;
            self.note(|| format!("{side} accepts {id}"));
        }
    }

    pub(super) fn send(&mut self, flow: usize, side: usize) {
        let end = &mut self.flows[flow].ends[side];
        let Some(id) = end.live() else { return };
        if !end.accepted || end.finished || end.sent >= self.bytes_per_flow {
            return;
        }
        let writable = self.lanes[side].writable(id) as u64;
        end.writable_wanted = writable == 0;
        let max = writable.min(self.bytes_per_flow - end.sent);
        if max == 0 {
            return;
        }
        let n = if self.rng.one_in(3) { max } else { 1 + self.rng.below(max) };
        let bytes: Vec<u8> = (0..n).map(|i| pattern(flow as u32, side, end.sent + i)).collect();
        end.sent += n;
        self.lanes[side].send(id, bytes.into()).expect("writable() allowed it");
        self.note(|| format!("{side} sends {n} on {id}"));
    }

    pub(super) fn finish(&mut self, flow: usize, side: usize) {
        let end = &mut self.flows[flow].ends[side];
        if let Some(id) = end.live()
            && end.accepted
            && !end.finished
        {
            end.finished = true;
            if self.rng.one_in(2) {
                self.lanes[side].finish(id);
            } else {
                let wait = Duration::from_micros(self.rng.below(FIN_WAITS_MAX_US));
                self.lanes[side].finish_within(id, wait, self.now);
            }
            self.note(|| format!("{side} finishes {id}"));
            self.events(side);
        }
    }

    pub(super) fn reset(&mut self, flow: usize, side: usize) {
        let end = &mut self.flows[flow].ends[side];
        let Some(id) = end.live() else { return };
        let stream = &self.lanes[side].streams[&id];
        let in_window = u64::from(stream.queued_bytes()).min(stream.send_window());
        end.reset_before_fin = !stream.fin_sent;
        end.reset_floor = Some(stream.sent + in_window);
        end.ended = Some(Ended::Myself);
        self.lanes[side].reset(id, ResetReason::App);
        self.note(|| format!("{side} resets {id}"));
    }

    pub(super) fn consume(&mut self, flow: usize, side: usize) {
        let end = &mut self.flows[flow].ends[side];
        let Some(id) = end.live() else { return };
        let unread = end.received - end.consumed;
        if unread == 0 || (end.stalled && !self.calm) {
            return;
        }
        let n = if self.calm || self.rng.one_in(2) { unread } else { 1 + self.rng.below(unread) };
        end.consumed += n;
        self.lanes[side].consumed(id, n as usize);
        self.events(side);
    }

    /// The process of one side is replaced by another that knows nothing.
    pub(super) fn restart(&mut self, side: usize) {
        self.cut();
        if let Some(link) = &mut self.link {
            link.up[side] = false;
            link.pipes[side].clear();
        }
        self.drop_dead_link();
        self.end_all(side);
        let nonce = self.rng.next();
        let budget = Rc::clone(&self.budgets[side]);
        self.lanes[side] = Lane::new(self.configs[side].clone(), SIDES[side], budget, nonce);
        self.ids[side].clear();
        self.lives[side] += 1;
        self.attached_once[side] = false;
        self.down_since[side] = None;
        self.note(|| format!("{side} restarts"));
    }

    pub(super) fn end_all(&mut self, side: usize) {
        for flow in &mut self.flows {
            let end = &mut flow.ends[side];
            if end.id.is_some() && end.ended.is_none() {
                end.ended = Some(Ended::Lost);
            }
        }
    }
}
