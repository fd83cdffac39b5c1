//! Many connections at once, to an echo server: short ones, and ones that stay.

use super::{Agent, lock};
use crate::PATIENCE;
use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

/// Streams that stay open under one number.
#[derive(Debug)]
pub struct Held {
    streams: Vec<TcpStream>,
    round: u8,
}

fn dial(to: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).context("connect")?;
    stream.set_read_timeout(Some(PATIENCE)).context("time-out")?;
    stream.set_write_timeout(Some(PATIENCE)).context("time-out")?;
    Ok(stream)
}

fn hear(stream: &mut TcpStream, byte: u8) -> Result<()> {
    let mut got = [0];
    stream.read_exact(&mut got).context("the echo")?;
    ensure!(got == [byte], "{byte} came back as {}", got[0]);
    Ok(())
}

impl Agent {
    pub(super) fn churn(&self, pod: &str, to: SocketAddr, connections: u32) -> Result<Value> {
        let started = Instant::now();
        self.pod(pod)?.run(|| -> Result<()> {
            for number in 0..connections {
                let echo = || -> Result<()> {
                    let mut stream = dial(to)?;
                    stream.write_all(&[7]).context("write")?;
                    hear(&mut stream, 7)
                };
                echo().with_context(|| format!("connection {number}"))?;
            }
            Ok(())
        })?;
        Ok(json!(started.elapsed().as_secs_f64()))
    }

    pub(super) fn hold(&self, pod: &str, to: SocketAddr, streams: u32) -> Result<Value> {
        let opened: Result<Vec<TcpStream>> = self.pod(pod)?.run(|| {
            (0..streams).map(|n| dial(to).with_context(|| format!("stream {n}"))).collect()
        });
        let held = Held { streams: opened?, round: 0 };
        let number = self.number();
        lock(&self.held).insert(number, Arc::new(Mutex::new(held)));
        Ok(json!(number))
    }

    pub(super) fn echo_held(&self, number: u64) -> Result<Value> {
        let held = lock(&self.held).get(&number).cloned().context("no such held streams")?;
        let mut held = lock(&held);
        held.round = held.round.wrapping_add(1);
        let round = held.round;
        for stream in &mut held.streams {
            stream.write_all(&[round]).context("write")?;
        }
        for (number, stream) in held.streams.iter_mut().enumerate() {
            hear(stream, round).with_context(|| format!("stream {number}"))?;
        }
        Ok(Value::Null)
    }

    pub(super) fn drop_held(&self, number: u64) -> Result<Value> {
        lock(&self.held).remove(&number).context("no such held streams")?;
        Ok(Value::Null)
    }
}
