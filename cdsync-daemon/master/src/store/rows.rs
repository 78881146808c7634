//! The rows: JSON, so that a field can be added without a new table.

use std::collections::BTreeSet;

use cdsync_core::coordinator::Job;
use cdsync_core::ids::{JobId, Label, ServerId};
use cdsync_core::time::WallMillis;
use cdsync_core::topology::Server;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Collection, Store, StoreError, Transaction};

/// What a join token allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct TokenRow {
    /// The name that the server gets.
    pub(crate) name: Label,
    pub(crate) region: Label,
    pub(crate) group: Label,
    pub(crate) expires: WallMillis,
    /// It was used; kept until it would have expired, to say so.
    pub(crate) used: bool,
}

/// What a master is, once and for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct MasterRow {
    pub(crate) cluster: u64,
    /// The master as a server, in its certificate.
    pub(crate) server: ServerId,
    /// Of the key that orders and grants are signed with.
    pub(crate) orders_seed: [u8; 32],
}

const MASTER: &[u8] = b"master";
const TERM: &[u8] = b"term";
const OWNER: &[u8] = b"owner";

fn encode<T: Serialize>(row: &T) -> Vec<u8> {
    serde_json::to_vec(row).expect("rows have text keys only and always encode, into memory")
}

fn decode<T: DeserializeOwned>(collection: Collection, bytes: &[u8]) -> Result<T, StoreError> {
    serde_json::from_slice(bytes).map_err(|error| StoreError::Corrupt {
        collection: collection.name(),
        detail: error.to_string(),
    })
}

fn read<T: DeserializeOwned>(
    tx: &dyn Transaction,
    collection: Collection,
    key: &[u8],
) -> Result<Option<T>, StoreError> {
    tx.get(collection, key)?
        .map(|bytes| decode(collection, &bytes))
        .transpose()
}

fn all<T: DeserializeOwned>(
    tx: &dyn Transaction,
    collection: Collection,
) -> Result<Vec<T>, StoreError> {
    tx.list(collection)?
        .iter()
        .map(|(_, value)| decode(collection, value))
        .collect()
}

/// Everything that a master starts with.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) master: MasterRow,
    /// This run's: the stored one and one more, stored durably.
    pub(crate) term: u64,
    pub(crate) owner: [u8; 32],
    pub(crate) servers: Vec<Server>,
    pub(crate) jobs: Vec<Job>,
    /// Servers that were removed, and when.
    pub(crate) revoked: Vec<(ServerId, WallMillis)>,
}

/// Writes a new master, over whatever was there.
pub(crate) fn initialise(
    store: &dyn Store,
    master: &MasterRow,
    owner: &[u8; 32],
) -> Result<(), StoreError> {
    store.transact(&mut |tx| {
        tx.put(Collection::Meta, MASTER, &encode(master))?;
        tx.put(Collection::Meta, TERM, &encode(&0_u64))?;
        tx.put(Collection::Managers, OWNER, &encode(owner))
    })
}

/// Reads everything and raises the term, in one transaction.
pub(crate) fn load(store: &dyn Store) -> Result<Loaded, StoreError> {
    let mut loaded = None;
    store.transact(&mut |tx| {
        let missing = |detail: &str| StoreError::Corrupt {
            collection: Collection::Meta.name(),
            detail: detail.to_owned(),
        };
        let master = read::<MasterRow>(tx, Collection::Meta, MASTER)?;
        let master = master.ok_or_else(|| missing("the master's row is not there"))?;
        let stored = read::<u64>(tx, Collection::Meta, TERM)?;
        let stored = stored.ok_or_else(|| missing("the term is not there"))?;
        let term = stored
            .checked_add(1)
            .ok_or_else(|| missing("the term is at its end"))?;
        tx.put(Collection::Meta, TERM, &encode(&term))?;
        let owner = read(tx, Collection::Managers, OWNER)?;
        let owner = owner.ok_or_else(|| missing("the owner's row is not there"))?;
        let servers = all(tx, Collection::Servers)?;
        let jobs = all(tx, Collection::Jobs)?;
        let revoked = revoked(tx)?;
        loaded = Some(Loaded {
            master,
            term,
            owner,
            servers,
            jobs,
            revoked,
        });
        Ok(())
    })?;
    loaded.ok_or_else(|| StoreError::Database("the transaction did not run".to_owned()))
}

