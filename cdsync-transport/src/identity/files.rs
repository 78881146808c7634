//! Small secret files: written whole, readable by the owner alone, durable before they count.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
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
/// What the system said; retryable. The file is then the old one, or the new one.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    write_in_steps(path, bytes, &mut |_| Ok(()))
}

/// Makes a file for its owner alone (mode 0600) that is filled, and made durable, by `fill`, and has
/// its name only after that: a crash leaves none, or one that is whole. What was there goes. Its
/// folder is made if missing. Blocks.
///
/// # Errors
/// What `fill` or the system said; retryable. What was there is then still there, or the new one.
pub fn make_private<T, E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(File) -> Result<T, E>,
) -> Result<T, E> {
    make_in_steps(path, |file, _| fill(file), &mut |_| Ok(()))
}

/// Makes a folder and those above it, for their owner alone (mode 0700). Each is durable in the one
/// above when this returns: a file in it would be lost with it. Blocks.
///
/// # Errors
/// What the system said; retryable.
pub fn make_private_folder(folder: &Path) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = above(folder);
    make_private_folder(above)?;
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    File::open(above)?.sync_all()
}

fn above(path: &Path) -> &Path {
    let above = path.parent().filter(|p| !p.as_os_str().is_empty());
    above.unwrap_or(Path::new("."))
}

/// What has been done when it goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Made,
    Written,
    Synced,
    Renamed,
    Durable,
}

/// Told of each step; what it returns ends everything there, as a crash would.
type After<'a> = dyn FnMut(Step) -> io::Result<()> + 'a;

fn write_in_steps(path: &Path, bytes: &[u8], after: &mut After<'_>) -> io::Result<()> {
    let fill = |mut file: File, after: &mut After<'_>| {
        after(Step::Made)?;
        file.write_all(bytes)?;
        after(Step::Written)?;
        file.sync_all()?;
        after(Step::Synced)
    };
    make_in_steps(path, fill, after)
}

fn make_in_steps<T, E: From<io::Error>>(
    path: &Path,
    fill: impl FnOnce(File, &mut After<'_>) -> Result<T, E>,
    after: &mut After<'_>,
) -> Result<T, E> {
    let parent = above(path);
    make_private_folder(parent)?;
    let staged = path.with_extension("new");
    match fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    // `create_new` also refuses to follow a link that somebody put there.
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&staged)?;
    let filled = fill(file, after)?;
    fs::rename(&staged, path)?;
    after(Step::Renamed)?;
    File::open(parent)?.sync_all()?;
    after(Step::Durable)?;
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEPS: [Step; 5] = [
        Step::Made,
        Step::Written,
        Step::Synced,
        Step::Renamed,
        Step::Durable,
    ];

    /// Proves that what is written is synced before it gets its name, and the name after that, and
    /// that a crash after any of these steps leaves the old file or the new one, whole, and nothing
    /// that is in the way of the next write.
    #[test]
    fn a_crash_at_any_step_leaves_one_whole_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b/orders");
        for before in [None, Some(&b"the old one"[..])] {
            for (number, last) in STEPS.into_iter().enumerate() {
                let _ = fs::remove_file(&path);
                if let Some(before) = before {
                    write_private(&path, before).unwrap();
                }
                let mut done = Vec::new();
                let crashed = write_in_steps(&path, b"the new one", &mut |step| {
                    done.push(step);
                    match step == last {
                        true => Err(io::ErrorKind::Interrupted.into()),
                        false => Ok(()),
                    }
                });
                assert!(crashed.is_err());
                assert_eq!(done, STEPS[..=number]);
                let renamed = done.contains(&Step::Renamed);
                let expected = if renamed {
                    Some(&b"the new one"[..])
                } else {
                    before
                };
                assert_eq!(fs::read(&path).ok().as_deref(), expected);
                write_private(&path, b"the next one").unwrap();
                assert_eq!(fs::read(&path).unwrap(), b"the next one");
                let names = fs::read_dir(path.parent().unwrap()).unwrap().count();
                assert_eq!(names, 1, "something is left beside it");
            }
        }
    }
}
