use super::*;
use proptest::prelude::*;
use std::collections::VecDeque;

const MS: Duration = Duration::from_millis(1);

fn config(own: &str) -> PeerConfig {
    PeerConfig {
        own: own.into(),
        handshake: 5000 * MS,
        backoff_min: 20 * MS,
        backoff_max: 2000 * MS,
    }
}

/// `a` is the lower name.
fn a_to_b() -> Peer {
    Peer::new(config("a"), "b".into())
}

fn session(id: u64, dialed_by_us: bool, incarnation: u64) -> Session {
    Session { id, dialed_by_us, incarnation, lanes: 2, encrypt: true }
}

fn unavailable(lane: u16, reason: UnavailableReason) -> Action {
    Action::Unavailable { lane, reason }
}

fn want(lane: u16) -> Action {
    Action::Send(ControlMessage::WantLane { lane })
}

fn up(peer: &mut Peer, now: Instant) {
    peer.need_lane(0, now);
    peer.session_up(session(1, true, 7), now);
    peer.message(&ControlMessage::LaneToken { lane: 0, token: [1; 32] }, now);
    peer.link_made(0, 11, now);
    peer.take_actions();
}

#[test]
fn first_use_dials_then_asks_then_links() {
    let (mut peer, now) = (a_to_b(), Instant::now());
    peer.need_lane(0, now);
    peer.need_lane(0, now);
    assert_eq!(peer.take_actions(), [Action::Dial { attempt: 1 }]);
    peer.session_up(session(1, true, 7), now);
    assert_eq!(peer.take_actions(), [want(0)]);
    let token = [9; 32];
    peer.message(&ControlMessage::LaneToken { lane: 0, token }, now);
    peer.message(&ControlMessage::LaneToken { lane: 0, token }, now);
    assert_eq!(peer.take_actions(), [Action::DialLink { lane: 0, token }]);
    peer.link_made(0, 1, now);
    peer.need_lane(0, now);
    peer.need_lane(2, now);
    assert_eq!(peer.take_actions(), [unavailable(2, UnavailableReason::Limits)]);
    assert_eq!(peer.next_timeout(), None);
    // Much later it is no crossing: the worker has lost the link.
    peer.need_lane(0, now + 10_000 * MS);
    assert_eq!(peer.take_actions(), [want(0)]);
}

#[test]
fn the_acceptor_gives_one_token_at_a_time() {
    let (mut peer, now) = (a_to_b(), Instant::now());
    peer.session_up(session(1, false, 7), now);
    peer.need_lane(1, now);
    // Crossed on the way: the token given unasked serves it.
    peer.message(&ControlMessage::WantLane { lane: 1 }, now);
    assert_eq!(peer.take_actions(), [Action::IssueToken { lane: 1 }]);
    peer.message(&ControlMessage::LaneFailed { lane: 1, text: String::new() }, now);
    assert_eq!(peer.take_actions(), [unavailable(1, UnavailableReason::Unreachable)]);
    peer.message(&ControlMessage::WantLane { lane: 1 }, now);
    peer.message(&ControlMessage::WantLane { lane: 2 }, now);
    let actions = peer.take_actions();
    assert_eq!(actions[0], Action::IssueToken { lane: 1 });
    assert!(matches!(actions[1], Action::Send(ControlMessage::LaneFailed { lane: 2, .. })));
    // Only a dialer presents tokens.
    peer.message(&ControlMessage::LaneToken { lane: 0, token: [0; 32] }, now);
    assert_eq!(peer.take_actions(), []);
}

#[test]
fn lanes_that_keep_off_rdma_are_as_many_as_the_others() {
    let (mut peer, now) = (a_to_b(), Instant::now());
    peer.session_up(session(1, false, 7), now);
    for lane in [TCP_LANES, TCP_LANES + 1] {
        peer.message(&ControlMessage::WantLane { lane }, now);
        assert_eq!(peer.take_actions(), [Action::IssueToken { lane }]);
    }
    for lane in [2, TCP_LANES - 1, TCP_LANES + 2, 2 * TCP_LANES, u16::MAX] {
        peer.message(&ControlMessage::WantLane { lane }, now);
        let actions = peer.take_actions();
        assert!(matches!(actions[..], [Action::Send(ControlMessage::LaneFailed { .. })]), "{lane}");
    }
}

