//! A table of connections as the daemon sees it: the map's own memory.

use std::{
    io,
    marker::PhantomData,
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
    abi::names,
    address::{Address, V4, V6},
    table::{Hashing, Set, Sets},
};

use super::{Dataplane, LoadError};

/// A map of [`Set`]s, mapped into memory. The programs write it at the same time.
pub(super) struct Flows<A> {
    start: NonNull<Set<A>>,
    hashing: Hashing,
    sets: PhantomData<Set<A>>,
}

// SAFETY: the memory is this value's own and mapped as long as it lives.
unsafe impl<A> Send for Flows<A> {}
// SAFETY: whoever has a reference reads and writes by single loads and stores and by the sets' locks, as the programs do on other CPUs.
unsafe impl<A> Sync for Flows<A> {}

/// The tables of both families, for everybody in this process.
pub(super) type Tables = (Arc<Flows<V4>>, Arc<Flows<V6>>);

impl Dataplane {
    /// The tables of connections, mapped once.
    pub(super) fn flows(&mut self) -> Result<Tables, LoadError> {
        if let Some(tables) = &self.tables {
            return Ok(tables.clone());
        }
        let flows4 = Flows::take(&mut self.ebpf, names::FLOWS4, self.hashing)?;
        let flows6 = Flows::take(&mut self.ebpf, names::FLOWS6, self.hashing)?;
        Ok(self.tables.insert((Arc::new(flows4), Arc::new(flows6))).clone())
    }
}

impl<A> Flows<A> {
    /// Takes the map out of the object and maps all its sets.
    pub(super) fn take(ebpf: &mut Ebpf, name: &'static str, hashing: Hashing) -> Result<Self, LoadError> {
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            return Err(LoadError::Map { name, source: MapError::KeyNotFound });
        };
        let mut flows = Self { start: NonNull::dangling(), hashing, sets: PhantomData };
        let length = flows.length();
        // SAFETY: a new mapping, which the kernel refuses if the map is smaller (array_map_mmap).
        let start = unsafe {
            libc::mmap(
                ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        let failed = || LoadError::Map { name, source: MapError::IoError(io::Error::last_os_error()) };
        flows.start = match start {
            libc::MAP_FAILED => return Err(failed()),
            start => NonNull::new(start.cast()).ok_or_else(failed)?,
        };
        Ok(flows)
    }

    /// Bytes of all sets.
    fn length(&self) -> usize {
        self.hashing.sets() as usize * size_of::<Set<A>>()
    }

    pub(super) fn all(&self) -> &[Set<A>] {
        // SAFETY: mapped as long as `self` lives, on a page of its own; the kernel made it of zeros, which are sets without entries. What
        // the programs change under the daemon is in cells.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.hashing.sets() as usize) }
    }
}

impl<A> Drop for Flows<A> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `take`, to which no reference is left.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length()) };
    }
}

impl<A: Address> Sets<A> for Flows<A> {
    fn hashing(&self) -> Option<&Hashing> {
        Some(&self.hashing)
    }

    fn set(&self, number: u32) -> Option<&Set<A>> {
        self.all().get(number as usize)
    }
}
