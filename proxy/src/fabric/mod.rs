//! Back ends that make and drive links.

/// A connection to a peer, authenticated and bound to a lane, ready to carry messages.
pub struct Established {
    /// Non-blocking, options set.
    pub socket: std::net::TcpStream,
    /// When present the payload goes through this session. It may already hold bytes that were
    /// received: drain its reader before the first read of the socket.
    pub tls: Option<rustls::Connection>,
}

impl std::fmt::Debug for Established {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Established")
            .field("socket", &self.socket)
            .field("encrypted", &self.tls.is_some())
            .finish()
    }
}