/// Raises the term above another, if it is not, and removes servers, in one transaction. Returns the
/// term.
pub(crate) fn accept_restore(
    store: &dyn Store,
    above: u64,
    revoked: &BTreeSet<ServerId>,
    at: WallMillis,
) -> Result<u64, StoreError> {
    let mut term = 0;
    store.transact(&mut |tx| {
        let stored = read::<u64>(tx, Collection::Meta, TERM)?.unwrap_or_default();
        let next = stored.max(above).checked_add(1);
        term = next.ok_or_else(|| StoreError::Corrupt {
            collection: Collection::Meta.name(),
            detail: "the term is at its end".to_owned(),
        })?;
        tx.put(Collection::Meta, TERM, &encode(&term))?;
        for server in revoked {
            let key = server.0.to_be_bytes();
            tx.remove(Collection::Servers, &key)?;
            tx.put(Collection::Revoked, &key, &encode(&at))?;
        }
        Ok(())
    })?;
    Ok(term)
}

fn revoked(tx: &dyn Transaction) -> Result<Vec<(ServerId, WallMillis)>, StoreError> {
    let rows = tx.list(Collection::Revoked)?;
    rows.iter()
        .map(|(key, value)| {
            let id = key.as_slice().try_into().map_err(|_| StoreError::Corrupt {
                collection: Collection::Revoked.name(),
                detail: "a key is not a server's id".to_owned(),
            })?;
            let at = decode(Collection::Revoked, value)?;
            Ok((ServerId(u64::from_be_bytes(id)), at))
        })
        .collect()
}

pub(crate) fn put_job(store: &dyn Store, job: &Job) -> Result<(), StoreError> {
    let key = job.id.0.to_be_bytes();
    store.transact(&mut |tx| tx.put(Collection::Jobs, &key, &encode(job)))
}

pub(crate) fn remove_job(store: &dyn Store, id: JobId) -> Result<(), StoreError> {
    store.transact(&mut |tx| tx.remove(Collection::Jobs, &id.0.to_be_bytes()))
}

pub(crate) fn put_server(store: &dyn Store, server: &Server) -> Result<(), StoreError> {
    let key = server.id.0.to_be_bytes();
    store.transact(&mut |tx| tx.put(Collection::Servers, &key, &encode(server)))
}

pub(crate) fn revoke_server(
    store: &dyn Store,
    id: ServerId,
    at: WallMillis,
) -> Result<(), StoreError> {
    let key = id.0.to_be_bytes();
    store.transact(&mut |tx| {
        tx.remove(Collection::Servers, &key)?;
        tx.put(Collection::Revoked, &key, &encode(&at))
    })
}

/// Stores a token, and drops those that expired a day ago or earlier.
pub(crate) fn put_token(
    store: &dyn Store,
    hash: &[u8; 32],
    token: &TokenRow,
    now: WallMillis,
) -> Result<(), StoreError> {
    const KEPT_MS: u64 = 24 * 3600 * 1000;
    store.transact(&mut |tx| {
        for (key, value) in tx.list(Collection::Tokens)? {
            let row: TokenRow = decode(Collection::Tokens, &value)?;
            if row.expires.0.saturating_add(KEPT_MS) < now.0 {
                tx.remove(Collection::Tokens, &key)?;
            }
        }
        tx.put(Collection::Tokens, hash, &encode(token))
    })
}

/// The members' names, read without starting a run.
pub(crate) fn server_names(store: &dyn Store) -> Result<Vec<Label>, StoreError> {
    let mut servers: Vec<Server> = Vec::new();
    store.transact(&mut |tx| {
        servers = all(tx, Collection::Servers)?;
        Ok(())
    })?;
    Ok(servers.into_iter().map(|server| server.name).collect())
}

/// The token of a secret.
pub(crate) fn token(store: &dyn Store, hash: &[u8; 32]) -> Result<Option<TokenRow>, StoreError> {
    let mut row = None;
    store.transact(&mut |tx| {
        row = read(tx, Collection::Tokens, hash)?;
        Ok(())
    })?;
    Ok(row)
}

/// Marks a token as used and stores the server that it let in, in one step. `false` when the token
/// is no longer good: nothing happened then.
pub(crate) fn join(
    store: &dyn Store,
    hash: &[u8; 32],
    server: &Server,
) -> Result<bool, StoreError> {
    let mut joined = false;
    store.transact(&mut |tx| {
        let row = read::<TokenRow>(tx, Collection::Tokens, hash)?;
        let Some(row) = row.filter(|row| !row.used) else {
            return Ok(());
        };
        tx.put(
            Collection::Tokens,
            hash,
            &encode(&TokenRow { used: true, ..row }),
        )?;
        let key = server.id.0.to_be_bytes();
        tx.put(Collection::Servers, &key, &encode(server))?;
        joined = true;
        Ok(())
    })?;
    Ok(joined)
}
