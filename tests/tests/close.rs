//! How connections end: half-closes and resets arrive as what they are, in order with the data.

use rdmesh_tests::sockets::{pair_of, reset, write_until_error};
use rdmesh_tests::{End, Lab, PATIENCE, Pattern, Plan, assert_tunnelled, lab, read_end, two_pods};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

/// Every test of this file speaks of both directions and both kinds of lane: between two nodes
/// and inside one.
fn each_way(test: impl Fn(&mut TcpStream, &mut TcpStream)) {
    let labs: [Lab; 2] = [two_pods(), lab(&Plan::new().pod("a", 1).pod("b", 1))];
    for lab in &labs {
        for ipv6 in [false, true] {
            let (mut client, mut server) = pair_of(lab.pod("a"), lab.pod("b"), ipv6);
            test(&mut client, &mut server);
            let (mut client, mut server) = pair_of(lab.pod("a"), lab.pod("b"), ipv6);
            test(&mut server, &mut client);
        }
    }
    assert_tunnelled(&labs[0], 0);
}

fn take(stream: &mut TcpStream) -> TcpStream {
    stream.try_clone().expect("clone")
}

#[test]
fn half_close_while_data_flows_the_other_way() {
    let (ping, flood) = (Pattern::new(1), Pattern::new(2));
    each_way(|left, right| {
        ping.write_to(left, 100_000, 1_000).expect("write");
        left.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(ping.check_to_end(right).expect("read"), 100_000);
        // The other direction goes on for long after the FIN.
        let mut writer = take(right);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                flood.write_to(&mut writer, 8 << 20, 64 << 10).expect("write after the FIN");
                writer.shutdown(Shutdown::Write).expect("shutdown");
            });
            assert_eq!(flood.check_to_end(left).expect("read"), 8 << 20);
        });
    });
}

#[test]
fn half_close_amid_data_of_the_other_way() {
    let (up, down) = (Pattern::new(3), Pattern::new(4));
    each_way(|left, right| {
        let (mut left_writes, mut right_writes) = (take(left), take(right));
        std::thread::scope(|scope| {
            scope.spawn(move || {
                down.write_to(&mut right_writes, 16 << 20, 64 << 10).expect("write");
                right_writes.shutdown(Shutdown::Write).expect("shutdown");
            });
            scope.spawn(move || {
                up.write_to(&mut left_writes, 1 << 20, 64 << 10).expect("write");
                left_writes.shutdown(Shutdown::Write).expect("shutdown");
            });
            let reader = scope.spawn(|| up.check_to_end(right).expect("read"));
            assert_eq!(down.check_to_end(left).expect("read"), 16 << 20);
            assert_eq!(reader.join().expect("the reader"), 1 << 20);
        });
    });
}

#[test]
fn a_fin_alone_both_ways() {
    each_way(|left, right| {
        left.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(read_end(right), (vec![], End::Clean));
        right.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(read_end(left), (vec![], End::Clean));
    });
}

#[test]
fn bytes_before_a_close_always_arrive() {
    let lab = two_pods();
    let mut sum = 0;
    for round in 0..150_u64 {
        let (mut left, mut right) = pair_of(lab.pod("a"), lab.pod("b"), false);
        if round % 2 == 1 {
            std::mem::swap(&mut left, &mut right);
        }
        // When the writer is awaited first, the socket buffers must hold it all.
        let size = if round % 10 == 0 { round * 300 } else { round * round * 37 };
        let pattern = Pattern::new(round);
        let writer = std::thread::spawn(move || {
            pattern.write_to(&mut left, size, 9_000).expect("write");
            // close(), not shutdown(): the socket is gone while the bytes are still on their way.
            drop(left);
        });
        if round % 10 == 0 {
            writer.join().expect("the writer");
            assert_eq!(pattern.check_to_end(&mut right).expect("a clean end"), size);
        } else {
            assert_eq!(pattern.check_to_end(&mut right).expect("a clean end"), size);
            writer.join().expect("the writer");
        }
        sum += size;
    }
    assert_tunnelled(&lab, sum);
}

