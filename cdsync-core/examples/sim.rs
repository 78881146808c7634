//! Runs seeds of the simulator: one with its story, or many, told by the command that replays each
//! that failed.

use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use cdsync_core::sim::{Failed, Kind};

const USAGE: &str = "sim [--kind KIND|all] [--seed N | --first N --seeds COUNT] [--threads COUNT]

    --kind     what is run; all kinds if it is not said
    --seed     one seed, with everything that happened if it fails
    --first    the first of many seeds (0)
    --seeds    how many of each kind (10000)
    --threads  how many run side by side (as many as there are processors)";

struct Args {
    kinds: Vec<Kind>,
    seed: Option<u64>,
    first: u64,
    seeds: u64,
    threads: usize,
}

fn parse() -> Result<Args, String> {
    let mut args = Args {
        kinds: Kind::ALL.to_vec(),
        seed: None,
        first: 0,
        seeds: 10_000,
        threads: std::thread::available_parallelism().map_or(1, Into::into),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} wants a value"))?;
        let number = || value.parse().map_err(|_| format!("{word} wants a number"));
        match word.as_str() {
            "--kind" if value == "all" => {}
            "--kind" => args.kinds = vec![Kind::named(&value).ok_or_else(no_such_kind)?],
            "--seed" => args.seed = Some(number()?),
            "--first" => args.first = number()?,
            "--seeds" => args.seeds = number()?,
            "--threads" => args.threads = usize::try_from(number()?).unwrap_or(1).clamp(1, 256),
            _ => return Err(format!("there is no {word}")),
        }
    }
    Ok(args)
}

fn no_such_kind() -> String {
    let names: Vec<&str> = Kind::ALL.iter().map(|kind| kind.name()).collect();
    format!("the kinds are: {}", names.join(", "))
}

/// Tries the seeds of one kind side by side.
fn try_seeds(kind: Kind, args: &Args) -> Vec<Failed> {
    let next = AtomicU64::new(args.first);
    let failures = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.first.saturating_add(args.seeds) {
                        break;
                    }
                    if let (Err(failed), Ok(mut all)) = (kind.run(seed), failures.lock()) {
                        all.push(failed);
                    }
                }
            });
        }
    });
    let mut failures = failures.into_inner().unwrap_or_default();
    failures.sort_by_key(|failed| failed.seed);
    failures
}

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "a command")]
fn main() -> ExitCode {
    let args = match parse() {
        Ok(args) => args,
        Err(wrong) => {
            eprintln!("{wrong}\n\n{USAGE}");
            return ExitCode::from(2);
        }
    };
    // What a run panics with is told with its seed.
    std::panic::set_hook(Box::new(|_| {}));
    let mut failed = false;
    for kind in &args.kinds {
        if let Some(seed) = args.seed {
            match kind.run(seed) {
                Ok(()) => println!("{kind} {seed}: passed"),
                Err(broken) => {
                    println!("{}\n{broken}", broken.story);
                    failed = true;
                }
            }
            continue;
        }
        let failures = try_seeds(*kind, &args);
        println!("{kind}: {} of {} seeds failed", failures.len(), args.seeds);
        failures.iter().for_each(|broken| println!("{broken}"));
        failed |= !failures.is_empty();
    }
    ExitCode::from(u8::from(failed))
}
