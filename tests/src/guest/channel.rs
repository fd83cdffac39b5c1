//! The driver's end of the line to an agent: requests go out, replies come back in any order.
//!
//! What it does not do: reconnect. A line that ends is a guest that has ended.

use super::wire::{Call, READY, Reply, Request};
use anyhow::{Context, Result, anyhow, bail};
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::collections::HashMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

type Answer = Result<Value, String>;
/// Who waits for which reply; nothing when the line has ended.
type Waiting = Mutex<Option<HashMap<u64, Sender<Answer>>>>;

#[derive(Debug)]
pub struct Channel {
    guest: String,
    writer: Mutex<UnixStream>,
    waiting: Arc<Waiting>,
    next: AtomicU64,
}

/// A request under way.
#[derive(Debug)]
pub struct Ticket {
    what: String,
    answer: Receiver<Answer>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Channel {
    /// Takes over a connected line and waits until the agent at its end is ready.
    pub fn open(guest: &str, line: UnixStream, within: Duration) -> Result<Self> {
        let reader = line.try_clone().context("share the agent's line")?;
        let (ready, answer) = mpsc::channel();
        let waiting = Arc::new(Mutex::new(Some(HashMap::from([(READY, ready)]))));
        let table = Arc::clone(&waiting);
        std::thread::Builder::new()
            .name(format!("{guest}-replies"))
            .spawn(move || dispatch(reader, &table))
            .context("start a thread")?;
        let what = format!("{guest}: boot");
        Ticket { what, answer }.wait::<Value>(within)?;
        let next = AtomicU64::new(READY + 1);
        Ok(Self { guest: guest.to_owned(), writer: Mutex::new(line), waiting, next })
    }

    /// Sends a request; its answer is waited for with the ticket.
    pub fn start(&self, call: Call) -> Result<Ticket> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let mut what = format!("{}: {call:?}", self.guest);
        what.truncate(what.char_indices().nth(160).map_or(what.len(), |(at, _)| at));
        let (sender, answer) = mpsc::channel();
        let mut line = serde_json::to_vec(&Request { number, call }).context("encode a request")?;
        line.push(b'\n');
        match &mut *lock(&self.waiting) {
            Some(waiting) => drop(waiting.insert(number, sender)),
            None => bail!("{what}: the guest has ended"),
        }
        lock(&self.writer).write_all(&line).with_context(|| what.clone())?;
        Ok(Ticket { what, answer })
    }

    /// A request and its answer.
    pub fn call<T: DeserializeOwned>(&self, call: Call, within: Duration) -> Result<T> {
        self.start(call)?.wait(within)
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        // The thread that reads has the line as well: closing this end alone ends nothing.
        let _ = lock(&self.writer).shutdown(std::net::Shutdown::Both);
    }
}

impl Ticket {
    pub fn wait<T: DeserializeOwned>(self, within: Duration) -> Result<T> {
        let answer = match self.answer.recv_timeout(within) {
            Ok(answer) => answer.map_err(|error| anyhow!("{}: {error}", self.what))?,
            Err(RecvTimeoutError::Timeout) => bail!("{}: not within {within:?}", self.what),
            Err(RecvTimeoutError::Disconnected) => bail!("{}: the guest has ended", self.what),
        };
        serde_json::from_value(answer).with_context(|| format!("{}: the answer", self.what))
    }
}

fn dispatch(line: UnixStream, waiting: &Waiting) {
    for reply in BufReader::new(line).lines() {
        let Ok(reply) = reply else { break };
        // A kernel that dies may leave half a line.
        let Ok(reply) = serde_json::from_str::<Reply>(&reply) else { continue };
        let sender = lock(waiting).as_mut().and_then(|table| table.remove(&reply.number));
        if let Some(sender) = sender {
            let _ = sender.send(reply.result);
        }
    }
    // Whoever waits learns it by the dropped senders.
    lock(waiting).take();
}
