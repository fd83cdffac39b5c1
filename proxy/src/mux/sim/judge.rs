//! What the lanes say to the applications, and whether they may.

use super::*;

impl World {
    pub(super) fn events(&mut self, side: usize) {
        while let Some(event) = self.lanes[side].poll_event() {
            self.note(|| match &event {
                Event::Data { id, payload } => format!("{side} <- {} bytes on {id}", payload.len()),
                other => format!("{side} <- {other:?}"),
            });
            self.event(side, event);
        }
        assert_eq!(self.lost_streams[side], 0, "streams reset for a loss that did not come");
    }

    pub(super) fn event(&mut self, side: usize, event: Event<Bytes>) {
        match event {
            Event::Attached { resumed } => self.on_attached(side, resumed),
            Event::Incoming { id, open } => {
                let SocketAddr::V4(src) = open.src else { panic!("{open:?}") };
                let key = u32::from(*src.ip()) as usize;
                assert_eq!(usize::from(src.port()), 1 - side);
                assert_eq!(open.dst, "[2001:db8::7]:443".parse().unwrap());
                assert_eq!(self.flows[key].opener, 1 - side);
                let end = &mut self.flows[key].ends[side];
                assert!(end.id.is_none(), "opened twice");
                end.id = Some(id);
                // Ids begin anew with each life of the other side.
                self.ids[side].insert(id, key);
            }
            Event::Opened { id } => {
                let end = self.end(side, id);
                assert!(!std::mem::replace(&mut end.opened, true));
                assert!(self.other(side, id).accepted);
            }
            Event::Refused { id, reason } => self.on_refused(side, id, reason),
            Event::Data { id, payload } => self.on_data(side, id, &payload),
            Event::Fin { id } => {
                let sent = self.other(side, id).sent;
                assert!(self.other(side, id).finished, "FIN out of nothing");
                assert!(!self.other(side, id).reset_before_fin, "FIN made of a reset");
                let end = self.end(side, id);
                assert!(!std::mem::replace(&mut end.fin_received, true), "FIN twice");
                assert_eq!(end.received, sent, "FIN before the last byte");
            }
            Event::Reset { id, reason } => self.on_reset(side, id, reason),
            Event::Writable { id } => {
                assert!(std::mem::take(&mut self.end(side, id).writable_wanted));
                assert!(self.lanes[side].writable(id) > 0);
                self.seen.writable += 1;
            }
            Event::LinkDead { .. } => {
                self.seen.link_dead += 1;
                self.cut();
                self.notice_cut(side);
            }
            Event::Lost { reason } => self.on_lost(side, reason),
            Event::Goaway => assert!(self.goaway[1 - side]),
            Event::Closed { id } => {
                let end = self.end(side, id);
                assert!(end.finished && end.fin_received && end.consumed == end.received);
                end.ended = Some(Ended::Closed);
                self.seen.closed += 1;
            }
        }
    }

    pub(super) fn end(&mut self, side: usize, id: StreamId) -> &mut End {
        let flow = self.ids[side][&id];
        let end = &mut self.flows[flow].ends[side];
        assert!(end.ended.is_none(), "an event of {id}, which has ended: {end:?}");
        end
    }

    pub(super) fn other(&self, side: usize, id: StreamId) -> &End {
        &self.flows[self.ids[side][&id]].ends[1 - side]
    }

    pub(super) fn on_attached(&mut self, side: usize, resumed: bool) {
        let fresh = !self.attached_once[side] || self.peer_life[side] != self.heard_life[side];
        assert_eq!(resumed, !fresh, "resumed what is not there, or forgot what is");
        self.seen.resumed += u64::from(resumed);
        self.attached_once[side] = true;
        self.peer_life[side] = self.heard_life[side];
        self.down_since[side] = None;
    }

    pub(super) fn on_lost(&mut self, side: usize, reason: LostReason) {
        match reason {
            LostReason::ResumeTimeout => {
                let since = self.down_since[side].expect("the lane was down");
                assert!(self.now - since >= RESUME_TIMEOUT, "gave up too early");
                self.seen.lost += 1;
                // The peer has to learn that this is another life.
                self.lives[side] += 1;
            }
            LostReason::PeerForgot => {
                assert!(self.peer_life[side] != self.heard_life[side], "lost without cause");
                self.seen.forgot += 1;
            }
            LostReason::Protocol | LostReason::Abandoned => panic!("{reason:?}"),
        }
        self.lost_streams[side] = 0;
        self.attached_once[side] = false;
        self.down_since[side] = None;
        for flow in &self.flows {
            assert!(flow.ends[side].live().is_none(), "a stream was not told of the loss");
        }
        assert_eq!(self.lanes[side].stats().streams, 0);
    }

