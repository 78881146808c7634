//! Records after the handshake: rustls's own protection, driven from here.
//!
//! rustls's connections copy every record twice more and keep both directions behind one lock. Its
//! `kernel` interface, made for kernels that protect records themselves, hands the keys over after
//! the handshake. What is received goes back into rustls's own record protection, which opens it
//! where it lies; what is sent is sealed where it is gathered, by the same primitive, because
//! rustls's way makes a buffer for each record. This module counts records, knows where they begin,
//! and renews keys in time.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::aead;
use bytes::{Buf, BytesMut};
use rustls::client::ClientConnectionData;
use rustls::crypto::cipher::{
    AeadKey, InboundOpaqueMessage, Iv, MessageDecrypter, Nonce, Tls13AeadAlgorithm, make_tls13_aad,
};
use rustls::kernel::KernelConnection;
use rustls::server::ServerConnectionData;
use rustls::{
    ConnectionTrafficSecrets, ContentType, Error, ExtractedSecrets, PeerMisbehaved,
    ProtocolVersion, SupportedCipherSuite,
};

/// Bytes before each record: its type, a version, its length.
pub(super) const HEADER_BYTES: usize = 5;

/// The most content that a record carries.
pub(super) const CONTENT_MAX_BYTES: usize = 16_384;

/// The most that protection may add to it (RFC 8446, section 5.2).
const PROTECTION_MAX_BYTES: usize = 256;

/// The largest record on the wire.
pub(super) const RECORD_MAX_BYTES: usize = HEADER_BYTES + CONTENT_MAX_BYTES + PROTECTION_MAX_BYTES;

/// A key update that asks for none in return: handshake type 24, three bytes of length, 0 or 1.
const KEY_UPDATE: [u8; 5] = [24, 0, 0, 1, 0];

/// Keeps the secrets that later keys come from.
enum Schedule {
    Client(KernelConnection<ClientConnectionData>),
    Server(KernelConnection<ServerConnectionData>),
}

/// What both directions share.
struct Keys {
    schedule: Mutex<Schedule>,
    algorithm: &'static dyn Tls13AeadAlgorithm,
}

impl Keys {
    fn next(&self, sending: bool) -> Result<(u64, ConnectionTrafficSecrets), Error> {
        let mut schedule = self.schedule.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut *schedule, sending) {
            (Schedule::Client(keys), true) => keys.update_tx_secret(),
            (Schedule::Client(keys), false) => keys.update_rx_secret(),
            (Schedule::Server(keys), true) => keys.update_tx_secret(),
            (Schedule::Server(keys), false) => keys.update_rx_secret(),
        }
    }
}

fn material(secrets: ConnectionTrafficSecrets) -> Result<(AeadKey, Iv), Error> {
    match secrets {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => Ok((key, iv)),
        _ => Err(Error::General("an unknown kind of key".to_owned())),
    }
}

/// The two directions of a connection whose handshake as a client is done.
pub(super) fn client(
    (secrets, keys): (ExtractedSecrets, KernelConnection<ClientConnectionData>),
) -> Result<(Sealer, Opener), Error> {
    let suite = keys.negotiated_cipher_suite();
    split(secrets, suite, Schedule::Client(keys))
}

/// The two directions of a connection whose handshake as a server is done.
pub(super) fn server(
    (secrets, keys): (ExtractedSecrets, KernelConnection<ServerConnectionData>),
) -> Result<(Sealer, Opener), Error> {
    let suite = keys.negotiated_cipher_suite();
    split(secrets, suite, Schedule::Server(keys))
}

fn split(
    secrets: ExtractedSecrets,
    suite: SupportedCipherSuite,
    schedule: Schedule,
) -> Result<(Sealer, Opener), Error> {
    let suite = suite
        .tls13()
        .ok_or_else(|| Error::General("only TLS 1.3 is spoken".to_owned()))?;
    let keys = Arc::new(Keys {
        schedule: Mutex::new(schedule),
        algorithm: suite.aead_alg,
    });
    let (sequence, secret) = secrets.tx;
    let sealer = Sealer {
        protection: Protection::new(secret)?,
        sequence,
        // Half of what is proven safe for the suite: 2^23 records of AES-GCM, 128 GiB.
        renew_after: suite.common.confidentiality_limit / 2,
        keys: Arc::clone(&keys),
    };
    let (sequence, secret) = secrets.rx;
    let (key, iv) = material(secret)?;
    let opener = Opener {
        protection: keys.algorithm.decrypter(key, iv),
        sequence,
        keys,
    };
    Ok((sealer, opener))
}

/// The key of what is sent, with what makes the nonce of each record.
struct Protection {
    key: aead::LessSafeKey,
    iv: Iv,
}