#[test]
fn nobody_listening_means_gone_and_opens_never_wait_for_a_peer_that_is_down() {
    let (mut peer, mut now) = (a_to_b(), Instant::now());
    up(&mut peer, now);
    now += 10_000 * MS;
    peer.session_down(1, now);
    assert_eq!(peer.take_actions(), [Action::Dial { attempt: 1 + 1 }]);
    peer.dial_failed(2, DialFailure::Refused, now);
    assert_eq!(peer.take_actions(), [Action::PeerGone]);
    peer.need_lane(0, now);
    assert_eq!(peer.take_actions(), [unavailable(0, UnavailableReason::Backoff)]);
    // Late news of the link that ended with the peer.
    peer.link_broken(0, 11, now);
    assert_eq!(peer.take_actions(), []);
    // Dialled in the background while someone is interested; opens still do not wait.
    for _ in 0..10 {
        now = peer.next_timeout().expect("redial");
        peer.on_timeout(now);
        let State::Dialing { attempt, .. } = peer.state() else { panic!("{:?}", peer.state()) };
        assert_eq!(peer.take_actions(), [Action::Dial { attempt }]);
        peer.need_lane(0, now);
        assert_eq!(peer.take_actions(), [unavailable(0, UnavailableReason::Backoff)]);
        peer.dial_failed(attempt, DialFailure::Refused, now);
        assert_eq!(peer.take_actions(), []);
    }
    now += INTEREST;
    peer.on_timeout(now);
    assert_eq!((peer.state(), peer.failures()), (State::Idle, 0));
    assert!(peer.forgettable());
}

#[test]
fn an_unreachable_peer_keeps_its_lanes_until_it_answers_again() {
    let (mut peer, mut now) = (a_to_b(), Instant::now());
    up(&mut peer, now);
    now += 10_000 * MS;
    peer.session_down(1, now);
    peer.link_broken(0, 11, now);
    peer.take_actions();
    for _ in 0..5 {
        let State::Dialing { attempt, .. } = peer.state() else { panic!("{:?}", peer.state()) };
        peer.dial_failed(attempt, DialFailure::Unreachable, now);
        assert_eq!(peer.take_actions(), []);
        while matches!(peer.state(), State::Waiting { .. }) {
            now = peer.next_timeout().expect("redial");
            peer.on_timeout(now);
        }
        peer.take_actions();
    }
    peer.session_up(session(2, true, 7), now);
    assert_eq!(peer.take_actions(), [want(0)]);
}

#[test]
fn a_link_that_lives_is_left_alone_over_a_new_session() {
    let (mut peer, mut now) = (a_to_b(), Instant::now());
    up(&mut peer, now);
    now += 10_000 * MS;
    peer.session_down(1, now);
    peer.take_actions();
    peer.session_up(session(2, true, 7), now);
    assert_eq!(peer.take_actions(), []);
    assert!(matches!(peer.lanes[&0].link, Link::Up { id: 11, .. }));
}

#[test]
fn another_incarnation_means_gone_but_those_who_wait_are_served() {
    let (mut peer, mut now) = (a_to_b(), Instant::now());
    up(&mut peer, now);
    now += 10_000 * MS;
    peer.session_down(1, now);
    peer.need_lane(1, now);
    peer.take_actions();
    assert_eq!(peer.offer(8), Ok(()));
    peer.session_up(session(2, false, 8), now);
    let expected = [Action::CancelDial, Action::PeerGone, Action::IssueToken { lane: 1 }];
    assert_eq!(peer.take_actions(), expected);
    assert!(!peer.lanes.contains_key(&0));
}

#[test]
fn of_two_dials_that_of_the_lower_name_wins() {
    let now = Instant::now();
    let mut lower = a_to_b();
    lower.need_lane(0, now);
    // Before TCP stands nothing is lost by taking theirs.
    assert_eq!(lower.offer(1), Ok(()));
    lower.dial_connected(1);
    assert_eq!(lower.offer(1), Err(Refusal::Tie));
    lower.session_up(session(1, true, 1), now);
    lower.take_actions();
    assert_eq!(lower.offer(1), Err(Refusal::Tie));
    // It may be dead without our knowing.
    assert_eq!(lower.take_actions(), [Action::Send(ControlMessage::Ping)]);
    assert_eq!(lower.offer(2), Ok(()), "the peer was started again");

    let mut higher = Peer::new(config("b"), "a".into());
    higher.need_lane(0, now);
    higher.dial_connected(1);
    assert_eq!(higher.offer(1), Ok(()));
    higher.session_up(session(1, false, 1), now);
    let expected =
        [Action::Dial { attempt: 1 }, Action::CancelDial, Action::IssueToken { lane: 0 }];
    assert_eq!(higher.take_actions(), expected);
    higher.dial_failed(1, DialFailure::Declined(Refusal::Tie), now);
    assert!(higher.session().is_some());
}

