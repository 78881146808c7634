//! Copies of a base.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_delta::fuzzing::copies(bytes));
