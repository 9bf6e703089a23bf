//! What several CPUs read and write in a map value: numbers, and a lock.

use core::{cell::UnsafeCell, fmt};

use crate::{
    address::Address,
    flow::{Flow, Key},
};

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

/// Keeps the compiler from moving accesses of memory across it.
#[inline(always)]
pub fn barrier() {
    #[cfg(target_arch = "bpf")]
    // SAFETY: no instruction.
    unsafe {
        core::arch::asm!("", options(nostack, preserves_flags))
    }
    #[cfg(not(target_arch = "bpf"))]
    core::sync::atomic::compiler_fence(core::sync::atomic::Ordering::SeqCst);
}

/// A value that is made of whole words and nothing else.
///
/// # Safety
/// `repr(C)` without padding, aligned for `Word`, its size a multiple of it, and every bit pattern is valid.
pub unsafe trait Words {
    type Word: Copy;
}

// SAFETY: addresses and ports; sizes and alignments are asserted in `abi` and below.
unsafe impl<A: Address> Words for Key<A> {
    type Word = u32;
}

// SAFETY: numbers, keys and arrays of bytes; as above.
unsafe impl<A: Address> Words for Flow<A> {
    type Word = u64;
}

/// Copies a value word by word, without a place for all of it in between. What is copied whole from one place to another, LLVM may leave
/// to a loop over its bytes, since the two might overlap.
#[inline(always)]
pub fn copy<T: Words>(from: &T, to: &mut T) {
    // SAFETY: exclusive, by the borrow.
    unsafe { copy_words(from, to) }
}

/// # Safety
/// `to` may be written.
#[inline(always)]
unsafe fn copy_words<T: Words>(from: &T, to: *mut T) {
    const { assert!(size_of::<T>().is_multiple_of(size_of::<T::Word>()) && align_of::<T>() >= align_of::<T::Word>()) };
    let (from, to) = (core::ptr::from_ref(from).cast::<T::Word>(), to.cast::<T::Word>());
    let mut word = 0;
    while word < size_of::<T>() / size_of::<T::Word>() {
        // SAFETY: within both by the length, aligned by the assertion.
        unsafe { to.add(word).write_volatile(from.add(word).read_volatile()) };
        word += 1;
    }
}

/// A value that one CPU writes, under a lock, while others may read it: they bear a mixture of what was and what will be.
#[derive(Default)]
#[repr(transparent)]
pub struct Exposed<T>(UnsafeCell<T>);

impl<T: Words> Exposed<T> {
    #[inline(always)]
    pub fn read(&self) -> &T {
        // SAFETY: initialised, and any words make a value.
        unsafe { &*self.0.get() }
    }

    /// The caller has the lock that goes with it.
    #[inline(always)]
    pub fn write(&self, from: &T) {
        // SAFETY: no other writer by the lock. On the host the type is not `Sync`; in the kernel each access is one instruction.
        unsafe { copy_words(from, self.0.get()) }
    }
}

impl<T> fmt::Debug for Exposed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Exposed")
    }
}

// SAFETY: tests write under a lock, and read when writers are done.
#[cfg(test)]
unsafe impl<T> Sync for Exposed<T> {}
// SAFETY: as above.
#[cfg(test)]
unsafe impl<T> Sync for Shared<T> {}

/// The same number, of which the compiler knows nothing: arithmetic that chooses without a branch stays what it is. The kernel's verifier
/// follows every way, and a branch for each of sixteen slots would be too many.
#[inline(always)]
pub fn opaque(number: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut same = number;
        // SAFETY: moves a register to itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) same, options(nomem, nostack, preserves_flags)) }
        same
    }
    #[cfg(not(target_arch = "bpf"))]
    number
}

/// 1 for 0, 0 for everything below 2^63.
#[inline(always)]
pub fn is_zero(number: u64) -> u64 {
    opaque(opaque(number).wrapping_sub(1) >> 63)
}

/// 1 if one number is below another, both below 2^63.
#[inline(always)]
pub fn is_below(one: u64, other: u64) -> u64 {
    opaque(opaque(one).wrapping_sub(opaque(other)) >> 63)
}

/// `one` if `condition` is 1, `other` if it is 0; the condition is one of the above. By a product, since newer verifiers follow both ways of a mask too.
#[inline(always)]
pub fn either(condition: u64, one: u64, other: u64) -> u64 {
    other.wrapping_add(condition.wrapping_mul(one.wrapping_sub(other)))
}

/// A lock that is held for some hundred instructions, by programs in the kernel and by the daemon.
///
/// Nobody waits for it: who does not get it does without. A holder that died with it is found out by the time that it left.
#[derive(Default)]
#[repr(transparent)]
pub struct Lock(Word);

impl Lock {
    /// Ticks after which a holder must be dead: a second at least.
    const STALE: i32 = 1_000;

    /// Takes the lock if nobody has it. `now` is in kernel ticks. That of a dead holder is free for the next who comes.
    #[inline(always)]
    pub fn take(&self, now: u32) -> bool {
        let holder = self.0.exchange(0, 1 << 32 | u64::from(now));
        if holder != 0 && now.wrapping_sub(holder as u32) as i32 > Self::STALE {
            self.0.exchange(holder, 0);
        }
        holder == 0
    }

    /// 0, of which the kernel's verifier does not know that it is.
    #[inline(always)]
    pub fn zero(&self) -> u64 {
        self.0.read() >> 33
    }

    #[inline(always)]
    pub fn give(&self) {
        self.0.clear();
    }
}

impl fmt::Debug for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lock")
    }
}

