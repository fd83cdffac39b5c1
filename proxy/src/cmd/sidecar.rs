//! `rdmesh-proxy sidecar`: runs beside the application in its pod.

use crate::admin::{self, Routes};
use crate::capture;
use crate::metrics::Registry;
use crate::sidecar::{Marks, Options, Sidecar, SidecarMetrics};
use rdmesh_config::Config;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::oneshot;

/// Runs beside the application in its pod
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Configuration file (YAML); defaults apply without it
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The configuration itself, as YAML or JSON: how the injector gives it to a pod
    #[arg(long, env = "RDMESH_CONFIG", hide_env_values = true, value_name = "YAML", hide = true)]
    inline_config: Option<String>,
}

/// # Errors
/// With what is wrong in the configuration or missing on this machine.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { config, inline_config } = args;
    let config = super::pod_config(config.as_deref(), inline_config.as_deref())?;
    super::start_logging(&config.log)?;
    raise_descriptor_limit();
    raise_net_raw();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(serve(&config))
}

fn options(config: &Config) -> anyhow::Result<Options> {
    let sidecar = &config.sidecar;
    let marks = capture::Marks::new(config.capture.mark)?;
    Ok(Options {
        listen_port: sidecar.listen_port,
        node_socket: sidecar.node_socket.clone(),
        connections_max: sidecar.connections_max,
        connect_timeout: Duration::from_millis(sidecar.connect_timeout_ms),
        drain_timeout: Duration::from_millis(sidecar.drain_timeout_ms),
        reconnect_backoff_min: Duration::from_millis(sidecar.reconnect_backoff_min_ms),
        reconnect_backoff_max: Duration::from_millis(sidecar.reconnect_backoff_max_ms),
        marks: Marks { passthrough: marks.passthrough, delivery: marks.delivery },
    })
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let metrics = SidecarMetrics::new()?;
    let registry = Registry::new()?;
    for collector in metrics.collectors() {
        registry.register(collector)?;
    }
    let admin = admin::bind("sidecar.admin", config.sidecar.admin)?;
    let sidecar = Sidecar::bind(options(config)?, metrics)?;
    // Served only from here on, so whoever gets an answer finds the sidecar listening.
    tokio::spawn(admin::serve(admin, Routes::new(registry)));
    tracing::info!(port = config.sidecar.listen_port, "sidecar listens");

    let (stopping, again) = oneshot::channel();
    let run = sidecar.run(async {
        wait_for_signal().await;
        let _ = stopping.send(());
    });
    let impatient = async {
        let _ = again.await;
        wait_for_signal().await;
    };
    tokio::select! {
        () = run => {}
        () = impatient => tracing::warn!("told to stop twice: what is left is cut off"),
    }
    Ok(())
}

async fn wait_for_signal() {
    match super::stop_signal().await {
        Ok(signal) => tracing::info!(signal, "told to stop"),
        Err(error) => {
            tracing::error!(%error, "cannot wait for signals: only SIGKILL stops this sidecar");
            std::future::pending::<()>().await;
        }
    }
}

/// A user other than root has what the container's runtime permits only by the file's capabilities, and
/// those are permitted, not effective: a file with effective ones could not be started without them.
fn raise_net_raw() {
    let raised = capabilities(None).and_then(|mut sets| {
        if sets.permitted.contains(CapabilitySet::NET_RAW) {
            sets.effective |= CapabilitySet::NET_RAW;
            set_capabilities(None, sets)?;
        }
        Ok(sets.effective.contains(CapabilitySet::NET_RAW))
    });
    match raised {
        Ok(true) => {}
        Ok(false) => tracing::warn!(
            "CAP_NET_RAW is not there: connections of peers cannot be delivered from their own addresses. \
             Does the image's rdmesh-proxy have the file capability cap_net_raw=p?"
        ),
        Err(error) => tracing::warn!(%error, "cannot tell whether CAP_NET_RAW is there"),
    }
}

/// A relayed connection takes two descriptors; the usual soft limit is for 500 of them.
fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let raised = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    if let Err(error) = raised {
        tracing::warn!(%error, ?current, "cannot raise the limit on open files");
    }
}
