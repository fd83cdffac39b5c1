//! The task of one control session: moves its messages and notices silence.
//!
//! What it does not do: decide. Messages go to the manager as they come.

use super::manager::Event;
use super::wire::{ControlMessage, ControlReader, printable, write_message};
use crate::node::messages::NodeName;
use std::io;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_rustls::TlsStream;

/// A control connection after the handshake, with what was read ahead.
pub struct Control {
    pub stream: TlsStream<TcpStream>,
    pub reader: ControlReader,
}

#[derive(Debug, Clone, Copy)]
pub struct Keepalive {
    pub interval: Duration,
    /// Silence after which the session is dead.
    pub timeout: Duration,
}

/// Runs until the connection ends, the manager drops its sender, or silence lasts too long.
pub async fn run(
    mut control: Control,
    peer: NodeName,
    session: u64,
    keepalive: Keepalive,
    mut outgoing: mpsc::Receiver<ControlMessage>,
    events: mpsc::Sender<Event>,
) {
    let reason = match drive(&mut control, &peer, session, keepalive, &mut outgoing, &events).await
    {
        Ok(reason) => reason.to_owned(),
        Err(error) => printable(&error.to_string()),
    };
    let _ = events.send(Event::SessionDown { peer, session, reason }).await;
}

async fn drive(
    control: &mut Control,
    peer: &NodeName,
    session: u64,
    keepalive: Keepalive,
    outgoing: &mut mpsc::Receiver<ControlMessage>,
    events: &mpsc::Sender<Event>,
) -> io::Result<&'static str> {
    let mut tick = interval(keepalive.interval);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    loop {
        let Control { stream, reader } = control;
        let send = tokio::select! {
            message = reader.read_from(stream) => {
                let message = message?;
                heard = Instant::now();
                match message {
                    ControlMessage::Ping => Some(ControlMessage::Pong),
                    ControlMessage::Pong | ControlMessage::Unknown => None,
                    message => {
                        let event = Event::Message { peer: peer.clone(), session, message };
                        if events.send(event).await.is_err() {
                            return Ok("this node proxy stops");
                        }
                        None
                    }
                }
            }
            message = outgoing.recv() => match message {
                Some(message) => Some(message),
                None => return Ok("closed by this end"),
            },
            _ = tick.tick() => {
                if heard.elapsed() >= keepalive.timeout {
                    return Ok("silence");
                }
                Some(ControlMessage::Ping)
            }
        };
        if let Some(message) = send {
            match timeout(keepalive.timeout, write_message(&mut control.stream, &message)).await {
                Ok(written) => written?,
                Err(_) => return Ok("silence"),
            }
        }
    }
}
