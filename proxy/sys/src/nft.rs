//! nftables expressions and set features that the `nftnl` crate lacks, and the socket options that
//! a netlink socket needs for a large batch.
//!
//! What it does not do: know rules, tables or policy, or talk to the kernel about them; see the
//! capture room.

use nftnl::Rule;
use nftnl::expr::{Expression, Register};
use nftnl::set::{Set, SetKey};
use nftnl_sys as sys;
use std::ffi::{CStr, CString, c_void};
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::NonNull;
use std::time::Duration;

/// `NF_NAT_RANGE_PROTO_SPECIFIED` of the kernel's nf_nat.h: the port is given.
const NAT_RANGE_PORT: u32 = 1 << 1;

fn allocate(name: &'static CStr) -> NonNull<sys::nftnl_expr> {
    // SAFETY: `name` is a NUL-terminated string that lives for ever.
    let expression = unsafe { sys::nftnl_expr_alloc(name.as_ptr()) };
    // Null means out of memory: nothing can go on, and nftnl itself aborts in this case as well.
    NonNull::new(expression).unwrap_or_else(|| std::process::abort())
}

fn set_u32(expression: NonNull<sys::nftnl_expr>, attribute: u32, value: u32) {
    // SAFETY: the expression comes from `allocate`; libnftnl ignores an attribute that the
    // expression does not have.
    unsafe { sys::nftnl_expr_set_u32(expression.as_ptr(), attribute as u16, value) };
}

/// `redirect to :PORT`; the port stands in `port_register`, in network byte order.
pub struct Redirect {
    pub port_register: Register,
}

impl Expression for Redirect {
    fn to_expr(&self, _rule: &Rule) -> NonNull<sys::nftnl_expr> {
        let expression = allocate(c"redir");
        set_u32(expression, sys::NFTNL_EXPR_REDIR_REG_PROTO_MIN, self.port_register.to_raw());
        set_u32(expression, sys::NFTNL_EXPR_REDIR_FLAGS, NAT_RANGE_PORT);
        expression
    }
}

/// `tproxy to :PORT`, of either family; the port stands in `port_register`, in network byte order.
pub struct Tproxy {
    pub port_register: Register,
}

impl Expression for Tproxy {
    fn to_expr(&self, _rule: &Rule) -> NonNull<sys::nftnl_expr> {
        let expression = allocate(c"tproxy");
        set_u32(expression, sys::NFTNL_EXPR_TPROXY_FAMILY, libc::NFPROTO_UNSPEC as u32);
        set_u32(expression, sys::NFTNL_EXPR_TPROXY_REG_PORT, self.port_register.to_raw());
        expression
    }
}

/// `fib daddr . mark type`: loads what the routing of a packet with this destination and mark says
/// of the destination into register 1, as a `u32`. [`DestinationType::LOCAL`] is an address of the
/// namespace itself.
pub struct DestinationType;

impl DestinationType {
    /// `RTN_LOCAL` of the kernel's rtnetlink.h.
    pub const LOCAL: u32 = libc::RTN_LOCAL as u32;
    /// `NFT_FIB_RESULT_ADDRTYPE`, `NFTA_FIB_F_DADDR` and `_MARK` of the kernel's nf_tables.h.
    const RESULT_ADDRESS_TYPE: u32 = 3;
    const BY_DESTINATION_AND_MARK: u32 = 1 << 1 | 1 << 2;
}

impl Expression for DestinationType {
    fn to_expr(&self, _rule: &Rule) -> NonNull<sys::nftnl_expr> {
        let expression = allocate(c"fib");
        set_u32(expression, sys::NFTNL_EXPR_FIB_DREG, Register::Reg1.to_raw());
        set_u32(expression, sys::NFTNL_EXPR_FIB_RESULT, Self::RESULT_ADDRESS_TYPE);
        set_u32(expression, sys::NFTNL_EXPR_FIB_FLAGS, Self::BY_DESTINATION_AND_MARK);
        expression
    }
}

/// Looks register 1 up in a set and goes on when it is **not** there.
pub struct LookupNot {
    set_name: CString,
    set_id: u32,
}

impl LookupNot {
    #[must_use]
    pub fn new<K>(set: &Set<'_, K>) -> Self {
        Self { set_name: set.get_name().to_owned(), set_id: set.get_id() }
    }
}

