//! `rdmesh-injector serve`: the webhook.

use crate::authority::Authority;
use crate::metrics::Metrics;
use crate::server::{Webhook, serve};
use crate::settings::Settings;
use crate::tls::{Serving, server_config};
use anyhow::Context;
use kube::Client;
use rdmesh_config::{Config, Injector};
use rdmesh_proxy::admin::{self, Routes};
use rdmesh_proxy::cmd::{start_logging, stop_signal};
use rdmesh_proxy::metrics::Registry;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// So long the API server may still send admissions here after this pod was told to stop.
const ENDPOINT_DELAY: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file (YAML)
    #[arg(long, short, value_name = "FILE")]
    config: PathBuf,
}

/// # Errors
/// With what is wrong in the configuration or missing on this machine.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { config: path } = args;
    let config = Config::load(&path)?;
    start_logging(&config.log)?;
    let template = super::template(&config)?;
    let injector = config.injector.clone();
    let metrics = Metrics::new()?;
    let registry = Registry::new()?;
    for collector in metrics.collectors() {
        registry.register(collector)?;
    }
    let settings = Settings::new(config)?;
    let webhook = Webhook::new(template, settings, metrics);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(run_until_told(injector, webhook, registry))
}

async fn run_until_told(
    injector: Injector,
    mut webhook: Webhook,
    registry: Registry,
) -> anyhow::Result<()> {
    let serving = Arc::new(Serving::default());
    let has_files = !injector.cert.as_os_str().is_empty();
    if has_files || injector.authority.namespace.is_empty() {
        from_files(&injector, &serving)?;
    }
    if !injector.authority.namespace.is_empty() {
        let client = Client::try_default()
            .await
            .context("injector.authority needs an API server: run in a pod, or set KUBECONFIG")?;
        let own = (!has_files).then(|| serving.clone());
        let (names, metrics) = (injector.authority.clone(), webhook.metrics.clone());
        let authority = Arc::new(Authority::new(client, names, own, metrics));
        webhook.authority = Some(authority.clone());
        tokio::spawn(async move { authority.run().await });
    }
    let stopping = webhook.stopping.clone();
    let (ready, told) = (serving.clone(), stopping.clone());
    let routes = Routes::new(registry).ready(move || match told.load(Ordering::Relaxed) {
        true => Err("stopping".to_owned()),
        false if !ready.is_ready() => Err("no serving certificate yet".to_owned()),
        false => Ok(()),
    });
    let admin = admin::bind("injector.admin", injector.admin)?;
    let listen = injector.listen;
    let listener = TcpListener::bind(listen).with_context(|| {
        format!("cannot listen on {listen}: set injector.listen to a free address")
    })?;
    tokio::spawn(admin::serve(admin, routes));
    tracing::info!(%listen, admin = %injector.admin, "webhook listens");
    let shutdown = async {
        match stop_signal().await {
            Ok(signal) => tracing::info!(signal, "told to stop"),
            Err(error) => {
                tracing::error!(%error, "cannot wait for signals: only SIGKILL stops this process");
                std::future::pending::<()>().await;
            }
        }
        stopping.store(true, Ordering::Relaxed);
        tokio::time::sleep(ENDPOINT_DELAY).await;
    };
    serve(listener, server_config(serving)?, Arc::new(webhook), shutdown).await?;
    Ok(())
}

fn from_files(injector: &Injector, serving: &Arc<Serving>) -> anyhow::Result<()> {
    let (cert, key) = (injector.cert.clone(), injector.key.clone());
    if cert.as_os_str().is_empty() {
        anyhow::bail!(
            "injector.cert and injector.key are not set: give the serving certificate, or injector.authority"
        );
    }
    serving.load(&cert, &key)?;
    let serving = serving.clone();
    tokio::spawn(async move { serving.watch(&cert, &key).await });
    Ok(())
}
