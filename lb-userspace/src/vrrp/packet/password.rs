//! The password of version 2. It travels in the clear: it keeps strangers' mistakes out, not attackers.

use std::fmt;

use subtle::ConstantTimeEq as _;

/// Eight bytes, padded with zeros.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Password([u8; Self::LEN]);

impl Password {
    /// Bytes that count.
    pub const LEN: usize = 8;

    /// Cuts the text after eight bytes, as keepalived does.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; Self::LEN];
        for (byte, from) in bytes.iter_mut().zip(text.as_bytes()) {
            *byte = *from;
        }
        Self(bytes)
    }

    pub(super) fn bytes(&self) -> &[u8; Self::LEN] {
        &self.0
    }

    /// Compares in a time that tells nothing of where the difference is.
    pub fn is(&self, received: &[u8; Self::LEN]) -> bool {
        self.0.ct_eq(received).into()
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Password(…)")
    }
}
