//! Bounds-checked access to a packet, for host memory and for the kernel's packet pointers alike.

/// The packet ends before the header does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Truncated;

/// A header that may be laid over any bytes of a packet.
///
/// # Safety
/// Implementors have alignment 1, no padding, and hold for every bit pattern.
pub unsafe trait Header: Copy {}

/// A packet from its Ethernet header on.
#[expect(clippy::len_without_is_empty, reason = "no program ever sees an empty frame")]
pub trait Frame {
    /// The header that starts `at` bytes into the packet.
    fn get<T: Header>(&self, at: usize) -> Result<&T, Truncated>;
    /// The same, to be written.
    fn get_mut<T: Header>(&mut self, at: usize) -> Result<&mut T, Truncated>;
    /// Length in bytes.
    fn len(&self) -> usize;
    /// Forgets what is known of the packet's place. The kernel's verifier remembers how much of it was looked at, which differs between the
    /// ways that led here; what comes after this it follows once.
    fn forget(&mut self) {}
}

impl Frame for [u8] {
    fn get<T: Header>(&self, at: usize) -> Result<&T, Truncated> {
        let bytes = self.get(at..).and_then(|rest| rest.get(..size_of::<T>())).ok_or(Truncated)?;
        // SAFETY: `bytes` is as long as T, and `Header` promises alignment 1 and no invalid values.
        Ok(unsafe { &*bytes.as_ptr().cast() })
    }

    fn get_mut<T: Header>(&mut self, at: usize) -> Result<&mut T, Truncated> {
        let bytes = self.get_mut(at..).and_then(|rest| rest.get_mut(..size_of::<T>())).ok_or(Truncated)?;
        // SAFETY: as in `get`; the exclusive borrow is passed on.
        Ok(unsafe { &mut *bytes.as_mut_ptr().cast() })
    }

    fn len(&self) -> usize {
        <[u8]>::len(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    #[repr(C)]
    struct Two([u8; 2]);
    // SAFETY: two bytes.
    unsafe impl Header for Two {}

    #[test]
    fn reads_up_to_the_last_byte_and_not_beyond() {
        let frame: &mut [u8] = &mut [1, 2, 3];
        assert_eq!(Frame::get::<Two>(frame, 1).map(|two| two.0), Ok([2, 3]));
        assert_eq!(Frame::get::<Two>(frame, 2).map(|two| two.0), Err(Truncated));
        assert_eq!(Frame::get::<Two>(frame, usize::MAX).map(|two| two.0), Err(Truncated));
        Frame::get_mut::<Two>(frame, 0).unwrap().0 = [9, 8];
        assert_eq!(frame, [9, 8, 3]);
    }
}
