//! Single connections of a guest's pods: opened, written, checked and closed on request.

use super::{Agent, lock};
use crate::guest::wire::{Checked, Leave, Opened};
use crate::sockets::{accept, reset, unmapped, write_until_error};
use crate::{End, Pattern, PodSockets};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

impl Agent {
    fn stream(&self, number: u64) -> Result<Arc<TcpStream>> {
        lock(&self.streams).get(&number).cloned().with_context(|| format!("no stream {number}"))
    }

    fn keep(&self, stream: TcpStream, from: Option<SocketAddr>) -> Result<Value> {
        let local = unmapped(stream.local_addr().context("getsockname")?);
        let peer = unmapped(stream.peer_addr().context("getpeername")?);
        let number = self.number();
        lock(&self.streams).insert(number, Arc::new(stream));
        Ok(json!(Opened { stream: number, local, peer, from: from.unwrap_or(peer) }))
    }

    pub(super) fn listen(&self, pod: &str) -> Result<Value> {
        let listener = self.pod(pod)?.listen();
        let local = listener.local_addr().context("getsockname")?;
        let number = self.number();
        lock(&self.listeners).insert(number, Arc::new(listener));
        Ok(json!(Opened { stream: number, local, peer: local, from: local }))
    }

    pub(super) fn dial(
        &self,
        pod: &str,
        from: Option<SocketAddr>,
        to: SocketAddr,
    ) -> Result<Value> {
        let pod = self.pod(pod)?;
        let stream = match from {
            Some(from) => pod.dial_from(from, to),
            None => pod.dial(to),
        };
        self.keep(stream.with_context(|| format!("connect to {to}"))?, None)
    }

    pub(super) fn accept(&self, listener: u64) -> Result<Value> {
        let listener = lock(&self.listeners).remove(&listener).context("no such listener")?;
        let (stream, from) = accept(&listener).context("accept")?;
        self.keep(stream, Some(from))
    }

    pub(super) fn write(
        &self,
        number: u64,
        seed: u64,
        bytes: u64,
        step: usize,
        leave: Leave,
    ) -> Result<Value> {
        let stream = self.stream(number)?;
        if step < 4096 {
            stream.set_nodelay(true).context("TCP_NODELAY")?;
        }
        Pattern::new(seed).write_to(&mut &*stream, bytes, step).context("write")?;
        drop(stream);
        self.leave(number, leave)
    }

    pub(super) fn leave(&self, number: u64, leave: Leave) -> Result<Value> {
        match leave {
            Leave::Open => {}
            Leave::Shutdown => {
                self.stream(number)?.shutdown(Shutdown::Write).context("shutdown")?;
            }
            Leave::Close => drop(lock(&self.streams).remove(&number)),
            Leave::Reset => {
                let stream = lock(&self.streams).remove(&number).context("no such stream")?;
                reset(stream.try_clone().context("share the stream")?);
            }
        }
        Ok(Value::Null)
    }

    pub(super) fn check(&self, number: u64, seed: u64) -> Result<Value> {
        let stream = self.stream(number)?;
        let mut counted = Counted { stream: &stream, bytes: 0 };
        let end = match Pattern::new(seed).check_to_end(&mut counted) {
            Ok(_) => End::Clean,
            Err(e) if e.kind() == std::io::ErrorKind::ConnectionReset => End::Reset,
            Err(e) => {
                return Err(e).with_context(|| format!("read, after {} bytes", counted.bytes));
            }
        };
        Ok(json!(Checked { bytes: counted.bytes, end }))
    }

    pub(super) fn check_exact(&self, number: u64, seed: u64, bytes: u64) -> Result<Value> {
        let stream = self.stream(number)?;
        Pattern::new(seed).check_exact(&mut &*stream, bytes).context("read")?;
        Ok(Value::Null)
    }

    /// The pattern 3 until nothing has gone in for a while.
    pub(super) fn stall(&self, number: u64) -> Result<Value> {
        let stream = self.stream(number)?;
        stream.set_write_timeout(Some(Duration::from_millis(1_500))).context("time-out")?;
        let (pattern, mut chunk, mut sum) = (Pattern::new(3), vec![0; 64 << 10], 0_u64);
        loop {
            pattern.fill(sum, &mut chunk);
            match (&*stream).write(&chunk) {
                Ok(n) => sum += n as u64,
                Err(_) => return Ok(json!(sum)),
            }
        }
    }

    pub(super) fn write_until_error(&self, number: u64) -> Result<Value> {
        let stream = self.stream(number)?;
        let mut stream = stream.try_clone().context("share the stream")?;
        Ok(json!(format!("{:?}", write_until_error(&mut stream))))
    }
}

/// Knows how far it was read, also when the end is an error.
struct Counted<'a> {
    stream: &'a TcpStream,
    bytes: u64,
}

impl Read for Counted<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = (&mut &*self.stream).read(buffer)?;
        self.bytes += n as u64;
        Ok(n)
    }
}
