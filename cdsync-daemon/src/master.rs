//! `cdsync master init` and `run`.

use std::path::Path;

use cdsync_master::{Master, MasterConfig, MasterError};
use serde_json::json;

use crate::args::InitArgs;
use crate::failure::{Failure, Result, chain};
use crate::output::{hint, json, say};
use crate::shutdown;

fn failed(error: &MasterError) -> Failure {
    match error {
        MasterError::Advertise { .. } => Failure::usage(chain(error)),
        _ => Failure::condition(chain(error)),
    }
}

/// Makes a master.
pub(crate) fn init(args: InitArgs) -> Result<()> {
    let InitArgs {
        data,
        listen,
        http,
        advertise,
        json: as_json,
    } = args;
    let config = MasterConfig {
        listen,
        http,
        advertise,
    };
    let made = Master::init(&data, config).map_err(|error| failed(&error))?;
    let next = format!("cdsync master run --data {}", data.display());
    if as_json {
        json(&json!({
            "data": data, "owner_token": made.owner_token, "advertise": made.advertise,
            "http": made.http, "fingerprint": made.fingerprint.to_string(), "next": next,
        }));
        return Ok(());
    }
    say(&format!(
        "master made in {}\nagents will dial   {}\nmanagers will use  https://{} (or --data {} here)\nowner's token      {} (whoever has it may do everything)",
        data.display(),
        made.advertise,
        made.http,
        data.display(),
        made.owner_token.display(),
    ));
    hint(&format!("next: {next}"));
    Ok(())
}

/// Runs a master.
pub(crate) async fn run(data: &Path) -> Result<()> {
    let shutdown = shutdown::requested()?;
    let master = Master::open(data).await.map_err(|error| failed(&error))?;
    hint(&format!(
        "master listens for agents on {}, for managers on https://{}\nnext: cdsync master token --data {} --name SERVER --group REGION/GROUP",
        master.local_addr(),
        master.http_addr(),
        data.display(),
    ));
    master.run(shutdown).await;
    Ok(())
}
