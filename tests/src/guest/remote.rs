//! One end of a connection in a guest, held by the driver.
//!
//! What it does not do: move payload to the driver. The agents make and check it.

use super::channel::Ticket;
use super::cluster::PATIENCE;
use super::machine::Machine;
use super::wire::{Call, Checked, Leave, Opened};
use crate::End;
use anyhow::{Result, ensure};
use serde_json::Value;

#[derive(Debug)]
pub struct Remote<'a> {
    machine: &'a Machine,
    pub opened: Opened,
}

impl<'a> Remote<'a> {
    #[must_use]
    pub fn new(machine: &'a Machine, opened: Opened) -> Self {
        Self { machine, opened }
    }

    fn number(&self) -> u64 {
        self.opened.stream
    }

    /// Begins to write the first `bytes` of pattern `seed` in writes of `step`, then `leave`.
    pub fn start_write(&self, seed: u64, bytes: u64, step: usize, leave: Leave) -> Result<Ticket> {
        self.machine.start_call(Call::Write { stream: self.number(), seed, bytes, step, leave })
    }

    pub fn write(&self, seed: u64, bytes: u64, leave: Leave) -> Result<()> {
        done(self.start_write(seed, bytes, 64 << 10, leave)?)
    }

    /// Begins to read to the end, comparing with pattern `seed`.
    pub fn start_check(&self, seed: u64) -> Result<Ticket> {
        self.machine.start_call(Call::Check { stream: self.number(), seed })
    }

    /// Everything to the end is `bytes` of pattern `seed`, and the end is clean.
    pub fn check(&self, seed: u64, bytes: u64) -> Result<()> {
        clean(self.start_check(seed)?, bytes)
    }

    /// Reads `bytes` of pattern `seed`; more may follow.
    pub fn check_exact(&self, seed: u64, bytes: u64) -> Result<()> {
        let call = Call::CheckExact { stream: self.number(), seed, bytes };
        done(self.machine.start_call(call)?)
    }

    pub fn stall(&self) -> Result<u64> {
        self.machine.call(Call::Stall { stream: self.number() }, PATIENCE)
    }

    pub fn start_write_until_error(&self) -> Result<Ticket> {
        self.machine.start_call(Call::WriteUntilError { stream: self.number() })
    }

    pub fn leave(&self, leave: Leave) -> Result<()> {
        done(self.machine.start_call(Call::Leave { stream: self.number(), leave })?)
    }

    /// One message there, from this end to `other`, and nothing but it.
    pub fn says_to(&self, other: &Remote<'_>, seed: u64, bytes: u64) -> Result<()> {
        self.write(seed, bytes, Leave::Open)?;
        other.check_exact(seed, bytes)
    }
}

impl Drop for Remote<'_> {
    fn drop(&mut self) {
        let close = Call::Leave { stream: self.number(), leave: Leave::Close };
        let _ = self.machine.start_call(close);
    }
}

/// Waits for something that answers with nothing.
pub fn done(ticket: Ticket) -> Result<()> {
    ticket.wait::<Value>(PATIENCE).map(drop)
}

/// Waits for a check, which must find so many bytes and a clean end.
pub fn clean(ticket: Ticket, bytes: u64) -> Result<()> {
    let found: Checked = ticket.wait(PATIENCE)?;
    ensure!(found == Checked { bytes, end: End::Clean }, "wanted {bytes} bytes, got {found:?}");
    Ok(())
}

/// Waits for a check, which must find a reset; returns the bytes before it.
pub fn reset(ticket: Ticket) -> Result<u64> {
    let found: Checked = ticket.wait(PATIENCE)?;
    ensure!(found.end == End::Reset, "wanted a reset, got {found:?}");
    Ok(found.bytes)
}
