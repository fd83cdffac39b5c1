use super::*;
use crate::testing::settings;

fn run(body: &Value, scope: Scope) -> Result<Answer, String> {
    let template = Template::built_in().unwrap();
    review(body.to_string().as_bytes(), scope, &template, &settings("{}"))
}

fn request(object: &Value) -> Value {
    json!({
        "apiVersion": API_VERSION,
        "kind": "AdmissionReview",
        "request": {
            "uid": "705ab4f5-6393-11e8-b7cc-42010a800002",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "namespace": "shop",
            "operation": "CREATE",
            "userInfo": {"username": "system:serviceaccount:kube-system:replicaset-controller"},
            "object": object,
            "oldObject": null,
            "dryRun": false,
        }
    })
}

fn pod() -> Value {
    json!({"metadata": {"generateName": "web-"}, "spec": {"containers": [{"name": "web", "image": "web"}]}})
}

#[test]
fn base64_of_the_standard() {
    for (plain, coded) in [
        ("", ""),
        ("f", "Zg=="),
        ("fo", "Zm8="),
        ("foo", "Zm9v"),
        ("foob", "Zm9vYg=="),
        ("foobar", "Zm9vYmFy"),
    ] {
        assert_eq!(base64(plain.as_bytes()), coded);
    }
}

#[test]
fn a_pod_is_patched() {
    let answer = run(&request(&pod()), Scope::Namespace).unwrap();
    assert_eq!((answer.outcome, answer.pod.as_str()), (Outcome::Injected, "web-"));
    let response = &answer.body["response"];
    assert_eq!(response["uid"], "705ab4f5-6393-11e8-b7cc-42010a800002");
    assert_eq!(response["allowed"], true);
    assert_eq!(response["patchType"], "JSONPatch");
    assert_eq!(response["auditAnnotations"]["outcome"], "injected");
}

#[test]
fn a_pod_that_is_not_asked_for_is_let_through() {
    let answer = run(&request(&pod()), Scope::Pod).unwrap();
    assert_eq!(answer.outcome, Outcome::Skipped);
    assert_eq!(answer.body["response"]["allowed"], true);
    assert!(answer.body["response"].get("patch").is_none());
}

#[test]
fn a_wrong_annotation_is_an_answer_with_its_reason() {
    let mut pod = pod();
    pod["metadata"]["annotations"] = json!({"rdmesh.io/proxy-cpu": "lots"});
    let answer = run(&request(&pod), Scope::Namespace).unwrap();
    assert_eq!(answer.outcome, Outcome::Rejected);
    let response = &answer.body["response"];
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.starts_with("rdmesh: annotation rdmesh.io/proxy-cpu: \"lots\""), "{message}");
}

#[test]
fn other_objects_and_operations_are_let_through() {
    for (path, value) in [("/request/operation", "UPDATE"), ("/request/kind/kind", "Deployment")] {
        let mut body = request(&pod());
        *body.pointer_mut(path).unwrap() = json!(value);
        let answer = run(&body, Scope::Namespace).unwrap();
        assert_eq!(answer.outcome, Outcome::Malformed);
        assert_eq!(answer.body["response"]["allowed"], true);
    }
}

#[test]
fn what_is_no_review_is_refused() {
    let mut old = request(&pod());
    old["apiVersion"] = json!("admission.k8s.io/v1beta1");
    let mut no_uid = request(&pod());
    no_uid["request"]["uid"] = json!("");
    for body in [json!(null), json!([]), json!({}), json!({"kind": "AdmissionReview"}), old, no_uid]
    {
        run(&body, Scope::Namespace).unwrap_err();
    }
    let deep = "[".repeat(1_000_000);
    let template = Template::built_in().unwrap();
    for body in [deep.as_bytes(), b"", b"\xff", &vec![b' '; REVIEW_BYTES_MAX + 1]] {
        review(body, Scope::Namespace, &template, &settings("{}")).unwrap_err();
    }
}

#[test]
fn pods_of_any_shape_get_an_answer() {
    for object in [
        json!(null),
        json!(7),
        json!({}),
        json!({"spec": []}),
        json!({"spec": {}, "metadata": 3}),
        json!({"spec": {"containers": {}}}),
        json!({"spec": {"initContainers": "x"}}),
        json!({"spec": {"volumes": 1}}),
        json!({"spec": {}, "metadata": {"labels": [], "annotations": "x"}}),
        json!({"spec": {"containers": [null, 3, {"ports": [{"containerPort": -1}]}]}}),
    ] {
        let answer = run(&request(&object), Scope::Namespace).unwrap();
        let outcome = answer.outcome;
        assert!(matches!(outcome, Outcome::Injected | Outcome::Rejected), "{object} {answer:?}");
    }
}

#[test]
fn more_than_a_pod_can_mean_is_not_read() {
    let maps = "{},".repeat(CONTAINERS_MAX);
    for (body, bounded) in [
        (format!("[{maps}0]"), false),
        (format!("[{}0]", "0,".repeat(COMMAS_MAX + 1)), false),
        (format!("[{}0]", "0,".repeat(COMMAS_MAX)), true),
        // What is in a string is no structure, wherever the string seems to end.
        (format!("[\"{maps}{maps}\"]"), true),
        (format!("[\"\\\"{maps}{maps}\"]"), true),
        (format!("[\"\\\\\",{maps}{maps}0]"), false),
    ] {
        assert_eq!(super::bounded(body.as_bytes()).is_ok(), bounded, "{}", &body[..20]);
    }
    let template = Template::built_in().unwrap();
    let body = format!("[{maps}0]");
    let fault = review(body.as_bytes(), Scope::Pod, &template, &crate::testing::settings("{}"));
    assert!(fault.unwrap_err().contains("more than"));
}
