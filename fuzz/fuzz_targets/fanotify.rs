//! What the kernel reports.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| cdsync_fs::fuzzing::fanotify(bytes));