impl Expression for LookupNot {
    fn to_expr(&self, _rule: &Rule) -> NonNull<sys::nftnl_expr> {
        let expression = allocate(c"lookup");
        set_u32(expression, sys::NFTNL_EXPR_LOOKUP_SREG, Register::Reg1.to_raw());
        set_u32(expression, sys::NFTNL_EXPR_LOOKUP_SET_ID, self.set_id);
        set_u32(expression, sys::NFTNL_EXPR_LOOKUP_FLAGS, libc::NFT_LOOKUP_F_INV as u32);
        // SAFETY: both pointers are valid; libnftnl copies the string.
        let result = unsafe {
            sys::nftnl_expr_set_str(
                expression.as_ptr(),
                sys::NFTNL_EXPR_LOOKUP_SET as u16,
                self.set_name.as_ptr(),
            )
        };
        if result < 0 {
            // Out of memory, as above.
            std::process::abort();
        }
        expression
    }
}

/// Loads the packet's direction within its conntrack entry into register 1, as one byte: 0 is the
/// direction of the first packet, 1 that of the replies.
pub struct CtDirection;

impl Expression for CtDirection {
    fn to_expr(&self, _rule: &Rule) -> NonNull<sys::nftnl_expr> {
        let expression = allocate(c"ct");
        set_u32(expression, sys::NFTNL_EXPR_CT_DREG, Register::Reg1.to_raw());
        set_u32(expression, sys::NFTNL_EXPR_CT_KEY, libc::NFT_CT_DIRECTION as u32);
        expression
    }
}

/// Makes a set hold intervals: [`Set::add`] then begins one, [`add_interval_end`] ends it. To be
/// called before the set is added to a batch.
pub fn make_interval_set<K>(set: &Set<'_, K>) {
    // SAFETY: the pointer is that of a living set; the attribute is a u32.
    unsafe {
        sys::nftnl_set_set_u32(
            set.as_ptr().as_ptr(),
            sys::NFTNL_SET_FLAGS as u16,
            libc::NFT_SET_INTERVAL as u32,
        );
    }
}

/// Adds the first key after an interval.
pub fn add_interval_end<K: SetKey>(set: &mut Set<'_, K>, key: &K) {
    let data = key.data();
    // SAFETY: the element is freshly allocated and checked; libnftnl copies `data.len()` bytes from
    // `data` into it, and the set takes ownership of the element and frees it with itself.
    unsafe {
        let element = sys::nftnl_set_elem_alloc();
        if element.is_null() {
            std::process::abort();
        }
        sys::nftnl_set_elem_set_u32(
            element,
            sys::NFTNL_SET_ELEM_FLAGS as u16,
            libc::NFT_SET_ELEM_INTERVAL_END as u32,
        );
        let result = sys::nftnl_set_elem_set(
            element,
            sys::NFTNL_SET_ELEM_KEY as u16,
            data.as_ptr().cast::<c_void>(),
            data.len() as u32,
        );
        if result < 0 {
            std::process::abort();
        }
        sys::nftnl_set_elem_add(set.as_ptr().as_ptr(), element);
    }
}

/// Prepares a netlink socket for one large message and its many acknowledgements: buffers of
/// `buffer_bytes` where the kernel allows it, else the most that it allows, and a bound on how long
/// a read may block.
///
/// # Errors
/// What `setsockopt` says.
pub fn tune_netlink_socket(
    socket: &impl AsRawFd,
    buffer_bytes: u32,
    read_timeout: Duration,
) -> io::Result<()> {
    let fd = socket.as_raw_fd();
    let bytes = i32::try_from(buffer_bytes).unwrap_or(i32::MAX);
    for (forced, plain) in
        [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)]
    {
        // The forced variant needs CAP_NET_ADMIN in the first user namespace; a container that has
        // its own goes on with what net.core.{w,r}mem_max allows.
        if set_option(fd, forced, &bytes).is_err() {
            set_option(fd, plain, &bytes)?;
        }
    }
    let timeout = libc::timeval {
        tv_sec: libc::time_t::try_from(read_timeout.as_secs()).unwrap_or(libc::time_t::MAX),
        tv_usec: libc::suseconds_t::from(read_timeout.subsec_micros()),
    };
    set_option(fd, libc::SO_RCVTIMEO, &timeout)
}

/// Sets an option of level `SOL_SOCKET`; `T` is one of the two plain C types that the caller above
/// uses.
fn set_option<T>(fd: i32, option: i32, value: &T) -> io::Result<()> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes from a valid reference. A wrong descriptor is
    // an error, never undefined behaviour.
    let result = unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            option,
            std::ptr::from_ref(value).cast::<c_void>(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
