//! Traffic of a pod for `make e2e-kube`: `e2e_pod ADDRESS [INTERVAL_MS]`.
//!
//! Towards an echo server it makes a connection every so often, sends, and reads the echo; every tenth waits half
//! a second in between. Beside that it keeps one long connection busy. It prints a line of JSON each second and
//! whenever new connections begin or cease to work. It ends when nobody reads its output any more.
#![forbid(unsafe_code)]

use anyhow::{Context, Result, bail};
use rdmesh_tests::kube::traffic::Counts;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

const TIMEOUT: Duration = Duration::from_secs(5);
const TELL_INTERVAL: Duration = Duration::from_secs(1);
const SLOW_EVERY: u64 = 10;
const SLOW: Duration = Duration::from_millis(500);
const LONG_INTERVAL: Duration = Duration::from_millis(20);
/// The long connection is made when the sidecar has had time to find its node proxy.
const LONG_AFTER: Duration = Duration::from_secs(3);
const SHORT_BYTES: usize = 4 << 10;

type Shared = Arc<Mutex<Counts>>;

fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let usage = "usage: e2e_pod ADDRESS [INTERVAL_MS]";
    let address: SocketAddr = arguments.next().context(usage)?.parse().context(usage)?;
    let interval = arguments.next().map_or(Ok(20), |text| text.parse()).context(usage)?;
    let interval = Duration::from_millis(interval);
    let shared = Shared::default();
    let long = Arc::clone(&shared);
    std::thread::spawn(move || keep_long(address, &long));
    let mut told = Instant::now();
    for number in 0_u64.. {
        let begun = Instant::now();
        if number % SLOW_EVERY == 0 {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || {
                let result = short(address, SLOW);
                note(&shared, result)
            });
        } else {
            let result = short(address, Duration::ZERO);
            note(&shared, result)?;
        }
        if told.elapsed() >= TELL_INTERVAL {
            told = Instant::now();
            tell(&lock(&shared))?;
        }
        std::thread::sleep(interval.saturating_sub(begun.elapsed()));
    }
    Ok(())
}

fn lock(shared: &Shared) -> std::sync::MutexGuard<'_, Counts> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

fn tell(counts: &Counts) -> Result<()> {
    let mut out = std::io::stdout().lock();
    serde_json::to_writer(&mut out, counts)?;
    out.write_all(b"\n")?;
    Ok(out.flush()?)
}

fn note(shared: &Shared, result: Result<()>) -> Result<()> {
    let mut counts = lock(shared);
    let works = result.is_ok();
    let changed = counts.works != Some(works);
    counts.works = Some(works);
    match result {
        Ok(()) => counts.good += 1,
        Err(error) => {
            counts.bad += 1;
            counts.last_fault = format!("{error:#}");
        }
    }
    if changed { tell(&counts) } else { Ok(()) }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, TIMEOUT).context("connect")?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

fn echo(stream: &mut TcpStream, fill: u8, pause: Duration) -> Result<()> {
    let sent = [fill; SHORT_BYTES];
    stream.write_all(&sent).context("write")?;
    std::thread::sleep(pause);
    let mut got = [0; SHORT_BYTES];
    stream.read_exact(&mut got).context("read")?;
    if got != sent {
        bail!("other bytes came back than were sent");
    }
    Ok(())
}

fn short(address: SocketAddr, pause: Duration) -> Result<()> {
    let mut stream = connect(address)?;
    echo(&mut stream, 0x5a, pause)?;
    stream.shutdown(std::net::Shutdown::Write).context("shutdown")?;
    match stream.read(&mut [0; 1]).context("read the end")? {
        0 => Ok(()),
        _ => bail!("bytes came that nobody sent"),
    }
}

/// One connection at a time; a break is counted, and the next one made.
fn keep_long(address: SocketAddr, shared: &Shared) {
    std::thread::sleep(LONG_AFTER);
    loop {
        let Ok(mut stream) = connect(address) else {
            std::thread::sleep(LONG_INTERVAL);
            continue;
        };
        lock(shared).long_connections += 1;
        let fault = loop {
            if let Err(error) = echo(&mut stream, 0xa5, LONG_INTERVAL) {
                break error;
            }
            lock(shared).long_bytes += SHORT_BYTES as u64;
        };
        lock(shared).last_long_fault = format!("{fault:#}");
    }
}
