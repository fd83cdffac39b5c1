//! Real programs, unmodified, through the mesh: no error, and nothing passes by.

use rdmesh_proxy::demo::workload::{
    self, HTTP_PORT, IPERF_PORT, REDIS_PORT, SOCKPERF_PORT, Target, program,
};
use rdmesh_tests::process::Finished;
use rdmesh_tests::suite::servers;
use rdmesh_tests::{Lab, PATIENCE, Pattern, assert_tunnelled, two_pods};
use std::fs;
use std::process::Command;
use std::time::Duration;

const TIME: Duration = Duration::from_secs(2);

fn at(lab: &Lab, port: u16) -> Target {
    Target { ip: lab.pod("b").v4.into(), port }
}

/// Runs a client program in pod a.
fn client(lab: &Lab, command: &mut Command) -> Finished {
    lab.run(&lab.pod("a").netns, command, PATIENCE * 2).unwrap_or_else(|e| panic!("{e:#}"))
}

#[test]
fn iperf3_in_all_directions() {
    let lab = two_pods();
    let _server = workload::iperf_server(&lab, lab.pod("b")).expect("iperf3");
    let from = &lab.pod("a").netns;
    let mut sum = 0.0;
    for (streams, more) in
        [(1, &[][..]), (8, &[]), (1, &["-R"]), (8, &["-R"]), (1, &["--bidir"]), (4, &["--bidir"])]
    {
        let bulk = workload::iperf(&lab, from, at(&lab, IPERF_PORT), streams, TIME, more);
        let bulk = bulk.unwrap_or_else(|e| panic!("{streams} streams {more:?}: {e:#}"));
        assert!(bulk.bytes > 1e6, "{streams} streams {more:?}: only {} bytes", bulk.bytes);
        eprintln!("{streams} streams {more:?}: {:.1} Gbit/s", bulk.gbit_per_second);
        sum += bulk.bytes;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
    assert_tunnelled(&lab, sum as u64);
}

#[test]
fn iperf3_over_ipv6() {
    let lab = two_pods();
    let _server = workload::iperf_server(&lab, lab.pod("b")).expect("iperf3");
    let to = Target { ip: lab.pod("b").v6.into(), port: IPERF_PORT };
    workload::iperf(&lab, &lab.pod("a").netns, to, 2, TIME, &["--bidir"]).expect("iperf3 -6");
    assert_tunnelled(&lab, 1 << 20);
}

#[test]
fn sockperf_ping_pong_of_all_sizes() {
    let lab = two_pods();
    let _server = workload::sockperf_server(&lab, lab.pod("b")).expect("sockperf");
    let from = &lab.pod("a").netns;
    for bytes in [14, 64, 1_447, 16_384, 65_507, workload::SOCKPERF_BYTES_MAX] {
        let second = Duration::from_secs(1);
        let ping = workload::sockperf(&lab, from, at(&lab, SOCKPERF_PORT), bytes, second);
        let ping = ping.unwrap_or_else(|e| panic!("{bytes} bytes: {e:#}"));
        eprintln!("{bytes} bytes: {} µs", ping.p50_us);
        assert!(ping.messages > 10.0, "{bytes} bytes: {} messages", ping.messages);
    }
    assert_tunnelled(&lab, 1 << 20);
}

#[test]
fn sockperf_throughput() {
    let lab = two_pods();
    let _server = workload::sockperf_server(&lab, lab.pod("b")).expect("sockperf");
    for bytes in ["14", "1447", "65507"] {
        let mut command = Command::new("sockperf");
        command.args(["throughput", "--tcp", "-i", &lab.pod("b").v4.to_string()]);
        command.args(["-p", &SOCKPERF_PORT.to_string(), "-t", "1", "--msg-size", bytes]);
        client(&lab, &mut command);
    }
    assert_tunnelled(&lab, 1 << 20);
}

#[test]
fn wrk_and_nginx() {
    let lab = two_pods();
    let _server = workload::nginx(&lab, lab.pod("b"), 1 << 20).expect("nginx");
    for keep_alive in [true, false] {
        let rate = workload::wrk(&lab, &lab.pod("a").netns, at(&lab, HTTP_PORT), keep_alive, TIME);
        let rate = rate.unwrap_or_else(|e| panic!("keep-alive {keep_alive}: {e:#}"));
        eprintln!("keep-alive {keep_alive}: {rate:.0} requests a second");
        assert!(rate > 50.0);
    }
    assert_tunnelled(&lab, 100 << 10);
}

#[test]
fn curl_of_a_large_file() {
    let lab = two_pods();
    let b = lab.pod("b");
    let (pattern, size) = (Pattern::new(31), 300 << 20);
    let _server = workload::nginx(&lab, b, 1).expect("nginx");
    let served = lab.dir().join("nginx-b/www/data");
    let mut file = fs::File::create(served).expect("create the file");
    pattern.write_to(&mut file, size, 1 << 20).expect("write the file");
    for host in [b.v4.to_string(), format!("[{}]", b.v6)] {
        let got = lab.dir().join("got");
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail", "-g", "-o"]).arg(&got);
        command.arg(format!("http://{host}:{HTTP_PORT}/data"));
        client(&lab, &mut command);
        let mut file = fs::File::open(got).expect("open what was fetched");
        assert_eq!(pattern.check_to_end(&mut file).expect("read"), size);
    }
    assert_tunnelled(&lab, 2 * size);
}

#[test]
fn curl_uploads() {
    let lab = two_pods();
    let b = lab.pod("b");
    let dir = lab.dir().join("nginx-b/www/put");
    let server = workload::nginx(&lab, b, 1).expect("nginx");
    drop(server);
    fs::create_dir_all(&dir).expect("create the upload directory");
    // The same nginx, now with WebDAV's PUT.
    let conf = lab.dir().join("nginx-b/nginx.conf");
    let text = fs::read_to_string(&conf).expect("read nginx's config");
    let text = text.replace(
        "default_type",
        "location /put/ { dav_methods PUT; client_max_body_size 1g; } default_type",
    );
    fs::write(&conf, text).expect("write nginx's config");
    let mut command = Command::new(program("nginx"));
    command.arg("-e").arg(lab.dir().join("e.log")).arg("-c").arg(&conf);
    let mut server = lab.spawn(&b.netns, "nginx-put", command).expect("nginx");
    server.wait_listening(&b.netns, HTTP_PORT, PATIENCE).expect("nginx listens");
    let (pattern, size) = (Pattern::new(32), 100 << 20);
    let source = lab.dir().join("source");
    let mut file = fs::File::create(&source).expect("create the file");
    pattern.write_to(&mut file, size, 1 << 20).expect("write the file");
    let mut command = Command::new("curl");
    command.args(["-sS", "--fail", "-T"]).arg(&source);
    command.arg(format!("http://{}:{HTTP_PORT}/put/data", b.v4));
    client(&lab, &mut command);
    let mut file = fs::File::open(dir.join("data")).expect("open what arrived");
    assert_eq!(pattern.check_to_end(&mut file).expect("read"), size);
    assert_tunnelled(&lab, size);
}

#[test]
fn redis_benchmark() {
    let lab = two_pods();
    let _server = workload::redis_server(&lab, lab.pod("b")).expect("redis");
    let ip = lab.pod("b").v4.to_string();
    // Each LRANGE_100 of the large ones brings ten megabytes.
    for (size, pipeline, requests) in
        [("3", "1", "10000"), ("100000", "1", "100"), ("64", "16", "20000")]
    {
        let mut command = Command::new("redis-benchmark");
        command.args(["-h", &ip, "-p", &REDIS_PORT.to_string(), "-t", "set,get,lpush,lrange_100"]);
        command.args(["-n", requests, "-d", size, "-P", pipeline, "-c", "20", "--csv"]);
        let finished = client(&lab, &mut command);
        assert!(finished.stdout.contains("\"GET\""), "{}", finished.stdout);
        assert!(!finished.stderr.contains("rror"), "{}", finished.stderr);
    }
    assert_tunnelled(&lab, 1 << 20);
}

#[test]
fn pgbench() {
    let lab = two_pods();
    let _server = servers::postgres(&lab, lab.pod("b")).expect("postgres");
    let ip = lab.pod("b").v4.to_string();
    let pg = |program: &str, arguments: &[&str]| {
        let mut command = Command::new(program);
        command.args(["-h", &ip, "-U", "postgres"]).args(arguments);
        command.env("PGCONNECT_TIMEOUT", "10");
        client(&lab, &mut command)
    };
    pg("pgbench", &["-i", "-s", "1", "-q", "postgres"]);
    // Prepared, simple and reconnecting for every transaction.
    for more in [&["-M", "prepared"][..], &["-S"], &["-S", "-C"]] {
        let mut arguments = vec!["-c", "8", "-j", "2", "-T", "2"];
        arguments.extend_from_slice(more);
        arguments.push("postgres");
        let finished = pg("pgbench", &arguments);
        assert!(
            finished.stdout.contains("number of failed transactions: 0"),
            "{more:?}: {}{}",
            finished.stdout,
            finished.stderr
        );
    }
    // The server sees where its clients are.
    let from = pg("psql", &["-At", "-c", "select host(inet_client_addr())", "postgres"]);
    assert_eq!(from.stdout.trim(), lab.pod("a").v4.to_string());
    assert_tunnelled(&lab, 100_000);
}

#[test]
fn ssh_sessions() {
    let lab = two_pods();
    let b = lab.pod("b");
    let dir = lab.dir().join("ssh");
    fs::create_dir(&dir).expect("create a directory");
    let key = |name: &str| {
        let path = dir.join(name);
        let mut command = Command::new("ssh-keygen");
        command.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&path);
        lab.run(&b.netns, &mut command, PATIENCE).expect("ssh-keygen");
        path
    };
    let (host_key, user_key) = (key("host"), key("user"));
    let config = format!(
        "Port 2222\nHostKey {}\nAuthorizedKeysFile {}.pub\nPidFile none\nStrictModes no\n\
         UsePAM no\nPermitRootLogin yes\nPasswordAuthentication no\n",
        host_key.display(),
        user_key.display()
    );
    fs::write(dir.join("sshd_config"), config).expect("write sshd's config");
    // sshd wants a directory that Debian's service makes. Here it is its own: one in /run would be
    // taken away from the sshd of another run of this test.
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "mount -t tmpfs none /run && mkdir /run/sshd && exec \"$@\"",
            "sh",
        ])
        .arg(program("sshd"))
        .args(["-D", "-e", "-f"])
        .arg(dir.join("sshd_config"));
    let mut server = lab.spawn(&b.netns, "sshd", command).expect("sshd");
    server.wait_listening(&b.netns, 2222, PATIENCE).expect("sshd listens");
    let ssh = |more: &[&str], script: &str| {
        let mut command = Command::new("ssh");
        command.arg("-i").arg(&user_key).args(["-F", "none", "-p", "2222"]);
        command.args(["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]);
        command.args(["-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-o", "ConnectTimeout=20"]);
        command.args(more).arg(format!("root@{}", b.v4)).arg(script);
        client(&lab, &mut command).stdout
    };
    assert_eq!(ssh(&[], "echo $((6 * 7))"), "42\n");
    // A terminal: small writes both ways.
    let typed = ssh(&["-tt"], "for i in 1 2 3 4 5; do echo line $i; sleep 0.05; done");
    assert_eq!(typed.lines().count(), 5, "{typed:?}");
    let bulk = ssh(&[], "head -c 20000000 /dev/zero | tr '\\0' x");
    assert_eq!(bulk.len(), 20_000_000);
    let seen = ssh(&[], "echo ${SSH_CONNECTION%% *}");
    assert_eq!(seen.trim(), lab.pod("a").v4.to_string());
    assert_tunnelled(&lab, 20_000_000);
}
