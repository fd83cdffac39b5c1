//! One kind of object: listed page by page, then watched, for ever.
//!
//! What it does not do: keep objects (`records` has what is needed of them), or give up. Until a new
//! list is complete the records of the old one stay.

use super::records::{Kind, Names, Records, Store, Table};
use crate::metrics::{NodeMetrics, ReloadOutcome};
use futures_util::StreamExt;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{Api, ListParams, ObjectMeta, WatchEvent, WatchParams};
use kube::{Client, Resource};
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tracing::{info, warn};

/// Objects of one page: some MiB of JSON at most.
const PAGE_OBJECTS: u32 = 500;
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a watch lasts, by the server's clock.
const WATCH_SECONDS: u32 = 290;
/// Bookmarks come every minute or so: a watch with none for this long has lost its server.
const SILENCE_MAX: Duration = Duration::from_secs(150);
const BACKOFF_MIN: Duration = Duration::from_millis(500);
const BACKOFF_MAX: Duration = Duration::from_secs(30);
/// Watches that fail in a row before a new list is tried.
const FAILURES_MAX: u32 = 5;
/// Pages of one list at most: an API server that always says «go on» ends somewhere.
const PAGES_MAX: usize = 10_000;

/// An object that is watched, and what is kept of it.
pub(super) trait Watched:
    Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static
{
    type Record: PartialEq + Send;
    const KIND: Kind;
    const LABELS: Option<&'static str> = None;
    const FIELDS: Option<&'static str> = None;

    fn table(records: &mut Records) -> &mut Table<Self::Record>;

    /// `None`: of no use (now).
    fn record(&self, names: &mut Names) -> Option<Self::Record>;
}

/// Starts all watches.
pub(super) fn all(
    client: &Client,
    store: &Arc<Store>,
    metrics: &Arc<NodeMetrics>,
) -> Vec<JoinHandle<()>> {
    fn start<K: Watched>(
        client: &Client,
        store: &Arc<Store>,
        metrics: &Arc<NodeMetrics>,
    ) -> JoinHandle<()> {
        let (api, store, metrics) =
            (Api::<K>::all(client.clone()), Arc::clone(store), Arc::clone(metrics));
        tokio::spawn(async move {
            Watch { api, store, metrics, failures: 0, is_fresh: false }.run().await;
        })
    }
    vec![
        start::<core::Node>(client, store, metrics),
        start::<core::Namespace>(client, store, metrics),
        start::<NetworkPolicy>(client, store, metrics),
        start::<core::Pod>(client, store, metrics),
        start::<core::Service>(client, store, metrics),
        start::<EndpointSlice>(client, store, metrics),
    ]
}

#[derive(Debug, thiserror::Error)]
enum WatchError {
    #[error(transparent)]
    Api(kube::Error),
    #[error("no answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The server does not remember so far back.
    #[error("the history is gone")]
    Expired,
    #[error("the list does not end")]
    Endless,
}

/// A refusal comes as the answer to a list, or within a watch, whatever its HTTP status.
impl From<kube::Error> for WatchError {
    fn from(error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 410 => Self::Expired,
            error => Self::Api(error),
        }
    }
}

struct Watch<K: Watched> {
    api: Api<K>,
    store: Arc<Store>,
    metrics: Arc<NodeMetrics>,
    /// In a row.
    failures: u32,
    /// Nothing was told since the list.
    is_fresh: bool,
}

impl<K: Watched> Watch<K> {
    async fn run(mut self) {
        loop {
            let mut version = match self.list().await {
                Ok(version) => version,
                Err(error) => {
                    self.failed(&error).await;
                    continue;
                }
            };
            loop {
                match self.follow(&mut version).await {
                    Ok(()) => self.went_well(),
                    Err(WatchError::Expired) => {
                        // A list that is too old at once: do not hammer the server.
                        if std::mem::replace(&mut self.is_fresh, true) {
                            self.failed(&WatchError::Expired).await;
                        }
                        break;
                    }
                    Err(error) => self.failed(&error).await,
                }
                if self.failures > FAILURES_MAX {
                    break;
                }
            }
        }
    }

