//! Idempotence, change of config, clean-up.

use crate::lab::*;
use futures_util::StreamExt;
use rdmesh_config::Capture;
use rdmesh_proxy::capture::{self, Applied};
use rtnetlink::packet_route::link::LinkAttribute;

fn full_config() -> Capture {
    Capture {
        include_outbound_cidrs: ["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().unwrap()).to_vec(),
        exclude_outbound_cidrs: ["10.9.0.0/16", "10.9.1.0/24", "fd00:9::/32", "240.0.0.0/4"]
            .map(|net| net.parse().unwrap())
            .to_vec(),
        include_outbound_ports: vec![80, 443],
        exclude_outbound_ports: vec![22],
        ..Capture::default()
    }
}

/// A world where others have rules, routes and a table as well.
fn shared_worlds() -> [World; 2] {
    World::both().map(|world| {
        world.pod.run(others);
        world
    })
}

fn others() {
    sh("ip rule add fwmark 5 lookup 157 priority 157");
    sh("ip -6 rule add fwmark 5 lookup 157 priority 157");
    sh("ip route add 203.0.113.0/24 via 10.77.0.1 table 157");
    sh("nft add table inet other");
    sh("nft add table ip rdmesh");
}

#[test]
fn a_person_can_read_the_table() {
    let pod = Netns::new();
    pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
    let table = pod.run(|| sh("nft --stateless list table inet rdmesh"));
    assert_eq!(table, include_str!("table.nft"));
}

#[test]
fn a_person_can_read_the_table_and_the_routing_where_capture_routes() {
    let world = World::routing();
    let pod = &world.pod;
    pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
    let text = pod.run(|| {
        [
            "nft --stateless list chain inet rdmesh output",
            "nft --stateless list chain inet rdmesh divert",
            "ip -4 rule",
            "ip -6 rule",
            "ip -4 route show table 158",
            "ip -6 route show table 158",
        ]
        .map(|line| format!("# {line}\n{}", sh(line)))
        .concat()
    });
    let trimmed: String = text.lines().flat_map(|line| [line.trim_end(), "\n"]).collect();
    assert_eq!(trimmed, include_str!("routing.txt"), "{trimmed}");
}

#[test]
fn running_twice_leaves_the_same_state() {
    for World { pod, .. } in shared_worlds() {
        pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
        let once = pod.state();
        pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
        assert_eq!(pod.state(), once);
    }
}

#[test]
fn two_at_once_do_not_disturb_each_other() {
    for World { pod, .. } in World::both() {
        let before = pod.state();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| pod.run(|| capture::apply(&full_config(), 15701)).unwrap());
            }
        });
        let after = pod.state();
        pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
        assert_eq!(pod.state(), after);
        pod.run(capture::cleanup).unwrap();
        assert_eq!(pod.state(), before);
    }
}

#[test]
fn cleanup_restores_the_namespace_and_can_be_repeated() {
    for World { pod, .. } in shared_worlds() {
        let before = pod.state();
        pod.run(capture::cleanup).unwrap();
        assert_eq!(pod.state(), before, "nothing to clean up");
        pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
        assert_ne!(pod.state(), before);
        for _ in 0..2 {
            pod.run(capture::cleanup).unwrap();
            assert_eq!(pod.state(), before);
        }
    }
}

#[test]
fn loopback_takes_larger_packets_unless_another_program_has_set_their_size() {
    let pod = Netns::new();
    let before = pod.run(gso_sizes);
    pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
    assert_eq!(pod.run(gso_sizes), [256 << 10; 2]);
    pod.run(capture::cleanup).unwrap();
    assert_eq!(pod.run(gso_sizes), before);
    pod.run(|| sh("ip link set lo gso_max_size 50000"));
    let others = pod.run(gso_sizes);
    pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
    assert_eq!(pod.run(gso_sizes)[0], others[0]);
    pod.run(capture::cleanup).unwrap();
    assert_eq!(pod.run(gso_sizes), others);
}

/// For IPv6 and for IPv4, which Debian's `ip` does not show.
fn gso_sizes() -> [u32; 2] {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let attributes = runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        tokio::spawn(connection);
        let link = handle.link().get().match_index(1).execute().next().await;
        link.unwrap().unwrap().attributes
    });
    let size = |of: fn(&LinkAttribute) -> Option<u32>| attributes.iter().find_map(of).unwrap();
    [
        size(|a| if let LinkAttribute::GsoMaxSize(size) = a { Some(*size) } else { None }),
        size(|a| if let LinkAttribute::GsoIpv4MaxSize(size) = a { Some(*size) } else { None }),
    ]
}

#[test]
fn a_changed_config_leaves_nothing_of_the_old_one() {
    let old = Capture { mark: 0x51, route_table: 1_000_157, rule_priority: 90, ..full_config() };
    let changed = Capture { mark: 0x52, ..Capture::default() };
    for (World { pod, .. }, fresh) in std::iter::zip(World::both(), World::both()) {
        let before = pod.state();
        pod.run(|| capture::apply(&old, 15701)).unwrap();
        pod.run(|| capture::apply(&changed, 15702)).unwrap();
        fresh.pod.run(|| capture::apply(&changed, 15702)).unwrap();
        assert_eq!(pod.state(), fresh.pod.state());
        pod.run(capture::cleanup).unwrap();
        assert_eq!(pod.state(), before);
    }
}

/// A pod that gets the sysctls, or loses them.
#[test]
fn a_changed_method_leaves_nothing_of_the_old_one() {
    let [redirected, routed] = World::both();
    let run = || {
        [&redirected, &routed].map(|World { pod, .. }| {
            pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
            pod.state()
        })
    };
    let [with_redirect, with_routes] = run();
    redirected.pod.allow_routing("1");
    routed.pod.allow_routing("0");
    assert!(run() == [with_routes, with_redirect]);
}

#[test]
fn a_namespace_without_ipv6_gets_ipv4() {
    for world in World::both() {
        world.pod.run(|| write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1"));
        let before = world.pod.state();
        let applied = world.pod.run(|| capture::apply(&full_config(), 15701)).unwrap();
        assert_eq!(applied, Applied { ipv6: false, method: world.method });
        let sidecar = world.sidecar();
        let to = address("10.42.1.5", 80);
        let _client = Client::default().connect(&world.pod, to).unwrap();
        assert_eq!(original_destination(&accept(&sidecar).unwrap()), to);
        world.pod.run(capture::cleanup).unwrap();
        assert_eq!(world.pod.state(), before);
    }
}
