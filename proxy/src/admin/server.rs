//! Accepts and serves the admin connections.

use super::routes::Routes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

const CONNECTIONS_MAX: usize = 64;
const HEADER_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;
/// For the head of a request to arrive; an idle connection is closed after it as well.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);
/// After it no further request is taken on a connection, so that idlers and slow readers cannot
/// keep the liveness probe out.
const CONNECTION_AGE_MAX: Duration = Duration::from_secs(60);
/// For the last answer to be read.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    #[error(
        "cannot listen on {addr} (stop what uses this address, or set {key} to a free address of \
         this machine)"
    )]
    Bind { key: &'static str, addr: SocketAddr, source: std::io::Error },
    #[error("the admin listener cannot be used")]
    Listener(#[from] std::io::Error),
}

/// Opens the listener. `key` is the key of the configuration that `addr` comes from: `node.admin`.
///
/// # Errors
/// When the address is in use, not of this machine or not permitted.
pub fn bind(key: &'static str, addr: SocketAddr) -> Result<TcpListener, AdminError> {
    TcpListener::bind(addr).map_err(|source| AdminError::Bind { key, addr, source })
}

/// Serves until the future is dropped.
///
/// # Errors
/// When the listener cannot be used with the runtime.
pub async fn serve(listener: TcpListener, routes: Routes) -> Result<(), AdminError> {
    serve_until(listener, routes, std::future::pending()).await
}

/// Serves until `shutdown` ends, then lets running requests end.
///
/// # Errors
/// When the listener cannot be used with the runtime.
pub async fn serve_until(
    listener: TcpListener,
    routes: Routes,
    shutdown: impl Future<Output = ()>,
) -> Result<(), AdminError> {
    let routes = Arc::new(routes);
    let serve = move |stream, stopped| connection(stream, routes.clone(), stopped);
    Ok(accept_until(listener, CONNECTIONS_MAX, shutdown, serve).await?)
}

/// Accepts connections, at most `connections_max` at a time, until `shutdown` ends; then `stopped`
/// changes for those that `serve` runs, and they are waited for.
///
/// # Errors
/// When the listener cannot be used with the runtime.
pub async fn accept_until<S>(
    listener: TcpListener,
    connections_max: usize,
    shutdown: impl Future<Output = ()>,
    serve: impl Fn(TcpStream, watch::Receiver<()>) -> S,
) -> std::io::Result<()>
where
    S: Future<Output = ()> + Send + 'static,
{
    listener.set_nonblocking(true)?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let places = Arc::new(Semaphore::new(connections_max));
    let (stop, stopped) = watch::channel(());
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        let accepted = async {
            // A place first: while all are taken, newcomers wait in the kernel's bounded queue.
            let place = places.clone().acquire_owned().await;
            (place, listener.accept().await)
        };
        tokio::select! {
            () = &mut shutdown => break,
            (place, accepted) = accepted => match accepted {
                Ok((stream, _)) => {
                    let serving = serve(stream, stopped.clone());
                    connections.spawn(async move {
                        serving.await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "connection not accepted");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            },
        }
        while connections.try_join_next().is_some() {}
    }
    drop(stop);
    while connections.join_next().await.is_some() {}
    Ok(())
}

async fn connection(stream: TcpStream, routes: Arc<Routes>, mut stopped: watch::Receiver<()>) {
    let service = service_fn(move |request| {
        let routes = routes.clone();
        async move { Ok::<_, Infallible>(routes.answer(request).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_header_size(HEADER_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let ended = tokio::select! {
        result = &mut serving => Some(result),
        () = tokio::time::sleep(CONNECTION_AGE_MAX) => None,
        _ = stopped.changed() => None,
    };
    let result = match ended {
        Some(result) => result,
        None => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(CLOSE_TIMEOUT, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "admin connection ended");
    }
}
