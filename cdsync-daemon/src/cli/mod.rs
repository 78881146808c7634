//! What managers type: each command is a call or two of the master's API.

pub(crate) mod client;
mod connect;
mod jobfile;
pub(crate) mod jobs;
mod log;
mod resume;
pub(crate) mod servers;
mod settings;
mod show;
pub(crate) mod token;
mod verify;

pub(crate) use connect::connect;
#[cfg(test)]
pub(crate) use connect::{Found, find};
#[cfg(test)]
pub(crate) use jobfile::parse as parse_job_file;
