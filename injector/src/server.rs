//! The HTTPS server that the API server calls.
//!
//! Bounded: connections, all and of one address, header and body size, large bodies at one time, the time for a
//! handshake, a request, and for an answer to be read. What it does not do: ask who calls for an admission. It changes nothing but its
//! own answer, so there is nothing to protect by that. For a certificate the caller's token is asked.

use crate::annotations::printable;
use crate::authority::{Authority, CERTIFICATE_PATH, NodeError};
use crate::decision::Scope;
use crate::metrics::Metrics;
use crate::review::{Outcome, REVIEW_BYTES_MAX, review};
use crate::settings::Settings;
use crate::template::Template;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rdmesh_proxy::admin;
use rustls::ServerConfig;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::Future;
use std::net::{IpAddr, TcpListener};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

const CONNECTIONS_MAX: usize = 256;
/// Bodies beyond this size wait for one of a few places.
const SMALL_BODY_BYTES: u64 = 64 << 10;
const LARGE_BODIES_MAX: usize = 4;
/// A certificate request has some hundred.
const CERTIFICATE_BODY_BYTES_MAX: usize = 16 << 10;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_BYTES_MAX: usize = 32 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub const NAMESPACE_PATH: &str = "/inject/namespace";
pub const POD_PATH: &str = "/inject/pod";

/// Limits that a test makes tighter.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Half of all, so that no single address keeps an API server out.
    pub connections_per_address: usize,
    /// An API server closes a connection that it has not used for 90 s; it must not meet ours.
    pub idle: Duration,
    /// Neither a request nor an answer for so long: somebody sends and does not read.
    pub stuck: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_per_address: CONNECTIONS_MAX / 2,
            idle: Duration::from_secs(120),
            stuck: Duration::from_secs(180),
        }
    }
}

/// What answers reviews.
#[derive(Debug)]
pub struct Webhook {
    pub template: Template,
    pub settings: Settings,
    pub metrics: Metrics,
    /// Where node proxies get their certificates, if from here.
    pub authority: Option<Arc<Authority>>,
    /// Set when the process was told to stop: every answer then asks for another connection, which goes elsewhere.
    pub stopping: Arc<AtomicBool>,
    pub limits: Limits,
    large_bodies: Arc<Semaphore>,
    /// Large bodies are read one after another, for the memory that each may take.
    large_reviews: Arc<Semaphore>,
}

impl Webhook {
    #[must_use]
    pub fn new(template: Template, settings: Settings, metrics: Metrics) -> Self {
        Self {
            template,
            settings,
            metrics,
            authority: None,
            stopping: Arc::default(),
            limits: Limits::default(),
            large_bodies: Arc::new(Semaphore::new(LARGE_BODIES_MAX)),
            large_reviews: Arc::new(Semaphore::new(1)),
        }
    }
}

/// Connections by address; holds no more entries than there are connections.
type Addresses = Mutex<HashMap<IpAddr, usize>>;

/// One of the connections of an address.
struct Place {
    addresses: Arc<Addresses>,
    address: IpAddr,
}

impl Place {
    /// None when the address has enough.
    fn take(addresses: &Arc<Addresses>, address: IpAddr, max: usize) -> Option<Self> {
        let mut counts = addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= max {
            return None;
        }
        *count += 1;
        Some(Self { addresses: addresses.clone(), address })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.address);
            }
        }
    }
}

/// When a request or an answer last began or ended.
#[derive(Clone)]
struct Activity(Arc<Mutex<Instant>>);

impl Activity {
    fn new() -> Self {
        Self(Arc::new(Mutex::new(Instant::now())))
    }

    fn tell(&self) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Ends when there was none for so long.
    async fn ceased(&self, limit: Duration) {
        loop {
            let last = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(rest) = limit.checked_sub(last.elapsed()) else { return };
            tokio::time::sleep(rest.max(Duration::from_millis(10))).await;
        }
    }
}

type Answer = Response<Full<Bytes>>;

