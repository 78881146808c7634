//! Who is let in, and who is not.

use std::time::{Duration, SystemTime};

use cdsync_core::ids::ServerId;
use cdsync_transport::{
    CERTIFICATE_VALIDITY, CertificateAuthority, CertificateError, CloseCode, CloseReason,
    ConnectError, IdentityError, NodeIdentity, NodeKey, PeerExpectation, PeerIdentity, Retry,
    Transport, enrol_connect,
};

use crate::world::{CLIENT, Cluster, SERVER, accept_one, bind, quick, within};

/// Dials `server` from `client`; the outcome as an error.
async fn refusal(
    client: NodeIdentity,
    server: NodeIdentity,
    expect: PeerExpectation,
) -> ConnectError {
    let (client, server) = (bind(client, quick()), bind(server, quick()));
    let addr = server.local_addr().to_string();
    let error = within(client.connect(&addr, &expect)).await.unwrap_err();
    assert_eq!(error.retry(), Retry::Never, "{error:?}");
    error
}

/// Proves that a server of another cluster is refused by the dialler, whatever it is called.
#[tokio::test]
async fn foreign_authority_is_refused_by_the_dialler() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let expect = PeerExpectation::agent(SERVER);
    let error = refusal(ours.agent(CLIENT), theirs.agent(SERVER), expect).await;
    let ConnectError::Identity {
        source: IdentityError::Untrusted { .. },
        ..
    } = error
    else {
        panic!("{error:?}");
    };
}

/// Proves that a client whose certificate is of another cluster is refused by the server, also when
/// that client itself trusts everybody.
#[tokio::test]
async fn foreign_authority_is_refused_by_the_server() {
    let (ours, theirs) = (Cluster::new(), Cluster::new());
    let server = bind(ours.agent(SERVER), quick());
    for (issuer, welcome) in [(&ours, true), (&theirs, false)] {
        let shown = bare::Shown::agent(issuer, CLIENT);
        let outcome = bare_client(server.local_addr(), b"cdsync/1", Some(shown)).await;
        match outcome {
            None => assert!(welcome, "a stranger was given a stream"),
            Some(reason) => assert!(!welcome && reason.contains("certificate"), "{reason}"),
        }
    }
    assert_eq!(accept_one(&*server).await.peer().cluster, ours.ca.cluster());
    let more = tokio::time::timeout(Duration::from_millis(200), server.accept()).await;
    assert!(more.is_err(), "the stranger was accepted");
    // Such a mix cannot even be put together.
    let node = theirs.agent(CLIENT);
    let request = node.key().signing_request().unwrap();
    let certificate = theirs
        .ca
        .issue(&request, node.identity(), CERTIFICATE_VALIDITY)
        .unwrap();
    let mixed = NodeIdentity::new(node.key().clone(), &certificate, ours.ca.certificate_pem());
    assert!(
        matches!(mixed, Err(CertificateError::Chain(_))),
        "{mixed:?}"
    );
}

