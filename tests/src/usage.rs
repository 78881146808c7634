//! What a process uses, as the kernel counts it.

use std::fs;

/// What a process has done since it was started, and what it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// The most that was resident, in bytes.
    pub peak_bytes: u64,
    /// What is resident now, in bytes.
    pub resident_bytes: u64,
    /// What it read by system calls, from files and pipes, in bytes.
    pub read_bytes: u64,
    /// Its threads now.
    pub threads: u64,
    /// Its open files and sockets now.
    pub descriptors: u64,
}

impl Usage {
    /// Of the process of this number.
    ///
    /// # Panics
    /// When there is none.
    #[must_use]
    #[track_caller]
    pub fn of(pid: u32) -> Self {
        let file = |name: &str| fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
        let (status, io) = (file("status"), file("io"));
        let number = |text: &str, key: &str| {
            let rest = text.split(key).nth(1).expect("the kernel says it");
            let number = rest.split_whitespace().next().unwrap_or_default();
            number.parse::<u64>().unwrap()
        };
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        Self {
            peak_bytes: number(&status, "VmHWM:") << 10,
            resident_bytes: number(&status, "VmRSS:") << 10,
            read_bytes: number(&io, "rchar:"),
            threads: number(&status, "Threads:"),
            descriptors: descriptors as u64,
        }
    }
}
