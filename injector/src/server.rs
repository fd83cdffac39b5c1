//! The HTTPS server that the API server calls.
//!
//! Bounded: connections, header and body size, large bodies at one time, the time for a handshake, a
//! request and a connection. What it does not do: ask who calls for an admission. It changes nothing but its
//! own answer, so there is nothing to protect by that. For a certificate the caller's token is asked.

use crate::authority::{Authority, CERTIFICATE_PATH, NodeError};
use crate::decision::Scope;
use crate::metrics::Metrics;
use crate::review::{Outcome, REVIEW_BYTES_MAX, review};
use crate::settings::Settings;
use crate::template::Template;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use rdmesh_proxy::admin;
use rustls::ServerConfig;
use std::convert::Infallible;
use std::future::Future;
use std::net::TcpListener;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio_rustls::TlsAcceptor;

const CONNECTIONS_MAX: usize = 256;
/// Bodies beyond this size wait for one of a few places.
const SMALL_BODY_BYTES: u64 = 128 << 10;
const LARGE_BODIES_MAX: usize = 8;
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const HEADER_TIMEOUT: Duration = Duration::from_secs(120);
const HEADER_BYTES_MAX: usize = 32 << 10;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

pub const NAMESPACE_PATH: &str = "/inject/namespace";
pub const POD_PATH: &str = "/inject/pod";

/// What answers reviews.
#[derive(Debug)]
pub struct Webhook {
    pub template: Template,
    pub settings: Settings,
    pub metrics: Metrics,
    /// Where node proxies get their certificates, if from here.
    pub authority: Option<Arc<Authority>>,
    large_bodies: Semaphore,
}

impl Webhook {
    #[must_use]
    pub fn new(template: Template, settings: Settings, metrics: Metrics) -> Self {
        let large_bodies = Semaphore::new(LARGE_BODIES_MAX);
        Self { template, settings, metrics, authority: None, large_bodies }
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
    let serve =
        move |stream, stopped| connection(stream, acceptor.clone(), webhook.clone(), stopped);
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
    let service = service_fn(move |request| {
        let webhook = webhook.clone();
        async move { Ok::<_, Infallible>(answer(request, &webhook).await) }
    });
    let serving = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    let result = tokio::select! {
        result = &mut serving => result,
        _ = stopped.changed() => {
            serving.as_mut().graceful_shutdown();
            tokio::time::timeout(CLOSE_TIMEOUT, serving).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

async fn answer(request: Request<Incoming>, webhook: &Webhook) -> Answer {
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
    let body = async {
        let large = length.is_none_or(|length: u64| length > SMALL_BODY_BYTES);
        let place = if large { webhook.large_bodies.acquire().await.ok() } else { None };
        let body = Limited::new(request.into_body(), REVIEW_BYTES_MAX).collect().await;
        (body, place)
    };
    let Ok((body, _place)) = tokio::time::timeout(BODY_TIMEOUT, body).await else {
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
    let (status, reason) = match made {
        Ok(made) => return json(serde_json::to_vec(&made).unwrap_or_default()),
        Err(error @ NodeError::Forbidden(_)) => (StatusCode::FORBIDDEN, error),
        Err(error @ NodeError::Malformed(_)) => (StatusCode::BAD_REQUEST, error),
        Err(error @ NodeError::Authority(_)) => (StatusCode::SERVICE_UNAVAILABLE, error),
    };
    tracing::warn!(%reason, "no certificate for a node proxy");
    text(status, format!("{reason}\n"))
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
        uid = %answer.uid,
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
    tracing::warn!(reason, "no admission review");
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
