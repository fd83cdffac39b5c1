//! The floor of the benchmarks: joins whoever connects with a connection of its own.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use rdmesh_tests::netns::Netns;
use rdmesh_tests::relay::{self, By, End};
use socket2::{SockAddr, Socket};
use std::io;
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread::spawn;

const USAGE: &str = "\
usage: relay [--splice] [--connect-in NETNS] HERE THERE
HERE and THERE are tcp:ADDRESS, smc:ADDRESS or rsocket:ADDRESS; HERE may be -, a listening socket at the standard input";
const BACKLOG: i32 = 128;

fn main() -> Result<()> {
    let mut by = By::Copying;
    let mut netns = None;
    let mut ends = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--splice" => by = By::Splicing,
            "--connect-in" => netns = Some(Netns::open(&arguments.next().context(USAGE)?)?),
            _ => ends.push(argument),
        }
    }
    let [here, there] = ends.as_slice() else { bail!(USAGE) };
    let listener = match here.as_str() {
        "-" => Socket::from(io::stdin().as_fd().try_clone_to_owned()?),
        here => listen(here.parse().context(USAGE)?)?,
    };
    let there: End = there.parse().context(USAGE)?;
    loop {
        // As it is: the library that is preloaded for rsockets knows no other call.
        let (near, _) = listener.accept_raw()?;
        let netns = netns.clone();
        spawn(move || {
            if let Err(error) = serve(near.into(), there, netns.as_ref(), by) {
                eprintln!("relay to {there}: {error:#}");
            }
        });
    }
}

fn listen(here: End) -> io::Result<Socket> {
    let socket = here.sockets.open()?;
    socket.set_reuse_address(true)?;
    socket.bind(&SockAddr::from(here.address))?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

fn serve(near: TcpStream, there: End, netns: Option<&Netns>, by: By) -> Result<()> {
    // This thread is this connection's own.
    netns.map_or(Ok(()), Netns::enter)?;
    let far = there.sockets.open()?;
    far.connect(&SockAddr::from(there.address))?;
    Ok(relay::join(near, far.into(), by)?)
}
