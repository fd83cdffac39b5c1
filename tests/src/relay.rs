//! The floor of the benchmarks: a relay that reads and writes, a thread for each direction.
//!
//! What it does not do: anything that a proxy has to (hide itself, carry on when a link ends, limits).

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::thread::spawn;

const BUFFER_BYTES: usize = 64 << 10;

/// Carries bytes between the two until both ways have ended.
///
/// # Errors
/// When a socket fails.
pub fn join(near: TcpStream, far: TcpStream) -> io::Result<()> {
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
