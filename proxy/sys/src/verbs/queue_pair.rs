//! A reliable-connected queue pair with a completion queue of its own.

use super::device::nonblocking;
use super::{Device, Error, Registration};
use crate::slab::{BufMut, Payload};
use rdma_sys as ib;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::rc::Rc;

/// One message: the parts follow each other without gaps.
pub type Parts = SmallVec<[Payload; 5]>;

/// What a queue pair is made for.
#[derive(Debug, Clone, Copy)]
pub struct Capacity {
    pub sends: u32,
    pub receives: u32,
    pub parts: u32,
    /// Messages up to this size are copied into the work request.
    pub inline_bytes: u32,
}

/// The queue pair at the other end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remote {
    pub number: u32,
    /// Of the first packet that it sends.
    pub first_packet: u32,
    pub gid: [u8; 16],
    pub lid: u16,
}

/// How packets get there, and how long for.
#[derive(Debug, Clone, Copy)]
pub struct Route {
    pub port: u8,
    pub gid_index: u8,
    /// Addressed by GID; always so on Ethernet.
    pub global: bool,
    pub mtu_code: u8,
    pub first_packet: u32,
    pub traffic_class: u8,
    pub service_level: u8,
    /// 4.096 µs to the power of this.
    pub timeout_code: u8,
    pub retry_count: u8,
    pub rnr_retry_count: u8,
}

/// What [`QueuePair::poll`] found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    Empty,
    /// There may be more.
    More,
}

/// Marks the numbers of sends; receives have it not.
const SEND: u64 = 1 << 63;
const POLL_MAX: usize = 32;

pub struct QueuePair {
    pair: NonNull<ib::ibv_qp>,
    completions: NonNull<ib::ibv_cq>,
    channel: NonNull<ib::ibv_comp_channel>,
    events_unacknowledged: u32,
    /// Sends that the device may still read, the oldest first, and the number of the oldest.
    sent: VecDeque<Parts>,
    first_sent: u64,
    sent_bytes: usize,
    posted: VecDeque<BufMut>,
    first_posted: u64,
    capacity: Capacity,
    send_memory: Rc<Registration>,
    receive_memory: Rc<Registration>,
    entries: Vec<ib::ibv_sge>,
}

impl QueuePair {
    /// A queue pair in the state INIT. Sends come from either memory, receives go to the second.
    ///
    /// # Errors
    /// When the device has no more of what it needs, or takes not so much.
    pub fn new(
        send_memory: &Rc<Registration>,
        receive_memory: &Rc<Registration>,
        port: u8,
        mut capacity: Capacity,
    ) -> Result<Self, Error> {
        let device = receive_memory.device();
        let context = device.context.as_ptr();
        // SAFETY: the context is open.
        let channel = unsafe { ib::ibv_create_comp_channel(context) };
        let channel =
            NonNull::new(channel).ok_or_else(|| Error::last("ibv_create_comp_channel"))?;
        let depth = i32::try_from(capacity.sends + capacity.receives).unwrap_or(i32::MAX);
        // SAFETY: context and channel are open; no context pointer, and vector 0 always exists.
        let completions =
            unsafe { ib::ibv_create_cq(context, depth, ptr::null_mut(), channel.as_ptr(), 0) };
        let Some(completions) = NonNull::new(completions) else {
            let error = Error::last("ibv_create_cq");
            // SAFETY: made above and used by nothing.
            unsafe { ib::ibv_destroy_comp_channel(channel.as_ptr()) };
            return Err(error);
        };
        let pair = match create(device, completions, &mut capacity) {
            Ok(pair) => pair,
            Err(error) => {
                // SAFETY: made above and used by nothing.
                unsafe {
                    ib::ibv_destroy_cq(completions.as_ptr());
                    ib::ibv_destroy_comp_channel(channel.as_ptr());
                }
                return Err(error);
            }
        };
        let made = Self {
            pair,
            completions,
            channel,
            events_unacknowledged: 0,
            sent: VecDeque::new(),
            first_sent: 0,
            sent_bytes: 0,
            posted: VecDeque::new(),
            first_posted: 0,
            capacity,
            send_memory: Rc::clone(send_memory),
            receive_memory: Rc::clone(receive_memory),
            entries: Vec::new(),
        };
        nonblocking(made.descriptor())?;
        made.init(port)?;
        made.arm()?;
        Ok(made)
    }

