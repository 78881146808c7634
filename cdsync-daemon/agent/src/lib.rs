//! The embeddable agent: watches the roots of its jobs' sources, serves their changes to other
//! agents, and applies to its targets what their upstreams announce.
//!
//! ```text
//!   master <-- control --> Agent -- orders --> Roles
//!                                               |- source: engine thread, scanner thread, watch
//!                                               |- serve:  a task a stream, two reader threads
//!                                               `- target: engine thread, writers, link task
//! ```
//!
//! The rules are `cdsync-core`'s, the disk is `cdsync-fs`', the network `cdsync-transport`'s; here
//! they are wired. The agent runs on the caller's tokio runtime and keeps its own few threads for
//! files and tables, which end when it is dropped or its `run` ends.
#![forbid(unsafe_code)]
#![cfg_attr(
    test,
    allow(
        clippy::disallowed_methods,
        reason = "tests make and look at trees as others do: by paths"
    )
)]

mod agent;
mod board;
mod boot;
mod clock;
mod control;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod joblog;
mod lease;
mod mailbox;
mod orders;
mod owners;
mod roles;
mod roots;
mod serve;
mod source;
mod target;

pub use agent::{Agent, AgentConfig, AgentError, HINTS_MAX};
