//! The TLS session of a link's own connection, driven by hand because the worker owns the socket.

use super::Broken;
use crate::mux::Transmit;
use rdmesh_sys::slab::Payload;
use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream;

/// Encrypted and not yet taken by the kernel, at most.
const BUFFER_BYTES_MAX: usize = 256 << 10;

pub(in crate::fabric) struct Session {
    connection: rustls::Connection,
    pending_bytes: usize,
}

impl Session {
    pub(in crate::fabric) fn new(mut connection: rustls::Connection) -> Self {
        // The bound is ours (`has_room`): a limit of rustls's would cut messages short.
        connection.set_buffer_limit(None);
        Self { connection, pending_bytes: 0 }
    }

    pub(in crate::fabric) fn has_room(&self) -> bool {
        self.pending_bytes < BUFFER_BYTES_MAX
    }

    pub(in crate::fabric) fn encrypt_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pending_bytes += bytes.len();
        self.connection.writer().write_all(bytes)
    }

    pub(in crate::fabric) fn encrypt(&mut self, message: &Transmit<Payload>) -> io::Result<()> {
        let mut writer = self.connection.writer();
        for part in std::iter::once(&message.head).chain(&message.tails) {
            writer.write_all(part)?;
        }
        self.pending_bytes += message.bytes;
        Ok(())
    }

    /// Writes what is encrypted; false when the socket takes no more now.
    pub(in crate::fabric) fn write_to(&mut self, socket: &TcpStream) -> io::Result<bool> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut &*socket) {
                Ok(_) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.pending_bytes = 0;
        Ok(true)
    }

    /// Decrypts into `space`: `None` when nothing is there, `Some(0)` at the orderly end.
    pub(in crate::fabric) fn read_from(
        &mut self,
        socket: &TcpStream,
        space: &mut [u8],
    ) -> Result<Option<usize>, Broken> {
        let mut total = 0;
        while total < space.len() {
            match self.connection.reader().read(&mut space[total..]) {
                Ok(0) => return Ok(Some(total)),
                Ok(n) => {
                    total += n;
                    continue;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            match self.connection.read_tls(&mut &*socket) {
                // A connection cut without close_notify is broken, not ended.
                Ok(0) => return if total > 0 { Ok(Some(total)) } else { Err(Broken::Closed) },
                Ok(_) => {
                    self.connection.process_new_packets()?;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    return Ok(if total > 0 { Some(total) } else { None });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(total))
    }
}
