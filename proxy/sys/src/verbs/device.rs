//! Devices, their ports and GIDs, and what they report on their own.

use super::Error;
use rdma_sys as ib;
use rustix::fs::OFlags;
use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::net::Ipv6Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::ptr::NonNull;
use std::rc::Rc;

/// An open device with a protection domain.
pub struct Device {
    pub(super) context: NonNull<ib::ibv_context>,
    pub(super) domain: NonNull<ib::ibv_pd>,
    name: String,
    /// Of the character device that this is open through: `uverbs0`.
    node: String,
    limits: Limits,
}

#[derive(Debug, Clone, Copy)]
pub struct Limits {
    pub sge_max: u32,
    pub work_requests_max: u32,
    pub completions_max: u32,
    pub ports: u8,
}

#[derive(Debug, Clone, Copy)]
pub struct Port {
    pub active: bool,
    pub lid: u16,
    /// The code of the largest message unit: 1 is 256 bytes, 5 is 4096.
    pub mtu_code: u8,
    pub ethernet: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gid {
    pub index: u8,
    pub raw: [u8; 16],
    pub roce_v2: bool,
}

/// What a device tells unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The device is gone or about to go: everything on it must be released.
    Fatal,
    PortDown(u8),
    PortUp(u8),
    GidChange(u8),
    QueuePair(u32),
    CompletionQueue,
    Other(u32),
}

impl Device {
    /// Names of the devices of this machine.
    ///
    /// # Errors
    /// When the list cannot be had, as without the kernel's verbs.
    pub fn names() -> Result<Vec<String>, Error> {
        let mut names = Vec::new();
        each(|_, name| {
            names.push(name.to_owned());
            false
        })?;
        Ok(names)
    }

    /// # Errors
    /// When there is no such device or this process may not use it.
    pub fn open(name: &str) -> Result<Rc<Self>, Error> {
        let mut context = std::ptr::null_mut();
        let mut failure = None;
        each(|device, listed| {
            if listed != name {
                return false;
            }
            // SAFETY: `device` is an entry of a list that is not freed yet.
            context = unsafe { ib::ibv_open_device(device) };
            failure = context.is_null().then(|| Error::last("ibv_open_device"));
            true
        })?;
        if let Some(error) = failure {
            return Err(error);
        }
        let context = NonNull::new(context).ok_or_else(|| Error::NoSuchDevice(name.to_owned()))?;
        let close = |error| {
            // SAFETY: opened above, nothing was made from it.
            unsafe { ib::ibv_close_device(context.as_ptr()) };
            error
        };
        let limits = limits(context).map_err(close)?;
        // SAFETY: the context is open, its descriptor as well.
        let events = unsafe { BorrowedFd::borrow_raw((*context.as_ptr()).async_fd) };
        nonblocking(events).map_err(close)?;
        // SAFETY: the context is open.
        let domain = unsafe { ib::ibv_alloc_pd(context.as_ptr()) };
        let domain = NonNull::new(domain).ok_or_else(|| close(Error::last("ibv_alloc_pd")))?;
        // SAFETY: the context is open and so its device is listed; the name in it ends with a zero.
        let node = unsafe { CStr::from_ptr((*(*context.as_ptr()).device).dev_name.as_ptr()) };
        let node = node.to_string_lossy().into_owned();
        Ok(Rc::new(Self { context, domain, name: name.to_owned(), node, limits }))
    }

    /// Whether the kernel still has it. A driver that cannot take a device away from its users
    /// tells them nothing: the removal waits until the last of them has closed it.
    #[must_use]
    pub fn present(&self) -> bool {
        Path::new("/sys/class/infiniband_verbs").join(&self.node).exists()
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// # Errors
    /// When the port does not exist or the device is gone.
    pub fn port(&self, number: u8) -> Result<Port, Error> {
        // SAFETY: all fields are numbers, for which zero is a value.
        let mut attributes: ib::ibv_port_attr = unsafe { MaybeUninit::zeroed().assume_init() };
        // SAFETY: the context is open and the pointer is to a whole structure.
        let result =
            unsafe { ib::___ibv_query_port(self.context.as_ptr(), number, &raw mut attributes) };
        Error::check("ibv_query_port", result)?;
        Ok(Port {
            active: attributes.state == ib::ibv_port_state::IBV_PORT_ACTIVE,
            lid: attributes.lid,
            mtu_code: u8::try_from(attributes.active_mtu).unwrap_or(1),
            ethernet: attributes.link_layer == LINK_LAYER_ETHERNET,
        })
    }

    /// The GIDs of a port that are in use, as sysfs tells.
    #[must_use]
    pub fn gids(&self, port: u8) -> Vec<Gid> {
        let base = PathBuf::from(format!("/sys/class/infiniband/{}/ports/{port}", self.name));
        let Ok(entries) = fs::read_dir(base.join("gids")) else { return Vec::new() };
        let mut gids: Vec<Gid> = entries
            .filter_map(|entry| {
                let index: u8 = entry.ok()?.file_name().to_str()?.parse().ok()?;
                let text = fs::read_to_string(base.join(format!("gids/{index}"))).ok()?;
                let raw = text.trim().parse::<Ipv6Addr>().ok()?.octets();
                if raw == [0; 16] {
                    return None;
                }
                let kind = fs::read_to_string(base.join(format!("gid_attrs/types/{index}")));
                let roce_v2 = kind.is_ok_and(|kind| kind.trim() == "RoCE v2");
                Some(Gid { index, raw, roce_v2 })
            })
            .collect();
        gids.sort_by_key(|gid| gid.index);
        gids
    }

    /// Readable when [`Self::next_event`] has something.
    #[must_use]
    pub fn event_descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as the context, which `self` owns.
        unsafe { BorrowedFd::borrow_raw((*self.context.as_ptr()).async_fd) }
    }

