//! Folders to work in.

use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use tempfile::TempDir;

/// How long [`fill`] goes on at most.
const FILL_MAX: Duration = Duration::from_secs(2);

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A temporary folder with folders in it. As root, where mounting is permitted, each of these is a
/// filesystem of its own (tmpfs), as on several machines; else they are plain.
#[derive(Debug)]
pub struct Space {
    top: TempDir,
    mounted: Vec<PathBuf>,
}

impl Space {
    /// Makes the temporary folder.
    ///
    /// # Panics
    /// When it cannot.
    #[must_use]
    pub fn new() -> Self {
        let top = tempfile::Builder::new()
            .prefix(&format!("cdsync-e2e-{}-", std::process::id()))
            .tempdir()
            .expect("a temporary folder");
        // Agents of other users must get through.
        fs::set_permissions(top.path(), fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            top,
            mounted: Vec::new(),
        }
    }

    /// The temporary folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.top.path()
    }

    /// Whether the filesystem of the newest folder clones files.
    #[must_use]
    pub fn clones_files(&self) -> bool {
        let folder = self.mounted.last().map_or(self.path(), PathBuf::as_path);
        let (file, clone) = (folder.join(".original"), folder.join(".clone"));
        let made = fs::write(&file, b"x").is_ok();
        let mut copy = Command::new("cp");
        copy.arg("--reflink=always").args([&file, &clone]);
        let cloned = made && copy.output().is_ok_and(|out| out.status.success());
        for path in [file, clone] {
            drop(fs::remove_file(path));
        }
        cloned
    }

    /// Makes a folder, on a filesystem of its own if possible.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn folder(&mut self, name: &str) -> PathBuf {
        let path = self.plain_folder(name);
        if is_root() {
            let flags = MountFlags::NOSUID | MountFlags::NODEV;
            match mount(
                "cdsync-e2e",
                &path,
                "tmpfs",
                flags,
                Some(c"size=1g,mode=755"),
            ) {
                Ok(()) => self.mounted.push(path.clone()),
                Err(error) => eprintln!("no filesystem of its own for {name}: {error}"),
            }
        }
        path
    }

    /// Makes a folder on a filesystem of its own of about `mib` MiB: `tmpfs`, or one that `mkfs`
    /// makes in a file (`ext4`, `xfs`, `btrfs`). Device nodes work in it. Needs root.
    ///
    /// # Panics
    /// When it cannot be made or mounted.
    pub fn disk(&mut self, name: &str, filesystem: &str, mib: u64) -> PathBuf {
        let path = self.plain_folder(name);
        let mut command = Command::new("mount");
        if filesystem == "tmpfs" {
            let size = format!("size={mib}m,mode=755");
            command.args(["-t", "tmpfs", "-o", &size, "cdsync-e2e"]);
        } else {
            let image = self.top.path().join(format!("{name}.img"));
            File::create(&image).unwrap().set_len(mib << 20).unwrap();
            let quiet = if filesystem == "xfs" { "-f" } else { "-q" };
            let mkfs = format!("mkfs.{filesystem}");
            succeed(Command::new(mkfs).arg(quiet).arg(&image));
            command.args(["-t", filesystem, "-o", "loop"]).arg(image);
        }
        succeed(command.arg(&path));
        self.mounted.push(path.clone());
        path
    }

    /// Makes a folder on the filesystem of the temporary folder.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn plain_folder(&mut self, name: &str) -> PathBuf {
        let path = self.top.path().join(name);
        fs::create_dir(&path).unwrap();
        path
    }

    /// Whether a folder is a filesystem of its own, made here.
    #[must_use]
    pub fn is_mounted(&self, path: &Path) -> bool {
        self.mounted.iter().any(|mounted| mounted == path)
    }

    /// Moves a mounted filesystem to another path, which is made; its contents go along.
    ///
    /// # Panics
    /// When it was not mounted here, or cannot be moved.
    pub fn move_mount(&mut self, from: &Path, to: &Path) {
        fs::create_dir_all(to).unwrap();
        // Where mounts are shared between namespaces, they cannot be moved: bound elsewhere, then
        // unmounted, comes to the same.
        rustix::mount::mount_bind(from, to).unwrap();
        unmount(from, UnmountFlags::DETACH).unwrap();
        let at = self.mounted.iter().position(|path| path == from);
        self.mounted[at.expect("it was mounted here")] = to.to_owned();
    }
    /// Shows a folder's filesystem at another folder too.
    ///
    /// # Panics
    /// When mounting is not permitted.
    pub fn bind(&mut self, from: &Path, to: &Path) {
        rustix::mount::mount_bind(from, to).unwrap();
        self.mounted.push(to.to_owned());
    }

    /// Mounts an empty filesystem over a folder. Only as root.
    ///
    /// # Panics
    /// When mounting is not permitted.
    pub fn cover(&mut self, path: &Path) {
        mount(
            "cdsync-e2e",
            path,
            "tmpfs",
            MountFlags::empty(),
            Some(c"size=1m"),
        )
        .unwrap();
        self.mounted.push(path.to_owned());
    }

    /// Takes away what was mounted over a folder last.
    ///
    /// # Panics
    /// When nothing was.
    pub fn uncover(&mut self, path: &Path) {
        unmount(path, UnmountFlags::DETACH).unwrap();
        let at = self.mounted.iter().rposition(|mounted| mounted == path);
        self.mounted.remove(at.expect("it was mounted here"));
    }
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        for path in self.mounted.drain(..).rev() {
            if let Err(error) = unmount(&path, UnmountFlags::DETACH) {
                eprintln!("cannot unmount {}: {error}", path.display());
            }
        }
    }
}

/// Writes to a filesystem until nothing more fits, as `ballast` in this folder of it.
///
/// # Panics
/// When the file cannot be made.
pub fn fill(folder: &Path) {
    let mut ballast = File::create(folder.join("ballast")).unwrap();
    let free = rustix::fs::statvfs(folder).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let flags = rustix::fs::FallocateFlags::empty();
    let _ = rustix::fs::fallocate(&ballast, flags, 0, free.saturating_sub(1 << 20).max(1));
    let _ = ballast.seek(SeekFrom::End(0));
    // Others may make room all the time.
    let end = Instant::now() + FILL_MAX;
    for size in [65_536, 512] {
        while ballast.write_all(&vec![0; size]).is_ok() && Instant::now() < end {}
    }
}

/// Removes what [`fill`] wrote.
pub fn unfill(folder: &Path) {
    let _ = fs::remove_file(folder.join("ballast"));
}

#[track_caller]
fn succeed(command: &mut Command) {
    let output = command.output().expect("the command is there");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
