//! Which device, port and GID a link uses: what is configured, else what has the link's address.
//!
//! What it does not do: keep anything. Devices come and go; it looks each time.

use super::super::negotiate::{Absence, Why};
use super::device_error;
use rdmesh_config::Verbs as Options;
use rdmesh_sys::verbs::{Device, Gid, Port};
use std::net::{IpAddr, Ipv6Addr};
use std::rc::Rc;

pub(super) struct Chosen {
    pub device: Rc<Device>,
    pub port: u8,
    pub gid_index: u8,
    pub gid: [u8; 16],
    pub lid: u16,
    pub mtu_code: u8,
    pub ethernet: bool,
}

pub(super) fn choose(options: &Options, local: IpAddr) -> Result<Chosen, Why> {
    let names = Device::names()
        .map_err(|error| Why { absence: Absence::NoDevice, detail: error.to_string() })?;
    let wanted = |name: &String| options.device.is_empty() || *name == options.device;
    let names: Vec<String> = names.into_iter().filter(wanted).collect();
    if names.is_empty() {
        return Err(match options.device.as_str() {
            "" => Absence::NoDevice.into(),
            name => Why {
                absence: Absence::NoDevice,
                detail: format!("node.verbs.device is {name}, which does not exist"),
            },
        });
    }
    let mut why: Option<Why> = None;
    for name in names {
        match Device::open(&name).map_err(|error| device_error(&error)) {
            Ok(device) => match on_device(&device, options, local) {
                Ok(chosen) => return Ok(chosen),
                // The most telling: how far it came on one of them.
                Err(new) => why = Some(why.map_or(new.clone(), |old| farther(old, new))),
            },
            Err(new) => why = Some(why.map_or(new.clone(), |old| farther(old, new))),
        }
    }
    Err(why.unwrap_or_else(|| Absence::NoDevice.into()))
}

fn farther(old: Why, new: Why) -> Why {
    if new.absence == Absence::PortDown { new } else { old }
}

fn on_device(device: &Rc<Device>, options: &Options, local: IpAddr) -> Result<Chosen, Why> {
    let ports = match options.port {
        0 => 1..=device.limits().ports,
        port => port..=port,
    };
    let mut down = false;
    for number in ports {
        let port = device.port(number).map_err(|error| device_error(&error))?;
        let Some(gid) = gid(device, number, &port, options, local) else { continue };
        if !port.active {
            down = true;
            continue;
        }
        return Ok(Chosen {
            device: Rc::clone(device),
            port: number,
            gid_index: gid.index,
            gid: gid.raw,
            lid: port.lid,
            mtu_code: port.mtu_code.clamp(1, 5),
            ethernet: port.ethernet,
        });
    }
    let absence = if down { Absence::PortDown } else { Absence::NoGid };
    Err(Why { absence, detail: format!("device {}, address {local}", device.name()) })
}

fn gid(device: &Device, number: u8, port: &Port, options: &Options, local: IpAddr) -> Option<Gid> {
    let gids = device.gids(number);
    if let Ok(index) = u8::try_from(options.gid_index) {
        return gids.into_iter().find(|gid| gid.index == index);
    }
    if !port.ethernet {
        return gids.into_iter().next();
    }
    let wanted = match local {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let roce = || gids.iter().filter(|gid| gid.roce_v2);
    let own = roce().find(|gid| gid.raw == wanted.octets());
    // A device that was named may be on a network of its own, with other addresses.
    let named = || roce().find(|gid| !options.device.is_empty() && !link_local(gid.raw));
    own.or_else(named).copied()
}

fn link_local(raw: [u8; 16]) -> bool {
    Ipv6Addr::from(raw).is_unicast_link_local()
}