#[test]
fn a_slow_reader_gets_everything_before_the_end() {
    let pattern = Pattern::new(5);
    each_way(|left, right| {
        // Less than what socket buffers and windows hold, so that the writer is long gone.
        let mut writer = take(left);
        pattern.write_to(&mut writer, 60_000, 6_000).expect("write");
        left.shutdown(Shutdown::Write).expect("shutdown");
        let mut all = Vec::new();
        let mut chunk = [0; 1_500];
        loop {
            match right.read(&mut chunk).expect("a clean end") {
                0 => break,
                n => all.extend_from_slice(&chunk[..n]),
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(all == pattern.bytes(60_000), "the bytes differ");
    });
}

#[test]
fn close_with_unread_data_is_a_reset() {
    let lab = two_pods();
    for ipv6 in [false, true] {
        for server_closes in [true, false] {
            let (mut left, mut right) = pair_of(lab.pod("a"), lab.pod("b"), ipv6);
            if !server_closes {
                std::mem::swap(&mut left, &mut right);
            }
            left.write_all(&[1; 1_000]).expect("write");
            right.peek(&mut [0; 1]).expect("the bytes arrive");
            drop(right);
            assert_eq!(read_end(&mut left), (vec![], End::Reset));
        }
    }
}

#[test]
fn reset_before_any_data() {
    let lab = two_pods();
    for round in 0..20 {
        let (mut left, mut right) = pair_of(lab.pod("a"), lab.pod("b"), round % 4 >= 2);
        if round % 2 == 1 {
            std::mem::swap(&mut left, &mut right);
        }
        reset(left);
        assert_eq!(read_end(&mut right), (vec![], End::Reset));
    }
}

#[test]
fn reset_after_data() {
    let lab = two_pods();
    let pattern = Pattern::new(6);
    for round in 0..10 {
        let (mut left, mut right) = pair_of(lab.pod("a"), lab.pod("b"), false);
        if round % 2 == 1 {
            std::mem::swap(&mut left, &mut right);
        }
        pattern.write_to(&mut left, 200_000, 20_000).expect("write");
        pattern.check_exact(&mut right, 200_000).expect("read");
        reset(left);
        assert_eq!(read_end(&mut right), (vec![], End::Reset));
    }
}

#[test]
fn reset_amid_data() {
    let lab = two_pods();
    let pattern = Pattern::new(7);
    for round in 0..10 {
        let (mut left, mut right) = pair_of(lab.pod("a"), lab.pod("b"), false);
        if round % 2 == 1 {
            std::mem::swap(&mut left, &mut right);
        }
        let writer = std::thread::spawn(move || {
            pattern.write_to(&mut left, 3 << 20, 64 << 10).expect("write");
            reset(left);
        });
        let (got, end) = read_end(&mut right);
        writer.join().expect("the writer");
        assert_eq!(end, End::Reset, "after {} bytes", got.len());
        assert!(got.len() <= 3 << 20);
        assert!(got == pattern.bytes(got.len()), "what arrived before the reset is a prefix");
    }
}

#[test]
fn reset_towards_a_writer_that_does_not_read() {
    let lab = two_pods();
    for round in 0..4 {
        let (mut left, mut right) = pair_of(lab.pod("a"), lab.pod("b"), false);
        if round % 2 == 1 {
            std::mem::swap(&mut left, &mut right);
        }
        let start = Instant::now();
        let writer = std::thread::spawn(move || write_until_error(&mut right));
        left.read_exact(&mut [0; 100_000]).expect("read");
        reset(left);
        writer.join().expect("the writer");
        assert!(start.elapsed() < PATIENCE / 3, "the reset took {:?}", start.elapsed());
    }
}

#[test]
fn reset_after_a_half_close() {
    let lab = two_pods();
    for round in 0..4 {
        let (mut left, mut right) = pair_of(lab.pod("a"), lab.pod("b"), false);
        if round % 2 == 1 {
            std::mem::swap(&mut left, &mut right);
        }
        left.write_all(b"the last words").expect("write");
        left.shutdown(Shutdown::Write).expect("shutdown");
        assert_eq!(read_end(&mut right), (b"the last words".to_vec(), End::Clean));
        reset(left);
        write_until_error(&mut right);
    }
}

#[test]
fn a_blocked_reader_hears_of_the_reset() {
    let lab = two_pods();
    let (left, mut right) = pair_of(lab.pod("a"), lab.pod("b"), false);
    let reader = std::thread::spawn(move || (read_end(&mut right), Instant::now()));
    // The reader blocks in read(2); there is nothing to wait for that would prove it.
    std::thread::sleep(Duration::from_millis(50));
    let sent = Instant::now();
    reset(left);
    let (end, heard) = reader.join().expect("the reader");
    assert_eq!(end, (vec![], End::Reset));
    assert!(heard.duration_since(sent) < Duration::from_secs(1));
}