    fn init(&self, port: u8) -> Result<(), Error> {
        use ib::ibv_qp_attr_mask as M;
        let mut attributes = blank();
        attributes.qp_state = ib::ibv_qp_state::IBV_QPS_INIT;
        attributes.port_num = port;
        let mask = M::IBV_QP_STATE | M::IBV_QP_PKEY_INDEX | M::IBV_QP_PORT | M::IBV_QP_ACCESS_FLAGS;
        self.modify(&mut attributes, mask)
    }

    /// Connects it with its counterpart: it receives and sends from now on.
    ///
    /// # Errors
    /// When the device refuses the address or a value.
    pub fn connect(&self, remote: &Remote, route: &Route) -> Result<(), Error> {
        use ib::ibv_qp_attr_mask as M;
        let mut attributes = blank();
        attributes.qp_state = ib::ibv_qp_state::IBV_QPS_RTR;
        attributes.path_mtu = route.mtu_code.into();
        attributes.dest_qp_num = remote.number;
        attributes.rq_psn = remote.first_packet;
        attributes.max_dest_rd_atomic = 1;
        // 0.64 ms: what a receiver without a buffer asks the sender to wait.
        attributes.min_rnr_timer = 12;
        attributes.ah_attr.dlid = remote.lid;
        attributes.ah_attr.sl = route.service_level;
        attributes.ah_attr.port_num = route.port;
        if route.global {
            attributes.ah_attr.is_global = 1;
            attributes.ah_attr.grh.dgid = ib::ibv_gid { raw: remote.gid };
            attributes.ah_attr.grh.sgid_index = route.gid_index;
            attributes.ah_attr.grh.hop_limit = 64;
            attributes.ah_attr.grh.traffic_class = route.traffic_class;
        }
        let mask = M::IBV_QP_STATE
            | M::IBV_QP_AV
            | M::IBV_QP_PATH_MTU
            | M::IBV_QP_DEST_QPN
            | M::IBV_QP_RQ_PSN
            | M::IBV_QP_MAX_DEST_RD_ATOMIC
            | M::IBV_QP_MIN_RNR_TIMER;
        self.modify(&mut attributes, mask)?;
        let mut attributes = blank();
        attributes.qp_state = ib::ibv_qp_state::IBV_QPS_RTS;
        attributes.timeout = route.timeout_code;
        attributes.retry_cnt = route.retry_count;
        attributes.rnr_retry = route.rnr_retry_count;
        attributes.sq_psn = route.first_packet;
        attributes.max_rd_atomic = 1;
        let mask = M::IBV_QP_STATE
            | M::IBV_QP_TIMEOUT
            | M::IBV_QP_RETRY_CNT
            | M::IBV_QP_RNR_RETRY
            | M::IBV_QP_SQ_PSN
            | M::IBV_QP_MAX_QP_RD_ATOMIC;
        self.modify(&mut attributes, mask)
    }

    fn modify(
        &self,
        attributes: &mut ib::ibv_qp_attr,
        mask: ib::ibv_qp_attr_mask,
    ) -> Result<(), Error> {
        let mask = i32::try_from(mask.0).unwrap_or(0);
        // SAFETY: the queue pair lives, the pointer is to a whole structure.
        let result = unsafe { ib::ibv_modify_qp(self.pair.as_ptr(), attributes, mask) };
        Error::check("ibv_modify_qp", result)
    }

    #[must_use]
    pub fn number(&self) -> u32 {
        // SAFETY: the queue pair lives.
        unsafe { (*self.pair.as_ptr()).qp_num }
    }

    #[must_use]
    pub fn device(&self) -> &Rc<Device> {
        self.receive_memory.device()
    }

    /// As the device has granted it.
    #[must_use]
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Sends that the device has and did not report as done.
    #[must_use]
    pub fn sends_in_flight(&self) -> usize {
        self.sent.len()
    }

