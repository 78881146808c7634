//! Content in ranges.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_delta::fuzzing::content(bytes));
