//! What the Secret holds, and what is due: no I/O, time passed in.

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use rdmesh_proxy::trust::{Ca, TrustError};

/// Renewed long before it ends: an injector may be away for weeks.
const SERVING_DAYS: u32 = 90;
const RENEW_AFTER_S: u64 = 30 * 86_400;
/// When the serving certificate is due for renewal, in seconds since the epoch.
const RENEW: &str = "rdmesh.io/renew-at";

const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const CERT: &str = "tls.crt";
const KEY: &str = "tls.key";

/// Empty texts where there is nothing yet.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Stored {
    pub ca_cert: String,
    pub ca_key: String,
    pub cert: String,
    pub key: String,
    pub renew_at: u64,
}

impl Stored {
    pub fn read(secret: &Secret) -> Result<Self, String> {
        let text = |key: &str| {
            let bytes = secret.data.as_ref().and_then(|data| data.get(key));
            let bytes = bytes.map(|bytes| bytes.0.clone()).unwrap_or_default();
            String::from_utf8(bytes).map_err(|_| format!("{key} is no text"))
        };
        let annotations = secret.metadata.annotations.as_ref();
        let renew_at = annotations.and_then(|all| all.get(RENEW)?.parse().ok()).unwrap_or(0);
        let stored = Self {
            ca_cert: text(CA_CERT)?,
            ca_key: text(CA_KEY)?,
            cert: text(CERT)?,
            key: text(KEY)?,
            renew_at,
        };
        if stored.ca_cert.is_empty() != stored.ca_key.is_empty() {
            return Err(format!("only one of {CA_CERT} and {CA_KEY} is there"));
        }
        Ok(stored)
    }

    pub fn write(&self, secret: &mut Secret) {
        let data = secret.data.get_or_insert_default();
        for (key, text) in
            [(CA_CERT, &self.ca_cert), (CA_KEY, &self.ca_key), (CERT, &self.cert), (KEY, &self.key)]
        {
            data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
        }
        let annotations = secret.metadata.annotations.get_or_insert_default();
        annotations.insert(RENEW.to_owned(), self.renew_at.to_string());
    }

    pub fn ca(&self) -> Result<Ca, String> {
        Ca::from_pem(&self.ca_cert, &self.ca_key)
    }

    /// What has to be stored instead, if anything.
    pub fn renewed(&self, name: &str, now: u64) -> Result<Option<Self>, TrustError> {
        let ca = if self.ca_cert.is_empty() {
            Ca::generate()?
        } else {
            let due = self.cert.is_empty() || self.key.is_empty() || now >= self.renew_at;
            if !due {
                return Ok(None);
            }
            self.ca().map_err(TrustError::NotAccepted)?
        };
        let made = ca.issue(name, SERVING_DAYS)?;
        Ok(Some(Self {
            ca_cert: ca.cert_pem().to_owned(),
            ca_key: ca.key_pem(),
            cert: made.cert_pem,
            key: made.key_pem,
            renew_at: now + RENEW_AFTER_S,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Serving;

    const NAME: &str = "rdmesh-injector.rdmesh-system.svc";

    #[test]
    fn an_empty_secret_gets_an_authority_that_stays() {
        let empty = Stored::read(&Secret::default()).unwrap();
        let first = empty.renewed(NAME, 1_000).unwrap().unwrap();
        let mut secret = Secret::default();
        first.write(&mut secret);
        let read = Stored::read(&secret).unwrap();
        assert!(read == first);
        assert!(read.renewed(NAME, 1_000 + RENEW_AFTER_S - 1).unwrap().is_none());
        let second = read.renewed(NAME, 1_000 + RENEW_AFTER_S).unwrap().unwrap();
        assert_eq!(second.ca_cert, first.ca_cert);
        assert_ne!(second.cert, first.cert);
        let serving = Serving::default();
        assert!(serving.set(second.cert.as_bytes(), second.key.as_bytes(), "test").unwrap());
        assert!(!serving.set(second.cert.as_bytes(), second.key.as_bytes(), "test").unwrap());
        assert!(serving.set(second.cert.as_bytes(), first.key.as_bytes(), "test").is_ok());
        assert!(serving.set(first.cert.as_bytes(), second.key.as_bytes(), "test").is_err());
        assert!(serving.is_ready());
    }

    #[test]
    fn half_an_authority_is_a_fault() {
        let mut secret = Secret::default();
        Stored { ca_cert: "x".into(), ..Stored::default() }.write(&mut secret);
        assert!(Stored::read(&secret).is_err());
        let foul = Stored { ca_cert: "x".into(), ca_key: "y".into(), ..Stored::default() };
        assert!(foul.renewed(NAME, 1).is_err());
    }
}