/// Serves until `shutdown` ends, then lets running requests end.
///
/// # Errors
/// When the listener cannot be used with the runtime.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    webhook: Arc<Webhook>,
    shutdown: impl Future<Output = ()>,
) -> std::io::Result<()> {
    let acceptor = TlsAcceptor::from(tls);
    let addresses = Arc::new(Addresses::default());
    let serve = move |stream: TcpStream, stopped| {
        let address = stream.peer_addr().map(|address| address.ip().to_canonical());
        let max = webhook.limits.connections_per_address;
        let place = address.ok().and_then(|address| Place::take(&addresses, address, max));
        let (acceptor, webhook) = (acceptor.clone(), webhook.clone());
        async move {
            match place {
                Some(_place) => connection(stream, acceptor, webhook, stopped).await,
                None => tracing::debug!("too many connections of one address"),
            }
        }
    };
    admin::accept_until(listener, CONNECTIONS_MAX, shutdown, serve).await
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    webhook: Arc<Webhook>,
    mut stopped: watch::Receiver<()>,
) {
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake took too long"),
    };
    let limits = webhook.limits;
    let activity = Activity::new();
    let told = activity.clone();
    let service = service_fn(move |request| {
        let (webhook, activity) = (webhook.clone(), told.clone());
        async move {
            activity.tell();
            let mut answer = answer(request, &webhook).await;
            if webhook.stopping.load(Ordering::Relaxed) {
                answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            activity.tell();
            Ok::<_, Infallible>(answer)
        }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.idle)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        () = activity.ceased(limits.stuck) => Ok(()),
        _ = stopped.changed() => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(CLOSE_TIMEOUT, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(request: Request<Incoming>, webhook: &Arc<Webhook>) -> Answer {
    let scope = match request.uri().path() {
        NAMESPACE_PATH => Some(Scope::Namespace),
        POD_PATH => Some(Scope::Pod),
        CERTIFICATE_PATH if webhook.authority.is_some() => None,
        _ => {
            return text(
                StatusCode::NOT_FOUND,
                format!("what there is: {NAMESPACE_PATH} {POD_PATH}\n"),
            );
        }
    };
    if request.method() != Method::POST {
        return text(StatusCode::METHOD_NOT_ALLOWED, "only POST\n");
    }
    let kind = request.headers().get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    if !kind.starts_with(b"application/json") {
        return text(StatusCode::UNSUPPORTED_MEDIA_TYPE, "only application/json\n");
    }
    let length =
        request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let token = token(&request);
    let bytes_max = if scope.is_some() { REVIEW_BYTES_MAX } else { CERTIFICATE_BODY_BYTES_MAX };
    let body = async {
        let large = length.is_none_or(|length: u64| length > SMALL_BODY_BYTES);
        let places = webhook.large_bodies.clone();
        let place = if large { places.acquire_owned().await.ok() } else { None };
        let body = Limited::new(request.into_body(), bytes_max).collect().await;
        (body, place)
    };
    let Ok((body, place)) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
        return text(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time\n");
    };
    let body = match body {
        Ok(body) => body.to_bytes(),
        Err(error) => {
            let large = error.is::<http_body_util::LengthLimitError>();
            let status =
                if large { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
            return malformed(webhook, Instant::now(), status, &error.to_string());
        }
    };
    match (scope, &webhook.authority) {
        // One that takes long must not hold up the others.
        (Some(scope), _) if body.len() as u64 > SMALL_BODY_BYTES => {
            let webhook = webhook.clone();
            let turn = webhook.large_reviews.clone().acquire_owned().await.ok();
            let review = move || {
                let answer = admission(&body, scope, &webhook);
                // Kept to here: whoever closes his connection meanwhile does not make room for another.
                drop((body, turn, place));
                answer
            };
            let made = tokio::task::spawn_blocking(review).await;
            made.unwrap_or_else(|_| text(StatusCode::INTERNAL_SERVER_ERROR, "it failed\n"))
        }
        (Some(scope), _) => admission(&body, scope, webhook),
        (None, Some(authority)) => node_certificate(authority, &token, &body).await,
        (None, None) => text(StatusCode::NOT_FOUND, "no certificates here\n"),
    }
}

fn token<B>(request: &Request<B>) -> String {
    let header = request.headers().get(AUTHORIZATION).and_then(|header| header.to_str().ok());
    header.and_then(|header| header.strip_prefix("Bearer ")).unwrap_or_default().to_owned()
}

async fn node_certificate(authority: &Authority, token: &str, body: &[u8]) -> Answer {
    if token.is_empty() {
        return text(StatusCode::UNAUTHORIZED, "no bearer token\n");
    }
    let made = authority.node(token, body).await;
    let error = match made {
        Ok(made) => return json(serde_json::to_vec(&made).unwrap_or_default()),
        Err(error) => error,
    };
    tracing::warn!(reason = printable(&error.to_string()), "no certificate for a node proxy");
    match error {
        NodeError::Forbidden(_) => text(StatusCode::FORBIDDEN, format!("{error}\n")),
        NodeError::Malformed(_) => text(StatusCode::BAD_REQUEST, format!("{error}\n")),
        // What is wrong within the cluster is nothing for whoever asks.
        NodeError::Authority(_) => {
            let body = "the authority is not in order; the injector's log says why\n";
            text(StatusCode::SERVICE_UNAVAILABLE, body)
        }
    }
}

fn admission(body: &[u8], scope: Scope, webhook: &Webhook) -> Answer {
    let start = Instant::now();
    let answer = match review(body, scope, &webhook.template, &webhook.settings) {
        Ok(answer) => answer,
        Err(reason) => return malformed(webhook, start, StatusCode::BAD_REQUEST, &reason),
    };
    let bytes = answer.body.to_string();
    webhook.metrics.count(answer.outcome, start.elapsed());
    tracing::info!(
        uid = printable(&answer.uid),
        namespace = %answer.namespace,
        pod = %answer.pod,
        outcome = answer.outcome.label(),
        reason = %answer.reason,
        "admission"
    );
    json(bytes.into_bytes())
}

fn json(bytes: Vec<u8>) -> Answer {
    let mut response = Response::new(Full::new(Bytes::from(bytes)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn malformed(webhook: &Webhook, start: Instant, status: StatusCode, reason: &str) -> Answer {
    webhook.metrics.count(Outcome::Malformed, start.elapsed());
    tracing::warn!(reason = printable(reason), "no admission review");
    text(status, format!("{reason}\n"))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
