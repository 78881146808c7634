//! What comes before and beside streams.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_transport::fuzzing::handshake(bytes));
