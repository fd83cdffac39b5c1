//! One nftables transaction: all of it takes effect, or nothing. Each message has a line that says
//! what it is for, so that the kernel's refusal of it can be explained.

use crate::capture::CaptureError;
use mnl::{Bus, Socket};
use nftnl::{Batch, FinalizedBatch, MsgType, NlMsg};
use rdmesh_sys::nft::tune_netlink_socket;
use std::io;
use std::time::Duration;

/// A transaction is one netlink message, and libnftnl splits a batch that outgrows its page.
const BATCH_BYTES: u32 = 8 << 20;
const ACK_TIMEOUT: Duration = Duration::from_secs(10);
/// Holds an acknowledgement together with the refused message.
const RECEIVE_BYTES: usize = 256 << 10;
const NLMSG_ERROR: u16 = 2;
const NETLINK: &str = "nfnetlink (CONFIG_NETFILTER_NETLINK)";

#[derive(Clone, Copy)]
struct Step {
    what: &'static str,
    needs: &'static str,
}

pub(super) struct Transaction {
    batch: Batch,
    steps: Vec<Step>,
}

impl Transaction {
    pub fn new() -> Self {
        Self { batch: Batch::with_page_size(BATCH_BYTES), steps: Vec::new() }
    }

    /// `what` and `needs` complete "the kernel cannot ...: it lacks ...".
    pub fn create<T: NlMsg>(&mut self, message: &T, what: &'static str, needs: &'static str) {
        self.push(message, MsgType::Add, what, needs);
    }

    pub fn delete<T: NlMsg>(&mut self, message: &T, what: &'static str, needs: &'static str) {
        self.push(message, MsgType::Del, what, needs);
    }

    fn push<T: NlMsg>(
        &mut self,
        message: &T,
        kind: MsgType,
        what: &'static str,
        needs: &'static str,
    ) {
        self.batch.add(message, kind);
        self.steps.push(Step { what, needs });
    }

    /// Sends it and waits for the kernel's word on each message.
    pub fn commit(self) -> Result<(), CaptureError> {
        let steps = self.steps;
        let batch = self.batch.finalize();
        let what = "talk to nftables";
        let failed = |error: io::Error| CaptureError::from_io(what, NETLINK, error);
        let socket = Socket::new(Bus::Netfilter).map_err(failed)?;
        tune_netlink_socket(&socket, BATCH_BYTES, ACK_TIMEOUT).map_err(failed)?;
        send(&socket, &batch)?;
        let sequence = batch.sequence_numbers();
        let mut outstanding = sequence.len();
        let mut buffer = vec![0u8; RECEIVE_BYTES];
        while outstanding > 0 {
            let messages = match socket.recv(&mut buffer) {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result.map_err(failed)?,
            };
            for message in messages {
                let Some(answer) = parse_answer(message.map_err(failed)?) else { continue };
                if answer.error != 0 {
                    // Kernels before 6.10 do not acknowledge the begin and end of a batch.
                    let framed = usize::from(sequence.len() > steps.len());
                    let step = step_of(&steps, sequence.start, framed, answer.sequence);
                    return Err(CaptureError::from_kernel(step.what, step.needs, answer.error));
                }
                outstanding = outstanding.saturating_sub(1);
            }
        }
        Ok(())
    }
}

fn send(socket: &Socket, batch: &FinalizedBatch) -> Result<(), CaptureError> {
    let too_large = || CaptureError::TooLarge { limit_bytes: BATCH_BYTES as usize };
    let mut pages = batch.iter();
    let (Some(page), None) = (pages.next(), pages.next()) else { return Err(too_large()) };
    match socket.send(page) {
        Ok(sent) if sent == page.len() => Ok(()),
        Ok(_) => Err(too_large()),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::MSGSIZE.raw_os_error()) => {
            Err(CaptureError::TooLarge { limit_bytes: page.len().saturating_sub(1) })
        }
        Err(error) => Err(CaptureError::from_io("talk to nftables", NETLINK, error)),
    }
}

/// Which message a refusal is about; one about the batch as a whole (no nftables at all, not
/// permitted) bears the number of its begin, or 0.
fn step_of(steps: &[Step], first: u32, framed: usize, sequence: u32) -> Step {
    sequence
        .checked_sub(first)
        .and_then(|offset| (offset as usize).checked_sub(framed))
        .and_then(|index| steps.get(index).copied())
        .unwrap_or(Step { what: "program nftables", needs: "nf_tables" })
}

#[derive(Debug, PartialEq, Eq)]
struct Answer {
    sequence: u32,
    /// 0 for an acknowledgement.
    error: i32,
}

/// `nlmsghdr { len u32, type u16, flags u16, seq u32, pid u32 }`, then `nlmsgerr`'s `error`.
fn parse_answer(message: &[u8]) -> Option<Answer> {
    let kind = u16::from_ne_bytes(message.get(4..6)?.try_into().ok()?);
    let sequence = u32::from_ne_bytes(message.get(8..12)?.try_into().ok()?);
    let code = i32::from_ne_bytes(message.get(16..20)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(Answer { sequence, error: code.saturating_neg() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, sequence: u32, code: i32) -> Vec<u8> {
        let mut bytes = vec![36, 0, 0, 0];
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0, 0]);
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(code.to_ne_bytes());
        bytes
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(parse_answer(&message(2, 7, -2)), Some(Answer { sequence: 7, error: 2 }));
        assert_eq!(parse_answer(&message(2, 7, 0)), Some(Answer { sequence: 7, error: 0 }));
        assert_eq!(parse_answer(&message(16, 7, 0)), None);
        assert_eq!(parse_answer(&message(2, 7, i32::MIN)[..18]), None);
    }

    #[test]
    fn a_refusal_is_traced_to_its_message() {
        let steps = ["a", "b"].map(|what| Step { what, needs: "" });
        let what = |framed, sequence| step_of(&steps, 1, framed, sequence).what;
        assert_eq!((what(1, 2), what(1, 3)), ("a", "b"));
        assert_eq!((what(0, 1), what(0, 2)), ("a", "b"));
        for sequence in [0, 1, 4, u32::MAX] {
            assert_eq!(what(1, sequence), "program nftables");
        }
    }
}
