//! The servers of all jobs, in the server's pod.

use super::jobs::FILES;
use crate::process::Process;
use crate::{Lab, PATIENCE, Pod};
use anyhow::{Context, Result};
use rdmesh_proxy::demo::workload;
use std::fs;
use std::os::unix::fs::chown;
use std::process::Command;

pub const POSTGRES_PORT: u16 = 5432;

pub fn start(lab: &Lab, pod: &Pod) -> Result<Vec<Process>> {
    let nginx = workload::nginx(lab, pod, 1 << 10)?;
    let root = lab.dir().join(format!("nginx-{}", pod.name)).join("www");
    for bytes in FILES {
        fs::write(root.join(file(bytes)), vec![b'x'; bytes as usize]).context("nginx's files")?;
    }
    let postgres = postgres(lab, pod)?;
    let mut fill = Command::new("pgbench");
    fill.args(["-h", "127.0.0.1", "-U", "postgres", "-i", "-s", "1", "-q", "postgres"]);
    lab.run(&pod.netns, &mut fill, PATIENCE).context("fill the database")?;
    Ok(vec![
        workload::iperf_server(lab, pod)?,
        workload::sockperf_server(lab, pod)?,
        nginx,
        workload::redis_server(lab, pod)?,
        postgres,
    ])
}

pub fn file(bytes: u32) -> String {
    format!("f{bytes}")
}

/// A PostgreSQL of its own that lets everybody in; as its own user, for it refuses to run as root.
///
/// # Errors
/// When it is not installed or does not come up.
pub fn postgres(lab: &Lab, pod: &Pod) -> Result<Process> {
    let dir = lab.dir().join(format!("postgres-{}", pod.name));
    fs::create_dir(&dir).context("create the database directory")?;
    let passwd = fs::read_to_string("/etc/passwd").context("read /etc/passwd")?;
    let user = passwd.lines().find_map(|line| line.strip_prefix("postgres:"));
    let mut ids = user.context("no user postgres (package postgresql)")?.split(':').skip(1);
    let mut id = || ids.next().and_then(|id| id.parse::<u32>().ok()).context("an id");
    let (uid, gid) = (id()?, id()?);
    chown(&dir, Some(uid), Some(gid)).context("give the directory to postgres")?;
    let as_postgres = |program: &str| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", &uid.to_string(), "--regid", &gid.to_string()]);
        command.args(["--clear-groups", "--"]).arg(pg_program(program));
        command.current_dir(&dir);
        command
    };
    let data = dir.join("data");
    let mut init = as_postgres("initdb");
    init.args(["-A", "trust", "-N", "-E", "UTF8", "--locale", "C", "-D"]).arg(&data);
    lab.run(&pod.netns, &mut init, PATIENCE * 2).context("initdb")?;
    let hba = data.join("pg_hba.conf");
    let rules = fs::read_to_string(&hba).context("read pg_hba.conf")?;
    fs::write(&hba, rules + "\nhost all all all trust\n").context("write pg_hba.conf")?;
    let mut command = as_postgres("postgres");
    command.arg("-D").arg(&data).arg("-k").arg(&dir);
    command.args(["-c", "listen_addresses=*", "-c", "fsync=off", "-c", "max_connections=50"]);
    let mut process = lab.spawn(&pod.netns, "postgres", command)?;
    process.wait_listening(&pod.netns, POSTGRES_PORT, PATIENCE)?;
    let ready = || {
        let mut command = Command::new("pg_isready");
        command.args(["-q", "-h", "127.0.0.1"]);
        lab.run(&pod.netns, &mut command, PATIENCE).is_ok()
    };
    process.wait_until(PATIENCE, "accept clients", ready)?;
    Ok(process)
}

/// Debian keeps the server's programs in a directory of their version.
fn pg_program(name: &str) -> String {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let found = versions.map(|version| version.path().join("bin").join(name));
    let found = found.filter(|path| path.is_file()).max();
    found.map_or_else(|| name.to_owned(), |path| path.display().to_string())
}
