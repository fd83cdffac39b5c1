//! The `verbs` fabric: messages as SENDs on a reliable-connected queue pair, out of and into
//! registered slabs.
//!
//! A worker opens a device when a link first wants it and lets go of it with the last link, so that
//! an idle node locks no memory and a device can be removed. Every link has receive buffers of its
//! own, posted before the peer hears of them: no receiver is ever not ready. They come from one slab
//! per worker of a configured size; a link that comes when the slab runs low gets fewer, and none
//! below [`RECEIVES_MIN`].
//! What it does not do: exchange addresses (`negotiate` does) or decide when to try again.

mod choose;
mod link;

pub(super) use link::VerbsLink;

use super::negotiate::{Absence, Endpoint, Offer, Why};
use choose::{Chosen, choose};
use rdmesh_config as config;
use rdmesh_sys::slab::Slab;
use rdmesh_sys::verbs::{Capacity, Device, Error, Event, QueuePair, Registration, Remote, Route};
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::{Rc, Weak};

/// A lane with fewer credits would wait for them more than it sends.
const RECEIVES_MIN: usize = 8;
/// Queue pairs whose failure was told and that have not looked yet, at most.
const FAILED_MAX: usize = 4096;
const SENDS_MAX: u32 = 128;
/// The head of a message and its tails.
const PARTS_MAX: u32 = 1 + crate::mux::TAILS_MAX as u32;

/// What a worker has for the verbs fabric.
pub(super) struct Verbs {
    options: config::Verbs,
    credits_max: u32,
    buffer_bytes: usize,
    sends: Slab,
    /// For what must not hold a registered buffer.
    spill: Slab,
    opened: Weak<Opened>,
}

/// A device in use, and what it has told.
struct Opened {
    device: Rc<Device>,
    send_memory: Rc<Registration>,
    receive_memory: Rc<Registration>,
    fatal: Cell<bool>,
    /// How often a port went down, by its number.
    downs: RefCell<Vec<(u8, u64)>>,
    failed: RefCell<Vec<u32>>,
    gids_changed: Cell<u64>,
}

impl Opened {
    /// Takes in what the device has to tell; each link then looks for what concerns it.
    fn hear(&self) {
        while let Some(event) = self.device.next_event() {
            tracing::debug!(device = self.device.name(), ?event, "the device tells");
            match event {
                Event::Fatal => self.fatal.set(true),
                Event::PortDown(port) => {
                    let mut downs = self.downs.borrow_mut();
                    match downs.iter_mut().find(|(number, _)| *number == port) {
                        Some((_, count)) => *count += 1,
                        None => downs.push((port, 1)),
                    }
                }
                Event::QueuePair(number) => {
                    let mut failed = self.failed.borrow_mut();
                    if failed.len() < FAILED_MAX {
                        failed.push(number);
                    }
                }
                Event::CompletionQueue => self.fatal.set(true),
                Event::GidChange(_) => self.gids_changed.set(self.gids_changed.get() + 1),
                Event::PortUp(_) | Event::Other(_) => {}
            }
        }
    }

    fn downs(&self, port: u8) -> u64 {
        self.downs.borrow().iter().find(|(number, _)| *number == port).map_or(0, |(_, n)| *n)
    }

    /// Whether the device said that this queue pair has failed.
    fn take_failed(&self, number: u32) -> bool {
        let mut failed = self.failed.borrow_mut();
        let before = failed.len();
        failed.retain(|other| *other != number);
        failed.len() < before
    }
}

/// A queue pair with its receives posted, not connected yet.
pub(super) struct Prepared {
    opened: Rc<Opened>,
    pair: QueuePair,
    chosen: Chosen,
    first_packet: u32,
    receives: u32,
    buffer_bytes: usize,
    options: config::Verbs,
    spill: Slab,
}

impl Verbs {
    pub(super) fn new(
        options: config::Verbs,
        credits_max: u32,
        buffer_bytes: usize,
        sends: Slab,
        spill: Slab,
    ) -> Self {
        Self { options, credits_max, buffer_bytes, sends, spill, opened: Weak::new() }
    }

    /// Whether a device would be found for a link whose own end has the address `local`.
    pub(super) fn usable(&self, local: IpAddr) -> bool {
        choose(&self.options, local).is_ok()
    }

    /// Whether a device is in use: [`Self::removed`] wants to be asked now and then.
    pub(super) fn in_use(&self) -> bool {
        self.opened.strong_count() > 0
    }

    /// Whether the device in use is being removed: its links break when they are next asked.
    pub(super) fn removed(&self) -> bool {
        let Some(opened) = self.opened.upgrade() else { return false };
        let removed = !opened.device.present();
        if removed {
            opened.fatal.set(true);
        }
        removed
    }

