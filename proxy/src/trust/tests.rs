use super::*;
use std::os::unix::fs::PermissionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory of its own, gone with the test.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("rdmesh-trust-{}-{n}", std::process::id()));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    fn names(&self) -> Vec<String> {
        let entries = std::fs::read_dir(&self.0).unwrap();
        let mut names: Vec<_> =
            entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn request(&self, nodes: &[&str]) -> Request {
        Request {
            dir: self.0.clone(),
            nodes: nodes.iter().map(|&n| n.to_owned()).collect(),
            days: 30,
            ca_dir: None,
            force: false,
        }
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

#[test]
fn ca_and_nodes() {
    let dir = Dir::new();
    let made = make(&dir.request(&["node-a", "b.example", "node-a"])).unwrap();
    assert!(made.ca_made);
    assert_eq!(
        dir.names(),
        ["b.example.crt", "b.example.key", "ca.crt", "ca.key", "node-a.crt", "node-a.key"]
    );
    for name in dir.names() {
        let mode = std::fs::metadata(dir.0.join(&name)).unwrap().permissions().mode() & 0o777;
        assert!(mode == 0o600 || !name.ends_with(".key"), "{name} {mode:o}");
    }
    let again = make(&dir.request(&["node-c"])).unwrap();
    assert!(!again.ca_made);
    assert_eq!(again.nodes, [node_files(&dir.0, "node-c")]);
}

#[test]
fn nothing_is_overwritten_unless_forced() {
    let dir = Dir::new();
    let made = make(&dir.request(&["a"])).unwrap();
    let (ca, cert) = (read(&made.ca), read(&made.nodes[0].cert));
    let mut request = dir.request(&["b", "a"]);
    assert!(matches!(make(&request), Err(TrustError::Exists(_))));
    assert_eq!(read(&made.nodes[0].cert), cert);
    assert!(!dir.names().contains(&"b.crt".to_owned()), "nothing is half made");
    request.force = true;
    make(&request).unwrap();
    assert_ne!(read(&made.nodes[0].cert), cert);
    assert_eq!(read(&made.ca), ca);
    assert!(dir.names().iter().all(|n| !n.starts_with('.')));
}

#[test]
fn existing_ca_of_another_kind() {
    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, KeyPair};
    let (ca_dir, dir) = (Dir::new(), Dir::new());
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::OrganizationName, "Example Org");
    params.distinguished_name.push(DnType::CountryName, "DE");
    std::fs::write(ca_dir.0.join("ca.crt"), params.self_signed(&key).unwrap().pem()).unwrap();
    std::fs::write(ca_dir.0.join("ca.key"), key.serialize_pem()).unwrap();
    let request = Request { ca_dir: Some(ca_dir.0.clone()), ..dir.request(&["a"]) };
    let made = make(&request).unwrap();
    assert_eq!(
        (made.ca_made, dir.names()),
        (false, ["a.crt", "a.key", "ca.crt"].map(String::from).into())
    );
    assert_eq!(read(&made.ca), read(&ca_dir.0.join("ca.crt")));
}

#[test]
fn unfit_cas_are_refused() {
    let (one, two, dir) = (Dir::new(), Dir::new(), Dir::new());
    make(&one.request(&["a"])).unwrap();
    make(&two.request(&[])).unwrap();
    let request = Request { ca_dir: Some(two.0.clone()), ..dir.request(&["x"]) };
    // The key of another CA.
    std::fs::copy(one.0.join("ca.key"), two.0.join("ca.key")).unwrap();
    assert!(matches!(make(&request), Err(TrustError::NotAccepted(_))));
    // A node's certificate is no CA's.
    std::fs::copy(one.0.join("a.crt"), two.0.join("ca.crt")).unwrap();
    std::fs::copy(one.0.join("a.key"), two.0.join("ca.key")).unwrap();
    assert!(make(&request).is_err());
    std::fs::write(two.0.join("ca.crt"), "garbage").unwrap();
    assert!(matches!(make(&request), Err(TrustError::BadCa { .. })));
    std::fs::remove_file(two.0.join("ca.key")).unwrap();
    let half = make(&two.request(&["x"])).unwrap_err();
    assert!(matches!(half, TrustError::HalfCa { .. }), "{half}");
}

#[test]
fn names_and_days() {
    let dir = Dir::new();
    for name in ["", "ca", "../a", "a/b", ".", "..", "A", "a.", "-a", "10.0.0.1", "ü", "a b", "a\0"]
    {
        assert!(matches!(make(&dir.request(&[name])), Err(TrustError::BadName(_))), "{name:?}");
    }
    let long = ["a".repeat(63).as_str(); 3].join(".");
    make(&dir.request(&["node1", "10-0-0-1", &long])).unwrap();
    for days in [0, 36_501] {
        let request = Request { days, ..dir.request(&["z"]) };
        assert!(matches!(make(&request), Err(TrustError::BadDays(_))));
    }
}

/// Two nodes speak TLS with what was made, and know each other's names.
#[test]
fn handshake() {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
    use std::sync::Arc;

    let dir = Dir::new();
    let made = make(&dir.request(&["a", "b"])).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&made.ca).unwrap()).unwrap();
    let roots = Arc::new(roots);
    let pair = |n: &NodeFiles| {
        let cert = vec![CertificateDer::from_pem_file(&n.cert).unwrap()];
        (cert, PrivateKeyDer::from_pem_file(&n.key).unwrap())
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let (cert, key) = pair(&made.nodes[0]);
    let client = rustls::ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots.clone())
        .with_client_auth_cert(cert, key)
        .unwrap();
    let verifier =
        rustls::server::WebPkiClientVerifier::builder_with_provider(roots, provider.clone());
    let (cert, key) = pair(&made.nodes[1]);
    let server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(cert, key)
        .unwrap();
    let (client, server) = (Arc::new(client), Arc::new(server));
    let shake = |to: &'static str| {
        let name = ServerName::try_from(to).unwrap();
        let mut c = rustls::ClientConnection::new(client.clone(), name).unwrap();
        let mut s = rustls::ServerConnection::new(server.clone()).unwrap();
        while c.is_handshaking() || s.is_handshaking() {
            let mut wire = Vec::new();
            c.write_tls(&mut wire).unwrap();
            s.read_tls(&mut wire.as_slice()).unwrap();
            s.process_new_packets()?;
            wire.clear();
            s.write_tls(&mut wire).unwrap();
            c.read_tls(&mut wire.as_slice()).unwrap();
            c.process_new_packets()?;
        }
        Ok::<_, rustls::Error>(())
    };
    shake("b").unwrap();
    assert!(shake("c").is_err());
}
