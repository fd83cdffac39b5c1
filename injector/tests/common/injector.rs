//! The running program, with a serving certificate from files.

use super::client::NAME;
use rdmesh_proxy::trust::Ca;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

pub const SOON: Duration = Duration::from_secs(20);

pub struct Injector {
    pub child: Child,
    pub dir: PathBuf,
    pub listen: SocketAddr,
    pub admin: SocketAddr,
}

impl Drop for Injector {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

pub fn write_certificate(ca: &Ca, dir: &Path) {
    let made = ca.issue(NAME, Duration::from_secs(86_400)).unwrap();
    std::fs::write(dir.join("tls.key"), made.key_pem).unwrap();
    std::fs::write(dir.join("tls.crt"), made.cert_pem).unwrap();
}

pub async fn start(ca: &Ca, name: &str) -> Injector {
    let dir = std::env::temp_dir().join(format!("rdmesh-injector-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    write_certificate(ca, &dir);
    let (listen, admin) = (free(), free());
    let shown = dir.display();
    let config = format!(
        "log: {{level: warn}}\ninjector: {{listen: \"{listen}\", admin: \"{admin}\", cert: {shown}/tls.crt, \
         key: {shown}/tls.key, image: example.org/rdmesh:test}}\n"
    );
    std::fs::write(dir.join("config.yaml"), config).unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_rdmesh-injector"))
        .args(["serve", "--config"])
        .arg(dir.join("config.yaml"))
        .spawn()
        .unwrap();
    let injector = Injector { child, dir, listen, admin };
    let start = Instant::now();
    while rdmesh_proxy::admin::get(admin, "/readyz", SOON).await.is_err() {
        assert!(start.elapsed() < SOON, "not ready");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    injector
}

pub async fn metric(admin: SocketAddr, series: &str) -> f64 {
    let text = rdmesh_proxy::admin::get(admin, "/metrics", SOON).await.unwrap();
    let text = String::from_utf8(text).unwrap();
    let line =
        text.lines().find_map(|line| line.strip_prefix(series)).unwrap_or_else(|| panic!("{text}"));
    line.trim().parse().unwrap()
}
