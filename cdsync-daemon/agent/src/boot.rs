//! Which run of the operating system this is.

use cdsync_core::replica::BootId;

/// Where Linux says it: a random number for each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// This run's id; `None` where the system does not say: every start is then taken for a new run.
#[expect(
    clippy::disallowed_methods,
    reason = "a file of the kernel's, below no root"
)]
pub(crate) fn id() -> Option<BootId> {
    parse(&std::fs::read_to_string(BOOT_ID).ok()?)
}

fn parse(text: &str) -> Option<BootId> {
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    u128::from_str_radix(&digits, 16).ok().map(BootId)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Proves that the system's id is read, and is the same each time.
    #[test]
    fn a_boot_is_known() {
        let text = "0badcafe-0000-4000-8000-00000000000f\n";
        assert_eq!(
            parse(text),
            Some(BootId(0x0bad_cafe_0000_4000_8000_0000_0000_000f))
        );
        assert_eq!(parse("none"), None);
        assert!(id().is_some());
        assert_eq!(id(), id());
    }
}
