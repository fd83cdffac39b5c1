//! Bytes, ends and addresses are those of a direct connection.

use super::failover::on_verbs;
use super::proof::Counts;
use crate::End;
use crate::config::Fabric;
use crate::guest::cluster::{PATIENCE, pod_ip};
use crate::guest::remote::{clean, done, reset};
use crate::guest::wire::{Call, Checked, Leave, Opened};
use crate::guest::{Cluster, Remote};
use anyhow::{Result, ensure};
use std::net::SocketAddr;

const STEP: usize = 64 << 10;

/// `up` and `down` bytes at once in writes of `step` bytes, each way to a clean end.
pub(super) fn exchange(
    near: &Remote<'_>,
    far: &Remote<'_>,
    up: u64,
    down: u64,
    step: usize,
) -> Result<()> {
    let (seed_up, seed_down) = (up ^ 0x5EED, down ^ 0xBEEF);
    let writes = [
        near.start_write(seed_up, up, step, Leave::Shutdown)?,
        far.start_write(seed_down, down, step, Leave::Shutdown)?,
    ];
    let (at_far, at_near) = (far.start_check(seed_up)?, near.start_check(seed_down)?);
    clean(at_near, down)?;
    clean(at_far, up)?;
    writes.into_iter().try_for_each(done)
}

pub fn payloads(cluster: &mut Cluster) -> Result<Option<String>> {
    for size in [0, 1, 1_447, 4_095, 4_096, 65_535, 65_536, 65_537, 1 << 20] {
        for (up, down) in [(size, size), (size, 0), (0, size)] {
            let (near, far) = cluster.pair()?;
            exchange(&near, &far, up, down, STEP)?;
        }
    }
    Ok(None)
}

pub fn payloads_of_ipv6_pods(cluster: &mut Cluster) -> Result<Option<String>> {
    for size in [0, 1, 65_536, 1 << 20] {
        let (near, far) = cluster.pair_of((1, "a"), (2, "b"), true)?;
        exchange(&near, &far, size, size, STEP)?;
        let (near, far) = cluster.pair_of((2, "b"), (1, "a"), true)?;
        exchange(&near, &far, size, size, STEP)?;
    }
    Ok(None)
}

/// While there is RDMA: over it by default, not for pods that want `tcp`, and for those that want
/// nothing else.
pub fn wishes(cluster: &mut Cluster) -> Result<Option<String>> {
    const BYTES: u64 = 256 << 10;
    on_verbs(cluster)?;
    for fabric in [Fabric::Tcp, Fabric::Verbs, Fabric::Auto] {
        cluster.wish(fabric)?;
        let before = Counts::read(cluster)?;
        let (near, far) = cluster.pair()?;
        exchange(&near, &far, BYTES, BYTES, STEP)?;
        let now = Counts::read(cluster)?;
        let verbs = now.verbs_bytes - before.verbs_bytes;
        let other = now.other_bytes - before.other_bytes;
        let as_wanted = if fabric == Fabric::Tcp {
            verbs == 0.0 && other > 0.0
        } else {
            verbs > 0.0 && other == 0.0
        };
        ensure!(as_wanted, "{fabric:?}: {verbs} bytes on verbs, {other} on others");
        ensure!(now.passed_through == before.passed_through, "{fabric:?}: it passed through");
    }
    // Those that follow want every lane on verbs.
    cluster.spoil();
    Ok(None)
}

pub fn writes_of_one_byte(cluster: &mut Cluster) -> Result<Option<String>> {
    let (near, far) = cluster.pair()?;
    exchange(&near, &far, 3_000, 3_000, 1)?;
    Ok(None)
}

pub fn bulk(cluster: &mut Cluster) -> Result<Option<String>> {
    let (near, far) = cluster.pair()?;
    exchange(&near, &far, 64 << 20, 64 << 20, 256 << 10)?;
    Ok(None)
}

/// Connections in both directions, as (opener, accepter) and the other way round.
fn each_way(
    cluster: &Cluster,
    test: impl Fn(&Remote<'_>, &Remote<'_>) -> Result<()>,
) -> Result<()> {
    let (near, far) = cluster.pair()?;
    test(&near, &far)?;
    let (near, far) = cluster.pair()?;
    test(&far, &near)
}

pub fn half_close(cluster: &mut Cluster) -> Result<Option<String>> {
    each_way(cluster, |left, right| {
        left.write(1, 100_000, Leave::Shutdown)?;
        right.check(1, 100_000)?;
        // The other direction goes on for long after the FIN.
        let flood = right.start_write(2, 4 << 20, STEP, Leave::Shutdown)?;
        left.check(2, 4 << 20)?;
        done(flood)
    })?;
    each_way(cluster, |left, right| {
        left.leave(Leave::Shutdown)?;
        right.check(0, 0)?;
        right.leave(Leave::Shutdown)?;
        left.check(0, 0)
    })?;
    Ok(None)
}

