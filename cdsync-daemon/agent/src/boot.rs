//! Which run of the operating system this is.

use cdsync_core::ids::BootId;

use crate::clock::random_id;

/// Where Linux says it: a random number for each boot.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Names another file that says it, for tests of power cuts.
const TEST_FILE: &str = "CDSYNC_TEST_BOOT_ID_FILE";

/// This run's id; where the system does not say, every call is taken for a run of its own.
#[expect(
    clippy::disallowed_methods,
    reason = "a file of the kernel's, below no root"
)]
pub(crate) fn id() -> BootId {
    let file = std::env::var_os(TEST_FILE).unwrap_or_else(|| BOOT_ID.into());
    let said = std::fs::read_to_string(file).ok();
    let said = said.and_then(|text| parse(&text));
    said.unwrap_or_else(|| BootId(u128::from(random_id())))
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
        assert_eq!(id(), id());
    }
}
