//! Folders to work in.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};

use crate::aftermath::{Aftermath, output_within};

/// Takes away what is mounted below a folder, the newest first, the devices of files in it, and then
/// the folder.
const CLEAN: &str = r#"
awk -v top="$1/" 'index($2, top) == 1 { print $2 }' /proc/self/mounts | tac |
    while read -r mount; do umount --lazy "$mount"; done
losetup --list --noheadings --output NAME,BACK-FILE 2>/dev/null |
    awk -v top="$1/" 'index($2, top) == 1 { print $1 }' |
    while read -r device; do losetup --detach "$device"; done
rm -rf --one-file-system "$1" || { sleep 1; rm -rf --one-file-system "$1"; }
"#;

/// How long a command of the system may take.
const COMMAND_MAX: Duration = Duration::from_secs(60);

/// How long [`fill`] goes on at most.
const FILL_MAX: Duration = Duration::from_secs(2);

/// Whether this process is root.
#[must_use]
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A temporary folder with folders in it, which goes with all mounts when this is dropped, or the
/// process ends without that. As root, where mounting is permitted, each of these is a
/// filesystem of its own (tmpfs), as on several machines; else they are plain.
#[derive(Debug)]
pub struct Space {
    top: PathBuf,
    mounted: Vec<PathBuf>,
    /// Of filesystems in files, by where they are mounted.
    images: BTreeMap<PathBuf, Image>,
    _clean: Aftermath,
}

/// A filesystem in a file.
#[derive(Debug)]
struct Image {
    filesystem: String,
    file: PathBuf,
    /// The loop device: filesystems are known by theirs.
    device: PathBuf,
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
            .expect("a temporary folder")
            .keep();
        let clean = Aftermath::new(CLEAN, &[top.to_str().expect("UTF-8")]);
        // Agents of other users must get through.
        fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
        Self {
            top,
            mounted: Vec::new(),
            images: BTreeMap::new(),
            _clean: clean,
        }
    }

    /// The temporary folder.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.top
    }

    /// Whether the filesystem of the newest folder clones files.
    #[must_use]
    pub fn clones_files(&self) -> bool {
        let folder = self.mounted.last().map_or(self.path(), PathBuf::as_path);
        let (file, clone) = (folder.join(".original"), folder.join(".clone"));
        let made = fs::write(&file, b"x").is_ok();
        let mut copy = Command::new("cp");
        copy.arg("--reflink=always").args([&file, &clone]);
        let cloned = made && output_within(COMMAND_MAX, &mut copy).status.success();
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
        if filesystem == "tmpfs" {
            let size = format!("size={mib}m,mode=755");
            let mut command = Command::new("mount");
            command.args(["-t", "tmpfs", "-o", &size, "cdsync-e2e"]);
            succeed(command.arg(&path));
        } else {
            let file = self.top.join(format!("{name}.img"));
            File::create(&file).unwrap().set_len(mib << 20).unwrap();
            let quiet = if filesystem == "xfs" { "-f" } else { "-q" };
            let mkfs = format!("mkfs.{filesystem}");
            succeed(Command::new(mkfs).arg(quiet).arg(&file));
            let filesystem = filesystem.to_owned();
            let device = attach(&file);
            let image = Image {
                filesystem,
                file,
                device,
            };
            image.mount(&path);
            self.images.insert(path.clone(), image);
        }
        self.mounted.push(path.clone());
        path
    }

    /// Cuts the power of a disk that is a filesystem in a file (`ext4` or `xfs`): what was not
    /// synced is lost, and every access fails from now on. Needs `xfs_io`.
    ///
    /// # Panics
    /// When it cannot be done.
    pub fn cut_power(&self, path: &Path) {
        assert!(self.images.contains_key(path), "no disk of its own");
        // Nothing that is still in memory goes to the disk, not even the journal.
        succeed(
            Command::new("xfs_io")
                .args(["-x", "-c", "shutdown"])
                .arg(path),
        );
    }

    /// Mounts a disk again whose power was cut. Whoever has files of it open goes on failing, and
    /// it is then on another device.
    ///
    /// # Panics
    /// When it cannot be mounted.
    pub fn restore_power(&mut self, path: &Path) {
        let image = self.images.get_mut(path).expect("a disk of its own");
        // The same device where that can be: by its number some filesystems are known.
        if unmount(path, UnmountFlags::empty()).is_ok() {
            image.mount(path);
            if is_well(path) {
                return;
            }
        }
        unmount(path, UnmountFlags::DETACH).unwrap();
        // As long as somebody has the old one open, mounting it shows the old one: a process, or a
        // mount namespace that was made while it was mounted, which nothing here tells.
        let next = image.file.with_extension(format!("{}.img", next()));
        let mut copy = Command::new("cp");
        succeed(copy.arg("--sparse=always").args([&image.file, &next]));
        fs::remove_file(&image.file).unwrap();
        detach(&image.device);
        image.device = attach(&next);
        image.file = next;
        image.mount(path);
    }

    /// Makes a folder on the filesystem of the temporary folder.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn plain_folder(&mut self, name: &str) -> PathBuf {
        let path = self.top.join(name);
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

impl Image {
    #[track_caller]
    fn mount(&self, path: &Path) {
        // The filesystem whose copy it may be can still be mounted.
        let options = match &*self.filesystem {
            "xfs" => "nouuid",
            _ => "defaults",
        };
        let mut command = Command::new("mount");
        command.args(["-t", &self.filesystem, "-o", options]);
        succeed(command.arg(&self.device).arg(path));
    }
}

/// Whether a filesystem takes a file.
fn is_well(path: &Path) -> bool {
    let probe = path.join(".power");
    fs::write(&probe, b"on").is_ok() && fs::remove_file(&probe).is_ok()
}

/// Makes a device of a file.
#[track_caller]
fn attach(file: &Path) -> PathBuf {
    let mut command = Command::new("losetup");
    let output = command.args(["--find", "--show"]).arg(file).output();
    let output = output.expect("losetup is there");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{command:?}: {output:?}");
    PathBuf::from(said.trim())
}

/// Ends a device, once nobody uses it any more.
fn detach(device: &Path) {
    let ended = Command::new("losetup").arg("--detach").arg(device).status();
    if !ended.is_ok_and(|status| status.success()) {
        eprintln!("cannot detach {}", device.display());
    }
}

/// A number that no other call got.
fn next() -> u32 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Default for Space {
    fn default() -> Self {
        Self::new()
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
    let output = output_within(COMMAND_MAX, command);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}
