//! Certificates for node proxies: the service-account token of its pod says on which node it runs, and
//! that is the only name it gets.
//!
//! What it does not do: believe the request anything but its key.

use super::{Authority, AuthorityError, CALL_TIMEOUT, api};
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::Api;
use kube::api::PostParams;
use serde::{Deserialize, Serialize};
use std::time::Duration;

pub const CERTIFICATE_PATH: &str = "/node-certificate";
/// Of the tokens: one for the API server is not good here, nor the other way round.
pub const AUDIENCE: &str = "rdmesh-injector";
const NODE_NAME: &str = "authentication.kubernetes.io/node-name";
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";

/// What a node proxy's pod asks for.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeRequest {
    /// A certificate request, PEM.
    pub request: String,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct NodeResponse {
    pub node: String,
    pub certificate: String,
    /// All that is trusted.
    pub ca: String,
    /// When to ask again, in seconds.
    pub renew_after_s: u64,
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("the token is not accepted: {0}")]
    Forbidden(String),
    #[error("the request is not understood: {0}")]
    Malformed(String),
    #[error(transparent)]
    Authority(#[from] AuthorityError),
}

impl Authority {
    /// A certificate for the node that the owner of `token` runs on.
    ///
    /// # Errors
    /// When the token is not a node proxy's, or the authority is not in order.
    pub async fn node(&self, token: &str, body: &[u8]) -> Result<NodeResponse, NodeError> {
        let request: NodeRequest = serde_json::from_slice(body)
            .map_err(|error| NodeError::Malformed(error.to_string()))?;
        let made = tokio::time::timeout(CALL_TIMEOUT, self.certificate(token, &request.request));
        made.await.unwrap_or(Err(AuthorityError::Late.into()))
    }

    async fn certificate(&self, token: &str, request: &str) -> Result<NodeResponse, NodeError> {
        let _place = self.requests.acquire().await;
        let user = self.user(token).await?;
        let node = self.node_of(&user).await?;
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let secret = secrets
            .get(&self.names.secret)
            .await
            .map_err(api("reading the Secret of the authority"))?;
        let ca = self.stored(&secret)?.ca();
        let ca = ca.map_err(|reason| AuthorityError::Secret(self.names.secret.clone(), reason))?;
        let certificate = ca
            .issue_for(request, &node, Duration::from_secs(self.lifetimes.node))
            .map_err(|error| NodeError::Malformed(error.to_string()))?;
        tracing::info!(node = %node, "certificate for a node proxy made");
        let (ca, renew_after_s) = (ca.cert_pem().to_owned(), self.lifetimes.node / 3);
        Ok(NodeResponse { node, certificate, ca, renew_after_s })
    }

    /// Whose token it is, as the API server says.
    async fn user(&self, token: &str) -> Result<UserInfo, NodeError> {
        let reviews: Api<TokenReview> = Api::all(self.client.clone());
        let spec =
            TokenReviewSpec { audiences: Some(vec![AUDIENCE.to_owned()]), token: token.to_owned() };
        let review = TokenReview { spec, ..TokenReview::default() };
        let reviewed = reviews.create(&PostParams::default(), &review).await;
        let status = reviewed.map_err(api("reviewing a token"))?.status.unwrap_or_default();
        let audience = status.audiences.iter().flatten().any(|audience| audience == AUDIENCE);
        if status.authenticated != Some(true) || !audience {
            return Err(NodeError::Forbidden(status.error.unwrap_or_else(|| "unknown".into())));
        }
        let user = status.user.unwrap_or_default();
        let (namespace, account) = (&self.names.namespace, &self.names.node_account);
        let wanted = format!("system:serviceaccount:{namespace}:{account}");
        if user.username.as_deref() != Some(wanted.as_str()) {
            return Err(NodeError::Forbidden(format!("it is not of {wanted}")));
        }
        Ok(user)
    }

    async fn node_of(&self, user: &UserInfo) -> Result<String, NodeError> {
        let extra = |key: &str| Some(user.extra.as_ref()?.get(key)?.first()?.clone());
        if let Some(node) = extra(NODE_NAME) {
            return Ok(node);
        }
        // Clusters before 1.30 tell the pod only.
        let forbidden = |text: &str| NodeError::Forbidden(text.to_owned());
        let name = extra(POD_NAME).ok_or_else(|| forbidden("it is not bound to a pod"))?;
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &self.names.namespace);
        let pod = pods.get_opt(&name).await.map_err(api("reading a pod"))?;
        let pod = pod.ok_or_else(|| forbidden("its pod is gone"))?;
        if pod.metadata.uid.is_none() || pod.metadata.uid != extra(POD_UID) {
            return Err(forbidden("its pod is gone"));
        }
        pod.spec.and_then(|spec| spec.node_name).ok_or_else(|| forbidden("its pod has no node yet"))
    }
}
