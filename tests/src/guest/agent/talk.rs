//! A program of our own at both ends of a connection: messages there and back, or one stream. It is
//! the same over TCP, through the mesh and over SMC, whose sockets sockperf and iperf3 do not make.
//!
//! What it does not do: tell a figure of a socket of SMC's that has become one of TCP.

use super::{Agent, smc};
use crate::guest::wire::{Measured, PRELOAD, Place, Sockets, Talk};
use crate::relay::End;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use socket2::SockAddr;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::Command;
use std::time::{Duration, Instant};

/// A connection that says nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(20);
/// What iperf3 writes at once.
const BULK_BYTES: u32 = 128 << 10;
/// First byte of the last message.
const LAST: u8 = 1;
/// Before the first message: its size, big-endian, and whether each comes back or only a byte at the
/// end.
const HEAD_BYTES: usize = 5;

impl Talk {
    fn head(self) -> (u32, bool) {
        match self {
            Self::PingPong { bytes } => (bytes, true),
            Self::Bulk => (BULK_BYTES, false),
        }
    }
}

fn patient(stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true).context("TCP_NODELAY")?;
    stream.set_read_timeout(Some(SILENCE)).context("time-out")?;
    stream.set_write_timeout(Some(SILENCE)).context("time-out")
}

impl Agent {
    pub(super) fn hear(&self, place: &Place, sockets: Sockets, port: u16) -> Result<Value> {
        let listener = self.listener(place, sockets, port)?;
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || {
                    if let Err(error) = stream.context("accept").and_then(answer) {
                        eprintln!("agent: a talk: {error:#}");
                    }
                });
            }
        });
        Ok(Value::Null)
    }

    /// The floor of a proxy that hands on what it reads, each connection by one of its own: a process,
    /// as a proxy is, that lives as long as the guest.
    pub(super) fn relay(
        &self,
        (hears, heard, port): (Place, Sockets, u16),
        (speaks, spoken, to): (Place, Sockets, SocketAddr),
    ) -> Result<Value> {
        let mut command = Command::new(std::env::current_exe()?.with_file_name("relay"));
        let from = self.netns_of(&speaks)?;
        let lives = if heard == Sockets::Rsocket {
            // Such a socket is nothing that another process could listen at.
            let here = End { sockets: heard, address: ([0, 0, 0, 0], port).into() };
            command.arg("--connect-in").arg(from.name()).arg(here.to_string());
            self.netns_of(&hears)?
        } else {
            command.arg("-").stdin(OwnedFd::from(self.listener(&hears, heard, port)?));
            from
        };
        command.arg(End { sockets: spoken, address: to }.to_string());
        if [heard, spoken].contains(&Sockets::Rsocket) {
            command.env("LD_PRELOAD", PRELOAD);
        }
        lives.run(|| command.spawn()).context("start a relay")?;
        Ok(Value::Null)
    }

    fn listener(&self, place: &Place, sockets: Sockets, port: u16) -> Result<TcpListener> {
        let any = SockAddr::from(SocketAddr::from(([0, 0, 0, 0], port)));
        let listen = || -> std::io::Result<TcpListener> {
            let socket = sockets.open()?;
            socket.bind(&any)?;
            socket.listen(16)?;
            Ok(socket.into())
        };
        self.netns_of(place)?.run(listen).context("listen")
    }

    pub(super) fn talk(
        &self,
        place: &Place,
        sockets: Sockets,
        to: SocketAddr,
        talk: Talk,
        for_ms: u64,
    ) -> Result<Value> {
        let connect = || -> std::io::Result<TcpStream> {
            let socket = sockets.open()?;
            socket.connect(&SockAddr::from(to))?;
            Ok(socket.into())
        };
        let mut stream = self.netns_of(place)?.run(connect).context("connect")?;
        patient(&stream)?;
        let measured = speak(&mut stream, talk, Duration::from_millis(for_ms))?;
        if sockets == Sockets::Smc {
            let local = stream.local_addr().context("getsockname")?.port();
            let device = self.netns_of(place)?.run(|| smc::device_of(local, to.port()))?;
            ensure!(device == super::node::DEVICE, "SMC-R was on the device '{device}'");
        }
        Ok(json!(measured))
    }
}

/// The end that connects: talks for so long, and measures.
fn speak(stream: &mut TcpStream, talk: Talk, time: Duration) -> Result<Measured> {
    let (size, back) = talk.head();
    let mut head = [0; HEAD_BYTES];
    head[..4].copy_from_slice(&size.to_be_bytes());
    head[4] = u8::from(back);
    stream.write_all(&head).context("write")?;
    let mut message = vec![0; size as usize];
    let mut times_us = Vec::new();
    let (mut messages, started) = (0_u32, Instant::now());
    while message[0] != LAST {
        if started.elapsed() >= time {
            message[0] = LAST;
        }
        let begun = Instant::now();
        stream.write_all(&message).context("write")?;
        if back {
            stream.read_exact(&mut message).context("read")?;
            times_us.push(begun.elapsed().as_secs_f64() * 1e6 / 2.0);
        }
        messages += 1;
    }
    if !back {
        stream.read_exact(&mut [0]).context("the answer at the end")?;
    }
    let bytes = f64::from(messages) * f64::from(size);
    if back {
        times_us.sort_by(f64::total_cmp);
        let at = |percent: usize| times_us.get(times_us.len() * percent / 100).copied();
        let (p50, p99) = (at(50).context("a time")?, at(99).context("a time")?);
        return Ok(Measured { value: p50, second: p99, bytes: 2.0 * bytes });
    }
    let megabits = bytes * 8.0 / started.elapsed().as_secs_f64() / 1e6;
    Ok(Measured { value: megabits, second: 0.0, bytes })
}

/// The end that is connected to.
fn answer(mut stream: TcpStream) -> Result<()> {
    patient(&stream)?;
    let mut head = [0; HEAD_BYTES];
    stream.read_exact(&mut head).context("read")?;
    let [a, b, c, d, back] = head;
    let size = u32::from_be_bytes([a, b, c, d]);
    ensure!((1..=BULK_BYTES).contains(&size), "messages of {size} bytes");
    let mut message = vec![0; size as usize];
    while message[0] != LAST {
        stream.read_exact(&mut message).context("read")?;
        if back != 0 {
            stream.write_all(&message).context("write")?;
        }
    }
    if back == 0 {
        stream.write_all(&[LAST]).context("write")?;
    }
    // The other end looks at its connection before it closes.
    let _ = stream.read(&mut [0]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ends_understand_each_other() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let answers = std::thread::spawn(move || {
            for _ in 0..2 {
                answer(listener.accept().unwrap().0).unwrap();
            }
        });
        let time = Duration::from_millis(20);
        let say = |talk| speak(&mut TcpStream::connect(to).unwrap(), talk, time).unwrap();
        let there_and_back = say(Talk::PingPong { bytes: 64 });
        assert!(there_and_back.value > 0.0 && there_and_back.second >= there_and_back.value);
        assert!(there_and_back.bytes >= 128.0 && there_and_back.bytes % 128.0 == 0.0);
        let bulk = say(Talk::Bulk);
        assert!(bulk.value > 0.0 && bulk.bytes >= f64::from(BULK_BYTES));
        answers.join().unwrap();
    }
}
