//! Rows of a ledger, names and paths.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_core::fuzzing::rows(bytes));