#[test]
fn a_lost_tie_is_no_failure() {
    let (mut peer, now) = (Peer::new(config("b"), "a".into()), Instant::now());
    peer.need_lane(0, now);
    peer.dial_failed(1, DialFailure::Declined(Refusal::Tie), now);
    peer.need_lane(0, now);
    assert_eq!(peer.take_actions(), [Action::Dial { attempt: 1 }]);
    peer.on_timeout(peer.next_timeout().expect("looks again"));
    assert_eq!(peer.take_actions(), [Action::Dial { attempt: 2 }]);
}

#[test]
fn opens_wait_for_a_silent_peer_only_so_long() {
    let (mut peer, now) = (a_to_b(), Instant::now());
    peer.need_lane(0, now);
    peer.take_actions();
    peer.on_timeout(peer.next_timeout().expect("patience"));
    assert_eq!(peer.take_actions(), [unavailable(0, UnavailableReason::Unreachable)]);
    assert!(matches!(peer.state(), State::Dialing { .. }));
}

#[test]
fn what_breaks_at_once_is_not_remade_in_a_hot_loop() {
    let (mut peer, mut now) = (a_to_b(), Instant::now());
    up(&mut peer, now);
    let start = now;
    let mut made = 0;
    while now < start + 10_000 * MS {
        peer.link_broken(0, 11 + made, now);
        now = peer.next_timeout().expect("another attempt");
        peer.on_timeout(now);
        assert_eq!(peer.take_actions(), [want(0)]);
        peer.message(&ControlMessage::LaneToken { lane: 0, token: [1; 32] }, now);
        made += 1;
        peer.link_made(0, 11 + made, now);
        peer.take_actions();
    }
    assert!((8..30).contains(&made), "{made} links in ten seconds");
    let (mut sessions, start) = (1, now);
    while now < start + 10_000 * MS {
        peer.session_down(sessions, now);
        // The first was long-lived: no pause after it.
        now = peer.next_timeout().unwrap_or(now);
        peer.on_timeout(now);
        sessions += 1;
        peer.session_up(session(sessions, true, 7), now);
    }
    assert!((10..80).contains(&sessions), "{sessions} sessions in ten seconds");
}

#[test]
fn late_news_of_an_old_link_does_no_harm() {
    let (mut peer, now) = (a_to_b(), Instant::now());
    up(&mut peer, now);
    peer.link_made(0, 12, now);
    peer.link_broken(0, 11, now);
    assert!(matches!(peer.lanes[&0].link, Link::Up { id: 12, .. }));
    peer.lane_idle(0);
    peer.link_broken(0, 12, now);
    assert_eq!(peer.take_actions(), []);
    assert!(peer.lanes.is_empty());
}

#[test]
fn draining_refuses_the_new_and_keeps_the_old() {
    let (mut peer, now) = (a_to_b(), Instant::now());
    up(&mut peer, now);
    peer.message(&ControlMessage::Goaway, now);
    peer.message(&ControlMessage::Goaway, now);
    peer.need_lane(1, now);
    let draining = unavailable(1, UnavailableReason::Draining);
    assert_eq!(peer.take_actions(), [Action::PeerDraining, draining]);
    let later = now + 10_000 * MS;
    peer.link_broken(0, 11, later);
    assert_eq!(peer.take_actions(), [want(0)]);
    peer.drain();
    assert_eq!(peer.take_actions(), [Action::Send(ControlMessage::Goaway)]);
    assert_eq!(peer.offer(99), Err(Refusal::Draining));
    assert_eq!(peer.offer(7), Err(Refusal::Tie));
}

#[test]
fn a_node_that_left_the_directory_is_cut_off() {
    let (mut peer, now) = (a_to_b(), Instant::now());
    up(&mut peer, now);
    peer.need_lane(1, now);
    peer.take_actions();
    peer.removed();
    let expected = [
        Action::CloseSession { session: 1 },
        Action::PeerGone,
        unavailable(1, UnavailableReason::Unknown),
    ];
    assert_eq!(peer.take_actions(), expected);
    assert!(peer.lanes.is_empty() && peer.next_timeout().is_none());
}

/// Something on its way between two peers, or a result on its way back.
#[derive(Debug, Clone, Copy)]
enum Wire {
    Connected { by: usize, attempt: u64 },
    Offer { by: usize, attempt: u64 },
    Verdict { by: usize, attempt: u64, session: Option<u64> },
    Closed { at: usize, session: u64 },
}