    /// The next thing that the device has to tell, if there is one.
    #[must_use]
    pub fn next_event(&self) -> Option<Event> {
        let mut event = MaybeUninit::<ib::ibv_async_event>::zeroed();
        // SAFETY: the context is open, its descriptor does not block, the pointer is to a whole
        // structure.
        let result = unsafe { ib::ibv_get_async_event(self.context.as_ptr(), event.as_mut_ptr()) };
        if result != 0 {
            return None;
        }
        // SAFETY: filled by the call. The type is read as a number, because a newer kernel may
        // know more of them; the member of the union is the one that the type says. A queue pair
        // lives until it is destroyed, which only this thread does, and not before the
        // acknowledgement below.
        let told = unsafe {
            let event = event.as_mut_ptr();
            let kind = (&raw const (*event).event_type).cast::<u32>().read();
            let told = match kind {
                0 => Event::CompletionQueue,
                1..=3 | 7 => Event::QueuePair((*(*event).element.qp).qp_num),
                8 => Event::Fatal,
                9 => Event::PortUp(port_number((*event).element.port_num)),
                10 => Event::PortDown(port_number((*event).element.port_num)),
                11 | 18 => Event::GidChange(port_number((*event).element.port_num)),
                other => Event::Other(other),
            };
            ib::ibv_ack_async_event(event);
            told
        };
        Some(told)
    }
}

/// `IBV_LINK_LAYER_ETHERNET`, an unnamed enumeration in the headers.
const LINK_LAYER_ETHERNET: u8 = 2;

fn port_number(number: i32) -> u8 {
    u8::try_from(number).unwrap_or(0)
}

fn limits(context: NonNull<ib::ibv_context>) -> Result<Limits, Error> {
    // SAFETY: all fields are numbers, for which zero is a value.
    let mut attributes: ib::ibv_device_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the context is open and the pointer is to a whole structure.
    let result = unsafe { ib::ibv_query_device(context.as_ptr(), &raw mut attributes) };
    Error::check("ibv_query_device", result)?;
    let positive = |n: i32| u32::try_from(n).unwrap_or(0);
    Ok(Limits {
        sge_max: positive(attributes.max_sge),
        work_requests_max: positive(attributes.max_qp_wr),
        completions_max: positive(attributes.max_cqe),
        ports: attributes.phys_port_cnt,
    })
}

pub(super) fn nonblocking(descriptor: BorrowedFd<'_>) -> Result<(), Error> {
    let set = rustix::fs::fcntl_getfl(descriptor)
        .and_then(|flags| rustix::fs::fcntl_setfl(descriptor, flags | OFlags::NONBLOCK));
    set.map_err(|errno| Error::Os { call: "fcntl", source: errno.into() })
}

/// Calls `visit` with each device and its name until it says that this was the one.
fn each(mut visit: impl FnMut(*mut ib::ibv_device, &str) -> bool) -> Result<(), Error> {
    let mut count = 0;
    // SAFETY: the pointer is to a number.
    let list = unsafe { ib::ibv_get_device_list(&raw mut count) };
    if list.is_null() {
        return Err(Error::last("ibv_get_device_list"));
    }
    for index in 0..usize::try_from(count).unwrap_or(0) {
        // SAFETY: the list has `count` entries, each a device whose name lives as long.
        let (device, name) = unsafe {
            let device = *list.add(index);
            (device, CStr::from_ptr(ib::ibv_get_device_name(device)))
        };
        if visit(device, &name.to_string_lossy()) {
            break;
        }
    }
    // SAFETY: from `ibv_get_device_list`, not used after this.
    unsafe { ib::ibv_free_device_list(list) };
    Ok(())
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: everything made from the two holds an `Rc` of this device, so nothing is left.
        unsafe {
            ib::ibv_dealloc_pd(self.domain.as_ptr());
            ib::ibv_close_device(self.context.as_ptr());
        }
    }
}
