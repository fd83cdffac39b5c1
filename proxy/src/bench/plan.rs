//! What is measured. The end that connects says it to the end that listens: four bytes of length,
//! little-endian, and JSON.

use super::end::SHORTEST;
use super::{Error, SILENCE_MAX};
use serde::{Deserialize, Serialize};
use std::io::{Read, Write};
use std::net::TcpStream;

const PLAN_BYTES_MAX: usize = 16 << 10;
const TESTS_MAX: usize = 64;
const MESSAGES_MAX: u32 = 1 << 30;
const STREAMS_MAX: u32 = 1024;

/// How an end waits for the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Poll {
    /// Sleeps until the link's descriptor tells.
    Off,
    /// Looks again and again, with a processor of its own.
    Always,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Test {
    /// One message there and back, again and again.
    Latency { bytes: u32, messages: u32 },
    /// One way, as many at once as the link takes and credits allow.
    Rate { bytes: u32, messages: u32 },
    /// Pieces of streams, packed into messages by the lane's state machine. The last test of a plan.
    Lane { bytes: u32, pieces: u32, streams: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    pub poll: Poll,
    pub tests: Vec<Test>,
}

impl Plan {
    /// # Errors
    /// With what cannot be done.
    pub fn check(&self, message_bytes_max: u32) -> Result<(), Error> {
        let refuse = |why: String| Err(Error::Plan(why));
        if self.tests.is_empty() || self.tests.len() > TESTS_MAX {
            return refuse(format!("has {} tests; 1 to {TESTS_MAX}", self.tests.len()));
        }
        for (index, test) in self.tests.iter().enumerate() {
            let (bytes, least, count) = match *test {
                Test::Latency { bytes, messages } | Test::Rate { bytes, messages } => {
                    (bytes, SHORTEST, messages)
                }
                Test::Lane { bytes, pieces, streams } => {
                    if index + 1 < self.tests.len() {
                        return refuse("a test of the lane comes last".to_owned());
                    }
                    if !(1..=STREAMS_MAX).contains(&streams) {
                        return refuse(format!("{streams} streams; 1 to {STREAMS_MAX}"));
                    }
                    (bytes, 1, pieces)
                }
            };
            if !(least..=message_bytes_max).contains(&bytes) {
                return refuse(format!(
                    "a size of {bytes} bytes; {least} to {message_bytes_max} \
                     (node.limits.message_bytes_max)"
                ));
            }
            if !(1..=MESSAGES_MAX).contains(&count) {
                return refuse(format!("{count} messages; 1 to {MESSAGES_MAX}"));
            }
        }
        Ok(())
    }
}

pub(super) fn write(mut socket: &TcpStream, plan: &Plan) -> Result<(), Error> {
    let text = serde_json::to_vec(plan).map_err(|error| Error::Plan(error.to_string()))?;
    let mut bytes = u32::try_from(text.len()).unwrap_or(u32::MAX).to_le_bytes().to_vec();
    bytes.extend_from_slice(&text);
    Ok(socket.write_all(&bytes)?)
}

pub(super) fn read(mut socket: &TcpStream) -> Result<Plan, Error> {
    socket.set_read_timeout(Some(SILENCE_MAX))?;
    let mut length = [0; 4];
    socket.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > PLAN_BYTES_MAX {
        return Err(Error::Plan(format!("of {length} bytes: no bench-link at the other end?")));
    }
    let mut text = vec![0; length];
    socket.read_exact(&mut text)?;
    socket.set_read_timeout(None)?;
    serde_json::from_slice(&text).map_err(|error| Error::Plan(error.to_string()))
}
