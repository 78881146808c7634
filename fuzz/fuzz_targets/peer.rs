//! Messages between agents.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_core::fuzzing::peer(bytes));
