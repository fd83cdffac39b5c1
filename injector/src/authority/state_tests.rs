//! The life of an authority in virtual time.

use super::*;
use crate::tls::Serving;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use std::collections::VecDeque;

const NAME: &str = "rdmesh-injector.rdmesh-system.svc";
const LIFETIMES: Lifetimes = Lifetimes { ca: 60_000, serving: 9_000, node: 6_000 };

/// What is stored from now on, where something is due.
fn at(stored: &Stored, now: u64) -> Option<(Stored, Step)> {
    let renewed = stored.renewed(NAME, LIFETIMES, now).unwrap();
    // As it comes back from the API server.
    renewed.map(|(stored, step)| {
        let mut secret = Secret::default();
        stored.write(&mut secret);
        let read = Stored::read(&secret).unwrap();
        assert!(read == stored);
        (read, step)
    })
}

fn is_trusted(cert: &str, bundle: &str) -> bool {
    let mut roots = rustls::RootCertStore::empty();
    for ca in CertificateDer::pem_slice_iter(bundle.as_bytes()) {
        roots.add(ca.unwrap()).unwrap();
    }
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        std::sync::Arc::new(roots),
        provider,
    )
    .build()
    .unwrap();
    let cert = CertificateDer::from_pem_slice(cert.as_bytes()).unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    use rustls::client::danger::ServerCertVerifier;
    verifier.verify_server_cert(&cert, &[], &name, &[], UnixTime::now()).is_ok()
}

#[test]
fn an_empty_secret_gets_an_authority_that_stays() {
    let empty = Stored::read(&Secret::default()).unwrap();
    let (first, step) = at(&empty, 1_000).unwrap();
    assert_eq!(step, Step::Made);
    assert!(is_trusted(&first.cert, &first.ca_cert));
    assert!(at(&first, 3_999).is_none());
    let (second, step) = at(&first, 4_000).unwrap();
    assert_eq!(step, Step::Serving);
    assert_eq!(second.ca_cert, first.ca_cert);
    assert!(second.cert != first.cert);
    assert!(second.times.generation > first.times.generation);
    let serving = Serving::default();
    assert!(serving.set(second.cert.as_bytes(), second.key.as_bytes(), "test").unwrap());
    assert!(!serving.set(second.cert.as_bytes(), second.key.as_bytes(), "test").unwrap());
    assert!(serving.set(second.cert.as_bytes(), first.key.as_bytes(), "test").is_ok());
    assert!(serving.set(first.cert.as_bytes(), second.key.as_bytes(), "test").is_err());
    assert!(serving.is_ready());
}

#[test]
fn another_name_asks_for_another_certificate() {
    let (first, _) = at(&Stored::default(), 1_000).unwrap();
    let (_, step) = first.renewed("other.rdmesh-system.svc", LIFETIMES, 1_001).unwrap().unwrap();
    assert_eq!(step, Step::Serving);
}

/// Whoever learns of the authority within one step, and whoever holds a certificate for as long as it is good, is
/// trusted by, and trusts, everybody else at any moment.
#[test]
fn the_authority_is_replaced_and_nobody_is_left_out() {
    let mut stored = Stored::default();
    let mut steps = Vec::new();
    // What was in force within the last step's length: (when, bundle) and (until, certificate).
    let mut bundles: VecDeque<(u64, String)> = VecDeque::new();
    let mut certificates: VecDeque<(u64, String)> = VecDeque::new();
    let overlap = LIFETIMES.overlap();
    for now in (1_000..160_000).step_by(500) {
        if let Some((next, step)) = at(&stored, now) {
            if step != Step::Serving {
                steps.push(step);
            }
            stored = next;
        }
        bundles.push_back((now, stored.ca_cert.clone()));
        bundles.retain(|(when, _)| *when + LIFETIMES.node > now);
        let ca = stored.ca().unwrap();
        let made = ca.issue(NAME, Duration::from_secs(3600)).unwrap().cert_pem;
        certificates.push_back((now + LIFETIMES.node, made));
        certificates.retain(|(until, _)| *until > now);
        if now % 2_000 == 0 {
            for (_, bundle) in [bundles.front().unwrap(), bundles.back().unwrap()] {
                for (_, cert) in [certificates.front().unwrap(), certificates.back().unwrap()] {
                    assert!(is_trusted(cert, bundle), "{now}");
                }
                assert!(is_trusted(&stored.cert, bundle), "{now}");
            }
        }
    }
    let round = [Step::Announced, Step::Switched, Step::Forgotten];
    let mut wanted = vec![Step::Made];
    for _ in 0..5 {
        wanted.extend(round);
    }
    assert!(steps.len() >= 10 && wanted.starts_with(&steps), "{steps:?}");
    assert!(overlap > LIFETIMES.node);
}

