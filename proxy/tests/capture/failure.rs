//! Whatever fails, the namespace is as it was, and the message says what to do.

use crate::lab::*;
use rdmesh_config::Capture;
use rdmesh_proxy::capture::{self, CaptureError, Method};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// So that no two of the excluded addresses make one network.
fn without_every_other(halves: RangeInclusive<u32>) -> Capture {
    let excluded = halves.map(|n| format!("{}/32", Ipv4Addr::from(n * 2)).parse().unwrap());
    Capture { exclude_outbound_cidrs: excluded.collect(), ..Capture::default() }
}

#[test]
fn without_the_capability_the_message_names_it() {
    let pod = Netns::new();
    let before = pod.state();
    let errors = pod.run(|| {
        // Of this thread alone, which ends here.
        let mut sets = capabilities(None).unwrap();
        sets.effective.remove(CapabilitySet::NET_ADMIN);
        set_capabilities(None, sets).unwrap();
        [
            capture::apply(&Capture::default(), 15701).map(drop).unwrap_err(),
            capture::cleanup().unwrap_err(),
        ]
    });
    for error in errors {
        assert!(matches!(error, CaptureError::NotPermitted { .. }), "{error:?}");
        assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}");
    }
    assert_eq!(pod.state(), before);
}

#[test]
fn a_loopback_that_is_down_is_said() {
    let pod = Netns::bare();
    let before = pod.state();
    let error = pod.run(|| capture::apply(&Capture::default(), 15701)).unwrap_err();
    assert!(matches!(error, CaptureError::LoopbackDown), "{error:?}");
    assert_eq!(pod.state(), before);
}

#[test]
fn rules_that_do_not_fit_take_the_routes_back() {
    let pod = Netns::new();
    let before = pod.state();
    let too_many = without_every_other(1..=300_000);
    let fail = || {
        let error = pod.run(|| capture::apply(&too_many, 15701)).unwrap_err();
        assert!(matches!(error, CaptureError::TooLarge { .. }), "{error:?}");
    };
    fail();
    assert_eq!(pod.state(), before, "in a fresh namespace");

    pod.run(|| capture::apply(&Capture::default(), 15701)).unwrap();
    let set_up = pod.state();
    fail();
    assert_eq!(pod.state(), set_up, "what an earlier run set up stays");
}

#[test]
fn a_wrong_setting_changes_nothing() {
    let pod = Netns::new();
    let before = pod.state();
    let wrong = Capture { route_table: 254, ..Capture::default() };
    let error = pod.run(|| capture::apply(&wrong, 15701)).unwrap_err();
    assert!(error.to_string().starts_with("capture.route_table = 254"), "{error}");
    assert_eq!(pod.state(), before);
}

#[test]
fn too_many_routes_are_no_reason_to_fail() {
    let world = World::routing();
    let pod = &world.pod;
    let many = without_every_other(1 << 24..=(1 << 24) + 11_000);
    let applied = pod.run(|| capture::apply(&many, 15701)).unwrap();
    assert_eq!(applied.method, Method::Redirect);
    assert!(!pod.state().contains("ipproto"), "and nothing is left of the attempt");
}
