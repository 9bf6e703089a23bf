//! Connections of each backend as the programs count them, and what keeps these counts true: whoever walks the connections has seen how many
//! there are.

use std::{
    collections::BTreeMap,
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::{self, NonNull},
    slice,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Map, MapError},
};
use lb_common::{
    abi::{BackendId, Load, MAX_BACKENDS, names},
    shared::Tally,
};

use super::LoadError;

/// The counts, mapped into memory. The programs count at the same time.
#[derive(Clone, Debug)]
pub(super) struct Loads(Arc<Mapping>);

#[derive(Debug)]
struct Mapping(NonNull<Load>);

// SAFETY: the memory is this value's own and mapped as long as it lives.
unsafe impl Send for Mapping {}
// SAFETY: whoever has a reference reads and writes by single loads and stores and by atomic additions, as the programs do on other CPUs.
unsafe impl Sync for Mapping {}

/// Which of a backend's counts.
pub(super) type Which = fn(&Load) -> &Tally;

pub(super) const CARRIED: Which = |load| &load.carried;
pub(super) const OWN: Which = |load| &load.own;

impl Loads {
    pub(super) fn take(ebpf: &mut Ebpf) -> Result<Self, LoadError> {
        let name = names::LOADS;
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            return Err(LoadError::Map { name, source: MapError::KeyNotFound });
        };
        // SAFETY: a new mapping, which the kernel refuses if the map is smaller (array_map_mmap).
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                LENGTH,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        let failed = || LoadError::Map { name, source: MapError::IoError(io::Error::last_os_error()) };
        match start {
            libc::MAP_FAILED => Err(failed()),
            start => NonNull::new(start.cast()).map(|start| Self(Arc::new(Mapping(start)))).ok_or_else(failed),
        }
    }

    fn all(&self) -> &[Load] {
        // SAFETY: mapped as long as `self` lives, on a page of its own; the kernel made it of zeros, which are loads. What the programs change
        // under the daemon is in cells.
        unsafe { slice::from_raw_parts(self.0.0.as_ptr(), MAX_BACKENDS) }
    }

    pub(super) fn open(&self, id: BackendId) -> [u64; 2] {
        self.all().get(id.0 as usize).map_or([0; 2], |load| [load.carried.load(), load.own.load()])
    }

    pub(super) fn weigh(&self, id: BackendId, weight: u32) {
        if let Some(load) = self.all().get(id.0 as usize) {
            load.weight.store(weight);
        }
    }

    /// Forgets those of a backend that is gone: its number may become another's.
    pub(super) fn forget(&self, id: BackendId) {
        if let Some(load) = self.all().get(id.0 as usize) {
            load.weight.store(0);
            for tally in [&load.carried, &load.own] {
                tally.add(-(tally.balance()));
            }
        }
    }

    /// What is counted before a walk begins.
    pub(super) fn counts(&self, which: Which) -> Vec<i64> {
        self.all().iter().map(|load| which(load).balance()).collect()
    }

    /// Corrects the counts by what a walk has found since `before`.
    pub(super) fn correct(&self, which: Which, before: &[i64], found: &BTreeMap<BackendId, u64>) {
        for ((number, load), before) in (0..).zip(self.all()).zip(before) {
            let tally = which(load);
            let found = found.get(&BackendId(number)).copied().unwrap_or_default();
            match correction(*before, found, tally.balance()) {
                0 => {}
                change => tally.add(change),
            }
        }
    }
}

/// Bytes of all counts.
const LENGTH: usize = MAX_BACKENDS * size_of::<Load>();

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping of `take`, to which no reference is left.
        unsafe { libc::munmap(self.0.as_ptr().cast(), LENGTH) };
    }
}

/// What to add to a count that was `before` and is `after` a walk which has found so many. Connections begin and end during a walk, so a number
/// between the two is no sign of a mistake; one beyond them is, by the distance from the nearer.
fn correction(before: i64, found: u64, after: i64) -> i64 {
    let found = i64::try_from(found).unwrap_or(i64::MAX);
    found - found.clamp(before.min(after), before.max(after))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_the_walk_cannot_explain_is_corrected() {
        let table = [
            ("all is well", (7, 7, 7), 0),
            ("some were closed that nobody saw", (9, 7, 9), -2),
            ("copies of another node", (0, 5, 0), 5),
            ("it rose meanwhile", (7, 8, 9), 0),
            ("it rose, and something is missing all the same", (7, 10, 9), 1),
            ("it fell", (9, 8, 6), 0),
            ("it fell, and there is too much", (9, 4, 6), -2),
            ("more ends than begins were seen", (-3, 2, -3), 5),
        ];
        for (name, (before, found, after), expected) in table {
            assert_eq!(correction(before, found, after), expected, "{name}");
        }
    }

    proptest! {
        /// Whatever the mistake was, after walks that nobody disturbs there is none, and one that is disturbed makes none bigger than what moved.
        #[test]
        fn no_mistake_lasts(mistake in -1000_i64..1000, open in 0_u64..1000, moved in -50_i64..50, seen in 0_i64..50) {
            let open = i64::try_from(open).unwrap();
            let after = (open + moved).max(0);
            let found = open + seen.min((after - open).abs()) * (after - open).signum();
            let left = mistake + correction(open + mistake, found.unsigned_abs(), after + mistake);
            prop_assert!(left.abs() <= (after - open).abs().max(0).min(mistake.abs()), "{} is left of {}", left, mistake);
            let calm = left + correction(after + left, after.unsigned_abs(), after + left);
            prop_assert_eq!(calm, 0);
        }
    }
}
