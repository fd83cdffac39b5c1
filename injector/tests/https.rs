//! A real HTTPS client and the running program: admissions, probes, metrics, certificates that change.

mod common;

use common::client::{Client, pod};
use common::injector::{SOON, metric, start, write_certificate};
use hyper::StatusCode;
use rdmesh_proxy::trust::Ca;
use serde_json::json;
use std::time::{Duration, Instant};

#[tokio::test]
async fn admissions_over_https() {
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "admissions").await;
    let (mut client, _) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
    let answer = client.review("/inject/namespace", &pod()).await;
    let response = &answer["response"];
    assert_eq!((response["uid"].as_str(), response["allowed"].as_bool()), (Some("u1"), Some(true)));
    assert_eq!(response["patchType"], "JSONPatch");
    let answer = client.review("/inject/pod", &pod()).await;
    assert!(answer["response"].get("patch").is_none(), "{answer}");
    let mut wrong = pod();
    wrong["metadata"]["annotations"] = json!({"rdmesh.io/fabric": "copper"});
    let answer = client.review("/inject/namespace", &wrong).await;
    let message = answer["response"]["status"]["message"].as_str().unwrap();
    assert!(message.contains("rdmesh.io/fabric") && message.contains("\"copper\""), "{message}");
    assert_eq!(client.post("/inject/namespace", "{").await.0, StatusCode::BAD_REQUEST);
    assert_eq!(client.post("/other", "{}").await.0, StatusCode::NOT_FOUND);
    let count =
        |outcome: &str| format!("rdmesh_injector_admissions_total{{outcome=\"{outcome}\"}}");
    for outcome in ["injected", "skipped", "rejected", "malformed"] {
        assert_eq!(metric(injector.admin, &count(outcome)).await, 1.0, "{outcome}");
    }
    assert_eq!(metric(injector.admin, "rdmesh_injector_admission_seconds_count").await, 4.0);
    rdmesh_proxy::admin::get(injector.admin, "/livez", SOON).await.unwrap();
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "large").await;
    let (mut client, _) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
    let body = vec![b' '; rdmesh_injector::review::REVIEW_BYTES_MAX + 1];
    assert_eq!(client.post("/inject/namespace", body).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    let (mut client, _) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
    client.review("/inject/namespace", &pod()).await;
}

/// Bodies that are small on the wire and large when they are read, many at a time, and nobody waits for the answers:
/// the process stays within the memory that the chart gives it.
#[tokio::test]
async fn bodies_made_to_fill_the_memory_do_not() {
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "hostile").await;
    let size = rdmesh_injector::review::REVIEW_BYTES_MAX - 1000;
    let keys: String = (0..size / 12).map(|key| format!("\"{key:07}\":0,")).collect();
    // Besides those that go beyond what a review may hold, some that do not.
    let within = format!("[{}\"{}\"]", "{\"\":0},".repeat(19_000), "x".repeat(size - 150_000));
    let shapes = [
        within,
        format!("[{}0]", "0,".repeat(size / 2)),
        format!("[{}[]]", "[],".repeat(size / 3)),
        format!("[{}{{}}]", "{\"\":0},".repeat(size / 8)),
        format!("{{{keys}\"x\":0}}"),
    ];
    let mut running = tokio::task::JoinSet::new();
    for number in 0..24 {
        let body = format!(
            "{{\"apiVersion\":\"admission.k8s.io/v1\",\"kind\":\"AdmissionReview\",\"request\":{{\"uid\":\"u\",\
             \"kind\":{{\"version\":\"v1\",\"kind\":\"Pod\"}},\"operation\":\"CREATE\",\"object\":{}}}}}",
            shapes[number % shapes.len()]
        );
        let (mut client, _) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
        running.spawn(async move {
            let post = client.post("/inject/namespace", body);
            let patience = if number % 2 == 0 { SOON } else { Duration::from_millis(200) };
            tokio::time::timeout(patience, post).await.ok()
        });
    }
    let mut answered = 0;
    while let Some(answer) = running.join_next().await {
        if let Some((status, body)) = answer.unwrap() {
            assert!(status.is_success() || status.is_client_error(), "{status} {body:?}");
            answered += usize::from(status == StatusCode::OK);
        }
    }
    assert!(answered > 0, "none was read");
    let (mut client, _) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
    client.review("/inject/namespace", &pod()).await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", injector.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak_kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("peak {} MiB", peak_kib >> 10);
    assert!(peak_kib < 128 << 10, "{peak_kib} KiB");
}

#[tokio::test]
async fn a_changed_certificate_is_taken_up_and_no_admission_fails() {
    let ca = Ca::generate().unwrap();
    let injector = start(&ca, "rotation").await;
    let (mut old, first) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
    // A key without its certificate is what a reader may see in the middle of a change.
    std::fs::write(injector.dir.join("tls.key"), "half").unwrap();
    write_certificate(&ca, &injector.dir);
    let start = Instant::now();
    loop {
        let (mut client, shown) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
        client.review("/inject/namespace", &pod()).await;
        old.review("/inject/namespace", &pod()).await;
        if shown != first {
            break;
        }
        assert!(start.elapsed() < SOON, "the old certificate is still shown");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (mut client, _) = Client::connect(ca.cert_pem(), injector.listen).await.unwrap();
    client.review("/inject/namespace", &pod()).await;
    let stranger = Ca::generate().unwrap();
    assert!(Client::connect(stranger.cert_pem(), injector.listen).await.is_err());
}
