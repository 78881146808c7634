//! A program that is a CDSync agent, too: it runs one on its own runtime, beside its own work.
//!
//! ```text
//! cdsync agent join --data DIR --token TOKEN --root PATH    # once
//! cargo run --example embed -- DIR                          # instead of `cdsync agent run`
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use cdsync_agent::{Agent, AgentConfig};
use cdsync_core::{ids::ServerId, wire::VerifyingKey};
use cdsync_transport::NodeIdentity;

/// Reads what `cdsync agent join` wrote.
fn joined(data: &Path) -> Result<AgentConfig> {
    let text = std::fs::read_to_string(data.join("agent.toml"))?;
    let file: toml::Table = toml::from_str(&text)?;
    let text = |key: &str| {
        let value = file.get(key).and_then(toml::Value::as_str);
        value.with_context(|| format!("agent.toml has no {key}"))
    };
    let roots = file.get("roots").and_then(toml::Value::as_array);
    let roots = roots.into_iter().flatten().filter_map(toml::Value::as_str);
    let key = text("orders_key")?;
    let byte = |at: usize| u8::from_str_radix(key.get(at..at + 2).unwrap_or_default(), 16);
    let key: Vec<u8> = (0..64).step_by(2).map(byte).collect::<Result<_, _>>()?;
    Ok(AgentConfig {
        data: data.to_owned(),
        listen: text("listen")?.parse()?,
        dial_over: cdsync_transport::DialOver::default(),
        advertise: text("advertise")?.to_owned(),
        roots: roots.map(PathBuf::from).collect(),
        master_address: text("master")?.to_owned(),
        server: ServerId(u64::from_str_radix(text("server")?, 16)?),
        name: text("name")?.parse()?,
        cluster: u64::from_str_radix(text("cluster")?, 16)?,
        orders_key: VerifyingKey(key.as_slice().try_into()?),
        identity: NodeIdentity::load(data)?,
        hints_max: cdsync_agent::HINTS_MAX,
    })
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt().init();
    let data = std::env::args_os().nth(1).context("usage: embed DIR")?;
    let agent = Agent::start(joined(Path::new(&data))?)?;
    // The program's own work goes here; the agent needs nothing of it.
    let interrupted = async { drop(tokio::signal::ctrl_c().await) };
    agent.run(interrupted).await;
    Ok(())
}
