//! Logging of the command: to stderr, chosen by `CDSYNC_LOG`.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

/// For daemons: what happens.
pub(crate) const DAEMON: &str = "warn,cdsync=info,cdsync_agent=info,cdsync_core=info,cdsync_delta=info,cdsync_fs=info,cdsync_master=info,cdsync_transport=info";

/// For commands: what went wrong.
pub(crate) const QUIET: &str = "warn";

/// Starts logging. A `CDSYNC_LOG` that does not parse is said and replaced by the default.
pub(crate) fn start(default: &str) {
    let (filter, bad) = match std::env::var("CDSYNC_LOG") {
        Ok(text) => match EnvFilter::try_new(&text) {
            Ok(filter) => (filter, None),
            Err(error) => (EnvFilter::new(default), Some(error)),
        },
        Err(_) => (EnvFilter::new(default), None),
    };
    let started = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init();
    if let Some(error) = bad {
        tracing::warn!(%error, "CDSYNC_LOG does not parse; the default is used");
    }
    // Only a second call can fail, and there is none.
    debug_assert!(started.is_ok(), "logging was started twice");
}
