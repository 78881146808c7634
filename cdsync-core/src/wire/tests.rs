//! Golden bytes and refusals.

use super::*;

/// Proves that a body of another version, a cut one and one with bytes behind it are refused.
#[test]
fn bodies_are_exact() {
    let body = encode(&PeerMessage::Credit { bytes: 300 });
    assert_eq!(
        decode::<PeerMessage>(&body),
        Ok(PeerMessage::Credit { bytes: 300 })
    );
    assert_eq!(
        decode::<PeerMessage>(&[9, 1, 1]),
        Err(WireError::Version { version: 9 })
    );
    for bad in [&body[..body.len() - 1], &[], &[WIRE_VERSION, 200]] {
        assert!(
            matches!(decode::<PeerMessage>(bad), Err(WireError::Malformed { .. })),
            "{bad:?}"
        );
    }
    let mut long = body;
    long.push(0);
    assert!(matches!(
        decode::<PeerMessage>(&long),
        Err(WireError::Malformed { .. })
    ));
}