impl Protection {
    fn new(secret: ConnectionTrafficSecrets) -> Result<Self, Error> {
        let algorithm = match &secret {
            ConnectionTrafficSecrets::Aes128Gcm { .. } => &aead::AES_128_GCM,
            ConnectionTrafficSecrets::Aes256Gcm { .. } => &aead::AES_256_GCM,
            _ => &aead::CHACHA20_POLY1305,
        };
        let (key, iv) = material(secret)?;
        let key = aead::UnboundKey::new(algorithm, key.as_ref())
            .map_err(|_| Error::General("a key of a wrong length".to_owned()))?;
        let key = aead::LessSafeKey::new(key);
        Ok(Self { key, iv })
    }
}

/// Protects what is sent.
pub(super) struct Sealer {
    protection: Protection,
    sequence: u64,
    renew_after: u64,
    keys: Arc<Keys>,
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Sealer {
    /// Appends one record with all of `chunks`, at most [`CONTENT_MAX_BYTES`], to `out`.
    pub(super) fn seal(&mut self, chunks: &[&[u8]], out: &mut Vec<u8>) -> Result<(), Error> {
        if self.sequence >= self.renew_after {
            self.renew(out)?;
        }
        self.protect(ContentType::ApplicationData, chunks, out)
    }

    /// Tells the peer that new keys begin, and begins them.
    pub(super) fn renew(&mut self, out: &mut Vec<u8>) -> Result<(), Error> {
        self.protect(ContentType::Handshake, &[&KEY_UPDATE], out)?;
        let (sequence, secret) = self.keys.next(true)?;
        self.protection = Protection::new(secret)?;
        self.sequence = sequence;
        Ok(())
    }

    fn protect(
        &mut self,
        typ: ContentType,
        chunks: &[&[u8]],
        out: &mut Vec<u8>,
    ) -> Result<(), Error> {
        let Protection { key, iv } = &self.protection;
        let content_bytes: usize = chunks.iter().map(|chunk| chunk.len()).sum();
        debug_assert!(content_bytes <= CONTENT_MAX_BYTES, "one record");
        // RFC 8446, section 5.2: the header, which is also what is proven besides; the content with
        // its type behind it, protected; the tag.
        let header = make_tls13_aad(content_bytes + 1 + key.algorithm().tag_len());
        let start = out.len();
        out.extend_from_slice(&header);
        for chunk in chunks {
            out.extend_from_slice(chunk);
        }
        out.push(typ.into());
        // Unique: the sequence rises with every record, and is begun anew only with a new key.
        let nonce = aead::Nonce::assume_unique_for_key(Nonce::new(iv, self.sequence).0);
        let content = &mut out[start + HEADER_BYTES..];
        let sealed = key.seal_in_place_separate_tag(nonce, aead::Aad::from(header), content);
        let Ok(tag) = sealed else {
            // Nothing that is not protected stays in what is sent.
            out.truncate(start);
            return Err(Error::EncryptError);
        };
        out.extend_from_slice(tag.as_ref());
        self.sequence += 1;
        Ok(())
    }
}

/// What a record was.
#[derive(Debug)]
pub(super) enum Opened {
    Content(BytesMut),
    /// The peer's keys were renewed; `asked`: it wants ours renewed too.
    Renewed {
        asked: bool,
    },
    /// The number of a TLS alert.
    Alert(u8),
}

/// Opens what is received.
pub(super) struct Opener {
    protection: Box<dyn MessageDecrypter>,
    sequence: u64,
    keys: Arc<Keys>,
}

impl fmt::Debug for Opener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opener")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

impl Opener {
    /// Takes the first record out of `buffer` and opens it where it lies: what comes out shares the
    /// buffer's memory. `None`: it is not whole yet.
    pub(super) fn open(&mut self, buffer: &mut BytesMut) -> Result<Option<Opened>, Error> {
        let Some(len) = whole_record(buffer)? else {
            return Ok(None);
        };
        let mut record = buffer.split_to(len);
        if record[0] != u8::from(ContentType::ApplicationData) {
            // After the handshake everything is protected, and so of this type.
            return Err(PeerMisbehaved::IllegalMiddleboxChangeCipherSpec.into());
        }
        let message = InboundOpaqueMessage::new(
            ContentType::ApplicationData,
            ProtocolVersion::TLSv1_2,
            &mut record[HEADER_BYTES..],
        );
        let plain = self.protection.decrypt(message, self.sequence)?;
        self.sequence += 1;
        let (typ, len) = (plain.typ, plain.payload.len());
        record.advance(HEADER_BYTES);
        record.truncate(len);
        match typ {
            ContentType::ApplicationData => Ok(Some(Opened::Content(record))),
            ContentType::Handshake => self.renewed(&record).map(Some),
            ContentType::Alert if len == 2 => Ok(Some(Opened::Alert(record[1]))),
            _ => Err(Error::General("a record of an unknown kind".to_owned())),
        }
    }

