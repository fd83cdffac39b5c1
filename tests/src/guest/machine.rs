//! The machine of one node as the driver has it: an emulated one, or a network namespace of this one.
//! Either way an agent is at the other end of a line.
//!
//! What it does not do: know what the agent does.

use super::agent;
use super::channel::{Channel, Ticket};
use super::image::Image;
use super::vm::Vm;
use super::wire::Call;
use crate::netns::Netns;
use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread::JoinHandle;
use std::time::Duration;

#[derive(Debug)]
pub struct Machine {
    pub number: u8,
    channel: Option<Channel>,
    body: Body,
}

#[derive(Debug)]
enum Body {
    Guest(Vm),
    /// The agent is a thread of this process.
    Here(Option<JoinHandle<Result<()>>>),
}

impl Machine {
    /// Starts guest 1 or 2 with its files in `dir`. From the main thread only: see [`Vm::start`].
    pub fn guest(number: u8, image: &Image, dir: &Path) -> Result<Self> {
        let body = Body::Guest(Vm::start(number, image, dir)?);
        Ok(Self { number, channel: None, body })
    }

    /// The namespace of a node on this machine.
    pub fn here(number: u8, netns: &Netns) -> Result<Self> {
        const AT_ONCE: Duration = Duration::from_secs(10);
        let (line, other) = UnixStream::pair().context("make the agent's line")?;
        let (name, netns) = (format!("agent {number}"), netns.clone());
        let agent = std::thread::Builder::new()
            .name(name.clone())
            .spawn(move || agent::serve_in(netns, other))
            .context("start a thread")?;
        let channel = Some(Channel::open(&name, line, AT_ONCE)?);
        Ok(Self { number, channel, body: Body::Here(Some(agent)) })
    }

    /// Waits until the machine has booted and its agent answers.
    pub fn wait_ready(&mut self) -> Result<()> {
        if let Body::Guest(vm) = &mut self.body {
            let (line, left) = vm.connect()?;
            let channel = Channel::open(&format!("guest {}", self.number), line, left);
            self.channel = Some(channel.with_context(|| vm.last_words())?);
        }
        Ok(())
    }

    pub fn call<T: DeserializeOwned>(&self, call: Call, within: Duration) -> Result<T> {
        self.start_call(call)?.wait(within)
    }

    /// Like [`Machine::call`], but the answer is waited for later.
    pub fn start_call(&self, call: Call) -> Result<Ticket> {
        self.channel.as_ref().context("the machine is not up")?.start(call)
    }

    /// The end of a guest's console.
    pub fn last_words(&self) -> String {
        match &self.body {
            Body::Guest(vm) => vm.last_words(),
            Body::Here(_) => String::new(),
        }
    }

    /// Ends it in order: the agent ends when its line is closed, and with it the guest's kernel.
    pub fn power_off(&mut self) -> Result<()> {
        self.channel = None;
        match &mut self.body {
            Body::Guest(vm) => vm.wait_off().with_context(|| format!("guest {}", self.number)),
            Body::Here(agent) => match agent.take().map(JoinHandle::join) {
                Some(Ok(result)) => result,
                Some(Err(_)) => bail!("agent {} panicked", self.number),
                None => Ok(()),
            },
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if matches!(self.body, Body::Here(_))
            && let Err(error) = self.power_off()
        {
            eprintln!("agent {}: {error:#}", self.number);
        }
    }
}
