//! Batches for a target.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_core::fuzzing::replica(bytes));
