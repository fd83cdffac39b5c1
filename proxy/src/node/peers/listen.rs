//! Incoming connections: preamble, TLS, and either an offered control session or a link.
//!
//! What it does not do: hold state of peers. It proves who is there; the manager decides. Until
//! then a connection costs one slot of a bounded number, for a bounded time.

use super::dial::{established, version_text};
use super::manager::{Event, Offer};
use super::reject::{RejectReason, Rejections};
use super::session::Control;
use super::socket::tune;
use super::tls::{self, Trust};
use super::tokens::{Grant, Tokens};
use super::wire::{
    ControlHello, ControlMessage, ControlReader, LINK_ACCEPTED, PREAMBLE_BYTES, Preamble, Refusal,
    TOKEN_BYTES, Token, WireError, printable, write_message,
};
use super::{Resolve, Timing};
use crate::fabric::Established;
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsStream};

/// After the process ran out of descriptors or memory, accept rests for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What every incoming handshake needs.
pub struct Gate {
    pub trust: Arc<Trust>,
    pub own: ControlHello,
    pub resolve: Resolve,
    pub tokens: Arc<Mutex<Tokens>>,
    pub rejections: Arc<Rejections>,
    pub events: mpsc::Sender<Event>,
    pub timing: Timing,
    pub pending_max: usize,
}

struct Rejected {
    reason: RejectReason,
    text: String,
}

fn rejected(reason: RejectReason, text: impl Into<String>) -> Rejected {
    Rejected { reason, text: text.into() }
}

/// A fault of the transport; `reason` is used for what the peer did wrong inside it.
fn broken(reason: RejectReason, error: &io::Error) -> Rejected {
    let reason = match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::ConnectionReset
        | io::ErrorKind::BrokenPipe => RejectReason::Closed,
        _ => reason,
    };
    rejected(reason, printable(&error.to_string()))
}

