//! What is answered at which path.

use crate::metrics::{CONTENT_TYPE, Registry};
use http_body_util::Full;
use hyper::body::{Body, Bytes};
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE as TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    Yes,
    /// And why, for whoever reads `/readyz`.
    No(String),
}

impl From<bool> for Readiness {
    fn from(yes: bool) -> Self {
        if yes { Self::Yes } else { Self::No("not ready".to_owned()) }
    }
}

impl From<Result<(), String>> for Readiness {
    fn from(result: Result<(), String>) -> Self {
        result.map_or_else(Self::No, |()| Self::Yes)
    }
}

type Check = Box<dyn Fn() -> Readiness + Send + Sync>;
type Page = Box<dyn Fn() -> Pin<Box<dyn Future<Output = Answer> + Send>> + Send + Sync>;

pub(super) type Answer = Response<Full<Bytes>>;

/// The pages of one process.
pub struct Routes {
    registry: Registry,
    live: Check,
    ready: Check,
    pages: BTreeMap<&'static str, Page>,
}

impl fmt::Debug for Routes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Routes").field("pages", &self.pages.keys()).finish_non_exhaustive()
    }
}

impl Routes {
    /// `/metrics`; `/livez` and `/readyz`, which say yes as long as the server answers.
    #[must_use]
    pub fn new(registry: Registry) -> Self {
        Self {
            registry,
            live: Box::new(|| Readiness::Yes),
            ready: Box::new(|| Readiness::Yes),
            pages: BTreeMap::new(),
        }
    }

    /// What `/livez` asks. A failure makes kubelet restart the process.
    #[must_use]
    pub fn live<R: Into<Readiness>>(
        mut self,
        check: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        self.live = Box::new(move || check().into());
        self
    }

    /// What `/readyz` asks.
    #[must_use]
    pub fn ready<R: Into<Readiness>>(
        mut self,
        check: impl Fn() -> R + Send + Sync + 'static,
    ) -> Self {
        self.ready = Box::new(move || check().into());
        self
    }

    /// A page of JSON, as `/status`.
    #[must_use]
    pub fn json<F, Fut, T>(mut self, path: &'static str, make: F) -> Self
    where
        F: Fn() -> Fut + Send + Sync + 'static,
        Fut: Future<Output = T> + Send + 'static,
        T: Serialize + Send,
    {
        let make = Arc::new(make);
        let page: Page = Box::new(move || {
            let make = make.clone();
            Box::pin(async move { json(&make().await) })
        });
        self.pages.insert(path, page);
        self
    }

    pub(super) async fn answer<B: Body + Send>(&self, request: Request<B>) -> Answer {
        // The body is not wanted; holding it would make the answer's future depend on its type.
        let (head, _) = request.into_parts();
        if head.method != Method::GET && head.method != Method::HEAD {
            let mut answer = text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return answer;
        }
        match head.uri.path() {
            "/metrics" => self.metrics(),
            "/livez" => probe(&self.live),
            "/readyz" => probe(&self.ready),
            path => match self.pages.get(path) {
                Some(page) => page().await,
                None => text(StatusCode::NOT_FOUND, self.index()),
            },
        }
    }

    fn metrics(&self) -> Answer {
        match self.registry.render() {
            Ok(body) => answer(StatusCode::OK, CONTENT_TYPE, body),
            Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
        }
    }

    fn index(&self) -> String {
        let known = ["/livez", "/metrics", "/readyz"].iter().chain(self.pages.keys());
        let known: Vec<&str> = known.copied().collect();
        format!("not here; what there is: {}\n", known.join(" "))
    }
}

fn probe(check: &Check) -> Answer {
    match check() {
        Readiness::Yes => text(StatusCode::OK, "ok\n"),
        Readiness::No(why) => text(StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")),
    }
}

fn json(value: &impl Serialize) -> Answer {
    match serde_json::to_vec(value) {
        Ok(body) => answer(StatusCode::OK, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Answer {
    answer(status, "text/plain; charset=utf-8", body)
}

fn answer(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