/// How often a thing may be done: once a kernel tick, and [`Self::MOST`] times at once after a while. Of two CPUs at the same moment, both may.
///
/// It keeps the tick up to which everything was spent (the generic cell rate algorithm).
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Allowance(Shared<u32>);

impl Allowance {
    /// As the kernel's `icmp_msgs_burst`.
    pub const MOST: u32 = 50;

    /// Whether it may be done now; then that is spent. `now` is in kernel ticks.
    #[inline(always)]
    pub fn take(&self, now: u32) -> bool {
        let ahead = self.0.load().wrapping_sub(now);
        // Further ahead than anything is spent is the past.
        let ahead = if ahead > Self::MOST { 0 } else { ahead };
        if ahead == Self::MOST {
            return false;
        }
        self.0.store(now.wrapping_add(ahead + 1));
        true
    }
}

/// A number that CPUs and the daemon count up and down, and none of them loses a count.
#[derive(Default)]
#[repr(transparent)]
pub struct Tally(Word);

impl Tally {
    #[inline(always)]
    pub fn add(&self, change: i64) {
        self.0.add(change as u64);
    }

    /// Counts one up. What it was.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.0.add(1)
    }

    /// What was put on, less what was taken off.
    #[inline(always)]
    pub fn balance(&self) -> i64 {
        self.0.read() as i64
    }

    /// The same, 0 where more was taken off than put on. Without a branch.
    #[inline(always)]
    pub fn load(&self) -> u64 {
        let number = self.0.read();
        number & !opaque((number as i64 >> 63) as u64)
    }
}

impl fmt::Debug for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.load().fmt(f)
    }
}

/// A word with the atomic operations that a lock and a count take. `core` has them only for targets where all are there; BPF has these since
/// Linux 5.12 (instruction set v3).
#[cfg(target_arch = "bpf")]
#[derive(Default)]
#[repr(transparent)]
struct Word(UnsafeCell<u64>);

#[cfg(target_arch = "bpf")]
impl Word {
    /// Stores `new` if the word is `old`. What it was.
    #[inline(always)]
    fn exchange(&self, old: u64, new: u64) -> u64 {
        let found;
        // SAFETY: the word is aligned and outlives the instruction; a full barrier.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({word} + 0, r0, {new})",
                word = in(reg) self.0.get(),
                new = in(reg) new,
                inlateout("r0") old => found,
                options(nostack),
            );
        }
        found
    }

    /// Adds, wrapping around. What it was.
    #[inline(always)]
    fn add(&self, change: u64) -> u64 {
        let mut number = change;
        // SAFETY: as above.
        unsafe {
            core::arch::asm!(
                "{number} = atomic_fetch_add((u64 *)({word} + 0), {number})",
                word = in(reg) self.0.get(),
                number = inout(reg) number,
                options(nostack),
            );
        }
        number
    }

    #[inline(always)]
    fn read(&self) -> u64 {
        // SAFETY: the word is aligned and initialised; one instruction.
        unsafe { self.0.get().read_volatile() }
    }

    #[inline(always)]
    fn clear(&self) {
        // SAFETY: as above.
        unsafe {
            core::arch::asm!(
                "{zero} = xchg_64({word} + 0, {zero})",
                word = in(reg) self.0.get(),
                zero = inlateout(reg) 0_u64 => _,
                options(nostack),
            );
        }
    }
}

#[cfg(not(target_arch = "bpf"))]
#[derive(Default)]
#[repr(transparent)]
struct Word(core::sync::atomic::AtomicU64);

#[cfg(not(target_arch = "bpf"))]
impl Word {
    fn exchange(&self, old: u64, new: u64) -> u64 {
        use core::sync::atomic::Ordering::SeqCst;
        self.0.compare_exchange(old, new, SeqCst, SeqCst).unwrap_or_else(|found| found)
    }

    fn add(&self, change: u64) -> u64 {
        self.0.fetch_add(change, core::sync::atomic::Ordering::Relaxed)
    }

    fn read(&self) -> u64 {
        self.0.load(core::sync::atomic::Ordering::Relaxed)
    }

    fn clear(&self) {
        self.0.store(0, core::sync::atomic::Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_takes_what_is_taken_off_too_early() {
        let tally = Tally::default();
        tally.add(-2);
        assert_eq!(tally.load(), 0);
        tally.add(5);
        assert_eq!((tally.load(), tally.next(), tally.load()), (3, 3, 4));
    }

    #[test]
    fn an_allowance_is_spent_at_once_and_grows_by_one_each_tick() {
        for start in [5, 0x8000_0000, u32::MAX - 100] {
            let allowance = Allowance::default();
            let spent = |now: u32| (0..200).filter(|_| allowance.take(start.wrapping_add(now))).count();
            assert_eq!([spent(0), spent(0), spent(1), spent(4), spent(5_000), spent(5_000)], [50, 0, 1, 3, 50, 0]);
        }
    }

    #[test]
    fn a_lock_is_held_by_one_and_not_by_the_dead() {
        let lock = Lock::default();
        assert!(lock.take(7));
        assert!(!lock.take(8));
        lock.give();
        assert!(lock.take(u32::MAX), "and the holder dies");
        assert!(!lock.take(u32::MAX - 5), "another clock may be behind");
        assert!(!lock.take(999));
        assert!(!lock.take(999), "it was not that long");
        assert!(!lock.take(1_000), "it was, and the next one");
        assert!(lock.take(1_000));
        assert!(!lock.take(1_001), "it is held by a living one now");
    }
}
