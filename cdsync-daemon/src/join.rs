//! `cdsync agent join`: shows a token to the master, and keeps what it answers in the agent's
//! folder.
//!
//! ```text
//! DIR/node.key node.pem ca.pem    the key, which never leaves, and the certificates
//! DIR/agent.toml                  written last: it says that all else is there
//! ```

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use cdsync_core::ids::{Label, ServerId};
use cdsync_core::job::RootPath;
use cdsync_core::path::Escaped;
use cdsync_core::wire::{JoinReply, JoinRequest, VerifyingKey, decode, encode, kind};
use cdsync_master::local_address_towards;
use cdsync_transport::{
    CloseCode, Connection, FrameReader, FrameWriter, JoinToken, NodeIdentity, NodeKey,
    enrol_connect, make_private_folder, write_private,
};
use serde::{Deserialize, Serialize};

use crate::args::JoinArgs;
use crate::failure::{Failure, Result, chain};
use crate::output::{hint, json, say};

/// How long the master may take to answer.
const ANSWER: Duration = Duration::from_secs(15);

/// A reply holds two certificates.
const REPLY_MAX_BYTES: usize = 64 * 1024;

const FILE: &str = "agent.toml";

/// What `agent.toml` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct AgentFile {
    name: Label,
    listen: SocketAddr,
    advertise: String,
    /// What jobs may use.
    roots: Vec<PathBuf>,
    master: String,
    server: String,
    cluster: String,
    orders_key: String,
}

/// What a joined agent runs with.
#[derive(Debug)]
pub(crate) struct Joined {
    /// The name that the token gave.
    pub(crate) name: Label,
    pub(crate) listen: SocketAddr,
    /// `host:port` that others dial; port 0 stands for the one that `listen` really gets.
    pub(crate) advertise: String,
    pub(crate) roots: Vec<PathBuf>,
    pub(crate) master_address: String,
    pub(crate) server: ServerId,
    pub(crate) cluster: u64,
    pub(crate) orders_key: VerifyingKey,
    pub(crate) identity: NodeIdentity,
}

impl Joined {
    /// Reads an agent's folder. Blocks.
    ///
    /// # Errors
    /// When nobody joined there, or its files do not fit together.
    pub(crate) fn load(data: &Path) -> Result<Self> {
        let path = data.join(FILE);
        let text = fs::read_to_string(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => {
                Failure::condition(format!("{} holds no agent", data.display())).next(format!(
                    "cdsync agent join --data {} --token TOKEN --root PATH",
                    data.display()
                ))
            }
            _ => Failure::condition(format!("cannot read {}: {error}", path.display())),
        })?;
        let wrong = |what: &str| Failure::usage(format!("{}: {what}", path.display()));
        let file: AgentFile = toml::from_str(&text).map_err(|error| wrong(&error.to_string()))?;
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let server = ServerId(number(&file.server).ok_or_else(|| wrong("server is not an id"))?);
        let cluster = number(&file.cluster).ok_or_else(|| wrong("cluster is not an id"))?;
        let key = parse_key(&file.orders_key).ok_or_else(|| wrong("orders_key is not a key"))?;
        let identity =
            NodeIdentity::load(data).map_err(|error| Failure::condition(chain(&error)))?;
        let proven = identity.identity();
        if proven.server != server || proven.cluster.0 != cluster {
            return Err(wrong("the certificate beside it is for another server"));
        }
        Ok(Self {
            name: file.name,
            listen: file.listen,
            advertise: file.advertise,
            roots: file.roots,
            master_address: file.master,
            server,
            cluster,
            orders_key: VerifyingKey(key),
            identity,
        })
    }
}

