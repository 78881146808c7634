//! `cdsync agent run`.

use std::path::Path;

use crate::failure::{Failure, Result};
use crate::join::Joined;
use crate::shutdown;

/// Runs the agent of a folder.
pub(crate) async fn run(data: &Path) -> Result<()> {
    let joined = Joined::load(data)?;
    tracing::info!(name = %joined.name, listen = %joined.listen, master = %joined.master_address, "agent starts");
    serve(data, joined, shutdown::requested()?).await
}

/// The one place that knows the agent library.
#[expect(clippy::unused_async, reason = "it will run the agent")]
async fn serve(
    _data: &Path,
    joined: Joined,
    _shutdown: impl Future<Output = ()> + Send,
) -> Result<()> {
    let Joined { name, .. } = joined;
    Err(Failure::condition(format!("the agent {name} cannot run: it is not part of this build")))
}
