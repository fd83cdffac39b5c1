//! Outgoing connections: the control session to a peer, and the links of its lanes.
//!
//! What it does not do: retry. Each attempt ends with a result and the peer's state machine
//! decides when the next is due.

use super::peer::DialFailure;
use super::session::Control;
use super::socket::tune;
use super::tls::{self, Trust};
use super::wire::{
    ControlHello, ControlMessage, ControlReader, LINK_ACCEPTED, Preamble, Refusal, Token,
    printable, write_message,
};
use crate::fabric::Established;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::{TlsConnector, TlsStream};

/// What every dial needs.
#[derive(Clone)]
pub struct Dialer {
    pub trust: Arc<Trust>,
    pub handshake: Duration,
    /// TCP_USER_TIMEOUT and keepalive of the connections.
    pub silence: Duration,
}

/// A failure for the state machine with a text for the log.
#[derive(Debug)]
pub struct DialError {
    pub failure: DialFailure,
    pub text: String,
}

impl DialError {
    pub fn new(failure: DialFailure, text: impl Into<String>) -> Self {
        Self { failure, text: text.into() }
    }
}

fn handshake_error(what: &str, error: &io::Error) -> DialError {
    let error = printable(&error.to_string());
    DialError::new(DialFailure::Handshake, format!("{what}: {error}"))
}

/// A session that the peer accepted.
pub struct Dialed {
    pub control: Control,
    pub hello: ControlHello,
}

impl Dialer {
    /// Makes a control session with `peer`. Sets `connected` as soon as TCP stands.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn control(
        &self,
        address: SocketAddr,
        peer: &str,
        own: &ControlHello,
        connected: &AtomicBool,
    ) -> Result<Dialed, DialError> {
        let stream = self.connect(address).await?;
        connected.store(true, Ordering::Relaxed);
        let late = |_| {
            DialError::new(
                DialFailure::Handshake,
                format!("the handshake took longer than {:?}", self.handshake),
            )
        };
        timeout(self.handshake, self.greet(stream, peer, own)).await.map_err(late)?
    }

    async fn connect(&self, address: SocketAddr) -> Result<TcpStream, DialError> {
        let stream = match timeout(self.handshake, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let text = format!("nobody listens at {address}");
                return Err(DialError::new(DialFailure::Refused, text));
            }
            Ok(Err(error)) => {
                let text = format!("cannot connect to {address}: {error}");
                return Err(DialError::new(DialFailure::Unreachable, text));
            }
            Err(_) => {
                let text = format!("no answer from {address} in {:?}", self.handshake);
                return Err(DialError::new(DialFailure::Unreachable, text));
            }
        };
        tune(&stream, self.silence).map_err(|e| handshake_error("socket options", &e))?;
        Ok(stream)
    }

    async fn greet(
        &self,
        mut stream: TcpStream,
        peer: &str,
        own: &ControlHello,
    ) -> Result<Dialed, DialError> {
        let preamble = Preamble::Control.encode();
        stream.write_all(&preamble).await.map_err(|e| handshake_error("preamble", &e))?;
        let config = self.trust.identity().control_client;
        let mut stream = self.tls(stream, peer, config, tls::ALPN_CONTROL).await?;
        // With TLS 1.3 the dialer learns only now whether its own certificate was taken.
        let refused = |e: io::Error| handshake_error("the peer ended the handshake", &e);
        write_message(&mut stream, &ControlMessage::Hello(own.clone())).await.map_err(refused)?;
        let mut reader = ControlReader::default();
        let mut hello = None;
        loop {
            let message = reader.read_from(&mut stream).await.map_err(refused)?;
            match (message, hello.take()) {
                (ControlMessage::Hello(theirs), None) => {
                    check(own, &theirs, peer)?;
                    hello = Some(theirs);
                }
                (ControlMessage::Accepted, Some(hello)) => {
                    return Ok(Dialed { control: Control { stream, reader }, hello });
                }
                (ControlMessage::Refused { refusal, text }, _) => {
                    let text = format!("the peer refused: {}", printable(&text));
                    return Err(DialError::new(DialFailure::Declined(refusal), text));
                }
                (ControlMessage::Unknown, kept) => hello = kept,
                _ => {
                    let text = "the peer broke the order of the handshake";
                    return Err(DialError::new(DialFailure::Handshake, text));
                }
            }
        }
    }

    async fn tls(
        &self,
        stream: TcpStream,
        peer: &str,
        config: Arc<rustls::ClientConfig>,
        alpn: &[u8],
    ) -> Result<TlsStream<TcpStream>, DialError> {
        let name = tls::server_name(peer)
            .map_err(|e| DialError::new(DialFailure::Handshake, e.to_string()))?;
        let connected = TlsConnector::from(config).connect(name, stream).await;
        let stream = connected.map_err(|e| handshake_error("TLS", &e))?;
        if stream.get_ref().1.alpn_protocol() != Some(alpn) {
            let text = "TLS: the peer does not speak rdmesh";
            return Err(DialError::new(DialFailure::Handshake, text));
        }
        Ok(TlsStream::Client(stream))
    }

    /// Makes a link and waits until the peer has taken it.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn link(
        &self,
        address: SocketAddr,
        peer: &str,
        token: Token,
        encrypt: bool,
    ) -> Result<Established, DialError> {
        let stream = self.connect(address).await?;
        let made = timeout(self.handshake, async {
            if encrypt {
                self.link_tls(stream, peer, token).await
            } else {
                link_plain(stream, token).await
            }
        });
        made.await
            .map_err(|_| DialError::new(DialFailure::Handshake, "the link was not taken in time"))?
    }

    async fn link_tls(
        &self,
        mut stream: TcpStream,
        peer: &str,
        token: Token,
    ) -> Result<Established, DialError> {
        let failed = |e: io::Error| handshake_error("the peer did not take the link", &e);
        stream.write_all(&Preamble::LinkTls.encode()).await.map_err(failed)?;
        let config = self.trust.identity().link_client;
        let mut stream = self.tls(stream, peer, config, tls::ALPN_LINK).await?;
        stream.write_all(&token).await.map_err(failed)?;
        stream.flush().await.map_err(failed)?;
        let answer = stream.read_u8().await.map_err(failed)?;
        accepted(answer)?;
        established(stream).map_err(failed)
    }
}

