//! SMC-R on this node, by netlink: the name that lets two nodes use it, and what really carries a
//! connection, for a socket of SMC's becomes one of TCP in silence when anything is wrong.
//!
//! What it does not do: netlink in general. It speaks the two requests that smc-tools would, which
//! Debian 12 does not have.

use super::node::sh;
use crate::relay::SMC;
use anyhow::{Context, Result, bail};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketType};
use serde_json::Value;
use std::io;

/// Both nodes have it, and no other: devices without RoCE v1 addresses, as Soft-RoCE's are, meet
/// only under a name that an administrator gave ("user EID").
const EID: &str = "RDMESH-BENCH";

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const DUMP: u16 = 0x300;
/// The kinds of messages that end an answer: an error or acknowledgement, and the end of a list.
const ERROR: u16 = 2;
const DONE: u16 = 3;

/// Asks which number a generic family has.
const CONTROL: u16 = 16;
const GET_FAMILY: u8 = 3;
const FAMILY_ID: u16 = 1;
const FAMILY_NAME: u16 = 2;
const SMC_FAMILY: &[u8] = b"SMC_GEN_NETLINK\0";
const ADD_EID: u8 = 10;
const EID_ENTRY: u16 = 1;
const EID_BYTES: usize = 32;

const DIAG_BY_FAMILY: u16 = 20;
/// A socket in the answer: its family, state and mode, then two ports, and more that is not read.
const DIAG_BYTES: usize = 64;
const MODE_SMC_R: u8 = 0;
const MODE_TCP: u8 = 1;
/// What its link is on, to be asked for; and why it is on none, which comes unasked.
const DIAG_LINK: u16 = 2;
const DIAG_FALLBACK: u16 = 5;
const WANT_LINK: u8 = 1 << (DIAG_LINK - 1);

/// Loads the modules and names the node.
pub(super) fn prepare() -> Result<Value> {
    sh("modprobe smc && modprobe smc_diag")?;
    let wanted = generic(CONTROL, GET_FAMILY, &attribute(FAMILY_NAME, SMC_FAMILY));
    let answer = ask(netlink::GENERIC, &wanted).context("ask for the family of SMC")?;
    let family = answer.iter().find_map(|(_, body)| family_id(body)).context("its number")?;
    ask(netlink::GENERIC, &add_eid(family)).context("add the EID")?;
    Ok(Value::Null)
}

/// The RDMA device that carries the connection between these ports, as the kernel says; an error
/// when none does.
pub(super) fn device_of(local: u16, peer: u16) -> Result<String> {
    let mut body = vec![SMC, 0, 0, WANT_LINK];
    body.resize(52, 0);
    let request = message(DIAG_BY_FAMILY, REQUEST | DUMP, &body);
    let sockets = ask(netlink::SOCK_DIAG, &request).context("ask for the sockets of SMC")?;
    let found = sockets.iter().find_map(|(_, body)| carrier(body, (local, peer)));
    found.context("the kernel lists no such socket of SMC")?
}

fn add_eid(family: u16) -> Vec<u8> {
    generic(family, ADD_EID, &attribute(EID_ENTRY, format!("{EID:EID_BYTES$}\0").as_bytes()))
}

/// Of one listed socket, when it is this one.
fn carrier(body: &[u8], ports: (u16, u16)) -> Option<Result<String>> {
    let (socket, rest) = body.split_at_checked(DIAG_BYTES)?;
    let port = |at: usize| u16::from_be_bytes([socket[at], socket[at + 1]]);
    if (port(4), port(6)) != ports {
        return None;
    }
    let find = |wanted| attributes(rest).find(|(kind, _)| *kind == wanted).map(|(_, found)| found);
    Some(match (socket[2], find(DIAG_LINK)) {
        // The link's number, then the device's name.
        (MODE_SMC_R, Some(link)) => {
            let name = link.iter().skip(1).take_while(|byte| **byte != 0).copied().collect();
            String::from_utf8(name).context("the name of a device")
        }
        (MODE_SMC_R, None) => Err(anyhow::anyhow!("the connection has no link")),
        (MODE_TCP, _) => {
            let words: Vec<u8> = find(DIAG_FALLBACK).unwrap_or_default().to_vec();
            let word = |at: usize| words.get(at..at + 4).and_then(|word| word.try_into().ok());
            let reason = u32::from_ne_bytes(word(0).unwrap_or_default());
            let peer = u32::from_ne_bytes(word(4).unwrap_or_default());
            Err(anyhow::anyhow!(
                "fell back to TCP (reason {reason:#010x}, the peer's {peer:#010x})"
            ))
        }
        (mode, _) => Err(anyhow::anyhow!("is in mode {mode}, which is not SMC-R")),
    })
}

fn family_id(body: &[u8]) -> Option<u16> {
    let (_, rest) = body.split_at_checked(4)?;
    let (_, number) = attributes(rest).find(|(kind, _)| *kind == FAMILY_ID)?;
    Some(u16::from_ne_bytes(number.try_into().ok()?))
}

fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(16 + body.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Number and sender: there is one request a socket.
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn generic(family: u16, command: u8, attributes: &[u8]) -> Vec<u8> {
    const VERSION: u8 = 1;
    message(family, REQUEST | ACKNOWLEDGE, &[&[command, VERSION, 0, 0], attributes].concat())
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(value);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}

/// Kind and value of each; ends where one is cut off.
fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([head[0], head[1]]));
        let kind = u16::from_ne_bytes([head[2], head[3]]);
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// Kind and body of each message.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let head = bytes.get(..16)?;
        let length = u32::from_ne_bytes([head[0], head[1], head[2], head[3]]);
        let length = usize::try_from(length).ok()?;
        let kind = u16::from_ne_bytes([head[4], head[5]]);
        let body = bytes.get(16..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, body))
    })
}

/// What the kernel answers, without what ends it.
fn ask(protocol: Protocol, request: &[u8]) -> Result<Vec<(u16, Vec<u8>)>> {
    let socket = rustix::net::socket(AddressFamily::NETLINK, SocketType::RAW, Some(protocol))
        .context("open a netlink socket")?;
    let kernel = SocketAddrNetlink::new(0, 0);
    rustix::net::sendto(&socket, request, SendFlags::empty(), &kernel).context("ask")?;
    let mut buffer = vec![0; 64 << 10];
    let mut answer = Vec::new();
    loop {
        let (length, _) =
            rustix::net::recv(&socket, &mut *buffer, RecvFlags::empty()).context("the answer")?;
        if length == 0 {
            bail!("the kernel answers nothing");
        }
        for (kind, body) in messages(&buffer[..length]) {
            match (kind, body.get(..4).map(|code| [code[0], code[1], code[2], code[3]])) {
                (DONE, _) | (ERROR, Some([0, 0, 0, 0])) => return Ok(answer),
                (ERROR, Some(code)) => {
                    return Err(io::Error::from_raw_os_error(-i32::from_ne_bytes(code)).into());
                }
                _ => answer.push((kind, body.to_vec())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A socket between ports 5001 and 40000, as the kernel lists it.
    fn listed(mode: u8, attributes: &[u8]) -> Vec<u8> {
        let mut body = vec![SMC, 1, mode, 0];
        body.extend(5001_u16.to_be_bytes());
        body.extend(40_000_u16.to_be_bytes());
        body.resize(DIAG_BYTES, 0);
        body.extend(attributes);
        body
    }

    #[test]
    fn an_eid_is_padded_and_ends_with_nothing() {
        let request = add_eid(0x1d);
        let (kind, body) = messages(&request).next().unwrap();
        assert_eq!((kind, request.len()), (0x1d, 16 + 4 + 40));
        assert_eq!(body[..4], [ADD_EID, 1, 0, 0]);
        let all: Vec<_> = attributes(&body[4..]).collect();
        let text = b"RDMESH-BENCH                    \0";
        assert_eq!(all, [(EID_ENTRY, text.as_slice())]);
    }

    #[test]
    fn a_family_is_found_by_its_number() {
        let mut body = vec![1, 2, 0, 0];
        body.extend(attribute(FAMILY_NAME, SMC_FAMILY));
        body.extend(attribute(FAMILY_ID, &29_u16.to_ne_bytes()));
        assert_eq!(family_id(&body), Some(29));
        assert_eq!(family_id(&body[..20]), None);
    }

    #[test]
    fn only_a_connection_with_a_link_is_on_a_device() {
        let ports = (5001, 40_000);
        let mut link = b"\x01rxe0".to_vec();
        link.resize(147, 0);
        let on = attribute(DIAG_LINK, &link);
        assert_eq!(carrier(&listed(MODE_SMC_R, &on), ports).unwrap().unwrap(), "rxe0");
        assert!(carrier(&listed(MODE_SMC_R, &on), (5001, 40_001)).is_none());
        assert!(carrier(&listed(MODE_SMC_R, &on)[..60], ports).is_none());
        let error = |body: &[u8]| carrier(body, ports).unwrap().unwrap_err().to_string();
        assert_eq!(error(&listed(MODE_SMC_R, &[])), "the connection has no link");
        let words = [0x0301_0000_u32.to_ne_bytes(), [0; 4]].concat();
        let fallen = error(&listed(MODE_TCP, &attribute(DIAG_FALLBACK, &words)));
        assert_eq!(fallen, "fell back to TCP (reason 0x03010000, the peer's 0x00000000)");
        assert!(error(&listed(2, &[])).contains("mode 2"));
    }

    #[test]
    fn messages_end_where_one_is_cut_off() {
        let two = [message(7, 0, b"abcde"), vec![0; 3], message(8, 0, b"")].concat();
        let all: Vec<_> = messages(&two).collect();
        assert_eq!(all, [(7, b"abcde".as_slice()), (8, b"".as_slice())]);
        assert_eq!(messages(&two[..20]).count(), 0);
    }
}
