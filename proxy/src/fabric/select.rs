//! The one place that names the back ends.

use super::negotiate::{Connection, Negotiator, Outcome, Why};
use super::tcp::TcpLink;
#[cfg(feature = "verbs")]
use super::verbs::{Prepared, Verbs, VerbsLink};
use super::{Absence, Broken, Established, Link};
use rdmesh_config::{Fabric, Node};
use rdmesh_sys::pipe::Pipes;
use rdmesh_sys::slab::Slab;
use std::io;
use std::os::fd::BorrowedFd;

/// Pipes of one worker, with two descriptors each: what bulk streams have under way. Who finds none
/// copies.
const PIPES_MAX: u32 = 256;

/// What a link turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Tcp,
    Verbs,
}

/// The back ends of one worker and the memory that they receive into.
pub struct Fabrics {
    choice: Fabric,
    credits: u32,
    receive: Slab,
    pipes: Pipes,
    #[cfg(feature = "verbs")]
    verbs: Verbs,
}

/// A link that is ready to carry messages.
pub struct Ready {
    pub link: Box<dyn Link>,
    pub kind: Kind,
    /// Receive buffers that the peer may fill.
    pub credits: u32,
    /// Why it is not verbs: this node's reason, with its particulars, and the peer's.
    pub own: Option<Why>,
    pub peer: Option<Absence>,
}

/// A link whose two ends still find out what it will be.
pub struct Negotiation {
    choice: Fabric,
    credits: u32,
    receive: Slab,
    pipes: Pipes,
    negotiator: Negotiator<Queue>,
}

#[cfg(feature = "verbs")]
type Queue = Prepared;
#[cfg(not(feature = "verbs"))]
type Queue = super::negotiate::Nothing;

impl Fabrics {
    /// `sends` is the memory that messages leave from.
    ///
    /// # Errors
    /// When there is no address space for the messages that arrive.
    pub fn new(node: &Node, sends: &Slab) -> io::Result<Self> {
        let message_bytes_max = node.limits.message_bytes_max as usize;
        let budget_bytes = node.limits.window_budget_bytes / u64::from(node.workers.max(1));
        let receive = super::tcp::receive_slab(message_bytes_max, budget_bytes)?;
        let credits = node.limits.lane_credits;
        #[cfg(not(feature = "verbs"))]
        let _ = sends;
        Ok(Self {
            choice: node.fabric,
            credits,
            #[cfg(feature = "verbs")]
            verbs: Verbs::new(
                node.verbs.clone(),
                credits,
                message_bytes_max,
                sends.clone(),
                receive.clone(),
            ),
            receive,
            pipes: Pipes::new(PIPES_MAX)?,
        })
    }

    /// Memory for the messages that this worker receives: enough buffers for what slow streams hold
    /// back under the window budget, in the size the back ends read best.
    #[must_use]
    pub fn receive_slab(&self) -> &Slab {
        &self.receive
    }

    /// For payload that need not be copied.
    #[must_use]
    pub fn pipes(&self) -> &Pipes {
        &self.pipes
    }

    /// Starts to find out what an authenticated connection becomes. With `keep_off` this end keeps
    /// to the connection, for that reason.
    ///
    /// # Errors
    /// When the socket is of no use.
    pub fn negotiate(
        &mut self,
        established: Established,
        keep_off: Option<Absence>,
    ) -> Result<Negotiation, Broken> {
        let queue = match (self.choice, keep_off) {
            (Fabric::Tcp, _) => Err(Absence::Off.into()),
            // With verbs alone there is nothing to go over to meanwhile.
            (Fabric::Verbs, None | Some(Absence::RecentFailure)) | (Fabric::Auto, None) => {
                self.queue(&established)?
            }
            (Fabric::Auto | Fabric::Verbs, Some(reason)) => Err(reason.into()),
        };
        Ok(Negotiation {
            choice: self.choice,
            credits: self.credits,
            receive: self.receive.clone(),
            pipes: self.pipes.clone(),
            negotiator: Negotiator::new(established, queue)?,
        })
    }

