//! The floor of `make bench`: a relay that reads and writes, a thread for each direction, one TCP
//! connection for each stream. `relay LISTEN CONNECT`
#![forbid(unsafe_code)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread::spawn;

const BUFFER_BYTES: usize = 64 << 10;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(connect)) = (arguments.next(), arguments.next()) else {
        eprintln!("usage: relay LISTEN CONNECT");
        std::process::exit(2);
    };
    for near in TcpListener::bind(listen)?.incoming() {
        let (near, connect) = (near?, connect.clone());
        spawn(move || serve(near, &connect));
    }
    Ok(())
}

fn serve(near: TcpStream, connect: &str) -> io::Result<()> {
    let far = TcpStream::connect(connect)?;
    near.set_nodelay(true)?;
    far.set_nodelay(true)?;
    let (near_too, far_too) = (near.try_clone()?, far.try_clone()?);
    spawn(move || pump(near_too, far_too));
    pump(far, near)
}

fn pump(mut from: TcpStream, mut to: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return to.shutdown(Shutdown::Write),
            Ok(n) => to.write_all(&buffer[..n])?,
            Err(error) => {
                let _ = to.shutdown(Shutdown::Both);
                return Err(error);
            }
        }
    }
}
