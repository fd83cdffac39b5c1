//! Certificates: a CA's and the nodes'. ECDSA P-256, no files.

use super::TrustError;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
    PublicKeyData,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, DnsName, ServerName, UnixTime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const CA_NAME: &str = "rdmesh CA";
pub(super) const DAY: Duration = Duration::from_secs(86_400);
const CA_LIFETIME: Duration = Duration::from_secs(3650 * DAY.as_secs());
/// Nodes' clocks may differ by so much.
const CLOCK_SKEW: Duration = Duration::from_secs(3600);

/// A CA that can sign.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    cert_pem: String,
    cert: CertificateDer<'static>,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("issuer", &self.issuer).finish_non_exhaustive()
    }
}

/// A node's certificate and key, as PEM.
#[derive(Clone)]
pub struct NodeCertificate {
    pub cert_pem: String,
    pub key_pem: String,
}

impl std::fmt::Debug for NodeCertificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeCertificate").finish_non_exhaustive()
    }
}

impl Ca {
    /// A new CA with a new key, good for ten years.
    ///
    /// # Errors
    /// When there is no randomness to be had.
    pub fn generate() -> Result<Self, TrustError> {
        Self::generate_for(CA_LIFETIME)
    }

    /// # Errors
    /// As [`Ca::generate`].
    pub fn generate_for(lifetime: Duration) -> Result<Self, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let mut params = params(CA_NAME, lifetime)?;
        // Only nodes' certificates below it, no other CA's.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let cert = params.self_signed(&key)?;
        let (cert_pem, cert) = (cert.pem(), cert.der().clone());
        Ok(Self { issuer: Issuer::new(params, key), cert_pem, cert })
    }

    /// An existing CA, ours or another.
    ///
    /// # Errors
    /// When certificate or key cannot be read as such. Whether they belong together shows in
    /// [`Ca::issue`].
    pub fn from_pem(cert_pem: &str, key_pem: &str) -> Result<Self, String> {
        let cert = CertificateDer::from_pem_slice(cert_pem.as_bytes())
            .map_err(|e| format!("no PEM certificate: {e}"))?;
        let key = KeyPair::from_pem(key_pem).map_err(|e| format!("no PEM private key: {e}"))?;
        let issuer = Issuer::from_ca_cert_der(&cert, key)
            .map_err(|e| format!("the certificate is not understood: {e}"))?;
        Ok(Self { issuer, cert_pem: cert_pem.to_owned(), cert })
    }

    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    #[must_use]
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// A certificate for a node, for both ends of a handshake.
    ///
    /// # Errors
    /// When the name is not valid, or the CA is not one or has expired.
    pub fn issue(&self, node: &str, lifetime: Duration) -> Result<NodeCertificate, TrustError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        let cert_pem = self.sign(node, lifetime, &key)?;
        Ok(NodeCertificate { cert_pem, key_pem: key.serialize_pem() })
    }

    /// A certificate for the key of a request (PEM). Nothing else of the request counts: who may have
    /// which name is for the caller to know.
    ///
    /// # Errors
    /// As [`Ca::issue`], or when the request is none or not signed by its key.
    pub fn issue_for(
        &self,
        request: &str,
        node: &str,
        lifetime: Duration,
    ) -> Result<String, TrustError> {
        let request = CertificateSigningRequestParams::from_pem(request)?;
        self.sign(node, lifetime, &request.public_key)
    }

    fn sign(
        &self,
        node: &str,
        lifetime: Duration,
        key: &impl PublicKeyData,
    ) -> Result<String, TrustError> {
        if !is_node_name(node) {
            return Err(TrustError::BadName(node.to_owned()));
        }
        let mut params = params(node, lifetime)?;
        params.subject_alt_names = vec![rcgen::SanType::DnsName(node.try_into()?)];
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        let cert = params.signed_by(key, &self.issuer)?;
        self.verify(cert.der(), node).map_err(|e| TrustError::NotAccepted(e.to_string()))?;
        Ok(cert.pem())
    }

    /// As a peer will do: a certificate that no peer takes is better not made.
    fn verify(&self, cert: &CertificateDer<'_>, node: &str) -> Result<(), webpki::Error> {
        let anchors = [webpki::anchor_from_trusted_cert(&self.cert)?];
        let leaf = webpki::EndEntityCert::try_from(cert)?;
        for usage in [webpki::KeyUsage::server_auth(), webpki::KeyUsage::client_auth()] {
            let algorithms = webpki::ALL_VERIFICATION_ALGS;
            leaf.verify_for_usage(algorithms, &anchors, &[], UnixTime::now(), usage, None, None)?;
        }
        let name = ServerName::try_from(node).map_err(|_| webpki::Error::MalformedDnsIdentifier)?;
        leaf.verify_is_valid_for_subject_name(&name)
    }
}

/// A new key, and a request for a certificate for it: both as PEM, the request first.
///
/// # Errors
/// When there is no randomness to be had.
pub fn request() -> Result<(String, String), TrustError> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = CertificateParams::new(Vec::new())?.serialize_request(&key)?;
    Ok((request.pem()?, key.serialize_pem()))
}

fn params(name: &str, lifetime: Duration) -> Result<CertificateParams, TrustError> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    // A common name has at most 64 characters; the SAN is what counts.
    params.distinguished_name.push(DnType::CommonName, name.get(..64).unwrap_or(name));
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    params.not_before = epoch + now.saturating_sub(CLOCK_SKEW);
    params.not_after = epoch + now.saturating_add(lifetime);
    Ok(params)
}

/// A name that can be a SAN, and also the name of a file beside the CA's.
pub(super) fn is_node_name(name: &str) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'.';
    // A name that ends in a number is taken for an IP address.
    let last = name.rsplit('.').next().unwrap_or(name);
    name != "ca"
        && name.bytes().all(plain)
        && !name.ends_with('.')
        && !(name.contains('.') && last.bytes().all(|b| b.is_ascii_digit()))
        && DnsName::try_from(name).is_ok()
}
