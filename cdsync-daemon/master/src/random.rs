//! Randomness, drawn here and handed to the pure parts.

use crate::MasterError;

/// 32 random bytes.
pub(crate) fn bytes() -> Result<[u8; 32], MasterError> {
    let mut bytes = [0; 32];
    match getrandom::fill(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(error) => Err(MasterError::Machine {
            detail: format!("no randomness: {error}"),
        }),
    }
}

/// A random id; never zero, which some places take for none.
pub(crate) fn id() -> Result<u64, MasterError> {
    let [a, b, c, d, e, f, g, h, ..] = bytes()?;
    Ok(u64::from_le_bytes([a, b, c, d, e, f, g, h]).max(1))
}
