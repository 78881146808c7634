//! Frames of a stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_transport::fuzzing::frames(bytes));
