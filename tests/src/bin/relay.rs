//! The floor of the benchmarks. `relay LISTEN CONNECT`, with TCP; `relay - CONNECT FAMILY` listens at its standard
//! input, a socket, and connects by one of this family (IPv4's addresses).
#![forbid(unsafe_code)]

use rdmesh_tests::relay;
use socket2::{Domain, Socket, Type};
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::thread::spawn;

fn main() -> io::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["-", to, family] => {
            let listener = TcpListener::from(io::stdin().as_fd().try_clone_to_owned()?);
            let to: SocketAddr = to.parse().map_err(io::Error::other)?;
            let family = Domain::from(family.parse::<i32>().map_err(io::Error::other)?);
            serve(&listener, move || {
                let socket = Socket::new(family, Type::STREAM, None)?;
                socket.connect(&to.into())?;
                Ok(socket.into())
            })
        }
        [listen, to] => {
            let to = to.to_owned();
            serve(&TcpListener::bind(listen)?, move || TcpStream::connect(&to))
        }
        _ => {
            eprintln!("usage: relay LISTEN CONNECT | relay - CONNECT FAMILY");
            std::process::exit(2);
        }
    }
}

fn serve(
    listener: &TcpListener,
    connect: impl Fn() -> io::Result<TcpStream> + Clone + Send + 'static,
) -> io::Result<()> {
    for near in listener.incoming() {
        let (near, connect) = (near?, connect.clone());
        spawn(move || relay::join(near, connect()?));
    }
    Ok(())
}
