//! One-time tokens: they tie a second connection to the session and lane it was promised to.
//!
//! What it does not do: read a clock.

use super::wire::{TOKEN_BYTES, Token};
use crate::node::messages::NodeName;
use std::collections::HashMap;
use std::time::Instant;

/// What a token is good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    pub peer: NodeName,
    pub lane: u16,
    /// The session that issued it.
    pub session: u64,
    /// Whether the link must be encrypted.
    pub encrypt: bool,
}

/// The tokens that were issued and not yet used.
#[derive(Debug)]
pub struct Tokens {
    grants: HashMap<Token, (Grant, Instant)>,
    capacity: usize,
}

impl Tokens {
    #[must_use]
    pub fn new(capacity: usize) -> Self {
        Self { grants: HashMap::new(), capacity }
    }

    /// A fresh token, valid until `expires`. `None` if the system has no randomness or too many
    /// are outstanding.
    pub fn issue(&mut self, grant: Grant, now: Instant, expires: Instant) -> Option<Token> {
        if self.grants.len() >= self.capacity {
            self.grants.retain(|_, (_, until)| *until > now);
        }
        if self.grants.len() >= self.capacity {
            return None;
        }
        let mut token = [0u8; TOKEN_BYTES];
        getrandom::fill(&mut token).ok()?;
        self.grants.insert(token, (grant, expires));
        Some(token)
    }

    /// Uses a token up. It is gone even if it had expired.
    pub fn redeem(&mut self, token: &Token, now: Instant) -> Option<Grant> {
        let (grant, expires) = self.grants.remove(token)?;
        (expires > now).then_some(grant)
    }

    pub fn revoke_lane(&mut self, session: u64, lane: u16) {
        self.grants.retain(|_, (grant, _)| grant.session != session || grant.lane != lane);
    }

    pub fn revoke_session(&mut self, session: u64) {
        self.grants.retain(|_, (grant, _)| grant.session != session);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn grant(session: u64, lane: u16) -> Grant {
        Grant { peer: "b".into(), lane, session, encrypt: true }
    }

    #[test]
    fn a_token_works_once_and_not_late() {
        let mut tokens = Tokens::new(8);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let token = tokens.issue(grant(1, 0), now, later).expect("room");
        assert_eq!(tokens.redeem(&token, now), Some(grant(1, 0)));
        assert_eq!(tokens.redeem(&token, now), None);
        let token = tokens.issue(grant(1, 0), now, later).expect("room");
        assert_eq!(tokens.redeem(&token, later), None);
        assert_eq!(tokens.redeem(&[0; 32], now), None);
        assert!(tokens.grants.is_empty());
    }

    #[test]
    fn tokens_end_with_their_session_and_are_bounded() {
        let mut tokens = Tokens::new(2);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let one = tokens.issue(grant(1, 0), now, later).expect("room");
        let two = tokens.issue(grant(2, 0), now, later).expect("room");
        assert_eq!(tokens.issue(grant(2, 1), now, later), None);
        tokens.revoke_session(1);
        assert_eq!(tokens.redeem(&one, now), None);
        tokens.revoke_lane(2, 1);
        assert_eq!(tokens.redeem(&two, now), Some(grant(2, 0)));
        tokens.issue(grant(3, 0), now, later).expect("room");
        tokens.issue(grant(3, 1), now, later).expect("room");
        // The old ones have expired: they make room.
        assert!(tokens.issue(grant(3, 2), later, later + Duration::from_secs(1)).is_some());
        assert_eq!(tokens.grants.len(), 1);
    }
}