/// Proves that a valid certificate of another server or role is refused by the dialler.
#[tokio::test]
async fn another_member_is_refused_by_the_dialler() {
    let cluster = Cluster::new();
    let expect = PeerExpectation::agent(ServerId(0xc));
    let error = refusal(cluster.agent(CLIENT), cluster.agent(SERVER), expect).await;
    let ConnectError::Identity {
        source: IdentityError::WrongServer { found, .. },
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    assert_eq!(found, SERVER);

    let expect = PeerExpectation::any_master();
    let error = refusal(cluster.agent(CLIENT), cluster.agent(SERVER), expect).await;
    let ConnectError::Identity {
        source: IdentityError::WrongRole { .. },
        ..
    } = error
    else {
        panic!("{error:?}");
    };
    let expect = PeerExpectation::agent(SERVER);
    let error = refusal(cluster.agent(CLIENT), cluster.master(SERVER), expect).await;
    assert!(matches!(error, ConnectError::Identity { .. }), "{error:?}");
}

/// Proves that the accepting side knows who really calls, and that its refusal reaches the caller.
#[tokio::test]
async fn another_member_is_refused_by_the_server() {
    let cluster = Cluster::new();
    let server = bind(cluster.agent(SERVER), quick());
    let client = bind(cluster.agent(CLIENT), quick());
    let addr = server.local_addr().to_string();
    let dialled = within(client.connect(&addr, &PeerExpectation::agent(SERVER)))
        .await
        .unwrap();
    let accepted = accept_one(&*server).await;
    let error = PeerExpectation::agent(ServerId(0xc))
        .check(accepted.peer())
        .unwrap_err();
    assert!(
        matches!(error, IdentityError::WrongServer { found: CLIENT, .. }),
        "{error:?}"
    );
    accepted.close(CloseCode::REFUSED, &error.to_string());
    let CloseReason::Peer {
        code: CloseCode::REFUSED,
        reason,
    } = within(dialled.closed()).await
    else {
        panic!("the refusal did not arrive");
    };
    assert!(reason.contains("expected server"), "{reason}");
}

/// Proves that without a certificate nobody gets in: neither where joins are off nor where they are
/// on but the caller does not speak the join protocol.
#[tokio::test]
async fn no_certificate_is_refused() {
    let cluster = Cluster::new();
    // An agent, joins off: the join protocol itself is refused.
    let agent = bind(cluster.master(SERVER), quick());
    let addr = agent.local_addr().to_string();
    let error = within(enrol_connect(&addr, cluster.ca.fingerprint()))
        .await
        .unwrap_err();
    assert!(matches!(error, ConnectError::Refused { .. }), "{error:?}");

    for joins in [false, true] {
        let server = bind(cluster.master(SERVER), quick().accept_joins(joins));
        let reason = bare_client(server.local_addr(), b"cdsync/1", None).await;
        let reason = reason.expect("a stranger was given a stream");
        assert!(!reason.contains("timed out"), "{reason}");
        // Nothing was accepted: the next who comes is a member.
        let client = bind(cluster.agent(CLIENT), quick());
        let addr = server.local_addr().to_string();
        let expect = PeerExpectation::any_master();
        let _connection = within(client.connect(&addr, &expect)).await.unwrap();
        assert_eq!(accept_one(&*server).await.peer().server, CLIENT);
    }
}

/// A QUIC client that trusts everybody; `None` if it was given a stream, else why it was thrown out.
async fn bare_client(
    addr: std::net::SocketAddr,
    alpn: &[u8],
    shown: Option<bare::Shown>,
) -> Option<String> {
    let mut endpoint = quinn::Endpoint::client("127.0.0.1:0".parse().unwrap()).unwrap();
    endpoint.set_default_client_config(bare::config(alpn, shown));
    let connection = endpoint.connect(addr, "x.internal").unwrap();
    let error = match within(connection).await {
        Err(error) => error,
        Ok(connection) => match within(connection.open_bi()).await {
            Ok(_) => return None,
            Err(error) => error,
        },
    };
    Some(error.to_string())
}

pub(crate) mod bare {
    use std::sync::Arc;

    use cdsync_core::ids::ServerId;
    use cdsync_transport::{CERTIFICATE_VALIDITY, NodeKey, PeerIdentity};
    use quinn::crypto::rustls::QuicClientConfig;
    use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
    use rustls::{DigitallySignedStruct, Error, SignatureScheme};

    use crate::world::Cluster;

    #[derive(Debug)]
    struct TrustAll;

    impl ServerCertVerifier for TrustAll {
        fn verify_server_cert(
            &self,
            _: &CertificateDer<'_>,
            _: &[CertificateDer<'_>],
            _: &ServerName<'_>,
            _: &[u8],
            _: UnixTime,
        ) -> Result<ServerCertVerified, Error> {
            Ok(ServerCertVerified::assertion())
        }

        fn verify_tls12_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn verify_tls13_signature(
            &self,
            _: &[u8],
            _: &CertificateDer<'_>,
            _: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, Error> {
            Ok(HandshakeSignatureValid::assertion())
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ECDSA_NISTP256_SHA256]
        }
    }

    /// A certificate (PEM) and its key (PKCS #8) to be shown.
    pub(crate) struct Shown {
        pub(crate) certificate: String,
        pub(crate) key: Vec<u8>,
    }

    impl Shown {
        /// As an agent of `cluster`.
        pub(crate) fn agent(cluster: &Cluster, server: ServerId) -> Self {
            let pair = rcgen::KeyPair::generate().unwrap();
            let key = NodeKey::from_pem(&pair.serialize_pem()).unwrap();
            let request = key.signing_request().unwrap();
            let identity = PeerIdentity::agent(cluster.ca.cluster(), server);
            let certificate = cluster
                .ca
                .issue(&request, &identity, CERTIFICATE_VALIDITY)
                .unwrap();
            Self {
                certificate,
                key: pair.serialize_der(),
            }
        }
    }

    pub(crate) fn config(alpn: &[u8], shown: Option<Shown>) -> quinn::ClientConfig {
        let config = QuicClientConfig::try_from(tls(alpn, shown)).unwrap();
        quinn::ClientConfig::new(Arc::new(config))
    }

    pub(crate) fn tls(alpn: &[u8], shown: Option<Shown>) -> rustls::ClientConfig {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustAll));
        let mut config = match shown {
            None => builder.with_no_client_auth(),
            Some(shown) => {
                let leaf = CertificateDer::from_pem_slice(shown.certificate.as_bytes()).unwrap();
                let key = PrivateKeyDer::try_from(shown.key).unwrap();
                builder.with_client_auth_cert(vec![leaf], key).unwrap()
            }
        };
        config.alpn_protocols = vec![alpn.to_vec()];
        config
    }
}

