//! The cluster's certificate authority: kept in a Secret, shared by all replicas of the injector, which
//! agree by compare-and-swap (the Secret's resourceVersion).
//!
//! It makes the injector's serving certificate, keeps the webhook's `caBundle`, signs short-lived
//! certificates for node proxies, and replaces the CA itself in time. What it does not do: replace a CA
//! that somebody else put into the Secret, or revoke.

mod nodes;
mod state;

pub use nodes::{AUDIENCE, CERTIFICATE_PATH, NodeError, NodeRequest, NodeResponse};

use crate::metrics::Metrics;
use crate::tls::Serving;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ApiResource, DynamicObject, PostParams};
use kube::{Api, Client};
use rdmesh_proxy::trust::TrustError;
use serde_json::{Value, json};
use state::{Lifetimes, Stored};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// After a failure, and no longer than the interval of looking.
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// For one look, or one certificate of a node proxy. The client itself waits for an answer for ever.
const CALL_TIMEOUT: Duration = Duration::from_secs(15);
/// Requests of node proxies that are worked on at one time.
const REQUESTS_MAX: usize = 8;
/// On the webhook configuration: the generation of the authority that its `caBundle` is of.
const GENERATION: &str = "rdmesh.io/authority-generation";

#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("the API server refuses {what} (does the injector's role allow it?): {source}")]
    Api { what: &'static str, source: Box<kube::Error> },
    #[error(
        "the Secret {0} holds no certificate authority that can be used: {1}; empty it to have another made"
    )]
    Secret(String, String),
    #[error(transparent)]
    Make(#[from] TrustError),
    #[error(transparent)]
    Serving(#[from] crate::tls::TlsError),
    #[error("the API server does not answer in {} s", CALL_TIMEOUT.as_secs())]
    Late,
}

fn api(what: &'static str) -> impl FnOnce(kube::Error) -> AuthorityError {
    move |source| AuthorityError::Api { what, source: Box::new(source) }
}

/// Clones of the handle are not needed: it is shared.
pub struct Authority {
    client: Client,
    names: rdmesh_config::Authority,
    /// None where the serving certificate comes from elsewhere.
    serving: Option<Arc<Serving>>,
    requests: Semaphore,
    lifetimes: Lifetimes,
    metrics: Metrics,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Authority {
    #[must_use]
    pub fn new(
        client: Client,
        names: rdmesh_config::Authority,
        serving: Option<Arc<Serving>>,
        metrics: Metrics,
    ) -> Self {
        let lifetimes = Lifetimes::of(&names);
        let requests = Semaphore::new(REQUESTS_MAX);
        Self { client, names, serving, requests, lifetimes, metrics }
    }

    /// The name that the API server asks for.
    fn server_name(&self) -> String {
        format!("{}.{}.svc", self.names.service, self.names.namespace)
    }

    /// Keeps everything in order, for ever.
    pub async fn run(&self) {
        let interval = self.lifetimes.look_interval();
        let retry = interval.min(RETRY_INTERVAL);
        let mut told = String::new();
        loop {
            let looked = tokio::time::timeout(CALL_TIMEOUT, self.look()).await;
            let pause = match looked.unwrap_or(Err(AuthorityError::Late)) {
                Ok(true) => retry,
                Ok(false) => {
                    told.clear();
                    interval
                }
                Err(error) => {
                    self.metrics.authority_failed();
                    let text = format!("{error:#}");
                    if text != told {
                        tracing::warn!(error = text, "certificates are not in order; trying again");
                        told = text;
                    }
                    retry
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Returns whether another replica was faster and all has to be looked at again.
    async fn look(&self) -> Result<bool, AuthorityError> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let mut secret = secrets
            .get(&self.names.secret)
            .await
            .map_err(api("reading the Secret of the authority"))?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let mut stored = self.stored(&secret)?;
        if let Some((renewed, step)) = stored.renewed(&self.server_name(), self.lifetimes, now)? {
            renewed.write(&mut secret);
            match secrets.replace(&self.names.secret, &PostParams::default(), &secret).await {
                Ok(_) => tracing::info!("{}", step.what()),
                Err(kube::Error::Api(status)) if status.code == 409 => return Ok(true),
                Err(error) => return Err(api("writing the Secret of the authority")(error)),
            }
            stored = renewed;
        }
        let Some(serving) = &self.serving else { return Ok(false) };
        // First the bundle: nobody is to be shown a certificate whose CA he has not been told.
        if self.bundle(&stored).await? {
            return Ok(true);
        }
        let origin = format!("the Secret {}", self.names.secret);
        if serving.set(stored.cert.as_bytes(), stored.key.as_bytes(), &origin)? {
            tracing::info!("serving certificate taken up");
        }
        Ok(false)
    }

    fn stored(&self, secret: &Secret) -> Result<Stored, AuthorityError> {
        Stored::read(secret)
            .map_err(|reason| AuthorityError::Secret(self.names.secret.clone(), reason))
    }

    /// Puts the CA where the API server looks for it. Returns whether somebody else was faster.
    async fn bundle(&self, stored: &Stored) -> Result<bool, AuthorityError> {
        // As a plain object: what this version does not know of it must not be lost.
        let kind = ApiResource::erase::<MutatingWebhookConfiguration>(&());
        let all: Api<DynamicObject> = Api::all_with(self.client.clone(), &kind);
        let name = &self.names.webhook;
        let found = all.get_opt(name).await.map_err(api("reading the webhook configuration"))?;
        let Some(mut webhook) = found else { return Ok(false) };
        match put_bundle(&mut webhook, &stored.ca_cert, stored.times.generation) {
            Put::Same => return Ok(false),
            Put::Older => return Ok(true),
            Put::Changed => {}
        }
        match all.replace(name, &PostParams::default(), &webhook).await {
            Ok(_) => {
                tracing::info!(webhook = %name, "caBundle set");
                Ok(false)
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(true),
            Err(error) => Err(api("writing the webhook configuration")(error)),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Put {
    Same,
    Changed,
    /// The bundle is of a later state than the one in hand.
    Older,
}

/// A replica that was held up between its read of the Secret and this must not put back what another has
/// replaced since: the generation tells.
fn put_bundle(webhook: &mut DynamicObject, ca: &str, generation: u64) -> Put {
    let annotations = webhook.metadata.annotations.get_or_insert_default();
    let known: u64 = annotations.get(GENERATION).and_then(|text| text.parse().ok()).unwrap_or(0);
    if known > generation {
        return Put::Older;
    }
    let bundle = json!(ByteString(ca.as_bytes().to_vec()));
    let hooks = webhook.data.get_mut("webhooks").and_then(Value::as_array_mut);
    let mut changed = false;
    for config in hooks.into_iter().flatten().filter_map(|hook| hook.get_mut("clientConfig")) {
        if config.get("caBundle") != Some(&bundle)
            && let Value::Object(config) = config
        {
            config.insert("caBundle".into(), bundle.clone());
            changed = true;
        }
    }
    if changed {
        annotations.insert(GENERATION.into(), generation.to_string());
        return Put::Changed;
    }
    Put::Same
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_bundle_does_not_replace_a_later_one() {
        let mut webhook: DynamicObject = serde_json::from_value(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": "w"},
            "webhooks": [
                {"name": "a", "clientConfig": {"service": {"name": "s"}}, "notKnownYet": {"x": 1}},
                {"name": "b", "clientConfig": {"service": {"name": "s"}, "caBundle": "b2xk"}},
            ],
        }))
        .unwrap();
        assert_eq!(put_bundle(&mut webhook, "new", 7), Put::Changed);
        assert_eq!(put_bundle(&mut webhook, "new", 7), Put::Same);
        assert_eq!(put_bundle(&mut webhook, "old", 6), Put::Older);
        for hook in webhook.data["webhooks"].as_array().unwrap() {
            assert_eq!(hook["clientConfig"]["caBundle"], "bmV3");
        }
        assert_eq!(webhook.data["webhooks"][0]["notKnownYet"], json!({"x": 1}));
        // Somebody took one away, as a reinstallation does.
        webhook.data["webhooks"][1]["clientConfig"].as_object_mut().unwrap().remove("caBundle");
        assert_eq!(put_bundle(&mut webhook, "new", 7), Put::Changed);
        assert_eq!(put_bundle(&mut webhook, "newer", 8), Put::Changed);
    }
}
