//! `rdmesh-proxy init`: programs the pod's network namespace and exits.

use crate::capture::{self, Method};
use anyhow::Context;
use ipnet::IpNet;
use rdmesh_config::{Capture, Log, ROUTING_SYSCTLS};
use std::path::PathBuf;

/// Program the pod's network namespace: capture outgoing TCP, route deliveries (CAP_NET_ADMIN)
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The configuration file; defaults apply without it
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,

    /// The configuration itself, as YAML or JSON: how the injector gives it to a pod
    #[arg(long, env = "RDMESH_CONFIG", hide_env_values = true, value_name = "YAML", hide = true)]
    inline_config: Option<String>,

    /// Remove everything that an earlier run left in this network namespace, and exit
    #[arg(long)]
    cleanup: bool,

    /// The sidecar's port, instead of sidecar.listen_port
    #[arg(long, value_name = "PORT")]
    port: Option<u16>,

    /// Capture only these destinations, instead of capture.include_outbound_cidrs
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    include_outbound_cidrs: Option<Vec<IpNet>>,

    /// Never capture these destinations, instead of capture.exclude_outbound_cidrs
    #[arg(long, value_name = "CIDR,..", value_delimiter = ',')]
    exclude_outbound_cidrs: Option<Vec<IpNet>>,

    /// Capture only these destination ports, instead of capture.include_outbound_ports
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    include_outbound_ports: Option<Vec<u16>>,

    /// Never capture these destination ports, instead of capture.exclude_outbound_ports
    #[arg(long, value_name = "PORT,..", value_delimiter = ',')]
    exclude_outbound_ports: Option<Vec<u16>>,
}

/// Runs the command.
///
/// # Errors
/// What the operator has to change; nothing is left half-configured.
pub fn run(args: Args) -> anyhow::Result<()> {
    if args.cleanup {
        // Of no config's making, so that a broken one cannot stand in the way.
        super::start_logging(&Log::default())?;
        capture::cleanup().context("cannot clean up the network namespace")?;
        tracing::info!("the network namespace is as it was before the capture");
        return Ok(());
    }
    let config = super::pod_config(args.config.as_deref(), args.inline_config.as_deref())?;
    super::start_logging(&config.log)?;
    let port = args.port.unwrap_or(config.sidecar.listen_port);
    let capture = overridden(config.capture, args);
    let applied = capture::apply(&capture, port).context("cannot set up the capture")?;
    if applied.ipv6 {
        tracing::info!(port, "outgoing TCP is captured, IPv4 and IPv6");
    } else {
        tracing::warn!(port, "outgoing TCP is captured, IPv4 only: IPv6 is off in this namespace");
    }
    match applied.method {
        Method::Route => tracing::info!("capture routes: no connection tracking in this pod"),
        Method::Redirect => tracing::info!(
            "capture redirects; it costs less CPU where the pod has the sysctls {} (each 1)",
            ROUTING_SYSCTLS.join(", ")
        ),
    }
    Ok(())
}

/// Flags go before the file.
fn overridden(mut capture: Capture, args: Args) -> Capture {
    fn replace<T>(slot: &mut T, flag: Option<T>) {
        if let Some(value) = flag {
            *slot = value;
        }
    }
    replace(&mut capture.include_outbound_cidrs, args.include_outbound_cidrs);
    replace(&mut capture.exclude_outbound_cidrs, args.exclude_outbound_cidrs);
    replace(&mut capture.include_outbound_ports, args.include_outbound_ports);
    replace(&mut capture.exclude_outbound_ports, args.exclude_outbound_ports);
    capture
}
