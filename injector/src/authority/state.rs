//! What the Secret holds, and what is due: no I/O, time passed in.
//!
//! The authority is replaced in three steps, each as long as it takes everybody to learn of the one before: the next
//! CA is trusted beside the present one; it signs, and the old one is still trusted; the old one is forgotten. A CA
//! that the injector did not make is left alone.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rdmesh_proxy::trust::{Ca, TrustError};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// When what is due, as JSON.
const TIMES: &str = "rdmesh.io/authority";
const LOOK_MS_MAX: u64 = 10_000;
const LOOK_MS_MIN: u64 = 500;

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const NEXT_CERT: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";
const PEM_END: &str = "-----END CERTIFICATE-----";

/// How long certificates are good for, in seconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lifetimes {
    pub ca: u64,
    pub serving: u64,
    pub node: u64,
}

impl Lifetimes {
    pub fn of(names: &rdmesh_config::Authority) -> Self {
        Self {
            ca: names.ca_lifetime_s,
            serving: names.serving_lifetime_s,
            node: names.node_lifetime_s,
        }
    }

    /// How often the Secret is read: often enough that no certificate ends before its successor is seen.
    pub fn look_interval(self) -> Duration {
        let shortest_ms = self.serving.min(self.node).saturating_mul(1000);
        Duration::from_millis((shortest_ms / 12).clamp(LOOK_MS_MIN, LOOK_MS_MAX))
    }

    /// The length of a step. Node proxies hear of a CA with their own certificates, so whoever has not heard of it
    /// by then has none that is good; replicas of the injector hear of it when they look.
    fn overlap(self) -> u64 {
        self.node.saturating_add(2 * self.look_interval().as_secs().saturating_add(1))
    }
}

/// Of one CA, in seconds since the epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Term {
    renew_at: u64,
    expires_at: u64,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Times {
    /// Grows with every change: who holds an older state can tell.
    pub generation: u64,
    /// The name that the serving certificate was made for, and when another is due.
    name: String,
    renew_at: u64,
    /// None: the CA is not ours.
    ca: Option<Term>,
    next: Option<Term>,
    /// When the present step began.
    since: u64,
}

/// Empty texts where there is nothing yet.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Stored {
    /// All that is trusted; the first is the one that signs.
    pub ca_cert: String,
    pub ca_key: String,
    next_cert: String,
    next_key: String,
    pub cert: String,
    pub key: String,
    pub times: Times,
}

/// What a change was, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Made,
    Announced,
    Switched,
    Forgotten,
    Serving,
}

impl Step {
    pub fn what(self) -> &'static str {
        match self {
            Self::Made => "certificate authority made",
            Self::Announced => "the next certificate authority is made, and trusted from now on",
            Self::Switched => "the next certificate authority signs from now on",
            Self::Forgotten => "the former certificate authority is no longer trusted",
            Self::Serving => "serving certificate made",
        }
    }
}