    pub(super) fn on_refused(&mut self, side: usize, id: StreamId, reason: RefuseReason) {
        let flow = &self.flows[self.ids[side][&id]];
        assert_eq!(flow.opener, side);
        let timed_out = self.now - flow.opened_at >= OPEN_TIMEOUT;
        let other = &flow.ends[1 - side];
        match reason {
            RefuseReason::Unreachable => {
                assert!(other.refused_by_us);
                self.seen.refused += 1;
            }
            RefuseReason::Timeout => {
                assert!(timed_out);
                self.seen.timed_out += 1;
            }
            RefuseReason::Limits => {
                assert!(other.id.is_none());
                self.seen.limits += 1;
            }
            RefuseReason::Draining => assert!(self.goaway[1 - side] && other.id.is_none()),
            RefuseReason::LaneLost => {
                assert!(other.id.is_none());
                // Else a Lost must follow.
                self.lost_streams[side] += usize::from(!timed_out);
            }
            other => panic!("{other:?}"),
        }
        let end = self.end(side, id);
        assert!(!end.opened && end.received == 0);
        end.timed_out = timed_out;
        end.ended = Some(Ended::Refused);
    }

    pub(super) fn on_data(&mut self, side: usize, id: StreamId, payload: &[u8]) {
        assert!(!payload.is_empty());
        let flow = self.ids[side][&id];
        let sent = self.other(side, id).sent;
        let end = self.end(side, id);
        assert!(!end.fin_received, "bytes after FIN");
        for (i, byte) in payload.iter().enumerate() {
            let expected = pattern(flow as u32, 1 - side, end.received + i as u64);
            assert_eq!(*byte, expected, "wrong byte on {id} after {} bytes", end.received);
        }
        end.received += payload.len() as u64;
        assert!(end.received <= sent);
        self.seen.bytes += payload.len() as u64;
    }

    pub(super) fn on_reset(&mut self, side: usize, id: StreamId, reason: ResetReason) {
        let other = self.other(side, id);
        match reason {
            ResetReason::App => {
                let floor = other.reset_floor.expect("a reset out of nothing");
                let received = self.flows[self.ids[side][&id]].ends[side].received;
                self.seen.reset_with_bytes += u64::from(floor > 0);
                assert!(received >= floor, "the reset overtook {} bytes", floor - received);
            }
            ResetReason::Timeout => assert!(other.timed_out),
            ResetReason::PeerLost => self.lost_streams[side] += 1,
            other => panic!("{other:?}"),
        }
        let ended = if reason == ResetReason::PeerLost { Ended::Lost } else { Ended::Reset };
        self.end(side, id).ended = Some(ended);
    }

    pub(super) fn check(&mut self) {
        for side in 0..2 {
            let (lane, config) = (&self.lanes[side], &self.configs[side]);
            let full = lane.unacked.len() == config.unacked_messages_max as usize;
            self.seen.unacked_full += u64::from(full);
            self.seen.last_credit += u64::from(lane.stats().attached && lane.link.credits() == 0);
            assert!(self.budgets[side].granted() <= self.budgets[side].bytes_max());
            assert_eq!(self.budgets[side].granted(), lane.granted);
            assert!(lane.unacked.len() <= config.unacked_messages_max as usize);
            assert!(lane.streams.len() <= config.streams_max as usize);
            let mut reserved = 0;
            for stream in lane.streams.values() {
                let grown = stream.window > config.window_initial_bytes;
                self.seen.grown += u64::from(grown);
                assert!(stream.queued_bytes() <= config.send_queue_bytes_max);
                assert!(stream.sent <= stream.send_limit, "beyond the peer's window");
                reserved += u64::from(stream.reserved);
                if stream.reserved > 0 && !stream.fin_received {
                    let exposed = stream.receive_limit - stream.consumed;
                    assert!(exposed <= u64::from(stream.reserved), "more granted than reserved");
                }
            }
            assert_eq!(reserved, lane.granted);
        }
    }

    pub(super) fn verdict(&self) {
        for (key, flow) in self.flows.iter().enumerate() {
            let ended = [flow.ends[0].ended, flow.ends[1].ended];
            let fair = match ended {
                [Some(Ended::Closed), Some(Ended::Closed)] => {
                    flow.ends[0].received == flow.ends[1].sent
                        && flow.ends[1].received == flow.ends[0].sent
                }
                [Some(Ended::Lost), _] | [_, Some(Ended::Lost)] => self.restarts,
                [Some(Ended::Myself), _] | [_, Some(Ended::Myself)] => true,
                [Some(Ended::Refused), None] | [None, Some(Ended::Refused)] => true,
                // Given up by the opener, who waited long enough.
                _ => flow.ends[flow.opener].timed_out,
            };
            assert!(fair, "flow {key} ended badly: {flow:?}");
        }
        for side in 0..2 {
            assert_eq!(self.budgets[side].granted(), 0, "the budget leaks");
            assert_eq!(self.lanes[side].stats().window_bytes_granted, 0);
        }
    }

    pub(super) fn describe(&self) -> String {
        let stats = [self.lanes[0].stats(), self.lanes[1].stats()];
        let live: Vec<_> = self
            .flows
            .iter()
            .filter(|flow| flow.ends.iter().any(|end| end.live().is_some()))
            .collect();
        format!("{stats:?} {live:?}")
    }
}
