//! `cdsync status` and `cdsync server`.

use cdsync_core::coordinator::{ServerState, ServerStatus};
use cdsync_master::api::types::{RestoreAccepted, Status};
use hyper::Method;
use std::time::Duration;

use super::{connect, show};
use crate::args::{ServerArgs, ServerCommand, StatusArgs};
use crate::failure::Result;
use crate::output::{Table, hint, json, say};
use crate::text::ago;

/// Everything at a glance.
pub(crate) async fn status(args: StatusArgs) -> Result<()> {
    let status: Status = connect(&args.manager)?.get("/status").await?;
    if args.manager.json {
        json(&status);
        return Ok(());
    }
    let master = &status.master;
    say(&format!(
        "master {}  agents dial {}  managers {}  epoch {}  up {}  version {}\n",
        master.cluster,
        master.address,
        master.http,
        master.epoch,
        ago(master.uptime_ms),
        master.version,
    ));
    if let Some(term) = master.outranked_by_term {
        say(&format!(
            "this master gives no orders: agents obey a later one, of term {term}. It was restored \
             from an older copy, or another one runs.\nnext: look at its servers and jobs, then \
             cdsync master accept-restore\n"
        ));
    }
    say(&servers(&status.servers));
    say("");
    say(&show::jobs(&status.jobs));
    Ok(())
}

/// Lets a restored master rule again.
pub(crate) async fn accept_restore(args: StatusArgs) -> Result<()> {
    let accepted: RestoreAccepted = connect(&args.manager)?
        .send(Method::POST, "/accept-restore", None::<&()>, Duration::ZERO)
        .await?;
    if args.manager.json {
        json(&accepted);
    } else {
        say(&format!("it rules again, under term {}", accepted.term));
        hint("next: cdsync status");
    }
    Ok(())
}

/// Servers.
pub(crate) async fn run(args: ServerArgs) -> Result<()> {
    let client = connect(&args.manager)?;
    match args.command {
        ServerCommand::List => {
            let list: Vec<ServerStatus> = client.get("/servers").await?;
            if args.manager.json {
                json(&list);
            } else {
                say(&servers(&list));
            }
        }
        ServerCommand::Remove { name } => {
            client.delete(&format!("/servers/{name}")).await?;
            if args.manager.json {
                json(&serde_json::json!({ "removed": name }));
            } else {
                say(&format!(
                    "server {name} removed; its files stay where they are"
                ));
                hint(&format!(
                    "next: stop the agent on {name}; jobs that name it: cdsync job list"
                ));
            }
        }
    }
    Ok(())
}

fn servers(list: &[ServerStatus]) -> String {
    let mut table = Table::new([
        "SERVER",
        "REGION/GROUP",
        "STATE",
        "SEEN",
        "ADDRESS",
        "WATCHING",
        "ROOTS",
    ]);
    for server in list {
        let state = match server.state {
            ServerState::Connected => "connected",
            ServerState::Unreachable => "unreachable",
        };
        table.row([
            server.name.to_string(),
            format!("{}/{}", server.region, server.group),
            state.to_owned(),
            server
                .last_seen_ms
                .map_or_else(|| "-".to_owned(), |ms| format!("{} ago", ago(ms))),
            server.address.clone(),
            server.watching.clone().unwrap_or_else(|| "-".to_owned()),
            server.roots.join(" "),
        ]);
    }
    if table.is_empty() {
        return "no servers; next: cdsync master token --name SERVER --group REGION/GROUP".into();
    }
    table.text()
}