async fn link_plain(mut stream: TcpStream, token: Token) -> Result<Established, DialError> {
    let failed = |e: io::Error| handshake_error("the peer did not take the link", &e);
    stream.write_all(&Preamble::LinkPlain(token).encode()).await.map_err(failed)?;
    let answer = stream.read_u8().await.map_err(failed)?;
    accepted(answer)?;
    Ok(Established { socket: stream.into_std().map_err(failed)?, tls: None })
}

fn accepted(answer: u8) -> Result<(), DialError> {
    if answer == LINK_ACCEPTED {
        return Ok(());
    }
    Err(DialError::new(DialFailure::Handshake, "the peer did not take the link"))
}

/// Takes the socket out of the control runtime.
///
/// # Errors
/// What the runtime says.
pub fn established(stream: TlsStream<TcpStream>) -> io::Result<Established> {
    let (stream, tls) = match stream {
        TlsStream::Client(stream) => {
            let (stream, tls) = stream.into_inner();
            (stream, rustls::Connection::Client(tls))
        }
        TlsStream::Server(stream) => {
            let (stream, tls) = stream.into_inner();
            (stream, rustls::Connection::Server(tls))
        }
    };
    Ok(Established { socket: stream.into_std()?, tls: Some(tls) })
}

fn check(own: &ControlHello, theirs: &ControlHello, expected: &str) -> Result<(), DialError> {
    if theirs.node != expected {
        let text = format!(
            "the node proxy there says it is {:?}: compare node.name there with the directory",
            theirs.node
        );
        return Err(DialError::new(DialFailure::Declined(Refusal::Name), text));
    }
    if own.common_version(theirs).is_none() {
        return Err(DialError::new(DialFailure::Version, version_text(own, theirs)));
    }
    Ok(())
}

/// The same words on both ends.
#[must_use]
pub fn version_text(own: &ControlHello, theirs: &ControlHello) -> String {
    format!(
        "no protocol version in common: {} speaks {} to {}, {} speaks {} to {}; update the older",
        own.node,
        own.version_min,
        own.version_max,
        theirs.node,
        theirs.version_min,
        theirs.version_max
    )
}
