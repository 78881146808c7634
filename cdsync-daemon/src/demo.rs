//! `cdsync demo`.

use crate::args::DemoArgs;
use crate::failure::{Failure, Result};

/// Runs the demonstration.
#[expect(clippy::unused_async, reason = "it will run a master and agents")]
pub(crate) async fn run(demo: DemoArgs) -> Result<()> {
    let DemoArgs {
        source: _,
        targets,
        once: _,
    } = demo;
    Err(Failure::condition(format!(
        "the demo with {targets} targets is not part of this build"
    )))
}
