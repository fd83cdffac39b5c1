//! `rdmesh-proxy status`: what a running node proxy says about itself.

use crate::admin;
use crate::node::status::NodeStatus;
use anyhow::Context;
use std::io::Write;
use std::net::SocketAddr;
use std::time::Duration;

const TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, clap::Args)]
pub struct Args {
    /// The node proxy's admin address, `node.admin` in its configuration
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:15790")]
    admin: SocketAddr,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// # Errors
/// When there is no node proxy at the address.
pub fn run(args: Args) -> anyhow::Result<()> {
    let Args { admin: addr, json } = args;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let body = runtime.block_on(admin::get(addr, "/status", TIMEOUT))?;
    let text = show(&body, json).with_context(|| {
        format!("what {addr} answers is no status of a node proxy of this version")
    })?;
    Ok(std::io::stdout().write_all(text.as_bytes())?)
}

fn show(body: &[u8], json: bool) -> Result<String, serde_json::Error> {
    if json {
        // As it came: a newer node proxy may tell more than this program knows.
        let value: serde_json::Value = serde_json::from_slice(body)?;
        return Ok(serde_json::to_string_pretty(&value)? + "\n");
    }
    Ok(serde_json::from_slice::<NodeStatus>(body)?.to_text())
}

#[cfg(test)]
mod tests {
    use super::show;

    const BODY: &str = r#"{"node":"a","version":"9.0.0","uptime_seconds":5,"draining":true,
        "directory":{"generation":1,"nodes":1,"pods":0},"streams":{"active":0,"local":0},
        "budget":{"granted_bytes":0,"max_bytes":1024},"slab":{"used_bytes":0,"total_bytes":0},
        "workers":[],"peers":[],"pods":[],"new_in_version_9":{"x":1}}"#;

    #[test]
    fn fields_of_a_newer_version_are_kept_in_json() {
        assert!(show(BODY.as_bytes(), true).unwrap().contains("new_in_version_9"));
        let text = show(BODY.as_bytes(), false).unwrap();
        assert!(text.starts_with("node a, rdmesh 9.0.0, up 5s, draining\n"), "{text}");
    }

    #[test]
    fn something_else_is_an_error() {
        for body in ["", "ok\n", "[]", "{}"] {
            assert!(show(body.as_bytes(), false).is_err());
        }
        assert!(show(b"<html>", true).is_err());
    }
}
