//! The static directory file as a source of snapshots: notices changes, reads, and tells faults.
//!
//! It polls instead of watching: that also sees what inotify does not, as a file on a network file
//! system and the symbolic links that kubelet swaps.

use rdmesh_config::DirectoryFile;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Largest file that is read: 150,000 pods take some 30 MiB.
const FILE_BYTES_MAX: u64 = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read the directory file {}: {source}; check node.directory.file and its permissions", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the directory file {} is {bytes} bytes, more than {FILE_BYTES_MAX}", .path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("the directory file {} was changed while it was read", .path.display())]
    Changing { path: PathBuf },
    #[error("the directory file {} is not valid:\n{faults}", .path.display())]
    Invalid { path: PathBuf, faults: String },
}

/// What tells one content of the file from another, without reading it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Signature {
    device: u64,
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Signature {
    pub fn of(path: &Path) -> Result<Self, SourceError> {
        let meta = std::fs::metadata(path).map_err(|source| unreadable(path, source))?;
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            bytes: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

fn unreadable(path: &Path, source: std::io::Error) -> SourceError {
    SourceError::Unreadable { path: path.to_owned(), source }
}

/// Reads and validates the file; its signature is the same before and after, so what was read is
/// one content and not a mixture of two.
pub(super) fn load(path: &Path) -> Result<(Signature, DirectoryFile), SourceError> {
    let before = Signature::of(path)?;
    if before.bytes > FILE_BYTES_MAX {
        return Err(SourceError::TooLarge { path: path.to_owned(), bytes: before.bytes });
    }
    let text = std::fs::read_to_string(path).map_err(|source| unreadable(path, source))?;
    if Signature::of(path)? != before {
        return Err(SourceError::Changing { path: path.to_owned() });
    }
    match parse(&text) {
        Ok(file) => Ok((before, file)),
        Err(faults) => Err(SourceError::Invalid { path: path.to_owned(), faults }),
    }
}

fn parse(text: &str) -> Result<DirectoryFile, String> {
    serde_yaml::from_str(text).map_err(|e| e.to_string())
}
