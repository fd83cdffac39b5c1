//! Values of the section `injector`.
//!
//! What it does not do: look whether an image or a file exists.

use crate::check_config::{DNS_NAME, element, is_dns_name, keys, port_not_zero};
use crate::load::{Finding, finding};
use crate::quantity::Quantity;
use crate::schema::{Config, Injector};

const IMAGE_BYTES_MAX: usize = 1024;
/// The next CA is made at half of the time, is told for a while, and only then signs.
const LIFETIMES_OF_CA: u64 = 6;

pub(crate) fn check(config: &Config, found: &mut Vec<Finding>) {
    let injector = &config.injector;
    port_not_zero("injector.listen", injector.listen.port(), found);
    port_not_zero("injector.admin", injector.admin.port(), found);
    if injector.listen.port() == injector.admin.port() {
        found.push(finding(
            keys("injector.admin"),
            "clashes with injector.listen: take another port",
        ));
    }
    if injector.cert.as_os_str().is_empty() != injector.key.as_os_str().is_empty() {
        let missing = if injector.cert.as_os_str().is_empty() { "cert" } else { "key" };
        let path = format!("injector.{missing}");
        found.push(finding(keys(&path), "is missing: cert and key belong together"));
    }
    let authority = &injector.authority;
    for (key, name) in [
        ("namespace", &authority.namespace),
        ("secret", &authority.secret),
        ("service", &authority.service),
        ("webhook", &authority.webhook),
        ("node_account", &authority.node_account),
    ] {
        let may_be_empty = key == "namespace";
        if !(is_dns_name(name) || may_be_empty && name.is_empty()) {
            found.push(finding(keys(&format!("injector.authority.{key}")), DNS_NAME));
        }
    }
    let shorter = authority.serving_lifetime_s.max(authority.node_lifetime_s);
    if authority.ca_lifetime_s < LIFETIMES_OF_CA.saturating_mul(shorter) {
        let problem = format!(
            "must be at least {LIFETIMES_OF_CA} times serving_lifetime_s and node_lifetime_s: no certificate may \
             outlive its authority"
        );
        found.push(finding(keys("injector.authority.ca_lifetime_s"), problem));
    }
    let image = &injector.image;
    if image.len() > IMAGE_BYTES_MAX || image.contains(|c: char| !c.is_ascii_graphic()) {
        found.push(finding(
            keys("injector.image"),
            "must be the name of an image, such as ghcr.io/rdmesh/rdmesh:0.1.0",
        ));
    }
    for (index, name) in injector.exclude_namespaces.iter().enumerate() {
        if !is_dns_name(name) {
            found.push(finding(element("injector.exclude_namespaces", index), DNS_NAME));
        }
    }
    resources(injector, found);
}

fn resources(injector: &Injector, found: &mut Vec<Finding>) {
    let pairs = [
        ("proxy_cpu", &injector.proxy_cpu, "proxy_cpu_limit", &injector.proxy_cpu_limit),
        (
            "proxy_memory",
            &injector.proxy_memory,
            "proxy_memory_limit",
            &injector.proxy_memory_limit,
        ),
    ];
    for (key, request, limit_key, limit) in pairs {
        let mut read = |key: &str, text: &str| {
            let read = Quantity::parse(text);
            if read.is_none() {
                let problem = format!("must be a quantity of Kubernetes: {}", Quantity::FORM);
                found.push(finding(keys(&format!("injector.{key}")), problem));
            }
            read
        };
        let request = read(key, request);
        let limit = if limit.is_empty() { None } else { read(limit_key, limit) };
        if let (Some(request), Some(limit)) = (request, limit)
            && request > limit
        {
            let problem = format!("must not be more than injector.{limit_key}");
            found.push(finding(keys(&format!("injector.{key}")), problem));
        }
    }
}
