//! The cluster's certificate authority: kept in a Secret, shared by all replicas of the injector, which
//! agree by compare-and-swap (the Secret's resourceVersion).
//!
//! It makes the injector's serving certificate, keeps the webhook's `caBundle`, and signs short-lived
//! certificates for node proxies. What it does not do: replace the CA itself, whose certificate is good
//! for ten years; whoever wants another empties the Secret and restarts the node proxies.

mod nodes;
mod state;

pub use nodes::{AUDIENCE, CERTIFICATE_PATH, NodeError, NodeRequest, NodeResponse};

use crate::tls::Serving;
use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Secret;
use kube::api::PostParams;
use kube::{Api, Client};
use rdmesh_proxy::trust::TrustError;
use state::Stored;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::Semaphore;

/// How often the Secret is read; also how long a replica goes on with an older serving certificate.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
const RETRY_INTERVAL: Duration = Duration::from_secs(2);
/// Requests of node proxies that are worked on at one time.
const REQUESTS_MAX: usize = 8;

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
    ) -> Self {
        Self { client, names, serving, requests: Semaphore::new(REQUESTS_MAX) }
    }

    /// The name that the API server asks for.
    fn server_name(&self) -> String {
        format!("{}.{}.svc", self.names.service, self.names.namespace)
    }

    /// Keeps everything in order, for ever.
    pub async fn run(&self) {
        let mut told = String::new();
        loop {
            let pause = match self.look().await {
                Ok(true) => RETRY_INTERVAL,
                Ok(false) => {
                    told.clear();
                    LOOK_INTERVAL
                }
                Err(error) => {
                    let text = format!("{error:#}");
                    if text != told {
                        tracing::warn!(error = text, "certificates are not in order; trying again");
                        told = text;
                    }
                    RETRY_INTERVAL
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
        if let Some(renewed) = stored.renewed(&self.server_name(), now)? {
            renewed.write(&mut secret);
            match secrets.replace(&self.names.secret, &PostParams::default(), &secret).await {
                Ok(_) => tracing::info!("serving certificate made"),
                Err(kube::Error::Api(status)) if status.code == 409 => return Ok(true),
                Err(error) => return Err(api("writing the Secret of the authority")(error)),
            }
            stored = renewed;
        }
        let Some(serving) = &self.serving else { return Ok(false) };
        let again = self.bundle(stored.ca_cert.as_bytes()).await?;
        // After the bundle: nobody is to be shown a certificate whose CA he has not been told.
        let origin = format!("the Secret {}", self.names.secret);
        if serving.set(stored.cert.as_bytes(), stored.key.as_bytes(), &origin)? {
            tracing::info!("serving certificate taken up");
        }
        Ok(again)
    }

    fn stored(&self, secret: &Secret) -> Result<Stored, AuthorityError> {
        Stored::read(secret)
            .map_err(|reason| AuthorityError::Secret(self.names.secret.clone(), reason))
    }

    /// Puts the CA where the API server looks for it. Returns whether somebody else changed it meanwhile.
    async fn bundle(&self, ca: &[u8]) -> Result<bool, AuthorityError> {
        let all: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let name = &self.names.webhook;
        let Some(mut webhook) =
            all.get_opt(name).await.map_err(api("reading the webhook configuration"))?
        else {
            return Ok(false);
        };
        let mut changed = false;
        for hook in webhook.webhooks.iter_mut().flatten() {
            let bundle = &mut hook.client_config.ca_bundle;
            if bundle.as_ref().is_none_or(|bundle| bundle.0 != ca) {
                *bundle = Some(ByteString(ca.to_vec()));
                changed = true;
            }
        }
        if !changed {
            return Ok(false);
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
