//! Network namespaces without names: each lives as long as its descriptor, so that nothing can be
//! left behind, whatever becomes of the test.

use rdmesh_config::ROUTING_SYSCTLS;
use rdmesh_proxy::capture::Method;
use rdmesh_proxy::handoff;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::process::Command;
use std::time::Duration;

pub const TIMEOUT: Duration = Duration::from_secs(5);

pub struct Netns(OwnedFd);

impl Netns {
    /// A namespace with `lo` up and nothing else.
    pub fn new() -> Self {
        let ns = Self::bare();
        ns.run(|| sh("ip link set lo up"));
        ns
    }

    /// A namespace as the kernel makes it: `lo` is down.
    pub fn bare() -> Self {
        let fd = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    // Its replacement is unsafe only because of the flag FILES, which is not used.
                    #[allow(deprecated)]
                    rustix::thread::unshare(UnshareFlags::NEWNET)
                        .expect("these tests need root (CAP_SYS_ADMIN and CAP_NET_ADMIN)");
                    File::open("/proc/thread-self/ns/net").unwrap()
                })
                .join()
                .unwrap()
        });
        Self(fd.into())
    }

    /// Runs `work` in a thread that is in this namespace. Sockets made there stay in it.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let result = std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))
                        .unwrap();
                    work()
                })
                .join()
        });
        result.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A path that `ip ... netns` takes while this value lives.
    fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd())
    }

    /// Everything that `init` may change, as text, without counters.
    pub fn state(&self) -> String {
        self.run(|| {
            [
                "nft --stateless list ruleset",
                "ip -4 rule",
                "ip -6 rule",
                "ip -4 route show table all",
                "ip -6 route show table all",
                "ip -details link show lo",
            ]
            .map(sh)
            .join("--\n")
        })
    }

    /// Lets capture route here, or not.
    pub fn allow_routing(&self, value: &str) {
        self.run(|| {
            for name in ROUTING_SYSCTLS {
                write(&format!("/proc/sys/{}", name.replace('.', "/")), value);
            }
        });
    }
}

/// A pod with a default route to a namespace that stands for the rest of the world.
pub struct World {
    pub pod: Netns,
    pub outside: Netns,
    /// How capture gets packets to the sidecar.
    pub method: Method,
}

pub const POD_V4: &str = "10.77.0.2";
pub const POD_V6: &str = "fd77::2";
/// Addresses of the world outside.
pub const SERVERS: [&str; 4] = ["192.0.2.1", "198.51.100.7", "fd99::1", "fd98::7"];

impl World {
    /// One where capture redirects, and one where it routes.
    pub fn both() -> [Self; 2] {
        [Self::new(), Self::routing()]
    }

    pub fn routing() -> Self {
        let world = Self::new();
        world.pod.allow_routing("1");
        Self { method: Method::Route, ..world }
    }

    /// The pod's own address, of the family of `to`.
    pub fn address(to: SocketAddr) -> &'static str {
        if to.is_ipv4() { POD_V4 } else { POD_V6 }
    }

    pub fn new() -> Self {
        let (pod, outside) = (Netns::new(), Netns::new());
        let path = outside.path();
        pod.run(|| {
            sh(&format!("ip link add eth0 type veth peer name veth0 netns {path}"));
            sh(&format!("ip addr add {POD_V4}/24 dev eth0"));
            sh(&format!("ip addr add {POD_V6}/64 dev eth0 nodad"));
            sh("ip link set eth0 up");
            for file in ["all", "eth0", "lo"] {
                write(&format!("/proc/sys/net/ipv4/conf/{file}/rp_filter"), "1");
            }
        });
        outside.run(|| {
            sh("ip addr add 10.77.0.1/24 dev veth0");
            sh("ip addr add fd77::1/64 dev veth0 nodad");
            sh("ip link set veth0 up");
            for address in SERVERS {
                sh(&format!("ip addr add {address} dev lo nodad"));
            }
        });
        pod.run(|| {
            sh("ip route add default via 10.77.0.1");
            sh("ip -6 route add default via fd77::1");
        });
        Self { pod, outside, method: Method::Redirect }
    }

    /// The sidecar's listener in the pod.
    pub fn sidecar(&self) -> TcpListener {
        let listener = self.pod.run(|| TcpListener::bind("[::]:15701").unwrap());
        socket2::SockRef::from(&listener).set_ip_transparent_v6(true).unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }
}

pub fn write(path: &str, text: &str) {
    std::fs::write(path, text).unwrap_or_else(|error| panic!("cannot write {path}: {error}"));
}

/// Runs a command line (words, no quoting) in the namespace of the calling thread.
pub fn sh(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("cannot run `{line}`: {error}"));
    assert!(
        output.status.success(),
        "`{line}` failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// What a client does besides connecting.
#[derive(Default, Clone, Copy)]
pub struct Client {
    pub mark: u32,
    /// Bound before the connection is made, transparently if the pod does not have the address.
    pub from: Option<SocketAddr>,
    pub transparent: bool,
    /// Where an answer is not expected.
    pub timeout: Option<Duration>,
}

impl Client {
    pub fn connect(self, ns: &Netns, to: SocketAddr) -> io::Result<TcpStream> {
        ns.run(move || {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            if self.mark != 0 {
                socket.set_mark(self.mark)?;
            }
            if self.transparent && to.is_ipv4() {
                socket.set_ip_transparent_v4(true)?;
            } else if self.transparent {
                socket.set_ip_transparent_v6(true)?;
            }
            if let Some(from) = self.from {
                socket.set_reuse_address(true)?;
                socket.bind(&SockAddr::from(from))?;
            }
            socket.connect_timeout(&SockAddr::from(to), self.timeout.unwrap_or(TIMEOUT))?;
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(TIMEOUT))?;
            Ok(stream)
        })
    }
}

pub fn listen(ns: &Netns, address: &str) -> TcpListener {
    let address = SocketAddr::new(address.parse().unwrap(), 0);
    let listener = ns.run(|| TcpListener::bind(address).unwrap());
    listener.set_nonblocking(true).unwrap();
    listener
}

/// The connection that waits at the listener, if any. A connected client means that it is there.
pub fn accept(listener: &TcpListener) -> Option<TcpStream> {
    match listener.accept() {
        Ok((stream, _)) => {
            stream.set_nonblocking(false).unwrap();
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            Some(stream)
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        Err(error) => panic!("accept: {error}"),
    }
}

/// Where a captured connection wanted to go; also on a socket of a dual-stack listener.
pub fn original_destination(stream: &TcpStream) -> SocketAddr {
    let local = unmapped(stream.local_addr().unwrap());
    handoff::original_destination(stream, local, 15701)
}

pub fn unmapped(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

pub fn address(ip: &str, port: u16) -> SocketAddr {
    SocketAddr::new(ip.parse::<IpAddr>().unwrap(), port)
}

/// Repeats a call with a time-out that a signal interrupts: the kernel does not restart those.
pub fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Sends `bytes` patterned bytes and reads them at the other end, while that end writes too.
pub fn exchange(one: &TcpStream, other: &TcpStream, bytes: usize) {
    let data: Vec<u8> = (0..bytes).map(|index| (index % 251) as u8).collect();
    let check = |mut from: &TcpStream| {
        let mut got = vec![0; bytes];
        from.read_exact(&mut got).unwrap();
        assert!(got == data, "the bytes arrive as they were sent");
    };
    std::thread::scope(|scope| {
        scope.spawn(|| { one }.write_all(&data).unwrap());
        scope.spawn(|| { other }.write_all(&data).unwrap());
        scope.spawn(|| check(one));
        scope.spawn(|| check(other));
    });
}
