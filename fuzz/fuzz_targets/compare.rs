//! Answers about a snapshot for a target, and questions for its upstream.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_core::fuzzing::compare(bytes));