    /// Whether there is a device for queue pairs between the addresses of this connection, as far
    /// as this end can tell without the other.
    #[must_use]
    pub fn verbs_usable(&self, connection: BorrowedFd<'_>) -> bool {
        #[cfg(feature = "verbs")]
        {
            let local = rustix::net::getsockname(connection).ok();
            let local = local.and_then(|address| std::net::SocketAddr::try_from(address).ok());
            local.is_some_and(|local| self.verbs.usable(local.ip().to_canonical()))
        }
        #[cfg(not(feature = "verbs"))]
        {
            let _ = connection;
            false
        }
    }

    /// Whether a device is in use that can be removed without telling.
    #[must_use]
    pub fn uses_device(&self) -> bool {
        #[cfg(feature = "verbs")]
        return self.verbs.in_use();
        #[cfg(not(feature = "verbs"))]
        false
    }

    /// Whether the device in use is being removed: every verbs link fails when it is next asked,
    /// and must be, since the removal waits for that.
    #[must_use]
    pub fn device_removed(&self) -> bool {
        #[cfg(feature = "verbs")]
        return self.verbs.removed();
        #[cfg(not(feature = "verbs"))]
        false
    }

    #[cfg(feature = "verbs")]
    fn queue(&mut self, established: &Established) -> Result<Result<Queue, Why>, Broken> {
        let local = established.socket.local_addr()?.ip().to_canonical();
        Ok(self.verbs.prepare(local))
    }

    #[cfg(not(feature = "verbs"))]
    fn queue(&mut self, _: &Established) -> Result<Result<Queue, Why>, Broken> {
        Ok(Err(Absence::NotBuilt.into()))
    }
}

impl Negotiation {
    /// Goes on as far as it can now. `None`: wait for the descriptor.
    ///
    /// # Errors
    /// When the connection broke, or became what the configuration does not allow.
    pub fn step(&mut self) -> Result<Option<Ready>, Broken> {
        match self.negotiator.step()? {
            None => Ok(None),
            Some(Outcome::QueuePair(connection, queue)) => queue_link(connection, queue).map(Some),
            Some(Outcome::Connection { own, peer, .. }) if self.choice == Fabric::Verbs => {
                Err(Broken::NoVerbs(reason(own.as_ref(), peer)))
            }
            Some(Outcome::Connection { connection: Connection { socket, tls }, own, peer }) => {
                let link = Box::new(TcpLink::new(socket, tls, &self.receive, self.pipes.clone())?);
                Ok(Some(Ready { link, kind: Kind::Tcp, credits: self.credits, own, peer }))
            }
        }
    }

    /// # Errors
    /// After the end of the negotiation.
    pub fn descriptor(&self) -> io::Result<BorrowedFd<'_>> {
        self.negotiator.descriptor()
    }
}

/// Why a link is not verbs, for the operator.
#[must_use]
pub fn reason(own: Option<&Why>, peer: Option<Absence>) -> String {
    match (own, peer) {
        (Some(own), None) => format!("this node: {own}"),
        (None, Some(peer)) => format!("the peer: {}", peer.as_str()),
        (Some(own), Some(peer)) => format!("this node: {own}; the peer: {}", peer.as_str()),
        (None, None) => "no reason was given".to_owned(),
    }
}

#[cfg(feature = "verbs")]
fn queue_link(connection: Connection, queue: Queue) -> Result<Ready, Broken> {
    let credits = queue.receives();
    let device = queue.device_name().to_owned();
    let link = Box::new(VerbsLink::new(connection, queue)?);
    tracing::debug!(device, credits, "queue pair is connected");
    Ok(Ready { link, kind: Kind::Verbs, credits, own: None, peer: None })
}

#[cfg(not(feature = "verbs"))]
fn queue_link(_: Connection, queue: Queue) -> Result<Ready, Broken> {
    match queue {}
}