#[test]
fn the_old_authority_is_forgotten_in_the_end() {
    let (first, _) = at(&Stored::default(), 0).unwrap();
    let (told, step) = at(&first, 30_000).unwrap();
    assert_eq!((step, blocks(&told.ca_cert).len()), (Step::Announced, 2));
    assert!(is_trusted(&told.cert, &first.ca_cert), "the old one still signs");
    let (switched, step) = at(&told, 40_000).unwrap();
    assert_eq!((step, blocks(&switched.ca_cert).len()), (Step::Switched, 2));
    assert!(!is_trusted(&switched.cert, &first.ca_cert));
    assert!(switched.next_key.is_empty() && switched.ca_key != first.ca_key);
    let (last, step) = at(&switched, 50_000).unwrap();
    assert_eq!((step, blocks(&last.ca_cert).len()), (Step::Forgotten, 1));
    assert!(is_trusted(&last.cert, &last.ca_cert) && !is_trusted(&first.cert, &last.ca_cert));
}

#[test]
fn after_a_long_absence_all_is_made_anew() {
    let (first, _) = at(&Stored::default(), 0).unwrap();
    let (anew, step) = at(&first, 60_000).unwrap();
    assert_eq!(step, Step::Made);
    assert!(anew.ca_cert != first.ca_cert && is_trusted(&anew.cert, &anew.ca_cert));
    assert!(anew.times.generation > first.times.generation);
}

#[test]
fn an_authority_that_is_not_ours_stays() {
    let ca = Ca::generate().unwrap();
    let theirs =
        Stored { ca_cert: ca.cert_pem().into(), ca_key: ca.key_pem(), ..Stored::default() };
    let (with_serving, step) = at(&theirs, 1_000).unwrap();
    assert_eq!(step, Step::Serving);
    assert!(at(&with_serving, 3_000).is_none());
    let (later, step) = at(&with_serving, 1 << 40).unwrap();
    assert_eq!(step, Step::Serving);
    assert_eq!(later.ca_cert, theirs.ca_cert);
}

#[test]
fn a_ca_that_is_put_in_the_place_of_ours_is_taken_up() {
    let (mut stored, _) = at(&Stored::default(), 1_000).unwrap();
    let ca = Ca::generate().unwrap();
    (stored.ca_cert, stored.ca_key) = (ca.cert_pem().into(), ca.key_pem());
    let (stored, step) = at(&stored, 1_001).unwrap();
    assert_eq!(step, Step::Serving);
    assert!(is_trusted(&stored.cert, ca.cert_pem()));
}

#[test]
fn an_annotation_that_is_not_understood_is_a_fault() {
    let mut secret = Secret::default();
    Stored::default().write(&mut secret);
    secret.metadata.annotations.get_or_insert_default().insert(TIMES.into(), "{".into());
    assert!(Stored::read(&secret).is_err_and(|fault| fault.contains(TIMES)));
}

#[test]
fn half_an_authority_is_a_fault() {
    for half in [
        Stored { ca_cert: "x".into(), ..Stored::default() },
        Stored { next_key: "x".into(), ..Stored::default() },
    ] {
        let mut secret = Secret::default();
        half.write(&mut secret);
        assert!(Stored::read(&secret).is_err());
    }
    let foul = Stored { ca_cert: "x".into(), ca_key: "y".into(), ..Stored::default() };
    assert!(foul.renewed(NAME, LIFETIMES, 1).is_err());
}

#[test]
fn short_lifetimes_are_looked_at_more_often() {
    assert_eq!(LIFETIMES.look_interval(), Duration::from_secs(10));
    let short = Lifetimes { ca: 54, serving: 9, node: 9 };
    assert_eq!(short.look_interval(), Duration::from_millis(750));
    assert!(short.overlap() + short.serving.max(short.node) < short.ca / 2);
}
