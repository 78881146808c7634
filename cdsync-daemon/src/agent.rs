//! `cdsync agent run`.

use std::path::Path;

use cdsync_agent::{Agent, AgentConfig, HINTS_MAX};
use cdsync_transport::DialOver;

use crate::failure::{Failure, Result, chain};
use crate::join::Joined;
use crate::shutdown;

/// Runs the agent of a folder.
pub(crate) async fn run(data: &Path, dial_over: DialOver, hints_max: usize) -> Result<()> {
    let joined = Joined::load(data)?;
    tracing::info!(name = %joined.name, listen = %joined.listen, master = %joined.master_address, "agent starts");
    let config = AgentConfig {
        dial_over,
        hints_max,
        ..config(data, joined)
    };
    serve(config, shutdown::requested()?).await
}

/// The one place that knows the agent library.
async fn serve(config: AgentConfig, shutdown: impl Future<Output = ()> + Send) -> Result<()> {
    let agent = Agent::start(config).map_err(|e| Failure::condition(chain(&e)))?;
    agent.run(shutdown).await;
    Ok(())
}

/// What the agent library needs of a joined server.
pub(crate) fn config(data: &Path, joined: Joined) -> AgentConfig {
    AgentConfig {
        data: data.to_owned(),
        listen: joined.listen,
        dial_over: DialOver::default(),
        advertise: joined.advertise,
        roots: joined.roots,
        master_address: joined.master_address,
        server: joined.server,
        name: joined.name,
        cluster: joined.cluster,
        orders_key: joined.orders_key,
        identity: joined.identity,
        hints_max: HINTS_MAX,
    }
}
