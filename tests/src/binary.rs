//! The program under test.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::SystemTime;

/// The path of the built `cdsync`: `CDSYNC_BIN` when set, else the one of this build's profile,
/// which is built first when it is missing or older than its sources.
///
/// # Panics
/// When it cannot be built.
#[must_use]
pub fn cdsync() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| match std::env::var_os("CDSYNC_BIN") {
        Some(path) => path.into(),
        None => built(),
    })
}

fn built() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    // target/PROFILE/deps/e2e-1234, or target/PROFILE/torture
    let beside = own.parent().unwrap();
    let folder = match beside.file_name().is_some_and(|name| name == "deps") {
        true => beside.parent().unwrap(),
        false => beside,
    };
    let binary = folder.join("cdsync");
    if !is_fresh(&binary) {
        build(folder);
    }
    assert!(binary.is_file(), "{} was not built", binary.display());
    binary
}

/// Whether nothing that the program was made from is newer. Cargo writes a list of that beside it.
fn is_fresh(binary: &Path) -> bool {
    let changed = |path: &Path| -> Option<SystemTime> { fs::metadata(path).ok()?.modified().ok() };
    let Some(made) = changed(binary) else {
        return false;
    };
    let Ok(list) = fs::read_to_string(binary.with_extension("d")) else {
        return false;
    };
    let Some((_, sources)) = list.split_once(": ") else {
        return false;
    };
    // Cargo escapes spaces in names; a path that has some counts as changed, which only costs time.
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("../Cargo.lock");
    sources
        .split_whitespace()
        .map(Path::new)
        .chain([lock.as_path()])
        .all(|source| changed(source).is_some_and(|at| at <= made))
}

fn build(folder: &Path) {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let profile = match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => "dev",
        Some(other) => other,
    };
    eprintln!("building cdsync ({profile})");
    let built = Command::new(cargo)
        .args([
            "build",
            "--quiet",
            "--package",
            "cdsync-daemon",
            "--profile",
            profile,
        ])
        .arg("--target-dir")
        .arg(folder.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("cargo is there");
    assert!(
        built.status.success(),
        "cdsync does not build:\n{}",
        String::from_utf8_lossy(&built.stderr)
    );
}
