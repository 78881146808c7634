//! Many files: `million [--files N] [--shape folders|one-folder|identical|empty]`. Measures a tenth
//! of them first, so that what grows faster than the files is seen.
#![expect(clippy::print_stderr, reason = "it speaks to whoever runs it")]

use cdsync_tests::{Scale, Shape};

const USAGE: &str = "million [--files N] [--shape folders|one-folder|identical|empty]";

fn main() {
    let Some((files, shape)) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    for files in [files / 10, files] {
        let scale = Scale { files, shape };
        let figures = scale.run();
        let each = |time: std::time::Duration| time.as_secs_f64() * 1e6 / files as f64;
        eprintln!(
            "{files} files, {shape:?}: first copy {:.1} s ({:.1} us a file), restart {:.1} s \
             ({:.1} us a file), one change {:.1} ms, ledgers {} bytes a file",
            figures.first_copy.as_secs_f64(),
            each(figures.first_copy),
            figures.restart.as_secs_f64(),
            each(figures.restart),
            figures.change.as_secs_f64() * 1e3,
            figures.ledgers / files,
        );
        for memory in &figures.memory {
            let mib = |bytes: u64| bytes >> 20;
            eprintln!(
                "  {}: {} MiB at most, {} MiB now ({} MiB are the bound of an agent)",
                memory.what,
                mib(memory.peak),
                mib(memory.now),
                mib(scale.bound())
            );
        }
    }
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<(u64, Shape)> {
    let (mut files, mut shape) = (1_000_000, Shape::Folders);
    while let Some(key) = args.next() {
        let value = args.next()?;
        match key.as_str() {
            "--files" => files = value.parse().ok().filter(|files| *files >= 1000)?,
            "--shape" => shape = Shape::named(&value)?,
            _ => return None,
        }
    }
    Some((files, shape))
}
