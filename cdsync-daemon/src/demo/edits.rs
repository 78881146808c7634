//! The edits that `--once` makes: what people and programs do to a tree, in a fixed order.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

/// How many changes the latency is measured on.
const MEASURED: usize = 100;
/// How long one change may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes a few hundred changes of every kind. Returns how many.
pub(super) fn churn(root: &Path) -> io::Result<usize> {
    let area = root.join("edited-by-the-demo");
    let mut made = 0;
    for n in 0..40 {
        let dir = area.join(format!("dir-{}", n % 5));
        fs::create_dir_all(&dir)?;
        let file = dir.join(format!("file-{n}"));
        fs::write(&file, format!("first content of {n}\n"))?;
        OpenOptions::new()
            .append(true)
            .open(&file)?
            .write_all(b"and a line more\n")?;
        // A save as editors do it.
        let temp = dir.join(format!(".file-{n}.tmp"));
        fs::write(&temp, format!("saved content of {n}\n").repeat(n + 1))?;
        fs::rename(&temp, &file)?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640))?;
        fs::rename(&file, dir.join(format!("renamed-{n}")))?;
        symlink(format!("renamed-{n}"), dir.join(format!("link-{n}")))?;
        made += 7;
        if n % 4 == 0 {
            fs::remove_file(dir.join(format!("renamed-{n}")))?;
            made += 1;
        }
    }
    fs::rename(area.join("dir-0"), area.join("dir-moved"))?;
    fs::create_dir_all(area.join("empty/inside"))?;
    fs::write(area.join("large"), vec![7; 3 << 20])?;
    fs::remove_dir_all(area.join("dir-1"))?;
    Ok(made + 4)
}

/// What was measured, in milliseconds.
pub(super) struct Latency {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

/// Measures from before a change is made until the target shows it. Blocks.
pub(super) fn latency(source: &Path, target: &Path) -> io::Result<Latency> {
    let mut took = Vec::with_capacity(MEASURED);
    for n in 0..MEASURED {
        let content = format!("{n:>8}").repeat(512);
        let began = Instant::now();
        fs::write(source.join("measured.tmp"), &content)?;
        fs::rename(source.join("measured.tmp"), source.join("measured"))?;
        while fs::read(target.join("measured")).ok().as_deref() != Some(content.as_bytes()) {
            if began.elapsed() > PATIENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            std::thread::sleep(Duration::from_micros(50));
        }
        took.push(began.elapsed().as_secs_f64() * 1000.0);
        // Idle between changes: what is measured is one change, not a storm.
        std::thread::sleep(Duration::from_millis(10));
    }
    took.sort_by(f64::total_cmp);
    Ok(Latency {
        p50_ms: took[MEASURED / 2],
        p99_ms: took[MEASURED * 99 / 100],
    })
}
