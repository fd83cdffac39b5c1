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
