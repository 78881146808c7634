//! The cdsync command: arguments, signals and logging around the master, the agent and the
//! manager's calls.
#![forbid(unsafe_code)]

mod agent;
mod args;
mod cli;
mod demo;
mod doctor;
mod failure;
mod join;
mod limits;
mod logging;
mod master;
mod output;
mod shutdown;
#[cfg(test)]
mod tests;
mod text;

use std::process::ExitCode;

use clap::Parser;

use args::{AgentCommand, Cli, Command, MasterCommand};
use failure::{Failure, Result};

/// The system's allocator takes a tenth of a first copy: rows, names and batches are made by one
/// thread and freed by another, which it does under locks and with memory given back and fetched
/// again. Elsewhere jemalloc must be built for the size of the system's pages, which may differ.
#[cfg(all(target_arch = "x86_64", target_env = "gnu"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            output::complain(&failure);
            failure.code()
        }
    }
}

fn run(cli: Cli) -> Result<()> {
    match cli.command {
        Command::Demo(demo) => {
            logging::start(logging::QUIET);
            limits::raise();
            many_threads()?.block_on(demo::run(demo))
        }
        Command::Master(group) => match group.command {
            MasterCommand::Init(init) => master::init(init),
            MasterCommand::Run { data } => {
                logging::start(logging::DAEMON);
                limits::raise();
                many_threads()?.block_on(master::run(&data))
            }
            MasterCommand::Token(token) => manager(cli::token::token(token)),
            MasterCommand::AcceptRestore(args) => manager(cli::servers::accept_restore(args)),
        },
        Command::Agent(group) => match group.command {
            AgentCommand::Join(join) => manager(join::join(join)),
            AgentCommand::Run {
                data,
                transport,
                hints_max,
            } => {
                logging::start(logging::DAEMON);
                limits::raise();
                many_threads()?.block_on(agent::run(&data, transport.into(), hints_max))
            }
        },
        Command::Status(status) => manager(cli::servers::status(status)),
        Command::Server(servers) => manager(cli::servers::run(servers)),
        Command::Job(jobs) => manager(cli::jobs::run(jobs)),
        Command::Doctor(args) => manager(doctor::run(args)),
    }
}

/// A command that asks a master and ends.
fn manager(work: impl Future<Output = Result<()>>) -> Result<()> {
    logging::start(logging::QUIET);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    runtime
        .map_err(|error| Failure::machine(&error))?
        .block_on(work)
}

fn many_threads() -> Result<tokio::runtime::Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build();
    runtime.map_err(|error| Failure::machine(&error))
}