pub fn bytes_before_a_close(cluster: &mut Cluster) -> Result<Option<String>> {
    for round in 0..12_u64 {
        each_way(cluster, |left, right| {
            let size = round * round * 2_003;
            let write = left.start_write(round, size, 9_000, Leave::Close)?;
            right.check(round, size)?;
            done(write)
        })?;
    }
    Ok(None)
}

pub fn resets(cluster: &mut Cluster) -> Result<Option<String>> {
    for _ in 0..3 {
        each_way(cluster, |left, right| {
            left.leave(Leave::Reset)?;
            let bytes = reset(right.start_check(0)?)?;
            ensure!(bytes == 0, "{bytes} bytes before the reset, none was sent");
            Ok(())
        })?;
        each_way(cluster, |left, right| {
            left.says_to(right, 6, 200_000)?;
            left.leave(Leave::Reset)?;
            reset(right.start_check(0)?).map(drop)
        })?;
        each_way(cluster, |left, right| {
            let write = left.start_write(7, 3 << 20, STEP, Leave::Reset)?;
            // What arrives is a prefix: the check compares it.
            let bytes = reset(right.start_check(7)?)?;
            ensure!(bytes <= 3 << 20, "{bytes} bytes arrived");
            done(write)
        })?;
    }
    Ok(None)
}

pub fn reset_reaches_a_writer(cluster: &mut Cluster) -> Result<Option<String>> {
    each_way(cluster, |left, right| {
        // Else the reset may come before anything has gone over the lane.
        left.says_to(right, 5, 1_000)?;
        let writer = right.start_write_until_error()?;
        left.leave(Leave::Reset)?;
        writer.wait::<String>(PATIENCE).map(drop)
    })?;
    Ok(None)
}

pub fn addresses(cluster: &mut Cluster) -> Result<Option<String>> {
    for (client, server) in [((1, "a"), (2, "b")), ((2, "b"), (1, "a"))] {
        for ipv6 in [false, true] {
            let (near, far) = cluster.pair_of(client, server, ipv6)?;
            let (near, far) = (near.opened, far.opened);
            ensure!(near.local.ip() == pod_ip(client.0, ipv6), "the client's own: {near:?}");
            ensure!(far.from == near.local, "accept gave {}, not {}", far.from, near.local);
            ensure!(far.peer == near.local, "getpeername gave {}, not {}", far.peer, near.local);
            ensure!(far.local == near.peer, "getsockname gave {}, not {}", far.local, near.peer);
        }
    }
    let (here, there) = (cluster.machine(1), cluster.machine(2));
    let listener: Opened = there.call(Call::Listen { pod: "b".into() }, PATIENCE)?;
    let to = SocketAddr::new(pod_ip(2, false), listener.local.port());
    let from = SocketAddr::new(pod_ip(1, false), 40_123);
    let accept = there.start_call(Call::Accept { listener: listener.stream })?;
    let dial = Call::Dial { pod: "a".into(), from: Some(from), to };
    let near = Remote::new(here, here.call(dial, PATIENCE)?);
    let far = Remote::new(there, accept.wait(PATIENCE)?);
    ensure!(far.opened.from == from, "a chosen port: {} came as {}", from, far.opened.from);
    near.says_to(&far, 1, 10)?;
    Ok(None)
}

pub fn server_first(cluster: &mut Cluster) -> Result<Option<String>> {
    for ipv6 in [false, true] {
        for (client, server) in [((1, "a"), (2, "b")), ((2, "b"), (1, "a"))] {
            let (near, far) = cluster.pair_of(client, server, ipv6)?;
            far.says_to(&near, 1, 24)?;
            near.says_to(&far, 2, 6)?;
            far.says_to(&near, 3, 6)?;
        }
    }
    Ok(None)
}

pub fn closed_port(cluster: &mut Cluster) -> Result<Option<String>> {
    let here = cluster.machine(1);
    for ipv6 in [false, true] {
        let to = SocketAddr::new(pod_ip(2, ipv6), 9);
        // Behind a capture the connect itself succeeds before anything is known.
        let dial = Call::Dial { pod: "a".into(), from: None, to };
        if let Ok(opened) = here.call::<Opened>(dial, PATIENCE) {
            let stream = Remote::new(here, opened);
            let found: Checked = stream.start_check(0)?.wait(PATIENCE)?;
            ensure!(found == Checked { bytes: 0, end: End::Reset }, "port 9: {found:?}");
        }
    }
    // Something went over the lane, or there is nothing to prove.
    let (near, far) = cluster.pair()?;
    near.says_to(&far, 1, 1)?;
    Ok(None)
}
