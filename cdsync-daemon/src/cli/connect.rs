//! Finding the master: by its folder, or by its address and a token.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use cdsync_master::{MasterError, OwnerToken, http_address};

use super::client::Client;
use crate::args::ManagerArgs;
use crate::failure::{Failure, Result, chain};

/// Where the master is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Its folder is on this machine.
    Folder(PathBuf),
    /// Somewhere.
    Remote {
        /// Host and port.
        address: String,
        token_file: PathBuf,
    },
}

/// Finds the master from arguments, then from the environment.
///
/// # Errors
/// A usage failure when neither says where it is.
pub(crate) fn find(
    args: &ManagerArgs,
    environment: impl Fn(&str) -> Option<String>,
) -> Result<Found> {
    let environment = |name| environment(name).filter(|value| !value.is_empty());
    let token_file = || {
        let file = args.token_file.clone();
        file.or_else(|| environment("CDSYNC_TOKEN_FILE").map(PathBuf::from))
            .ok_or_else(|| {
                Failure::usage("--master needs the owner's token")
                    .next("give --token-file FILE, or set CDSYNC_TOKEN_FILE")
            })
    };
    if let Some(url) = &args.master {
        return Ok(Found::Remote {
            address: address(url)?,
            token_file: token_file()?,
        });
    }
    if let Some(data) = &args.data {
        return Ok(Found::Folder(data.clone()));
    }
    if let Some(url) = environment("CDSYNC_MASTER") {
        return Ok(Found::Remote {
            address: address(&url)?,
            token_file: token_file()?,
        });
    }
    if let Some(data) = environment("CDSYNC_DATA") {
        return Ok(Found::Folder(data.into()));
    }
    Err(Failure::usage("it is not said where the master is").next(
        "give --data DIR (or set CDSYNC_DATA), or --master URL --token-file FILE (or set CDSYNC_MASTER and CDSYNC_TOKEN_FILE)",
    ))
}

/// Host and port of `https://HOST:PORT`, with or without the scheme and a trailing slash.
fn address(url: &str) -> Result<String> {
    let rest = url.strip_prefix("https://").unwrap_or(url);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let port = rest
        .rsplit_once(':')
        .map(|(host, port)| (host, port.parse::<u16>()));
    match port {
        Some((host, Ok(1..))) if !host.is_empty() && !host.contains(['/', '@']) => {
            Ok(rest.to_owned())
        }
        _ => Err(Failure::usage(format!(
            "{url:?} is not of the form https://HOST:PORT"
        ))),
    }
}

/// A client of the master that the arguments or the environment name.
pub(crate) fn connect(args: &ManagerArgs) -> Result<Client> {
    match find(args, |name| std::env::var(name).ok())? {
        Found::Folder(data) => in_folder(&data),
        Found::Remote {
            address,
            token_file,
        } => {
            let start = "cdsync master run --data DIR, where the master is".to_owned();
            Client::new(address, read_token(&token_file)?, start)
        }
    }
}

fn in_folder(data: &Path) -> Result<Client> {
    let told = http_address(data).map_err(|error| match error {
        MasterError::File { .. } => Failure::not_permitted(chain(&error)),
        _ => Failure::condition(chain(&error)),
    })?;
    let token = read_token(&data.join("owner.token"))?;
    let start = format!("cdsync master run --data {}", data.display());
    Client::new(loopback(told).to_string(), token, start)
}

/// Where a wildcard is reached from the same machine.
fn loopback(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn read_token(path: &Path) -> Result<OwnerToken> {
    let text = fs::read_to_string(path).map_err(|error| {
        let text = format!("cannot read the token file {}: {error}", path.display());
        match error.kind() {
            std::io::ErrorKind::PermissionDenied => Failure::not_permitted(text),
            _ => Failure::usage(text),
        }
    })?;
    text.parse()
        .map_err(|error| Failure::not_permitted(format!("{}: {error}", path.display())))
}
