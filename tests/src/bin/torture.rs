//! Long torture runs:
//! `torture [--seconds N] [--seed N] [--round N] [--filesystem NAME] [--disks no] [--links no]`.
#![expect(clippy::print_stderr, reason = "it speaks to whoever runs it")]

use std::time::Duration;

use cdsync_tests::{Torture, seed};

const USAGE: &str = "torture [--seconds N] [--seed N] [--round SECONDS] \
                     [--filesystem tmpfs|ext4|xfs|btrfs] [--disks yes|no] [--links yes|no]";

fn main() {
    let Some(torture) = parse(std::env::args().skip(1)) else {
        eprintln!("{USAGE}");
        std::process::exit(2);
    };
    let tally = torture.run();
    eprintln!(
        "{} rounds in {:.2} hours, {} kills by SIGKILL: no failure",
        tally.rounds,
        tally.took.as_secs_f64() / 3600.0,
        tally.kills
    );
}

fn parse(mut args: impl Iterator<Item = String>) -> Option<Torture> {
    let (mut seconds, mut round, mut chosen) = (3600, 20, None);
    let mut filesystem = "tmpfs".to_owned();
    let (mut disks, mut links) = (true, true);
    while let Some(key) = args.next() {
        let value = args.next()?;
        match key.as_str() {
            "--seconds" => seconds = value.parse().ok()?,
            "--seed" => chosen = Some(value.parse().ok()?),
            "--round" => round = value.parse().ok()?,
            "--filesystem" => filesystem = value,
            "--disks" => disks = value != "no",
            "--links" => links = value != "no",
            _ => return None,
        }
    }
    Some(Torture {
        seed: chosen.unwrap_or_else(seed),
        lasts: Duration::from_secs(seconds),
        round: Duration::from_secs(round),
        disks,
        links,
        filesystem,
    })
}
