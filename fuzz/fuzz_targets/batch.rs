//! Batch frames.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_agent::fuzzing::batch(bytes));
