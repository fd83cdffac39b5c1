//! The TLS session of a link's own connection, driven by hand because the worker owns the socket.

use super::Broken;
use super::connection::receive;
use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;

/// With so much encrypted, the kernel is asked to take it before there is more: what is in the CPU's
/// cache is sent from there.
const BUFFER_BYTES_MAX: usize = 32 << 10;
/// Of one read; rustls itself would read 4 KiB at a time.
const READ_BYTES: usize = 64 << 10;

pub(in crate::fabric) struct Session {
    connection: rustls::Connection,
    pending_bytes: usize,
    received: Received,
}

/// Read from the socket and not yet decrypted.
struct Received {
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    /// The last read emptied the socket: the next edge tells of more.
    drained: bool,
}

impl Session {
    pub(in crate::fabric) fn new(mut connection: rustls::Connection) -> Self {
        // The bound is ours (`has_room`): a limit of rustls's would cut messages short.
        connection.set_buffer_limit(None);
        let buffer = vec![0; READ_BYTES].into_boxed_slice();
        let received = Received { buffer, start: 0, end: 0, drained: false };
        Self { connection, pending_bytes: 0, received }
    }

    pub(in crate::fabric) fn has_room(&self) -> bool {
        self.pending_bytes < BUFFER_BYTES_MAX
    }

    /// Encrypts the slices as if they were one: they share records.
    pub(in crate::fabric) fn encrypt(&mut self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut writer = self.connection.writer();
        while !slices.is_empty() {
            let taken = writer.write_vectored(slices)?;
            if taken == 0 {
                return Err(ErrorKind::WriteZero.into());
            }
            self.pending_bytes += taken;
            IoSlice::advance_slices(&mut slices, taken);
        }
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
        let so_far = |total| if total > 0 { Some(total) } else { None };
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
            if self.received.is_empty() {
                if std::mem::take(&mut self.received.drained) && total > 0 {
                    return Ok(Some(total));
                }
                match self.received.fill(socket)? {
                    None => return Ok(so_far(total)),
                    // A connection cut without close_notify is broken, not ended.
                    Some(0) => return so_far(total).map(Some).ok_or(Broken::Closed),
                    Some(_) => {}
                }
            }
            self.connection.read_tls(&mut self.received)?;
            // It takes 4 KiB at a time, and no more once it has a whole record.
            while !self.received.is_empty()
                && matches!(self.connection.read_tls(&mut self.received), Ok(1..))
            {}
            self.connection.process_new_packets()?;
        }
        Ok(Some(total))
    }
}

impl Received {
    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn fill(&mut self, socket: &TcpStream) -> io::Result<Option<usize>> {
        let got = receive(socket.as_fd(), &mut self.buffer)?;
        (self.start, self.end) = (0, got.unwrap_or(0));
        self.drained = self.end < self.buffer.len();
        Ok(got)
    }
}

impl Read for Received {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        let taken = (&self.buffer[self.start..self.end]).read(space)?;
        self.start += taken;
        Ok(taken)
    }
}
