//! A table of connections as the daemon sees it: the map's own memory.
//!
//! What is mapped counts as the daemon's memory, too, though the kernel has it anyway. So a small table is mapped as a whole, and of a large one
//! only what is looked at: a window that moves through it, or the few sets that a connection may be in.

use std::{
    cell::OnceCell,
    io,
    marker::PhantomData,
    ops::Range,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::{self, NonNull},
    slice,
    sync::Arc,
};

use aya::{
    Ebpf,
    maps::{Map, MapData, MapError},
};
use lb_common::{
    abi::names,
    address::{Address, V4, V6},
    flow::{Flow, Key},
    table::{Hashing, Set, Sets, find},
};

use super::{Dataplane, LoadError};

/// Bytes up to which a table is mapped as a whole: of 70,000 connections of IPv4.
const SMALL: usize = 16 << 20;
/// Sets of a window. To map and unmap it takes as long as to look at it.
const WINDOW: usize = 256;
/// Sets that the two halves of a connection may be in: two each.
const NEAR: usize = 4;

/// A map of [`Set`]s. The programs write it at the same time.
pub(super) struct Flows<A> {
    map: MapData,
    hashing: Hashing,
    /// All of it, if it is small.
    whole: Option<Window<A>>,
}

/// The tables of both families, for everybody in this process.
pub(super) type Tables = (Arc<Flows<V4>>, Arc<Flows<V6>>);

impl Dataplane {
    /// The tables of connections.
    pub(super) fn flows(&mut self) -> Result<Tables, LoadError> {
        if let Some(tables) = &self.tables {
            return Ok(tables.clone());
        }
        let flows4 = Flows::take(&mut self.ebpf, names::FLOWS4, self.hashing)?;
        let flows6 = Flows::take(&mut self.ebpf, names::FLOWS6, self.hashing)?;
        Ok(self.tables.insert((Arc::new(flows4), Arc::new(flows6))).clone())
    }
}

impl<A: Address> Flows<A> {
    /// Takes the map out of the object.
    fn take(ebpf: &mut Ebpf, name: &'static str, hashing: Hashing) -> Result<Self, LoadError> {
        let Some(Map::Array(map)) = ebpf.take_map(name) else {
            return Err(LoadError::Map { name, source: MapError::KeyNotFound });
        };
        let mut flows = Self { map, hashing, whole: None };
        let all = 0..flows.len();
        let some = if all.len() * size_of::<Set<A>>() > SMALL { 0..1 } else { all.clone() };
        let window = flows.map(&some).map_err(|error| LoadError::Map { name, source: MapError::IoError(error) })?;
        flows.whole = (some == all).then_some(window);
        Ok(flows)
    }

    /// Sets.
    pub(super) fn len(&self) -> usize {
        self.hashing.sets() as usize
    }

    /// Shows all sets in this range, in their order, some at a time.
    pub(super) fn walk(&self, range: Range<usize>, mut each: impl FnMut(&[Set<A>])) {
        let range = range.start.min(self.len())..range.end.min(self.len());
        if let Some(whole) = &self.whole {
            return each(&whole.sets()[range]);
        }
        for start in range.clone().step_by(WINDOW) {
            match self.map(&(start..range.end.min(start + WINDOW))) {
                Ok(window) => each(window.sets()),
                // It was possible at the start: the machine is short of memory, and the next walk comes soon.
                Err(error) => log::warn!("a part of the table of connections is passed over: {error}"),
            }
        }
    }