impl Stored {
    pub fn read(secret: &Secret) -> Result<Self, String> {
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            let bytes = bytes.map(|bytes| bytes.0.clone()).unwrap_or_default();
            String::from_utf8(bytes).map_err(|_| format!("{key} is no text"))
        };
        let annotations = secret.metadata.annotations.as_ref();
        let times = annotations.and_then(|all| serde_json::from_str(all.get(TIMES)?).ok());
        let stored = Self {
            ca_cert: text(CA_CERT)?,
            ca_key: text(CA_KEY)?,
            next_cert: text(NEXT_CERT)?,
            next_key: text(NEXT_KEY)?,
            cert: text(CERT)?,
            key: text(KEY)?,
            times: times.unwrap_or_default(),
        };
        if stored.ca_cert.is_empty() != stored.ca_key.is_empty() {
            return Err(format!("only one of {CA_CERT} and {CA_KEY} is there"));
        }
        if stored.next_cert.is_empty() != stored.next_key.is_empty() {
            return Err(format!("only one of {NEXT_CERT} and {NEXT_KEY} is there"));
        }
        Ok(stored)
    }

    pub fn write(&self, secret: &mut Secret) {
        let data = secret.data.get_or_insert_default();
        for (key, text) in [
            (CA_CERT, &self.ca_cert),
            (CA_KEY, &self.ca_key),
            (NEXT_CERT, &self.next_cert),
            (NEXT_KEY, &self.next_key),
            (CERT, &self.cert),
            (KEY, &self.key),
        ] {
            if text.is_empty() {
                data.remove(key);
            } else {
                data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
            }
        }
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert(TIMES.to_owned(), serde_json::json!(self.times).to_string());
    }

    /// The one that signs.
    pub fn ca(&self) -> Result<Ca, String> {
        Ca::from_pem(&self.ca_cert, &self.ca_key)
    }

    /// What has to be stored instead, if anything: one step at a time.
    pub fn renewed(
        &self,
        name: &str,
        lifetimes: Lifetimes,
        now: u64,
    ) -> Result<Option<(Self, Step)>, TrustError> {
        let expired = self.times.ca.is_some_and(|term| now >= term.expires_at);
        let (mut renewed, step) = if self.ca_cert.is_empty() || expired {
            (Self::made(lifetimes, now)?, Step::Made)
        } else if let Some(changed) = self.next_step(lifetimes, now)? {
            changed
        } else if self.serving_is_due(name, now) {
            (self.clone(), Step::Serving)
        } else {
            return Ok(None);
        };
        if !matches!(step, Step::Announced | Step::Forgotten) {
            let ca = renewed.ca().map_err(TrustError::NotAccepted)?;
            let made = ca.issue(name, Duration::from_secs(lifetimes.serving))?;
            (renewed.cert, renewed.key) = (made.cert_pem, made.key_pem);
            name.clone_into(&mut renewed.times.name);
            renewed.times.renew_at = now.saturating_add(lifetimes.serving / 3);
        }
        // Also after the Secret was emptied it is more than it was.
        renewed.times.generation = self.times.generation.saturating_add(1).max(now);
        Ok(Some((renewed, step)))
    }

    fn serving_is_due(&self, name: &str, now: u64) -> bool {
        self.cert.is_empty()
            || self.key.is_empty()
            || self.times.name != name
            || now >= self.times.renew_at
    }

    fn made(lifetimes: Lifetimes, now: u64) -> Result<Self, TrustError> {
        let (ca, term) = new_ca(lifetimes, now)?;
        let times = Times { ca: Some(term), since: now, ..Times::default() };
        let (ca_cert, ca_key) = (ca.cert_pem().to_owned(), ca.key_pem());
        Ok(Self { ca_cert, ca_key, times, ..Self::default() })
    }

    fn next_step(
        &self,
        lifetimes: Lifetimes,
        now: u64,
    ) -> Result<Option<(Self, Step)>, TrustError> {
        let Some(term) = self.times.ca else { return Ok(None) };
        let told = now >= self.times.since.saturating_add(lifetimes.overlap());
        let mut changed = self.clone();
        changed.times.since = now;
        let trusted = blocks(&self.ca_cert);
        let own = trusted.first().copied().unwrap_or_default();
        let step = match (self.times.next, trusted.len() > 1) {
            (Some(next), _) if told => {
                changed.ca_cert = format!("{}\n{own}\n", self.next_cert.trim());
                changed.ca_key = std::mem::take(&mut changed.next_key);
                changed.next_cert.clear();
                (changed.times.ca, changed.times.next) = (Some(next), None);
                Step::Switched
            }
            (None, true) if told => {
                changed.ca_cert = format!("{own}\n");
                Step::Forgotten
            }
            (None, false) if now >= term.renew_at => {
                let (next, term) = new_ca(lifetimes, now)?;
                changed.ca_cert = format!("{own}\n{}", next.cert_pem());
                (changed.next_cert, changed.next_key) =
                    (next.cert_pem().to_owned(), next.key_pem());
                changed.times.next = Some(term);
                Step::Announced
            }
            _ => return Ok(None),
        };
        Ok(Some((changed, step)))
    }
}

fn new_ca(lifetimes: Lifetimes, now: u64) -> Result<(Ca, Term), TrustError> {
    let ca = Ca::generate_for(Duration::from_secs(lifetimes.ca))?;
    let renew_at = now.saturating_add(lifetimes.ca / 2);
    Ok((ca, Term { renew_at, expires_at: now.saturating_add(lifetimes.ca) }))
}

/// The certificates of a PEM text, each without what stands between them.
fn blocks(pem: &str) -> Vec<&str> {
    let whole = |block: &&str| block.ends_with(PEM_END);
    pem.split_inclusive(PEM_END).map(str::trim).filter(whole).collect()
}

#[cfg(test)]
#[path = "state_tests.rs"]
mod tests;