    /// Bytes of them that still hold buffers.
    #[must_use]
    pub fn bytes_in_flight(&self) -> usize {
        self.sent_bytes
    }

    #[must_use]
    pub fn receives_posted(&self) -> usize {
        self.posted.len()
    }

    /// Gives the device an empty buffer to receive into.
    ///
    /// # Errors
    /// When the device refuses; the queue pair is of no more use then.
    pub fn post_receive(&mut self, mut buffer: BufMut) -> Result<(), Error> {
        let slab = self.receive_memory.slab();
        if !slab.owns(&buffer)
            || buffer.filled() > 0
            || self.posted.len() >= self.capacity.receives as usize
        {
            return Err(Error::Unregistered);
        }
        let space = buffer.spare();
        let mut entry = ib::ibv_sge {
            addr: space.as_mut_ptr() as u64,
            length: u32::try_from(space.len()).unwrap_or(u32::MAX),
            lkey: self.receive_memory.key(),
        };
        let mut request = ib::ibv_recv_wr {
            wr_id: self.first_posted + self.posted.len() as u64,
            next: ptr::null_mut(),
            sg_list: &raw mut entry,
            num_sge: 1,
        };
        // Kept whatever the call says: the device may have it.
        self.posted.push_back(buffer);
        let mut refused = ptr::null_mut();
        // SAFETY: the queue pair lives; request and entry are read during the call only. The
        // buffer that the device writes to is in `posted`, where nothing else touches it, until
        // its completion or the end of the queue pair.
        let result =
            unsafe { ib::ibv_post_recv(self.pair.as_ptr(), &raw mut request, &raw mut refused) };
        Error::check("ibv_post_recv", result)
    }

    /// Whether `message` can be posted as it is; else it must be copied into one buffer first.
    #[must_use]
    pub fn takes(&self, message: &Parts) -> bool {
        bytes(message) <= self.capacity.inline_bytes as usize
            || (message.len() <= self.capacity.parts as usize
                && message.iter().all(|part| self.key(part).is_some()))
    }

    fn key(&self, part: &Payload) -> Option<u32> {
        [&self.send_memory, &self.receive_memory]
            .into_iter()
            .find(|memory| memory.slab().holds(part))
            .map(|memory| memory.key())
    }

    /// Posts messages in one go. `signal(i)` says whether the i-th reports that it and all before
    /// it are done; what is not reported holds its buffers.
    ///
    /// # Errors
    /// When a message is not one that [`Self::takes`], or the device refuses; the queue pair is of
    /// no more use then.
    pub fn post_sends(
        &mut self,
        messages: impl IntoIterator<Item = Parts>,
        signal: impl Fn(usize) -> bool,
    ) -> Result<(), Error> {
        self.entries.clear();
        let mut requests: SmallVec<[Request; 32]> = SmallVec::new();
        let first_new = self.sent.len();
        for message in messages {
            let inline = bytes(&message) <= self.capacity.inline_bytes as usize;
            let start = self.entries.len();
            for part in message.iter().filter(|part| !part.is_empty()) {
                // The key of inline data is not looked at.
                let key = self.key(part).or(inline.then_some(0)).ok_or(Error::Unregistered)?;
                let length = u32::try_from(part.len()).map_err(|_| Error::Unregistered)?;
                let addr = part.as_ptr() as u64;
                self.entries.push(ib::ibv_sge { addr, length, lkey: key });
            }
            let parts = self.entries.len() - start;
            if parts > self.capacity.parts as usize
                || self.sent.len() >= self.capacity.sends as usize
            {
                return Err(Error::Unregistered);
            }
            requests.push(Request { start, parts, inline });
            self.sent_bytes += bytes(&message);
            self.sent.push_back(message);
        }
        let entries = self.entries.as_mut_ptr();
        let mut list: SmallVec<[ib::ibv_send_wr; 32]> = SmallVec::new();
        for (index, request) in requests.iter().enumerate() {
            use ib::ibv_send_flags as F;
            // SAFETY: the structure is of numbers, pointers and unions of them: zero is a value.
            let mut work: ib::ibv_send_wr = unsafe { MaybeUninit::zeroed().assume_init() };
            work.wr_id = SEND | (self.first_sent + (first_new + index) as u64);
            work.opcode = ib::ibv_wr_opcode::IBV_WR_SEND;
            // SAFETY: `start` is at most the length of `entries`, which grows no more.
            work.sg_list = unsafe { entries.add(request.start) };
            work.num_sge = i32::try_from(request.parts).unwrap_or(0);
            let signalled = if signal(index) { F::IBV_SEND_SIGNALED.0 } else { 0 };
            let inline = if request.inline { F::IBV_SEND_INLINE.0 } else { 0 };
            work.send_flags = signalled | inline;
            list.push(work);
        }
        let count = list.len();
        let first = list.as_mut_ptr();
        for index in 1..count {
            // SAFETY: both are places of `list`, which grows no more.
            unsafe { (*first.add(index - 1)).next = first.add(index) };
        }
        if count == 0 {
            return Ok(());
        }
        let mut refused = ptr::null_mut();
        // SAFETY: the queue pair lives; the requests are read during the call only. What they
        // point to is kept in `sent` until a completion says that the device is done, or until the
        // end of the queue pair; nobody writes to it, since payloads only read.
        let result = unsafe { ib::ibv_post_send(self.pair.as_ptr(), first, &raw mut refused) };
        Error::check("ibv_post_send", result)?;
        // Inline data was copied: its buffers are free at once.
        for (index, request) in requests.iter().enumerate() {
            if request.inline
                && let Some(message) = self.sent.get_mut(first_new + index)
            {
                self.sent_bytes -= bytes(message);
                message.clear();
            }
        }
        Ok(())
    }