    /// The sets that a connection may be in, to read and write. It is for one connection.
    pub(super) fn near(&self) -> Near<'_, A> {
        Near { flows: self, writes: true, held: Default::default() }
    }

    /// The entry under a key, as it is at this moment.
    pub(super) fn peek(&self, key: &Key<A>) -> Option<Flow<A>> {
        // Reading a set takes a tenth of the time that mapping it does.
        find(&Near { flows: self, writes: false, held: Default::default() }, key).cloned()
    }

    fn map(&self, sets: &Range<usize>) -> io::Result<Window<A>> {
        let (first, last) = (sets.start * size_of::<Set<A>>(), sets.end * size_of::<Set<A>>());
        // SAFETY: it asks for a number.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
        let start = first / page * page;
        let offset = libc::off_t::try_from(start).map_err(io::Error::other)?;
        let (length, shared) = (last - start, libc::PROT_READ | libc::PROT_WRITE);
        let fd = self.map.fd().as_fd().as_raw_fd();
        // SAFETY: a new mapping, which the kernel refuses where the map ends before (array_map_mmap).
        let at = unsafe { libc::mmap(ptr::null_mut(), length, shared, libc::MAP_SHARED, fd, offset) };
        let failed = io::Error::last_os_error;
        let at = if at == libc::MAP_FAILED { None } else { NonNull::new(at.cast::<u8>()) };
        Ok(Window {
            at: at.ok_or_else(failed)?,
            length,
            skip: first - start,
            first: sets.start,
            count: sets.len(),
            sets: PhantomData,
        })
    }

    /// A set as it is now.
    fn read(&self, number: u32) -> io::Result<Box<Set<A>>> {
        /// What `bpf` is told to look an element up by (`union bpf_attr`).
        #[repr(C)]
        struct Lookup {
            map: u32,
            _padding: u32,
            key: u64,
            value: u64,
            flags: u64,
        }
        const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
        let mut set = Box::<Set<A>>::default();
        let lookup = Lookup {
            map: self.map.fd().as_fd().as_raw_fd().cast_unsigned(),
            _padding: 0,
            key: ptr::from_ref(&number) as u64,
            value: ptr::from_mut(&mut *set) as u64,
            flags: 0,
        };
        // SAFETY: the kernel reads a key and writes a value, whose sizes are those of the map; any bytes are a set.
        let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_LOOKUP_ELEM, &lookup, size_of::<Lookup>()) };
        if done == 0 { Ok(set) } else { Err(io::Error::last_os_error()) }
    }
}

/// Some of a table's sets, mapped into memory.
struct Window<A> {
    at: NonNull<u8>,
    length: usize,
    /// Bytes before the first set: mappings start at pages.
    skip: usize,
    /// Its number, and how many they are.
    first: usize,
    count: usize,
    sets: PhantomData<Set<A>>,
}

// SAFETY: the memory is this value's own and mapped as long as it lives.
unsafe impl<A> Send for Window<A> {}
// SAFETY: whoever has a reference reads and writes by single loads and stores and by the sets' locks, as the programs do on other CPUs.
unsafe impl<A> Sync for Window<A> {}

impl<A> Window<A> {
    fn sets(&self) -> &[Set<A>] {
        // SAFETY: mapped as long as `self` lives, aligned as the map is and its sets are; the kernel made it of zeros, which are sets without
        // entries. What the programs change under the daemon is in cells.
        unsafe { slice::from_raw_parts(self.at.as_ptr().add(self.skip).cast(), self.count) }
    }
}

impl<A> Drop for Window<A> {
    fn drop(&mut self) {
        // SAFETY: the mapping of `Flows::map`, to which no reference is left.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.length) };
    }
}

/// The sets that one connection may be in. They are mapped, or read, when they are asked for.
pub(super) struct Near<'a, A> {
    flows: &'a Flows<A>,
    writes: bool,
    held: [OnceCell<Option<Held<A>>>; NEAR],
}

enum Held<A> {
    Mapped(Window<A>),
    /// With its number.
    Read(u32, Box<Set<A>>),
}

impl<A: Address> Sets<A> for Near<'_, A> {
    fn hashing(&self) -> Option<&Hashing> {
        Some(&self.flows.hashing)
    }

    fn set(&self, number: u32) -> Option<&Set<A>> {
        if let Some(whole) = &self.flows.whole {
            return whole.sets().get(number as usize);
        }
        let here = number as usize..number as usize + 1;
        if here.start >= self.flows.len() {
            return None;
        }
        let hold = || {
            let mapped = || self.flows.map(&here).map(Held::Mapped);
            let read = || self.flows.read(number).map(|set| Held::Read(number, set));
            let held = if self.writes { mapped() } else { read() };
            held.inspect_err(|error| log::debug!("set {number} of the table of connections: {error}")).ok()
        };
        self.held.iter().find_map(|held| match held.get_or_init(hold).as_ref()? {
            Held::Mapped(window) => (window.first == here.start).then(|| &window.sets()[0]),
            Held::Read(known, set) => (*known == number).then_some(&**set),
        })
    }
}
