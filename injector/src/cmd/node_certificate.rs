//! `rdmesh-injector node-certificate`: runs beside a node proxy and keeps its certificate.

use crate::client::{Endpoint, fetch};
use anyhow::Context;
use rdmesh_config::Log;
use rdmesh_proxy::cmd::{start_logging, stop_signal};
use std::path::PathBuf;
use std::time::Duration;

/// Between attempts, doubled from one to the next. At an installation the injector comes up beside the
/// node proxies: the first tries are close together.
const RETRY_MIN: Duration = Duration::from_millis(500);
const RETRY_MAX: Duration = Duration::from_secs(15);
/// Whatever the injector says.
const RENEW_MIN: Duration = Duration::from_secs(1);
const RENEW_MAX: Duration = Duration::from_secs(86_400);

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the injector listens: HOST:PORT
    #[arg(long)]
    injector: String,
    /// The name in the injector's certificate
    #[arg(long)]
    server_name: String,
    /// The authority's certificate (PEM)
    #[arg(long)]
    ca: PathBuf,
    /// The token of this pod's service account
    #[arg(long)]
    token: PathBuf,
    /// Where tls.crt, tls.key and ca.crt go
    #[arg(long)]
    dir: PathBuf,
    /// Exit as soon as there is a certificate
    #[arg(long)]
    once: bool,
}

/// # Errors
/// When the directory cannot be written.
pub fn run(args: Args) -> anyhow::Result<()> {
    start_logging(&Log::default())?;
    let Args { injector, server_name, ca, token, dir, once } = args;
    let endpoint = Endpoint { address: injector, server_name, ca, token };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let keep = async {
            let mut retry = RETRY_MIN;
            loop {
                let pause = match fetch(&endpoint).await {
                    Ok(made) => {
                        made.write(&dir)
                            .with_context(|| format!("cannot write {}", dir.display()))?;
                        tracing::info!(node = %made.node, "certificate taken up");
                        if once {
                            return Ok(());
                        }
                        retry = RETRY_MIN;
                        made.renew_after.clamp(RENEW_MIN, RENEW_MAX)
                    }
                    Err(error) => {
                        tracing::warn!(%error, "no certificate yet; trying again");
                        let pause = retry;
                        retry = (retry * 2).min(RETRY_MAX);
                        pause
                    }
                };
                tokio::time::sleep(pause).await;
            }
        };
        tokio::select! {
            result = keep => result,
            signal = stop_signal() => signal.map(|_| ()).map_err(Into::into),
        }
    })
}