    /// Takes completions: sends give their buffers back, received messages go to `received` in
    /// order.
    ///
    /// # Errors
    /// When a completion has failed; the queue pair is of no more use then.
    pub fn poll(&mut self, received: &mut Vec<BufMut>) -> Result<Polled, Error> {
        // SAFETY: an array of uninitialised places needs no initialisation.
        let mut found: [MaybeUninit<ib::ibv_wc>; POLL_MAX] =
            unsafe { MaybeUninit::uninit().assume_init() };
        let room = i32::try_from(POLL_MAX).unwrap_or(1);
        // SAFETY: the completion queue lives and the array has as many places as said.
        let count =
            unsafe { ib::ibv_poll_cq(self.completions.as_ptr(), room, found.as_mut_ptr().cast()) };
        let count = usize::try_from(count).map_err(|_| Error::last("ibv_poll_cq"))?;
        let mut failed = Ok(());
        for completion in found.iter().take(count) {
            // SAFETY: the call has filled the first `count` places.
            let (number, status, bytes) = unsafe {
                let completion = completion.as_ptr();
                ((*completion).wr_id, (*completion).status, (*completion).byte_len)
            };
            if status != ib::ibv_wc_status::IBV_WC_SUCCESS {
                // The first is the cause, the others were flushed.
                failed = failed.and(Err(Error::Completion(status)));
            } else if number & SEND != 0 {
                self.sent_up_to(number & !SEND);
            } else {
                received.push(self.received(number, bytes)?);
            }
        }
        failed?;
        Ok(if count == POLL_MAX { Polled::More } else { Polled::Empty })
    }

    fn sent_up_to(&mut self, number: u64) {
        while self.first_sent <= number
            && let Some(message) = self.sent.pop_front()
        {
            self.sent_bytes -= bytes(&message);
            self.first_sent += 1;
        }
    }

    fn received(&mut self, number: u64, bytes: u32) -> Result<BufMut, Error> {
        // Receives of one queue pair complete in the order in which they were posted.
        if number != self.first_posted {
            return Err(Error::Stray);
        }
        let mut buffer = self.posted.pop_front().ok_or(Error::Stray)?;
        self.first_posted += 1;
        buffer.advance(bytes as usize);
        Ok(buffer)
    }

