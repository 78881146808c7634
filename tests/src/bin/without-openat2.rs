//! Becomes the program that its arguments name, on a kernel that has no `openat2`: a seccomp filter
//! answers that call with `ENOSYS`, for good.
#![allow(
    clippy::print_stderr,
    reason = "it speaks to whoever reads the log of the program"
)]

use std::collections::BTreeMap;
use std::error::Error;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch, apply_filter};

/// The same on every architecture, as of all calls since Linux 5.1.
const SYS_OPENAT2: i64 = 437;
const ENOSYS: u32 = 38;

fn main() -> ExitCode {
    let Err(error) = run();
    eprintln!("without-openat2: {error}");
    ExitCode::FAILURE
}

fn run() -> Result<std::convert::Infallible, Box<dyn Error>> {
    let mut args = std::env::args_os().skip(1);
    let program = args.next().ok_or("the program to become is missing")?;
    let refused = BTreeMap::from([(SYS_OPENAT2, Vec::new())]);
    let filter = SeccompFilter::new(
        refused,
        SeccompAction::Allow,
        SeccompAction::Errno(ENOSYS),
        TargetArch::try_from(std::env::consts::ARCH)?,
    )?;
    apply_filter(&BpfProgram::try_from(filter)?)?;
    Err(Command::new(program).args(args).exec().into())
}
