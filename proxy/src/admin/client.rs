//! Reads one page of an admin server.

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::HOST;
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

const ANSWER_BYTES_MAX: usize = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot connect to {addr} (does the process run, and is this its admin address?)")]
    Connect { addr: SocketAddr, source: std::io::Error },
    #[error("no answer from {addr} within {} ms", .after.as_millis())]
    Timeout { addr: SocketAddr, after: Duration },
    #[error("{addr} does not answer as an admin server of rdmesh: {reason}")]
    Answer { addr: SocketAddr, reason: String },
    #[error("{addr} answers {path} with {status}: {text}")]
    Status { addr: SocketAddr, path: String, status: StatusCode, text: String },
}

/// GET `path`, with a limit on the time in all and on the size of the answer.
///
/// # Errors
/// When there is no answer, or one that is not 200.
pub async fn get(addr: SocketAddr, path: &str, timeout: Duration) -> Result<Vec<u8>, ClientError> {
    match tokio::time::timeout(timeout, get_untimed(addr, path)).await {
        Ok(result) => result,
        Err(_) => Err(ClientError::Timeout { addr, after: timeout }),
    }
}

async fn get_untimed(addr: SocketAddr, path: &str) -> Result<Vec<u8>, ClientError> {
    let foul = |reason: String| ClientError::Answer { addr, reason };
    let stream = tokio::net::TcpStream::connect(addr)
        .await
        .map_err(|source| ClientError::Connect { addr, source })?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|e| foul(e.to_string()))?;
    let request = Request::get(path)
        .header(HOST, addr.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(|e| foul(e.to_string()))?;
    let exchange = async {
        let answer = sender.send_request(request).await.map_err(|e| foul(e.to_string()))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
        let body = body.map_err(|e| foul(e.to_string()))?.to_bytes();
        if status != StatusCode::OK {
            let text = String::from_utf8_lossy(body.get(..1024).unwrap_or(&body)).trim().to_owned();
            return Err(ClientError::Status { addr, path: path.to_owned(), status, text });
        }
        Ok(body.to_vec())
    };
    // The connection's own error, if there is one, is seen by the exchange too.
    let driven = async {
        let _ = connection.await;
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        result = exchange => result,
        never = driven => match never {},
    }
}
