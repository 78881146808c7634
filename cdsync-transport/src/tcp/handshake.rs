//! The handshake over a socket, by rustls's unbuffered connections.

use std::io;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use rustls::client::UnbufferedClientConnection;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{ConnectionState, EncodeError, UnbufferedStatus};
use rustls::{ClientConfig, ServerConfig};
use thiserror::Error;
use tokio::net::TcpStream;

use super::ALPN_TCP;
use super::record::{self, Opener, Sealer, whole_record};

/// What a peer may send before it is proven: a chain of two certificates takes 2 KiB.
const INPUT_MAX_BYTES: usize = 64 * 1024;

/// Read at a time.
const READ_BYTES: usize = 8 * 1024;

/// Messages queued before an alert, with room to spare.
const ERROR_STEPS: usize = 16;

/// What certificates are checked against is not a host name; TLS only wants one that is valid.
const SERVER_NAME: &str = "cdsync.internal";

#[derive(Debug, Error)]
pub(super) enum HandshakeError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Tls(#[from] rustls::Error),
    #[error("the connection ended during the handshake")]
    Eof,
    #[error("too much was sent before the handshake was done")]
    TooMuch,
    #[error("another protocol is spoken")]
    Protocol,
}

/// A socket whose handshake is done.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) stream: TcpStream,
    pub(super) sealer: Sealer,
    pub(super) opener: Opener,
    /// Received beyond the handshake.
    pub(super) received: BytesMut,
    /// The end of the handshake, still to be sent: it goes along with the first record.
    pub(super) unsent: Vec<u8>,
    /// The peer's certificate.
    pub(super) leaf: Option<CertificateDer<'static>>,
}

enum Step {
    Again,
    Wait,
    Done,
}

/// Moves a connection one state on.
trait Side {
    fn step(&mut self, input: &mut [u8], out: &mut Vec<u8>)
    -> (usize, Result<Step, rustls::Error>);
}

impl Side for UnbufferedClientConnection {
    fn step(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, rustls::Error>) {
        take(self.process_tls_records(input), out)
    }
}

impl Side for UnbufferedServerConnection {
    fn step(
        &mut self,
        input: &mut [u8],
        out: &mut Vec<u8>,
    ) -> (usize, Result<Step, rustls::Error>) {
        take(self.process_tls_records(input), out)
    }
}

fn take<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    out: &mut Vec<u8>,
) -> (usize, Result<Step, rustls::Error>) {
    let UnbufferedStatus { discard, state } = status;
    let step = state.and_then(|state| match state {
        ConnectionState::EncodeTlsData(mut data) => {
            let begin = out.len();
            let needed = match data.encode(&mut []) {
                Err(EncodeError::InsufficientSize(size)) => size.required_size,
                _ => return Err(rustls::Error::EncryptError),
            };
            out.resize(begin + needed, 0);
            data.encode(&mut out[begin..])
                .map_err(|_| rustls::Error::EncryptError)?;
            Ok(Step::Again)
        }
        // It is sent before the next wait, or with what follows the handshake.
        ConnectionState::TransmitTlsData(data) => {
            data.done();
            Ok(Step::Again)
        }
        ConnectionState::BlockedHandshake => Ok(Step::Wait),
        ConnectionState::WriteTraffic(_) => Ok(Step::Done),
        _ => Err(rustls::Error::HandshakeNotComplete),
    });
    (discard, step)
}

pub(super) async fn client(
    stream: TcpStream,
    mut config: ClientConfig,
) -> Result<Secured, HandshakeError> {
    config.enable_secret_extraction = true;
    let name = ServerName::try_from(SERVER_NAME).map_err(|_| HandshakeError::Protocol)?;
    let mut tls = UnbufferedClientConnection::new(Arc::new(config), name)?;
    let (received, unsent) = drive(&stream, &mut tls).await?;
    let leaf = checked(tls.alpn_protocol(), tls.peer_certificates())?;
    let (sealer, opener) = record::client(tls.dangerous_into_kernel_connection()?)?;
    Ok(Secured {
        stream,
        sealer,
        opener,
        received,
        unsent,
        leaf,
    })
}

pub(super) async fn server(
    stream: TcpStream,
    config: Arc<ServerConfig>,
) -> Result<Secured, HandshakeError> {
    let mut tls = UnbufferedServerConnection::new(config)?;
    let (received, unsent) = drive(&stream, &mut tls).await?;
    let leaf = checked(tls.alpn_protocol(), tls.peer_certificates())?;
    let (sealer, opener) = record::server(tls.dangerous_into_kernel_connection()?)?;
    Ok(Secured {
        stream,
        sealer,
        opener,
        received,
        unsent,
        leaf,
    })
}

fn checked(
    alpn: Option<&[u8]>,
    chain: Option<&[CertificateDer<'static>]>,
) -> Result<Option<CertificateDer<'static>>, HandshakeError> {
    if alpn != Some(ALPN_TCP) {
        return Err(HandshakeError::Protocol);
    }
    Ok(chain.and_then(|chain| chain.first()).cloned())
}

/// Until the handshake is done; what was received beyond it, and what is still to be sent.
async fn drive(
    stream: &TcpStream,
    tls: &mut impl Side,
) -> Result<(BytesMut, Vec<u8>), HandshakeError> {
    let (mut input, mut out) = (BytesMut::new(), Vec::new());
    // rustls sees whole records, one more at a time: what follows the handshake is not for it.
    let mut shown = 0;
    loop {
        let (discard, step) = tls.step(&mut input[..shown], &mut out);
        input.advance(discard);
        shown -= discard;
        match step {
            Ok(Step::Again) => {}
            Ok(Step::Done) => return Ok((input, out)),
            Ok(Step::Wait) => {
                send(stream, &mut out).await?;
                shown += next_record(stream, &mut input, shown).await?;
            }
            Err(error) => {
                // The peer is told by an alert, if it still listens. It is the last of what is
                // queued; after that the same error comes again.
                for _ in 0..ERROR_STEPS {
                    let (_, Ok(Step::Again)) = tls.step(&mut input[..shown], &mut out) else {
                        break;
                    };
                }
                let _ = send(stream, &mut out).await;
                return Err(error.into());
            }
        }
    }
}

pub(super) async fn send(stream: &TcpStream, out: &mut Vec<u8>) -> io::Result<()> {
    let mut rest = out.as_slice();
    while !rest.is_empty() {
        stream.writable().await?;
        match stream.try_write(rest) {
            Ok(written) => rest = &rest[written..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    out.clear();
    Ok(())
}

/// Waits for the record after the first `shown` bytes; its length.
async fn next_record(
    stream: &TcpStream,
    input: &mut BytesMut,
    shown: usize,
) -> Result<usize, HandshakeError> {
    loop {
        if let Some(len) = whole_record(&input[shown..])? {
            return Ok(len);
        }
        if input.len() > INPUT_MAX_BYTES {
            return Err(HandshakeError::TooMuch);
        }
        stream.readable().await?;
        input.reserve(READ_BYTES);
        match stream.try_read_buf(input) {
            Ok(0) => return Err(HandshakeError::Eof),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}
