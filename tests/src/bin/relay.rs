//! The floor of `make bench`, with one TCP connection for each stream. `relay LISTEN CONNECT`
#![forbid(unsafe_code)]

use rdmesh_tests::relay;
use std::io;
use std::net::{TcpListener, TcpStream};
use std::thread::spawn;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(connect)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: relay LISTEN CONNECT");
        std::process::exit(2);
    };
    for near in TcpListener::bind(listen)?.incoming() {
        let (near, connect) = (near?, connect.clone());
        spawn(move || relay::join(near, TcpStream::connect(connect)?));
    }
    Ok(())
}
