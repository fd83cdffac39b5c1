use super::super::testing::{TestCa, TestDir};
use super::*;
use rcgen::ExtendedKeyUsagePurpose;

fn error(node: &str, files: &TlsFiles) -> String {
    Trust::load(node, files.clone()).expect_err("refused").to_string()
}

#[test]
fn every_fault_names_the_file_and_the_way_out() {
    let dir = TestDir::new();
    let ca = TestCa::new();
    let good = ca.node(&dir.path, "a");
    let junk = dir.path.join("junk.pem");
    fs::write(&junk, "not a pem").expect("write");
    let damaged = dir.path.join("damaged.pem");
    fs::write(&damaged, "-----BEGIN CERTIFICATE-----\n!!\n-----END CERTIFICATE-----\n")
        .expect("write");
    let other_key = ca.node(&dir.path, "b").key;
    let other_ca = TestCa::new().node(&dir.path, "c").ca;
    let with = |change: &dyn Fn(&mut TlsFiles)| {
        let mut files = good.clone();
        change(&mut files);
        files
    };
    let cases = [
        (with(&|f| f.cert = PathBuf::new()), "node.tls.cert is not set"),
        (with(&|f| f.ca = dir.path.join("none")), "No such file"),
        (with(&|f| f.key = dir.path.clone()), "not a regular file"),
        (with(&|f| f.ca = junk.clone()), "holds no certificate"),
        (with(&|f| f.cert = damaged.clone()), "is damaged"),
        (with(&|f| f.key = junk.clone()), "holds no private key"),
        (with(&|f| f.key = other_key.clone()), "does not belong to the certificate"),
        (with(&|f| f.ca = other_ca.clone()), "does not serve node \"a\""),
    ];
    for (files, expected) in cases {
        let text = error("a", &files);
        assert!(text.contains(expected), "{text}");
        assert!(text.contains("rdmesh-proxy certs"), "{text}");
    }
    assert!(error("b", &good).contains("does not serve node \"b\""));
    assert!(error("10.0.0.1", &good).contains("node name"));
    assert!(Trust::load("a", good).is_ok());
}

#[test]
fn expired_or_one_sided_certificates_are_refused_at_the_start() {
    let dir = TestDir::new();
    let ca = TestCa::new();
    let files = ca.node_with(&dir.path, "a", |p| p.not_after = rcgen::date_time_ymd(2020, 1, 1));
    assert!(error("a", &files).contains("expired"));
    let files = ca.node_with(&dir.path, "a", |p| {
        p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    });
    assert!(error("a", &files).contains("does not serve node"));
}

#[test]
fn changed_files_are_taken_up_and_bad_ones_are_not() {
    let dir = TestDir::new();
    let ca = TestCa::new();
    let files = ca.node(&dir.path, "a");
    let trust = Trust::load("a", files.clone()).expect("good");
    let first = trust.identity().server;
    assert!(Arc::ptr_eq(&first, &trust.identity().server));
    let kept = fs::read(&files.cert).expect("read");
    fs::write(&files.cert, "half").expect("write");
    assert!(Arc::ptr_eq(&first, &trust.identity().server));
    fs::write(&files.cert, kept).expect("write");
    let mended = trust.identity().server;
    assert!(!Arc::ptr_eq(&first, &mended));
    fs::remove_file(&files.key).expect("remove");
    assert!(Arc::ptr_eq(&mended, &trust.identity().server));
}

#[test]
fn certificates_are_told_apart_by_name() {
    let dir = TestDir::new();
    let files = TestCa::new().node(&dir.path, "node-a");
    let chain = certificates("cert", "certificate", &files.cert).expect("good");
    assert!(is_certificate_of(Some(&chain), "node-a"));
    for name in ["node-b", "node", "", "node-a.x", "127.0.0.1"] {
        assert!(!is_certificate_of(Some(&chain), name), "{name}");
    }
    assert!(!is_certificate_of(Some(&[]), "node-a") && !is_certificate_of(None, "node-a"));
}