    /// Key updates are the only messages that may follow the handshake: there are no tickets.
    fn renewed(&mut self, message: &[u8]) -> Result<Opened, Error> {
        let asked = match message.strip_prefix(&KEY_UPDATE[..4]) {
            Some([0]) => false,
            Some([1]) => true,
            _ => return Err(Error::General("an unexpected handshake message".to_owned())),
        };
        let (sequence, secret) = self.keys.next(false)?;
        let (key, iv) = material(secret)?;
        self.protection = self.keys.algorithm.decrypter(key, iv);
        self.sequence = sequence;
        Ok(Opened::Renewed { asked })
    }
}

/// The length of the first record in `buffer` with its header, if all of it is there.
pub(crate) fn whole_record(buffer: &[u8]) -> Result<Option<usize>, Error> {
    let &[_, _, _, high, low, ..] = buffer else {
        return Ok(None);
    };
    let len = HEADER_BYTES + usize::from(u16::from_be_bytes([high, low]));
    if len > RECORD_MAX_BYTES {
        return Err(Error::General("a record is too large".to_owned()));
    }
    Ok((buffer.len() >= len).then_some(len))
}

#[cfg(test)]
mod tests {
    use cdsync_core::ids::ServerId;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::identity::{CERTIFICATE_VALIDITY, CertificateAuthority, NodeIdentity};
    use crate::peer::{PeerExpectation, PeerIdentity};
    use crate::tcp::handshake::{self, Secured};
    use crate::tcp::{ALPN_TCP, dial};
    use crate::tls;

    async fn pair() -> (Secured, Secured) {
        let ca = CertificateAuthority::create().unwrap();
        let node = |id| -> NodeIdentity {
            let identity = PeerIdentity::agent(ca.cluster(), ServerId(id));
            ca.issue_local(&identity, CERTIFICATE_VALIDITY).unwrap()
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let to = listener.local_addr().unwrap();
        let mut server = tls::server(&node(1), false, &[ALPN_TCP]).unwrap();
        server.enable_secret_extraction = true;
        let expect = PeerExpectation::agent(ServerId(1));
        let (client, _) = tls::member(&node(2), &expect, ALPN_TCP, dial::provider()).unwrap();
        let dialling = async {
            let stream = TcpStream::connect(to).await.unwrap();
            let mut secured = handshake::client(stream, client).await.unwrap();
            // The server's handshake ends with it.
            handshake::send(&secured.stream, &mut secured.unsent)
                .await
                .unwrap();
            secured
        };
        let accepting = async {
            let (stream, _) = listener.accept().await.unwrap();
            handshake::server(stream, Arc::new(server)).await.unwrap()
        };
        tokio::join!(dialling, accepting)
    }

    fn text(opened: Opened) -> Vec<u8> {
        match opened {
            Opened::Content(content) => content.to_vec(),
            other => panic!("{other:?}"),
        }
    }

    /// Proves that keys are renewed in the midst of a stream, at the limit and also when the peer
    /// asks, in both directions, without a byte lost.
    #[tokio::test]
    async fn keys_are_renewed() {
        let (client, server) = pair().await;
        assert_eq!(client.sealer.renew_after, 1 << 23);
        // AES-128, as the dialler prefers.
        assert_eq!(client.sealer.keys.algorithm.key_len(), 16);
        for (mut sealer, mut opener) in [
            (client.sealer, server.opener),
            (server.sealer, client.opener),
        ] {
            sealer.renew_after = 3;
            let (mut out, mut wire) = (Vec::new(), BytesMut::new());
            let mut renewals = 0;
            for i in 0..50u8 {
                sealer.seal(&[&[i], &[i; 100]], &mut out).unwrap();
                if i % 10 == 0 {
                    sealer.renew(&mut out).unwrap();
                }
                wire.extend_from_slice(&out);
                out.clear();
                let mut content = None;
                while let Some(opened) = opener.open(&mut wire).unwrap() {
                    match opened {
                        Opened::Renewed { asked: false } => renewals += 1,
                        other => content = Some(text(other)),
                    }
                }
                assert_eq!(content.unwrap(), [i; 101]);
            }
            assert!(renewals >= 18, "{renewals}");
        }
    }

    /// Proves that a record that was changed, repeated or cut short is not opened.
    #[tokio::test]
    async fn only_whole_true_records_are_opened() {
        let (client, server) = pair().await;
        let (mut sealer, mut opener) = (client.sealer, server.opener);
        let mut out = Vec::new();
        sealer.seal(&[b"first"], &mut out).unwrap();
        let mut half = BytesMut::from(&out[..out.len() - 1]);
        assert!(opener.open(&mut half).unwrap().is_none());
        let mut whole = BytesMut::from(&out[..]);
        assert_eq!(text(opener.open(&mut whole).unwrap().unwrap()), b"first");
        assert!(opener.open(&mut BytesMut::from(&out[..])).is_err());
        let mut next = Vec::new();
        sealer.seal(&[b"next"], &mut next).unwrap();
        next[7] ^= 1;
        assert!(opener.open(&mut BytesMut::from(&next[..])).is_err());
        assert!(whole_record(&[23, 3, 3, 0xff, 0xff]).is_err());
    }
}