/// Accepts for ever; each handshake is a task of its own.
pub async fn run(listener: TcpListener, gate: Arc<Gate>) {
    let mut tasks = JoinSet::new();
    let mut pending: HashMap<IpAddr, usize> = HashMap::new();
    // One address cannot take all the slots from the others.
    let per_address_max = (gate.pending_max / 2).max(1);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(done) = tasks.join_next() => {
                if let Ok(address) = done {
                    release(&mut pending, address);
                }
                continue;
            }
        };
        let (stream, address) = match accepted {
            Ok((stream, address)) => (stream, address.ip().to_canonical()),
            Err(error) => {
                tracing::warn!("cannot accept peer connections: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let from_address = pending.get(&address).copied().unwrap_or(0);
        if tasks.len() >= gate.pending_max || from_address >= per_address_max {
            let text =
                "too many unfinished handshakes at once (node.limits.pending_handshakes_max)";
            gate.rejections.note(address, RejectReason::TooMany, &text);
            continue;
        }
        *pending.entry(address).or_default() += 1;
        let gate = Arc::clone(&gate);
        tasks.spawn(async move {
            gate.admit(stream, address).await;
            address
        });
    }
}

fn release(pending: &mut HashMap<IpAddr, usize>, address: IpAddr) {
    if let Some(count) = pending.get_mut(&address) {
        *count -= 1;
        if *count == 0 {
            pending.remove(&address);
        }
    }
}

impl Gate {
    async fn admit(&self, stream: TcpStream, address: IpAddr) {
        let outcome = timeout(self.timing.handshake, self.handshake(stream, address)).await;
        let Rejected { reason, text } = match outcome {
            Ok(Ok(())) => return,
            Ok(Err(rejected)) => rejected,
            Err(_) => {
                rejected(RejectReason::Slow, format!("not done within {:?}", self.timing.handshake))
            }
        };
        self.rejections.note(address, reason, &text);
    }

    async fn handshake(&self, mut stream: TcpStream, address: IpAddr) -> Result<(), Rejected> {
        tune(&stream, self.timing.keepalive.timeout)
            .map_err(|e| broken(RejectReason::Closed, &e))?;
        let mut bytes = [0; PREAMBLE_BYTES];
        read_preamble(&mut stream, &mut bytes).await?;
        let preamble =
            Preamble::decode(&bytes).map_err(|e| rejected(RejectReason::Garbage, e.to_string()))?;
        match preamble {
            Preamble::Control => {
                let stream = self.tls(stream, tls::ALPN_CONTROL).await?;
                self.control(stream, address).await
            }
            Preamble::LinkTls => {
                let stream = self.tls(stream, tls::ALPN_LINK).await?;
                self.link_tls(stream).await
            }
            Preamble::LinkPlain(token) => self.link_plain(stream, &token).await,
        }
    }

    async fn tls(&self, stream: TcpStream, alpn: &[u8]) -> Result<TlsStream<TcpStream>, Rejected> {
        let acceptor = TlsAcceptor::from(self.trust.identity().server);
        let stream = acceptor.accept(stream).await.map_err(|e| broken(RejectReason::Tls, &e))?;
        if stream.get_ref().1.alpn_protocol() != Some(alpn) {
            return Err(rejected(RejectReason::Tls, "TLS of another kind of connection"));
        }
        Ok(TlsStream::Server(stream))
    }

    async fn control(
        &self,
        mut stream: TlsStream<TcpStream>,
        address: IpAddr,
    ) -> Result<(), Rejected> {
        let bad = |e: io::Error| broken(RejectReason::Message, &e);
        let own = ControlMessage::Hello(self.own.clone());
        write_message(&mut stream, &own).await.map_err(bad)?;
        let mut reader = ControlReader::default();
        let ControlMessage::Hello(hello) = reader.read_from(&mut stream).await.map_err(bad)? else {
            return Err(rejected(RejectReason::Message, "no hello at the start of a session"));
        };
        if let Err((refusal, rejected)) = self.judge(&stream, &hello) {
            let text = rejected.text.clone();
            refuse(stream, refusal, text).await;
            return Err(rejected);
        }
        let offer = Offer { control: Control { stream, reader }, hello, address };
        // The manager answers on the connection itself.
        let _ = self.events.send(Event::Offered(Box::new(offer))).await;
        Ok(())
    }

    fn judge(
        &self,
        stream: &TlsStream<TcpStream>,
        hello: &ControlHello,
    ) -> Result<(), (Refusal, Rejected)> {
        let certificates = stream.get_ref().1.peer_certificates();
        if hello.node == self.own.node || !tls::is_certificate_of(certificates, &hello.node) {
            let text = format!(
                "it says it is {:?} but its certificate is of another node: compare node.name and node.tls.cert there",
                hello.node
            );
            return Err((Refusal::Name, rejected(RejectReason::Name, text)));
        }
        if (self.resolve)(&hello.node).is_none() {
            let text = format!("the directory of {} has no node {:?}", self.own.node, hello.node);
            return Err((Refusal::Unknown, rejected(RejectReason::Unknown, text)));
        }
        if self.own.common_version(hello).is_none() {
            let text = version_text(&self.own, hello);
            return Err((Refusal::Version, rejected(RejectReason::Version, text)));
        }
        Ok(())
    }

    async fn link_tls(&self, mut stream: TlsStream<TcpStream>) -> Result<(), Rejected> {
        let bad = |e: io::Error| broken(RejectReason::Message, &e);
        let mut token = [0; TOKEN_BYTES];
        stream.read_exact(&mut token).await.map_err(bad)?;
        let grant = self.redeem(&token)?;
        if !tls::is_certificate_of(stream.get_ref().1.peer_certificates(), &grant.peer) {
            let text = format!("a link of {} with another node's certificate", grant.peer);
            return Err(rejected(RejectReason::Name, text));
        }
        stream.write_all(&[LINK_ACCEPTED]).await.map_err(bad)?;
        stream.flush().await.map_err(bad)?;
        self.link_accepted(grant, established(stream).map_err(bad)?).await;
        Ok(())
    }

    async fn link_plain(&self, mut stream: TcpStream, token: &Token) -> Result<(), Rejected> {
        let plain =
            || rejected(RejectReason::Plain, "a link in plain text; node.encrypt forbids it");
        // Without a look at the token: nobody may probe for tokens this way.
        if self.own.encrypt {
            return Err(plain());
        }
        let grant = self.redeem(token)?;
        if grant.encrypt {
            return Err(plain());
        }
        let bad = |e: io::Error| broken(RejectReason::Message, &e);
        stream.write_all(&[LINK_ACCEPTED]).await.map_err(bad)?;
        let link = Established { socket: stream.into_std().map_err(bad)?, tls: None };
        self.link_accepted(grant, link).await;
        Ok(())
    }

    fn redeem(&self, token: &Token) -> Result<Grant, Rejected> {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        tokens.redeem(token, Instant::now()).ok_or_else(|| {
            rejected(RejectReason::Token, "a token that was never issued, is used up or expired")
        })
    }

    async fn link_accepted(&self, grant: Grant, link: Established) {
        let Grant { peer, lane, session, .. } = grant;
        let event = Event::LinkMade { peer, lane, session, made: Ok(Box::new(link)) };
        let _ = self.events.send(event).await;
    }
}

/// Stops at the first byte that is not ours: a stranger need not be waited for.
async fn read_preamble(
    stream: &mut TcpStream,
    bytes: &mut [u8; PREAMBLE_BYTES],
) -> Result<(), Rejected> {
    let mut filled = 0;
    while filled < PREAMBLE_BYTES {
        let n = stream
            .read(&mut bytes[filled..])
            .await
            .map_err(|e| broken(RejectReason::Closed, &e))?;
        if n == 0 {
            return Err(rejected(RejectReason::Closed, "closed before the preamble"));
        }
        filled += n;
        if !Preamble::could_start_with(&bytes[..filled]) {
            return Err(rejected(RejectReason::Garbage, WireError::Magic.to_string()));
        }
    }
    Ok(())
}

/// Tells the peer why, then closes.
pub async fn refuse(mut stream: TlsStream<TcpStream>, refusal: Refusal, text: String) {
    let message = ControlMessage::Refused { refusal, text };
    if write_message(&mut stream, &message).await.is_ok() {
        let _ = stream.shutdown().await;
    }
}
