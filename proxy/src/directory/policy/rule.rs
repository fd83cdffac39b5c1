//! One rule of a policy: with whom, and on which ports.

use super::{End, Labels, Match, Selector};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::Arc;

/// Allows what matches one of the peers and one of the ports.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// `None`: everybody. An empty list: nobody.
    pub peers: Option<Box<[Peer]>>,
    /// `None`: all. An empty list: none, as for a rule that is of UDP alone.
    pub ports: Option<Box<[PortMatch]>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    Pods {
        /// `None`: the policy's own namespace.
        namespaces: Option<Selector>,
        pods: Selector,
    },
    Block {
        cidr: IpNet,
        except: Box<[IpNet]>,
    },
    Unknown,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortMatch {
    /// First and last.
    Range(u16, u16),
    /// The name of a port of the destination's containers.
    Named(Arc<str>),
    Unknown,
}

/// Labels of namespaces, by name. `None` where the namespace is not known.
pub(super) type NamespaceLabels<'a> = dyn Fn(&str) -> Option<&'a Labels> + 'a;

impl Rule {
    /// `other` is the end that the rule is about; `named` are the destination's ports.
    pub(super) fn admits<'a>(
        &'a self,
        namespace: &str,
        other: End<'a>,
        named: Option<&[(Arc<str>, u16)]>,
        port: u16,
        namespaces: &NamespaceLabels<'a>,
    ) -> Match {
        let on_port = match &self.ports {
            None => Match::Yes,
            Some(ports) => Match::any(ports.iter().map(|one| one.matches(named, port))),
        };
        on_port.and(|| match &self.peers {
            None => Match::Yes,
            Some(peers) => {
                Match::any(peers.iter().map(|peer| peer.matches(namespace, other, namespaces)))
            }
        })
    }
}

impl Peer {
    fn matches<'a>(
        &self,
        own_namespace: &str,
        other: End<'a>,
        namespaces: &NamespaceLabels<'a>,
    ) -> Match {
        match self {
            Self::Unknown => Match::Unknown,
            Self::Block { cidr, except } => {
                let address = other.address.to_canonical();
                let within = contains(cidr, address);
                (within && !except.iter().any(|net| contains(net, address))).into()
            }
            Self::Pods { namespaces: wanted, pods } => {
                let Some(subject) = other.subject else { return Match::Unknown };
                let in_namespace = match wanted {
                    None => (*subject.namespace == *own_namespace).into(),
                    Some(selector) => match namespaces(&subject.namespace) {
                        Some(labels) => selector.matches(labels),
                        None if selector.0.is_empty() => Match::Yes,
                        None => Match::Unknown,
                    },
                };
                in_namespace.and(|| pods.matches(&subject.labels))
            }
        }
    }
}

fn contains(net: &IpNet, address: IpAddr) -> bool {
    net.contains(&address)
}

impl PortMatch {
    fn matches(&self, named: Option<&[(Arc<str>, u16)]>, port: u16) -> Match {
        match (self, named) {
            (Self::Range(first, last), _) => (*first..=*last).contains(&port).into(),
            (Self::Named(name), Some(named)) => {
                named.iter().any(|(known, number)| known == name && *number == port).into()
            }
            (Self::Named(_), None) | (Self::Unknown, _) => Match::Unknown,
        }
    }
}
