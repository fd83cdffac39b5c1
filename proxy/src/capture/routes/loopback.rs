//! The pod's loopback interface: what is captured goes over it, and what is delivered.

use super::{LOOPBACK_INDEX, Routes, explain_as};
use crate::capture::CaptureError;
use futures_util::TryStreamExt;
use rtnetlink::LinkUnspec;
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};

/// The largest packet before segmentation as the kernel sets it, and as we do: with as many
/// segments in one, both ends of a connection over `lo` do less for the same bytes. More than this
/// gained nothing.
const GSO_BYTES_DEFAULT: u32 = 64 << 10;
const GSO_BYTES: u32 = 256 << 10;

impl Routes {
    pub fn loopback_is_up(&self) -> Result<bool, CaptureError> {
        let links = self
            .loopback()
            .map_err(|error| explain_as("look at the loopback interface".into(), &error))?;
        Ok(links.iter().any(|link| link.header.flags.contains(LinkFlags::Up)))
    }

    /// Best effort: a kernel older than 5.19 refuses it, one older than 6.3 does it for IPv6 alone.
    pub fn enlarge_loopback_packets(&self) {
        self.set_gso(GSO_BYTES_DEFAULT, GSO_BYTES);
    }

    pub fn restore_loopback_packets(&self) {
        self.set_gso(GSO_BYTES, GSO_BYTES_DEFAULT);
    }

    /// Sizes other than `from` are another program's.
    fn set_gso(&self, from: u32, to: u32) {
        let done = self.loopback().and_then(|links| {
            let attributes = links.iter().flat_map(|link| &link.attributes);
            let attributes: Vec<_> = attributes.filter_map(|a| gso(a, from, to)).collect();
            if attributes.is_empty() {
                return Ok(());
            }
            let mut message = LinkUnspec::new_with_index(LOOPBACK_INDEX).build();
            message.attributes = attributes;
            self.runtime.block_on(self.handle.link().set(message).execute())
        });
        if let Err(error) = done {
            tracing::debug!(%error, "the loopback interface keeps its packet size");
        }
    }

    fn loopback(&self) -> Result<Vec<LinkMessage>, rtnetlink::Error> {
        let links = self.handle.link().get().match_index(LOOPBACK_INDEX).execute();
        self.runtime.block_on(links.try_collect())
    }
}

fn gso(attribute: &LinkAttribute, from: u32, to: u32) -> Option<LinkAttribute> {
    match attribute {
        LinkAttribute::GsoMaxSize(size) if *size == from => Some(LinkAttribute::GsoMaxSize(to)),
        LinkAttribute::GsoIpv4MaxSize(size) if *size == from => {
            Some(LinkAttribute::GsoIpv4MaxSize(to))
        }
        _ => None,
    }
}
