//! Messages between agents and the master, and those of joining.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_core::fuzzing::control(bytes));
