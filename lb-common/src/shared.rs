//! A number in a map value that several CPUs may read and write.

use core::{cell::UnsafeCell, fmt};

/// One aligned load or store an access, never split or left out.
///
/// This is what a relaxed atomic would be, but LLVM selects atomic loads and stores for BPF only from instruction set v4 on,
/// which kernels know since 6.6. Two CPUs that count at once may lose a count.
#[repr(transparent)]
pub struct Shared<T>(UnsafeCell<T>);

impl<T: Copy> Shared<T> {
    #[inline(always)]
    pub const fn new(value: T) -> Self {
        Self(UnsafeCell::new(value))
    }

    #[inline(always)]
    pub fn load(&self) -> T {
        // SAFETY: the cell is aligned and initialised; no reference into it exists, as the type hands out none.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    pub fn store(&self, value: T) {
        // SAFETY: as in `load`. On the host the type is not `Sync`; in the kernel the access is one instruction.
        unsafe { self.0.get().write_volatile(value) }
    }
}

impl<T: Copy + fmt::Debug> fmt::Debug for Shared<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load().fmt(f)
    }
}

impl<T: Copy + Default> Default for Shared<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

impl<T: Copy> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self::new(self.load())
    }
}
