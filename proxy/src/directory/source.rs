//! The static directory file as a source of snapshots: notices changes, reads, and tells faults.
//!
//! It polls instead of watching: that also sees what inotify does not, as a file on a network file
//! system and the symbolic links that kubelet swaps.

use rdmesh_config::{DIRECTORY_BYTES_MAX, DirectoryFile, Faults};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    #[error("cannot read the directory file {} (check node.directory.file and who may read it)", .path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("the directory file {} is {bytes} bytes, more than {DIRECTORY_BYTES_MAX}; is it the right one?", .path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("the directory file {} was changed while it was read", .path.display())]
    Changing { path: PathBuf },
    #[error("the directory file {} is not UTF-8 text; is it the right one?", .path.display())]
    NotText { path: PathBuf },
    #[error(transparent)]
    Invalid(#[from] Faults),
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
    let limit = u64::try_from(DIRECTORY_BYTES_MAX).unwrap_or(u64::MAX);
    if before.bytes > limit {
        return Err(SourceError::TooLarge { path: path.to_owned(), bytes: before.bytes });
    }
    let mut bytes = Vec::new();
    // The limit again: the file may grow while it is read, or be a pipe that says no size.
    let file = std::fs::File::open(path).map_err(|source| unreadable(path, source))?;
    file.take(limit).read_to_end(&mut bytes).map_err(|source| unreadable(path, source))?;
    if Signature::of(path)? != before {
        return Err(SourceError::Changing { path: path.to_owned() });
    }
    let text =
        String::from_utf8(bytes).map_err(|_| SourceError::NotText { path: path.to_owned() })?;
    let file = DirectoryFile::from_yaml(&text, &path.display().to_string())?;
    Ok((before, file))
}
