//! `cdsync master token`.

use cdsync_master::Master;
use cdsync_master::api::types::{TokenMade, TokenRequest};
use hyper::Method;
use serde_json::json;
use std::time::Duration;

use super::connect::{Found, connect, find};
use crate::args::TokenArgs;
use crate::failure::{Failure, Kind, Result, chain};
use crate::output::{hint, json, say};
use crate::text::millis;

/// Makes a join token: through the running master, or in the folder of one that does not run.
pub(crate) async fn token(args: TokenArgs) -> Result<()> {
    let request = TokenRequest {
        name: args.name,
        group: args.group,
        ttl_ms: millis(args.ttl),
    };
    let client = connect(&args.manager)?;
    let made: Result<TokenMade> = client
        .send(Method::POST, "/tokens", Some(&request), Duration::ZERO)
        .await;
    let made = match (made, find(&args.manager, |name| std::env::var(name).ok())?) {
        (Err(failure), Found::Folder(data)) if failure.kind() == Kind::Unreachable => {
            // A store that is busy has a master that runs and did not answer.
            Master::make_token(&data, request).map_err(|error| match error {
                cdsync_master::TokenError::Master(_) => failure,
                other => Failure::condition(chain(&other)),
            })?
        }
        (made, _) => made?,
    };
    let join = format!(
        "cdsync agent join --data DIR --token {} --root PATH",
        made.token
    );
    if args.manager.json {
        json(&json!({
            "token": made.token, "address": made.address, "expires_ms": made.expires_ms,
            "join": join,
        }));
        return Ok(());
    }
    say(&made.token);
    hint(&format!("next, on the server that shall join: {join}"));
    Ok(())
}