    /// A queue pair for a link whose own end has the address `local`.
    pub(super) fn prepare(&mut self, local: IpAddr) -> Result<Prepared, Why> {
        let chosen = choose(&self.options, local)?;
        let opened = self.open(&chosen)?;
        opened.hear();
        if opened.fatal.get() {
            return Err(Absence::Device.into());
        }
        let slab = opened.receive_memory.slab();
        // Others may still come: a link takes a sixteenth of what is left.
        let receives = (slab.buffers_free() / 16).max(RECEIVES_MIN).min(self.credits_max as usize);
        if slab.buffers_free() < receives {
            return Err(Absence::Memory.into());
        }
        let receives = u32::try_from(receives).unwrap_or(self.credits_max);
        let limits = opened.device.limits();
        let capacity = Capacity {
            sends: SENDS_MAX.min(limits.work_requests_max),
            receives,
            parts: PARTS_MAX.min(limits.sge_max),
            inline_bytes: self.options.inline_bytes_max,
        };
        let failed = |error: Error| device_error(&error);
        let mut pair =
            QueuePair::new(&opened.send_memory, &opened.receive_memory, chosen.port, capacity)
                .map_err(failed)?;
        for _ in 0..receives {
            let buffer = opened.receive_memory.slab().take().ok_or(Absence::Memory)?;
            pair.post_receive(buffer).map_err(failed)?;
        }
        let mut random = [0; 4];
        getrandom::fill(&mut random).map_err(|_| Why::from(Absence::Device))?;
        Ok(Prepared {
            opened,
            pair,
            chosen,
            first_packet: u32::from_le_bytes(random) & 0x00ff_ffff,
            receives,
            buffer_bytes: self.buffer_bytes,
            options: self.options.clone(),
            spill: self.spill.clone(),
        })
    }

    fn open(&mut self, chosen: &Chosen) -> Result<Rc<Opened>, Why> {
        if let Some(opened) = self.opened.upgrade()
            && opened.device.name() == chosen.device.name()
            && !opened.fatal.get()
        {
            return Ok(opened);
        }
        let device = Rc::clone(&chosen.device);
        let buffers = (self.options.receive_bytes as usize / self.buffer_bytes).max(RECEIVES_MIN);
        let slab = Slab::new(u32::try_from(buffers).unwrap_or(u32::MAX), self.buffer_bytes)
            .map_err(|error| Why { absence: Absence::Memory, detail: error.to_string() })?;
        let register = |slab: &Slab| {
            Registration::new(&device, slab).map_err(|error| self.registration_error(&error))
        };
        let opened = Rc::new(Opened {
            send_memory: register(&self.sends)?,
            receive_memory: register(&slab)?,
            device: Rc::clone(&device),
            fatal: Cell::new(false),
            downs: RefCell::new(Vec::new()),
            failed: RefCell::new(Vec::new()),
            gids_changed: Cell::new(0),
        });
        self.opened = Rc::downgrade(&opened);
        Ok(opened)
    }

    fn registration_error(&self, error: &Error) -> Why {
        let errno = error.errno();
        if errno == Some(rustix::io::Errno::NOMEM.raw_os_error())
            || errno == Some(rustix::io::Errno::PERM.raw_os_error())
        {
            let sends = self.sends.buffers_total() * self.sends.buffer_bytes();
            let needed = sends as u64 + self.options.receive_bytes;
            let detail = format!(
                "each worker locks {needed} bytes (node.limits.slab_bytes and \
                 node.verbs.receive_bytes): raise RLIMIT_MEMLOCK above that times node.workers, or \
                 give the process CAP_IPC_LOCK"
            );
            return Why { absence: Absence::Memlock, detail };
        }
        device_error(error)
    }
}

fn device_error(error: &Error) -> Why {
    use rustix::io::Errno;
    let denied = [Errno::ACCESS.raw_os_error(), Errno::PERM.raw_os_error()];
    let absence = match error {
        Error::NoSuchDevice(_) => Absence::NoDevice,
        _ if error.errno().is_some_and(|errno| denied.contains(&errno)) => Absence::NoPermission,
        _ => Absence::Device,
    };
    Why { absence, detail: error.to_string() }
}

impl Prepared {
    /// Receives posted: the credits of the lane.
    pub(super) fn receives(&self) -> u32 {
        self.receives
    }

    pub(super) fn device_name(&self) -> &str {
        self.opened.device.name()
    }
}

impl Endpoint for Prepared {
    fn offer(&self) -> Offer {
        Offer {
            ethernet: self.chosen.ethernet,
            queue_pair: self.pair.number(),
            first_packet: self.first_packet,
            gid: self.chosen.gid,
            lid: self.chosen.lid,
            mtu_code: self.chosen.mtu_code,
            receives: self.receives,
            buffer_bytes: u32::try_from(self.buffer_bytes).unwrap_or(u32::MAX),
        }
    }

    fn connect(&mut self, remote: &Offer) -> Result<(), Why> {
        if remote.ethernet != self.chosen.ethernet {
            let detail = "one end has Ethernet, the other InfiniBand".to_owned();
            return Err(Why { absence: Absence::Refused, detail });
        }
        let options = &self.options;
        let route = Route {
            port: self.chosen.port,
            gid_index: self.chosen.gid_index,
            // Another subnet can be reached by the GID only.
            global: self.chosen.ethernet || remote.gid[..8] != self.chosen.gid[..8],
            mtu_code: self.chosen.mtu_code.min(remote.mtu_code),
            first_packet: self.first_packet,
            traffic_class: options.traffic_class,
            service_level: options.service_level,
            timeout_code: options.timeout_exponent,
            retry_count: options.retry_count,
            rnr_retry_count: options.rnr_retry_count,
        };
        let remote = Remote {
            number: remote.queue_pair,
            first_packet: remote.first_packet,
            gid: remote.gid,
            lid: remote.lid,
        };
        let refused = |error: Error| Why { absence: Absence::Refused, detail: error.to_string() };
        self.pair.connect(&remote, &route).map_err(refused)
    }
}
