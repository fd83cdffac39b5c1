//! Plain TCP for what the mesh does not carry: dials where the client wanted to go and relays.

use super::metrics::Handoff;
use super::relay::{relay, reset};
use super::{Client, Shared, dial};
use crate::handoff::{PassthroughReason, check_stream_socket};
use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::rc::Rc;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Lets a client that the sidecar still holds pass through.
pub(super) fn spawn(shared: &Rc<Shared>, client: Client, reason: PassthroughReason) {
    shared.metrics.passed_through(reason);
    tokio::task::spawn_local(run(Rc::clone(shared), client, Vec::new()));
}

/// Lets a client pass through that the node proxy had taken, with the bytes that it had read.
pub(super) async fn returned(
    shared: Rc<Shared>,
    socket: OwnedFd,
    reason: PassthroughReason,
    early: Vec<u8>,
) {
    let found = check_stream_socket(&socket).map_err(io::Error::other).and_then(|ends| {
        let orig_dst = (shared.pod.original_destination)(socket.as_fd(), ends.local);
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok((ends.peer, orig_dst))
    });
    match found {
        Ok((src, orig_dst)) => {
            shared.metrics.passed_through(reason);
            let slot = shared.slot().await;
            run(shared, Client::new(socket, orig_dst, src, slot), early).await;
        }
        // As when the client has gone in the meantime.
        Err(error) => {
            tracing::debug!(%error, "a returned connection is of no use");
            shared.metrics.handoff(Handoff::Lost);
            reset(socket);
        }
    }
}

async fn run(shared: Rc<Shared>, client: Client, early: Vec<u8>) {
    let _relay = shared.metrics.relay();
    let Client { socket, orig_dst, src, slot: _slot, .. } = client;
    let client = match TcpStream::from_std(socket.into()) {
        Ok(client) => client,
        Err(error) => {
            tracing::warn!(%error, "cannot relay a connection");
            return;
        }
    };
    // Boxed: a long-lived relay need not carry the memory that its dial took.
    let dialled = Box::pin(async {
        tokio::select! {
            dialled = dial::to_original(&shared.options, src, orig_dst) => dialled,
            _ = client.ready(Interest::ERROR) => Err(io::ErrorKind::ConnectionReset.into()),
        }
    });
    match dialled.await {
        Ok(server) => {
            relay(client, server, early, &shared.buffers).await;
        }
        Err(error) => {
            tracing::debug!(%orig_dst, %error, "passthrough failed: client is reset");
            reset(client);
        }
    }
}