    /// All objects; the records are replaced when the last page is there.
    async fn list(&self) -> Result<String, WatchError> {
        let mut params = ListParams::default().limit(PAGE_OBJECTS);
        params.label_selector = K::LABELS.map(str::to_owned);
        params.field_selector = K::FIELDS.map(str::to_owned);
        let mut fresh = Table::new();
        for _ in 0..PAGES_MAX {
            let page = tokio::time::timeout(PAGE_TIMEOUT, self.api.list(&params)).await;
            let page = page.map_err(|_| WatchError::Silent(PAGE_TIMEOUT))??;
            {
                let names = &mut self.store.lock().names;
                fresh.extend(
                    page.items
                        .iter()
                        .filter_map(|object| Some((key(object.meta())?, object.record(names)?))),
                );
            }
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
            if params.continue_token.is_none() {
                let mut records = self.store.lock();
                let first = records.set_listed(K::KIND);
                let table = K::table(&mut records);
                let changed = first || *table != fresh;
                *table = fresh;
                drop(records);
                if changed {
                    self.store.changed.notify_one();
                }
                return Ok(page.metadata.resource_version.unwrap_or_default());
            }
        }
        Err(WatchError::Endless)
    }

    /// One watch, until the server ends it.
    async fn follow(&mut self, version: &mut String) -> Result<(), WatchError> {
        let mut params = WatchParams::default().timeout(WATCH_SECONDS);
        params.label_selector = K::LABELS.map(str::to_owned);
        params.field_selector = K::FIELDS.map(str::to_owned);
        let silent = |_| WatchError::Silent(SILENCE_MAX);
        let opened = tokio::time::timeout(SILENCE_MAX, self.api.watch(&params, version)).await;
        let mut events = std::pin::pin!(opened.map_err(silent)??);
        loop {
            let event = tokio::time::timeout(SILENCE_MAX, events.next()).await.map_err(silent)?;
            let Some(event) = event else { return Ok(()) };
            match event? {
                WatchEvent::Added(object) | WatchEvent::Modified(object) => {
                    self.put(&object);
                    advance(version, object.meta());
                }
                WatchEvent::Deleted(object) => {
                    self.remove(object.meta());
                    advance(version, object.meta());
                }
                WatchEvent::Bookmark(bookmark) => *version = bookmark.metadata.resource_version,
                WatchEvent::Error(status) => return Err(kube::Error::Api(status).into()),
            }
            self.is_fresh = false;
            self.went_well();
        }
    }

    fn put(&self, object: &K) {
        let Some(key) = key(object.meta()) else { return };
        let mut records = self.store.lock();
        let Some(record) = object.record(&mut records.names) else {
            drop(records);
            return self.remove(object.meta());
        };
        let table = K::table(&mut records);
        // Most changes (heartbeats, conditions) are none for us.
        if table.get(&key) == Some(&record) {
            return;
        }
        table.insert(key, record);
        drop(records);
        self.store.changed.notify_one();
    }

    fn remove(&self, metadata: &ObjectMeta) {
        let Some(key) = key(metadata) else { return };
        let removed = K::table(&mut self.store.lock()).remove(&key).is_some();
        if removed {
            self.store.changed.notify_one();
        }
    }

    fn went_well(&mut self) {
        if self.failures > 0 {
            info!(kind = &*K::kind(&()), "the API server answers again");
        }
        self.failures = 0;
    }

    async fn failed(&mut self, error: &WatchError) {
        self.metrics.directory_reload(ReloadOutcome::Unreadable);
        self.failures = self.failures.saturating_add(1);
        if self.failures == 1 {
            let error: &(dyn std::error::Error + 'static) = error;
            warn!(
                error,
                kind = &*K::kind(&()),
                "the API server cannot be read (is it up, and may the service account list and \
                 watch this kind?); the last state stays in force"
            );
        }
        let doubled = BACKOFF_MIN.saturating_mul(1 << self.failures.min(6));
        let longest = doubled.min(BACKOFF_MAX);
        // Half of it by chance: all nodes lose their API server at one time.
        let chance = f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX);
        tokio::time::sleep(longest.mul_f64(0.5 + chance / 2.0)).await;
    }
}

fn advance(version: &mut String, metadata: &ObjectMeta) {
    if let Some(newer) = &metadata.resource_version {
        version.clone_from(newer);
    }
}

fn key(metadata: &ObjectMeta) -> Option<Arc<str>> {
    let name = metadata.name.as_deref()?;
    Some(match metadata.namespace.as_deref() {
        Some(namespace) => format!("{namespace}/{name}").into(),
        None => name.into(),
    })
}