/// Two machines whose dials cross in any order that a network allows.
struct Pair {
    peers: [Peer; 2],
    wire: VecDeque<Wire>,
    /// The attempt that each end has not cancelled.
    live: [Option<u64>; 2],
    sessions: u64,
    now: Instant,
    gone: usize,
}

impl Pair {
    fn settle(&mut self, who: usize) {
        for action in self.peers[who].take_actions() {
            match action {
                Action::Dial { attempt } => {
                    self.live[who] = Some(attempt);
                    self.wire.push_back(Wire::Connected { by: who, attempt });
                }
                Action::CancelDial => self.live[who] = None,
                Action::CloseSession { session } => {
                    self.wire.push_back(Wire::Closed { at: 1 - who, session });
                }
                Action::PeerGone => self.gone += 1,
                _ => {}
            }
        }
    }

    fn deliver(&mut self, step: Wire) {
        let now = self.now;
        match step {
            Wire::Connected { by, attempt } if self.live[by] == Some(attempt) => {
                self.peers[by].dial_connected(attempt);
                self.wire.push_back(Wire::Offer { by, attempt });
            }
            Wire::Offer { by, attempt } => {
                let at = 1 - by;
                let verdict = self.peers[at].offer(by as u64);
                self.settle(at);
                let session = verdict.is_ok().then(|| {
                    self.sessions += 1;
                    self.sessions
                });
                if let Some(id) = session {
                    let session = Session {
                        id,
                        dialed_by_us: false,
                        incarnation: by as u64,
                        lanes: 1,
                        encrypt: true,
                    };
                    self.peers[at].session_up(session, now);
                    self.settle(at);
                }
                self.wire.push_back(Wire::Verdict { by, attempt, session });
            }
            Wire::Verdict { by, attempt, session } => {
                let live = self.live[by] == Some(attempt);
                match session {
                    Some(id) if live => {
                        self.live[by] = None;
                        let session = Session {
                            id,
                            dialed_by_us: true,
                            incarnation: 1 - by as u64,
                            lanes: 1,
                            encrypt: true,
                        };
                        self.peers[by].session_up(session, now);
                    }
                    Some(session) => self.wire.push_back(Wire::Closed { at: 1 - by, session }),
                    None if live => {
                        self.live[by] = None;
                        let tie = DialFailure::Declined(Refusal::Tie);
                        self.peers[by].dial_failed(attempt, tie, now);
                    }
                    None => {}
                }
                self.settle(by);
            }
            Wire::Closed { at, session } => {
                self.peers[at].session_down(session, now);
                self.settle(at);
            }
            Wire::Connected { .. } => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]
    #[test]
    fn crossing_dials_always_end_in_one_session(choices in proptest::collection::vec(0usize..8, 60)) {
        let now = Instant::now();
        let peers = [a_to_b(), Peer::new(config("b"), "a".into())];
        let mut pair = Pair { peers, wire: VecDeque::new(), live: [None; 2], sessions: 0, now, gone: 0 };
        let mut choices = choices.into_iter();
        let mut wanted = [false; 2];
        for _ in 0..400 {
            let choice = choices.next().unwrap_or(0);
            // Both ends want a lane at some time.
            for (who, wanted) in wanted.iter_mut().enumerate() {
                if !*wanted && (choice == who + 6 || choices.len() == 0) {
                    *wanted = true;
                    pair.peers[who].need_lane(0, pair.now);
                    pair.settle(who);
                }
            }
            if pair.wire.is_empty() {
                let due = pair.peers.iter().filter_map(Peer::next_timeout).min();
                let Some(due) = due.filter(|_| wanted == [true; 2]) else { continue };
                let both_up = pair.peers.iter().all(|p| p.session().is_some());
                if both_up {
                    break;
                }
                pair.now = pair.now.max(due);
                for who in 0..2 {
                    pair.peers[who].on_timeout(pair.now);
                    pair.settle(who);
                }
                continue;
            }
            let index = choice % pair.wire.len();
            let step = pair.wire.remove(index).expect("in range");
            pair.now += MS;
            pair.deliver(step);
        }
        let ids: Vec<_> = pair.peers.iter().map(|p| p.session().map(|s| s.id)).collect();
        prop_assert!(ids[0].is_some() && ids[0] == ids[1], "{ids:?}");
        prop_assert_eq!(pair.gone, 0);
        prop_assert!(pair.sessions <= 2, "{} sessions", pair.sessions);
    }
}
