//! Ending politely: the first SIGINT or SIGTERM asks for it, the second one does not wait.

use tokio::signal::unix::{SignalKind, signal};

use crate::failure::{Failure, Result};

/// Done when the process is asked to end. From then on a second signal ends it at once.
///
/// # Errors
/// When the system gives no signals.
pub(crate) fn requested() -> Result<impl Future<Output = ()> + Send> {
    let listen = |kind| signal(kind).map_err(|error| Failure::machine(&error));
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("ending; a second signal does not wait");
        tokio::spawn(async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            std::process::exit(130);
        });
    })
}