fn parse_key(text: &str) -> Option<[u8; 32]> {
    let bytes = text.as_bytes();
    if bytes.len() != 64 || !bytes.iter().all(u8::is_ascii_hexdigit) {
        return None;
    }
    let mut key = [0; 32];
    for (byte, pair) in key.iter_mut().zip(bytes.chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(key)
}

fn hex(key: &[u8; 32]) -> String {
    key.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Joins, and says so.
pub(crate) async fn join(args: JoinArgs) -> Result<()> {
    let (as_json, data) = (args.json, args.data.clone());
    let file = enrol(args).await?;
    tell(&data, &file, as_json);
    Ok(())
}

/// Joins: shows the token to the master and keeps what it answers in the folder.
pub(crate) async fn enrol(args: JoinArgs) -> Result<AgentFile> {
    let data = args.data;
    if data.join(FILE).exists() {
        return Err(
            Failure::condition(format!("{} holds an agent already", data.display()))
                .next(format!("cdsync agent run --data {}", data.display())),
        );
    }
    let token: JoinToken = args
        .token
        .parse()
        .map_err(|error| Failure::usage(format!("--token: {error}")))?;
    let roots = args
        .roots
        .iter()
        .map(|root| absolute_root(root))
        .collect::<Result<Vec<_>>>()?;
    let advertise = match args.advertise {
        Some(address) if is_address(&address) => address,
        Some(address) => {
            let text = format!("--advertise {address:?} is not of the form HOST:PORT");
            return Err(Failure::usage(text));
        }
        None => advertised(args.listen, token.addr()).await?,
    };
    let key = NodeKey::generate().map_err(|error| Failure::condition(chain(&error)))?;
    let csr = key
        .signing_request_pem()
        .map_err(|error| Failure::condition(chain(&error)))?;
    let request = JoinRequest {
        secret: token.secret().as_bytes().to_vec(),
        csr,
        address: advertise.clone(),
        program: env!("CARGO_PKG_VERSION").to_owned(),
    };
    // Made before the token is used up: a folder that cannot be made must not cost one.
    make_folder(&data)?;
    let reply = ask(&token, &request).await?;
    let (identity, file) = accept(&token, key, reply, roots, args.listen, advertise)?;
    keep(&data, &identity, &file)?;
    Ok(file)
}

fn tell(data: &Path, file: &AgentFile, as_json: bool) {
    let next = format!("cdsync agent run --data {}", data.display());
    if as_json {
        json(&serde_json::json!({
            "name": file.name, "server": file.server, "master": file.master,
            "advertise": file.advertise, "roots": file.roots, "next": next,
        }));
        return;
    }
    say(&format!(
        "joined as {} (other agents will dial {}, jobs may use {})",
        file.name,
        Escaped(file.advertise.as_bytes()),
        file.roots
            .iter()
            .map(|root| root.display().to_string())
            .collect::<Vec<_>>()
            .join(", "),
    ));
    hint(&format!("next: {next}"));
}

/// A root as the master and the agent will name it.
fn absolute_root(root: &Path) -> Result<PathBuf> {
    let refused = |why: String| Failure::usage(format!("--root {}: {why}", root.display()));
    let absolute = std::path::absolute(root).map_err(|error| refused(error.to_string()))?;
    let text = absolute
        .to_str()
        .ok_or_else(|| refused("it is not UTF-8".to_owned()))?;
    let path = RootPath::new(text).map_err(|error| refused(error.to_string()))?;
    if !absolute.is_dir() {
        hint(&format!("note: {} is not a folder (yet)", root.display()));
    }
    Ok(PathBuf::from(path.as_str()))
}

fn is_address(text: &str) -> bool {
    let parts = text
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    matches!(parts, Some((host, Ok(_))) if !host.is_empty())
}

/// Where others dial an agent that listens at `listen`.
async fn advertised(listen: SocketAddr, master: &str) -> Result<String> {
    if !listen.ip().is_unspecified() {
        return Ok(listen.to_string());
    }
    let addresses = tokio::net::lookup_host(master).await.map_err(|error| {
        Failure::unreachable(format!(
            "cannot resolve the master's address {master}: {error}"
        ))
    })?;
    let ip = addresses
        .filter_map(local_address_towards)
        .next()
        .ok_or_else(|| {
            Failure::unreachable(format!("no route leads to the master at {master}"))
                .next("check the network, or give --advertise HOST:PORT")
        })?;
    Ok(SocketAddr::new(ip, listen.port()).to_string())
}

/// Sends the request and reads the reply.
async fn ask(token: &JoinToken, request: &JoinRequest) -> Result<JoinReply> {
    let address = token.addr();
    let connection = enrol_connect(address, token.fingerprint())
        .await
        .map_err(|error| {
            let text = format!("cannot join: {}", chain(&error));
            match error {
                cdsync_transport::ConnectError::Identity { .. } => Failure::not_permitted(text)
                    .next("ask for a new token: this one is for another master"),
                _ => Failure::unreachable(text)
                    .next("check that the master runs and that this machine reaches its UDP port"),
            }
        })?;
    let reply = tokio::time::timeout(ANSWER, exchange(&connection, request)).await;
    connection.close(CloseCode::DONE, "joined or refused");
    let lost = |why: String| {
        Failure::unreachable(format!("the master at {address} gave no answer: {why}"))
            .next("cdsync server list at the master: if this server is there, remove it; then ask for a new token")
    };
    reply
        .map_err(|_| lost(format!("{ANSWER:?} passed")))?
        .map_err(lost)
}

async fn exchange(
    connection: &Arc<dyn Connection>,
    request: &JoinRequest,
) -> std::result::Result<JoinReply, String> {
    let (send, receive) = connection.open().await.map_err(|error| chain(&error))?;
    let mut writer = FrameWriter::new(send);
    let body = Bytes::from(encode(request));
    writer
        .write(kind::CONTROL, &[body])
        .await
        .map_err(|error| chain(&error))?;
    writer.finish().await.map_err(|error| chain(&error))?;
    let mut reader = FrameReader::new(receive).with_max_payload(REPLY_MAX_BYTES);
    let frame = reader.next().await.map_err(|error| chain(&error))?;
    let frame = frame.ok_or_else(|| "it ended the stream".to_owned())?;
    decode(&frame.payload).map_err(|error| error.to_string())
}

/// Checks what the master answered against the token and the key.
fn accept(
    token: &JoinToken,
    key: NodeKey,
    reply: JoinReply,
    roots: Vec<PathBuf>,
    listen: SocketAddr,
    advertise: String,
) -> Result<(NodeIdentity, AgentFile)> {
    let (server, name, cluster, certificate, authority, orders_key) = match reply {
        JoinReply::Refused { reason } => {
            let reason = Escaped(reason.as_bytes()).to_string();
            return Err(Failure::not_permitted(format!(
                "the master refuses: {reason}"
            )));
        }
        JoinReply::Welcome {
            server,
            name,
            cluster,
            certificate,
            authority,
            orders_key,
        } => (server, name, cluster, certificate, authority, orders_key),
    };
    let identity = NodeIdentity::new(key, &certificate, &authority)
        .map_err(|error| Failure::not_permitted(chain(&error)))?;
    let proven = identity.identity();
    let fits = identity.ca_fingerprint() == token.fingerprint()
        && proven.server == server
        && proven.cluster.0 == cluster;
    if !fits {
        return Err(Failure::not_permitted(
            "the master's answer does not fit the token",
        ));
    }
    let file = AgentFile {
        name,
        listen,
        advertise,
        roots,
        master: token.addr().to_owned(),
        server: server.to_string(),
        cluster: format!("{cluster:016x}"),
        orders_key: hex(&orders_key.0),
    };
    Ok((identity, file))
}

fn make_folder(data: &Path) -> Result<()> {
    make_private_folder(data)
        .map_err(|error| Failure::condition(format!("cannot make {}: {error}", data.display())))
}

/// Writes the folder, `agent.toml` last.
fn keep(data: &Path, identity: &NodeIdentity, file: &AgentFile) -> Result<()> {
    identity
        .save(data)
        .map_err(|error| Failure::condition(chain(&error)))?;
    let text = toml::to_string(file).map_err(|error| Failure::condition(error.to_string()))?;
    let text = format!(
        "# What this agent was told when it joined. `roots`, `listen` and `advertise` may be changed;\n# they are read at every start.\n{text}"
    );
    let path = data.join(FILE);
    write_private(&path, text.as_bytes())
        .map_err(|error| Failure::condition(format!("cannot write {}: {error}", path.display())))
}
