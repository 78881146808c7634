//! Runs of the ledger's log.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_fs::fuzzing::run(bytes));
