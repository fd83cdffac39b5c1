use super::*;
use crate::metrics::Registry;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(10);

struct Server {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    running: JoinHandle<Result<(), AdminError>>,
}

fn start(routes: Routes) -> Server {
    let listener = bind("node.admin", "127.0.0.1:0".parse().unwrap()).unwrap();
    let addr = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let running = tokio::spawn(serve_until(listener, routes, async {
        let _ = stopped.await;
    }));
    Server { addr, stop, running }
}

async fn raw(addr: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    // The server may close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn pages() {
    let ready = Arc::new(AtomicBool::new(false));
    let asked = ready.clone();
    let routes = Routes::new(Registry::new().unwrap())
        .ready(move || {
            asked.load(Ordering::Relaxed).then_some(()).ok_or_else(|| "no directory yet".to_owned())
        })
        .json("/status", || async { serde_json::json!({ "node": "a" }) });
    let server = start(routes);
    let page = |path| get(server.addr, path, SOON);

    let metrics = String::from_utf8(page("/metrics").await.unwrap()).unwrap();
    assert!(metrics.contains("rdmesh_build_info"), "{metrics}");
    assert_eq!(page("/livez").await.unwrap(), b"ok\n");
    let Err(ClientError::Status { status, text, .. }) = page("/readyz").await else { panic!() };
    assert_eq!((status.as_u16(), &*text), (503, "no directory yet"));
    ready.store(true, Ordering::Relaxed);
    assert_eq!(page("/readyz").await.unwrap(), b"ok\n");
    assert_eq!(page("/status").await.unwrap(), br#"{"node":"a"}"#);
    let Err(ClientError::Status { status, text, .. }) = page("/nothing").await else { panic!() };
    assert!(status.as_u16() == 404 && text.contains("/status"), "{text}");

    server.stop.send(()).unwrap();
    server.running.await.unwrap().unwrap();
    assert!(matches!(get(server.addr, "/livez", SOON).await, Err(ClientError::Connect { .. })));
}

#[tokio::test]
async fn only_reading_is_allowed() {
    let server = start(Routes::new(Registry::new().unwrap()));
    let post =
        b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let answer = raw(server.addr, post).await;
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("allow: GET, HEAD"), "{answer}");
    let head = b"HEAD /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    let answer = raw(server.addr, head).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[tokio::test]
async fn foul_requests_disturb_nobody() {
    let server = start(Routes::new(Registry::new().unwrap()));
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 << 10));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(200));
    for foul in [long.as_bytes(), many.as_bytes(), b"\0\xff\x16\x03\x01 garbage\r\n\r\n"] {
        let answer = raw(server.addr, foul).await;
        assert!(!answer.contains(" 200 "), "{answer}");
    }
    assert_eq!(get(server.addr, "/livez", SOON).await.unwrap(), b"ok\n");
}

#[tokio::test]
async fn shutdown_does_not_wait_for_idlers() {
    let server = start(Routes::new(Registry::new().unwrap()));
    let mut idle = TcpStream::connect(server.addr).await.unwrap();
    idle.write_all(b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut first = [0; 12];
    idle.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200");
    server.stop.send(()).unwrap();
    tokio::time::timeout(SOON, server.running).await.unwrap().unwrap().unwrap();
}

#[test]
fn address_in_use_names_the_key() {
    let first = bind("node.admin", "127.0.0.1:0".parse().unwrap()).unwrap();
    let error = bind("node.admin", first.local_addr().unwrap()).unwrap_err();
    let error = format!("{:#}", anyhow::Error::from(error));
    assert!(error.contains("node.admin") && error.contains("in use"), "{error}");
}

#[tokio::test]
async fn client_tells_what_is_wrong() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    // Accepted by the kernel alone: nobody answers.
    let error = get(addr, "/status", Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(error, ClientError::Timeout { .. }), "{error}");
    let serving = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (stream, _) = listener.accept().unwrap();
        let (mut second, _) = listener.accept().unwrap();
        drop(stream.shutdown(std::net::Shutdown::Both));
        let mut buffer = [0; 1024];
        let _ = second.read(&mut buffer).unwrap();
        second.write_all(b"SSH-2.0-OpenSSH\r\n").unwrap();
    });
    let error = get(addr, "/status", SOON).await.unwrap_err();
    assert!(matches!(error, ClientError::Answer { .. }), "{error}");
    serving.join().unwrap();
}
