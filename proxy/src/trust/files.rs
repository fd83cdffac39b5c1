//! The files of the trust: written whole or not at all, keys for their owner alone.

use super::{Ca, NodeCertificate, NodeFiles, TrustError};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

pub(super) const CA_CERT: &str = "ca.crt";
const CA_KEY: &str = "ca.key";
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

pub(super) fn load_ca(dir: &Path) -> Result<Ca, TrustError> {
    let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    let read = |path: &PathBuf| std::fs::read_to_string(path).map_err(TrustError::io(path));
    Ca::from_pem(&read(&cert)?, &read(&key)?)
        .map_err(|reason| TrustError::BadCa { path: dir.to_owned(), reason })
}

/// The CA of `dir`, and whether it is new.
pub(super) fn load_or_make_ca(dir: &Path) -> Result<(Ca, bool), TrustError> {
    let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    let there = |path: &Path| path.symlink_metadata().is_ok();
    match (there(&cert), there(&key)) {
        (true, true) => Ok((load_ca(dir)?, false)),
        (true, false) => Err(TrustError::HalfCa { found: cert, missing: key }),
        (false, true) => Err(TrustError::HalfCa { found: key, missing: cert }),
        (false, false) => {
            let ca = Ca::generate()?;
            write_both((&key, &ca.key_pem()), (&cert, ca.cert_pem()), false)?;
            Ok((ca, true))
        }
    }
}

/// The CA's certificate goes beside the nodes' when the CA is elsewhere.
pub(super) fn copy_ca_cert(ca: &Ca, to: &Path) -> Result<(), TrustError> {
    match std::fs::read_to_string(to) {
        Ok(text) if text == ca.cert_pem() => Ok(()),
        // Another CA's: the nodes of this directory would not trust each other.
        Ok(_) => Err(TrustError::Exists(to.to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            write(to, ca.cert_pem(), PUBLIC, false)
        }
        Err(error) => Err(TrustError::io(to)(error)),
    }
}

pub(super) fn write_pair(
    files: &NodeFiles,
    made: &NodeCertificate,
    force: bool,
) -> Result<(), TrustError> {
    write_both((&files.key, &made.key_pem), (&files.cert, &made.cert_pem), force)
}

/// A key and its certificate; a new key does not stay without its certificate.
fn write_both(key: (&Path, &str), cert: (&Path, &str), force: bool) -> Result<(), TrustError> {
    write(key.0, key.1, PRIVATE, force)?;
    write(cert.0, cert.1, PUBLIC, force).inspect_err(|_| {
        if !force {
            let _ = std::fs::remove_file(key.0);
        }
    })
}

/// Writes beside the file and moves it into place: a reader never sees half of it.
fn write(path: &Path, text: &str, mode: u32, replace: bool) -> Result<(), TrustError> {
    let new = beside(path);
    let written = (|| {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        if replace {
            std::fs::rename(&new, path)
        } else {
            // Unlike a rename, a link never replaces what somebody put there meanwhile.
            std::fs::hard_link(&new, path)
        }
    })();
    let _ = std::fs::remove_file(&new);
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => TrustError::Exists(path.to_owned()),
        _ => TrustError::io(path)(error),
    })
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.new", std::process::id()))
}
