//! Small secret files: written whole, readable by the owner alone, durable before they count.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::CertificateError;

/// More than any key or chain needs.
const MAX_BYTES: u64 = 64 * 1024;

pub(super) fn read(path: &Path) -> Result<String, CertificateError> {
    let failed = |source| CertificateError::File {
        path: path.to_owned(),
        source,
    };
    let mut text = String::new();
    let file = File::open(path).map_err(failed)?;
    file.take(MAX_BYTES)
        .read_to_string(&mut text)
        .map_err(failed)?;
    Ok(text)
}

/// Writes mode 0600 beside the place, then renames: a crash leaves the old file or the new one.
pub(super) fn write(path: &Path, text: &str) -> Result<(), CertificateError> {
    write_private(path, text.as_bytes()).map_err(|source| CertificateError::File {
        path: path.to_owned(),
        source,
    })
}

/// Writes a small file whole, durably, and for its owner alone (mode 0600): a crash leaves the old
/// one or the new one. Its folder is made if missing. Blocks.
///
/// # Errors
/// What the system said; retryable.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let parent = path
        .parent()
        .filter(|p| !p.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    fs::create_dir_all(parent)?;
    let staged = path.with_extension("new");
    match fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    // `create_new` also refuses to follow a link that somebody put there.
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&staged, path)?;
    File::open(parent)?.sync_all()
}