    /// Readable when there are completions since the last [`Self::arm`].
    #[must_use]
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        // SAFETY: open until the channel is destroyed, which `self` does.
        unsafe { BorrowedFd::borrow_raw((*self.channel.as_ptr()).fd) }
    }

    /// Makes the next completion readable at the descriptor. Poll once more after it: what came
    /// before does not count.
    ///
    /// # Errors
    /// When the device refuses.
    pub fn arm(&self) -> Result<(), Error> {
        // SAFETY: the completion queue lives.
        let result = unsafe { ib::ibv_req_notify_cq(self.completions.as_ptr(), 0) };
        Error::check("ibv_req_notify_cq", result)
    }

    /// Takes one notice off the descriptor: there is at most one for each [`Self::arm`]. False when
    /// there was none.
    pub fn read_notice(&mut self) -> bool {
        let (mut queue, mut context) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the channel lives and does not block; the pointers are to places for one.
        let result = unsafe {
            ib::ibv_get_cq_event(self.channel.as_ptr(), &raw mut queue, &raw mut context)
        };
        if result != 0 {
            return false;
        }
        self.events_unacknowledged += 1;
        if self.events_unacknowledged >= 1024 {
            self.acknowledge_notices();
        }
        true
    }

    fn acknowledge_notices(&mut self) {
        // SAFETY: the completion queue lives and that many events were got from it.
        unsafe { ib::ibv_ack_cq_events(self.completions.as_ptr(), self.events_unacknowledged) };
        self.events_unacknowledged = 0;
    }
}

/// Where a message's parts are in the list of entries.
struct Request {
    start: usize,
    parts: usize,
    inline: bool,
}

fn bytes(message: &Parts) -> usize {
    message.iter().map(Payload::len).sum()
}

fn blank() -> ib::ibv_qp_attr {
    // SAFETY: numbers, enumerations that are numbers and arrays of them: zero is a value.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

fn create(
    device: &Device,
    completions: NonNull<ib::ibv_cq>,
    capacity: &mut Capacity,
) -> Result<NonNull<ib::ibv_qp>, Error> {
    // SAFETY: numbers and pointers: zero is a value.
    let mut wanted: ib::ibv_qp_init_attr = unsafe { MaybeUninit::zeroed().assume_init() };
    wanted.send_cq = completions.as_ptr();
    wanted.recv_cq = completions.as_ptr();
    wanted.qp_type = ib::ibv_qp_type::IBV_QPT_RC;
    wanted.cap.max_send_wr = capacity.sends;
    wanted.cap.max_recv_wr = capacity.receives;
    wanted.cap.max_send_sge = capacity.parts;
    wanted.cap.max_recv_sge = 1;
    wanted.cap.max_inline_data = capacity.inline_bytes;
    // SAFETY: domain and completion queue live; the pointer is to a whole structure.
    let mut pair = unsafe { ib::ibv_create_qp(device.domain.as_ptr(), &raw mut wanted) };
    if pair.is_null() && capacity.inline_bytes > 0 {
        // Some devices have no such room beside many parts.
        capacity.inline_bytes = 0;
        wanted.cap.max_inline_data = 0;
        // SAFETY: as above.
        pair = unsafe { ib::ibv_create_qp(device.domain.as_ptr(), &raw mut wanted) };
    }
    NonNull::new(pair).ok_or_else(|| Error::last("ibv_create_qp"))
}

impl Drop for QueuePair {
    fn drop(&mut self) {
        self.acknowledge_notices();
        // SAFETY: each was made in `new` and is used by nothing that is left. The queue pair goes
        // first: after it the device touches no buffer, and only then the fields are dropped.
        let destroyed = unsafe { ib::ibv_destroy_qp(self.pair.as_ptr()) };
        if destroyed != 0 {
            // The device may still write: the buffers are never used again.
            std::mem::forget(std::mem::take(&mut self.sent));
            std::mem::forget(std::mem::take(&mut self.posted));
            return;
        }
        // SAFETY: see above.
        unsafe {
            ib::ibv_destroy_cq(self.completions.as_ptr());
            ib::ibv_destroy_comp_channel(self.channel.as_ptr());
        }
    }
}