/// Proves that an expired certificate is refused by both sides.
#[tokio::test]
async fn expired_certificate_is_refused() {
    let cluster = Cluster::new();
    let expired = |identity| cluster.ca.issue_local(&identity, Duration::ZERO).unwrap();
    let old = expired(PeerIdentity::agent(cluster.ca.cluster(), SERVER));
    assert!(old.expires_at() <= SystemTime::now());
    let expect = PeerExpectation::agent(SERVER);
    // The validity ends with the second in which it was issued.
    let deadline = SystemTime::now() + Duration::from_secs(2);
    while SystemTime::now() < deadline {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let error = refusal(cluster.agent(CLIENT), old.clone(), expect).await;
    assert!(matches!(error, ConnectError::Identity { .. }), "{error:?}");
    let expect = PeerExpectation::agent(CLIENT);
    let error = refusal(old, cluster.agent(CLIENT), expect).await;
    let ConnectError::Refused {
        source: CloseReason::HandshakeRefused { .. },
        ..
    } = error
    else {
        panic!("{error:?}");
    };
}

/// Proves that a renewed certificate is used for new connections and disturbs none that exists.
#[tokio::test]
async fn certificates_are_renewed_in_place() {
    let cluster = Cluster::new();
    let (server, client) = (
        bind(cluster.agent(SERVER), quick()),
        bind(cluster.agent(CLIENT), quick()),
    );
    let addr = server.local_addr().to_string();
    let expect = PeerExpectation::agent(SERVER);
    let first = within(client.connect(&addr, &expect)).await.unwrap();
    let _accepted = accept_one(&*server).await;

    let old = server.node();
    let request = old.key().signing_request().unwrap();
    let identity = *old.identity();
    let certificate = cluster
        .ca
        .issue(&request, &identity, CERTIFICATE_VALIDITY * 2)
        .unwrap();
    let renewed = NodeIdentity::new(old.key().clone(), &certificate, old.ca_pem()).unwrap();
    assert!(renewed.expires_at() > old.expires_at());
    assert!(renewed.renew_at() < renewed.expires_at());
    server.set_node(renewed).unwrap();
    assert!(server.set_node(Cluster::new().agent(SERVER)).is_err());

    let _second = within(client.connect(&addr, &expect)).await.unwrap();
    let _accepted = accept_one(&*server).await;
    assert!(first.open().await.is_ok());
}

/// Proves that keys and certificates survive their files, which the owner alone can read, and that
/// parts that do not belong together are refused.
#[test]
fn identities_are_stored_and_checked() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let cluster = Cluster::new();
    cluster.ca.save(folder.path()).unwrap();
    let read = CertificateAuthority::load(folder.path()).unwrap();
    assert_eq!(read.fingerprint(), cluster.ca.fingerprint());

    let node = read
        .issue_local(
            &PeerIdentity::agent(read.cluster(), SERVER),
            CERTIFICATE_VALIDITY,
        )
        .unwrap();
    node.save(folder.path()).unwrap();
    let again = NodeIdentity::load(folder.path()).unwrap();
    assert_eq!(again.identity(), node.identity());
    for entry in std::fs::read_dir(folder.path()).unwrap() {
        let mode = entry.unwrap().metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    let request = NodeKey::generate().unwrap().signing_request().unwrap();
    let other = cluster
        .ca
        .issue(&request, node.identity(), CERTIFICATE_VALIDITY)
        .unwrap();
    let mixed = NodeIdentity::new(node.key().clone(), &other, node.ca_pem());
    assert!(
        matches!(mixed, Err(CertificateError::OtherKey { server: SERVER })),
        "{mixed:?}"
    );

    let joining = PeerIdentity::joining(cluster.ca.cluster());
    let refused = cluster.ca.issue(&request, &joining, CERTIFICATE_VALIDITY);
    assert!(matches!(refused, Err(CertificateError::Joining)));
    let foreign = PeerIdentity::agent(Cluster::new().ca.cluster(), SERVER);
    let refused = cluster.ca.issue(&request, &foreign, CERTIFICATE_VALIDITY);
    assert!(matches!(refused, Err(CertificateError::Chain(_))));
    let mut spoilt = request.clone();
    let middle = spoilt.len() / 2;
    spoilt[middle] ^= 1;
    for bad in [&b""[..], b"-----BEGIN", &spoilt, &[0x30; 100_000]] {
        let refused = cluster.ca.issue(bad, node.identity(), CERTIFICATE_VALIDITY);
        assert!(
            matches!(refused, Err(CertificateError::Request { .. })),
            "{refused:?}"
        );
    }
}
