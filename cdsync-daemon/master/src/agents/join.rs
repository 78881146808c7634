//! Joining: a server shows a secret, and gets a name and a certificate for its key.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::ServerId;
use cdsync_core::path::Escaped;
use cdsync_core::topology::Server;
use cdsync_core::wire::{JoinReply, JoinRequest, encode, kind};
use cdsync_transport::{CERTIFICATE_VALIDITY, Connection, JoinSecret, PeerIdentity};
use tracing::{info, warn};

use super::{Ended, first, stream};
use crate::init::check_address;
use crate::random;
use crate::shared::{Shared, now};
use crate::store::rows;

/// A request is a secret, a signing request of some 400 bytes and an address.
const REQUEST_MAX_BYTES: usize = 20 * 1024;

/// How long the peer may take to read the answer and go.
const FAREWELL: Duration = Duration::from_secs(5);

/// Serves a joining server.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    connection: &Arc<dyn Connection>,
) -> Result<(), Ended> {
    let (mut writer, mut reader) = stream(connection, REQUEST_MAX_BYTES).await?;
    let request: JoinRequest = first(&mut reader).await?;
    let reply = match join(shared, request).await {
        Ok(reply) => reply,
        Err(reason) => {
            warn!(reason, "a server was not let in");
            JoinReply::Refused { reason }
        }
    };
    let body = Bytes::from(encode(&reply));
    writer
        .write(kind::CONTROL, &[body])
        .await
        .map_err(Ended::protocol)?;
    writer.finish().await.map_err(Ended::protocol)?;
    // The receiver closes: a close from here could overtake the answer.
    let _ = tokio::time::timeout(FAREWELL, connection.closed()).await;
    Ok(())
}

const NEXT: &str = "next: cdsync master token --name SERVER --group REGION/GROUP";

/// Lets a server in, or says why not.
async fn join(shared: &Shared, request: JoinRequest) -> Result<JoinReply, String> {
    let secret: [u8; 32] = request
        .secret
        .try_into()
        .map_err(|_| "the secret is not 32 bytes".to_owned())?;
    check_address(&request.address).map_err(|error| error.to_string())?;
    let hash = JoinSecret::from_bytes(secret).hash().0;
    let token = shared.store(move |store| rows::token(store, &hash)).await;
    let token = token.map_err(|error| error.to_string())?;
    let token = token.ok_or_else(|| format!("this master knows no such token; {NEXT}"))?;
    if token.used {
        return Err(format!("this token was used before; {NEXT}"));
    }
    if token.expires <= now() {
        return Err(format!("this token has expired; {NEXT}"));
    }
    let id = ServerId(random::id().map_err(|error| error.to_string())?);
    let identity = PeerIdentity::agent(shared.authority.cluster(), id);
    let certificate = shared
        .authority
        .issue(request.csr.as_bytes(), &identity, CERTIFICATE_VALIDITY)
        .map_err(|error| error.to_string())?;
    let server = Server {
        id,
        name: token.name,
        region: token.region,
        group: token.group,
        address: request.address,
        roots: None,
    };
    admit(shared, hash, server.clone()).await?;
    let program = Escaped(request.program.as_bytes()).to_string();
    info!(name = %server.name, id = %id, address = server.address, program, "a server joined");
    Ok(JoinReply::Welcome {
        server: id,
        name: server.name,
        cluster: identity.cluster.0,
        certificate,
        authority: shared.authority.certificate_pem().to_owned(),
        orders_key: shared.facts.orders_key,
    })
}

/// Uses the token up and makes the server a member, both or neither.
async fn admit(shared: &Shared, hash: [u8; 32], server: Server) -> Result<(), String> {
    let _changing = shared.changing.lock().await;
    let name = &server.name;
    if shared.read(|plan| plan.topology().by_name(name).is_some()) {
        return Err(format!(
            "a server named {name} has joined before; next: cdsync server remove {name}, or {NEXT}"
        ));
    }
    let row = server.clone();
    let joined = shared
        .store(move |store| rows::join(store, &hash, &row))
        .await;
    if !joined.map_err(|error| error.to_string())? {
        return Err(format!("this token was used before; {NEXT}"));
    }
    shared
        .input(|state| state.coordinator.handle_joined(server))
        .map_err(|error| error.to_string())
}
