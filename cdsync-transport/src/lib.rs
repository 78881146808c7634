//! Moves bytes between identified peers: QUIC, in-memory, framing, enrolment.
