//! The data path of a daemon that runs, from beside it: its program by test runs, its table of IPv4 connections by the map's own memory.

use std::{
    io,
    os::fd::{AsFd as _, AsRawFd as _},
    ptr::{self, NonNull},
    slice,
};

use anyhow::{Context as _, Result, ensure};
use aya::{
    maps::{Array, Map, MapData},
    programs::{ProgramFd, loaded_programs},
};
use lb_common::{
    abi::{LAYOUT, names},
    address::V4,
    table::{Hashing, Set, Sets},
};

use crate::lab::Host;

/// A node's, until its daemon is replaced.
pub(super) struct Inside {
    program: ProgramFd,
    hashing: Hashing,
    table: NonNull<Set<V4>>,
}

/// What a test run is told (`union bpf_attr`), up to the last field that is used.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
}

const BPF_PROG_TEST_RUN: libc::c_long = 10;
/// What the data path may put in front of a frame.
const ROOM: usize = 256;

// SAFETY: the mapping is this value's own; what is in it is read and written by single loads and stores and by locks, as the programs do.
unsafe impl Send for Inside {}
// SAFETY: as above.
unsafe impl Sync for Inside {}

impl Inside {
    /// Of the program on that interface of the host.
    pub(super) fn of(host: &Host, interface: &str) -> Result<Self> {
        let link = host.exec(&["ip", "-d", "link", "show", "dev", interface])?;
        let id = link.split_once("prog/xdp id ").and_then(|(_, rest)| rest.split_whitespace().next());
        let id: u32 = id.with_context(|| format!("no program on {interface}: {link}"))?.parse()?;
        let program = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
        let program = program.context("the program is gone")?.fd()?;
        let pin = |name: &str| anyhow::Ok(host.bpffs()?.join(format!("v{LAYOUT}")).join(name));
        let hashing = MapData::from_pin(pin(names::HASHING)?).and_then(Map::from_map_data)?;
        let hashing = Array::<MapData, Hashing>::try_from(hashing)?.get(&0, 0)?;
        let map = MapData::from_pin(pin(names::FLOWS4)?)?;
        let length = hashing.sets() as usize * size_of::<Set<V4>>();
        let (shared, fd) = (libc::PROT_READ | libc::PROT_WRITE, map.fd().as_fd().as_raw_fd());
        // SAFETY: a new mapping, which the kernel refuses if the map is smaller.
        let start = unsafe { libc::mmap(ptr::null_mut(), length, shared, libc::MAP_SHARED, fd, 0) };
        ensure!(start != libc::MAP_FAILED, "mapping {}: {}", names::FLOWS4, io::Error::last_os_error());
        Ok(Self { program, hashing, table: NonNull::new(start.cast()).context("a mapping at 0")? })
    }

    /// Has the program handle a frame as if this thread's namespace had received it by its loopback interface. What became of it.
    pub(super) fn receive(&self, frame: &[u8]) -> Result<Vec<u8>> {
        let mut out = vec![0; frame.len() + ROOM];
        let mut run = TestRun {
            program: self.program.as_fd().as_raw_fd().cast_unsigned(),
            size_in: u32::try_from(frame.len())?,
            size_out: u32::try_from(out.len())?,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            ..TestRun::default()
        };
        // SAFETY: the kernel reads and writes within the lengths that go with the addresses, and fills in what it returns.
        let done = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_TEST_RUN, &raw mut run, size_of::<TestRun>()) };
        ensure!(done == 0, "a test run: {}", io::Error::last_os_error());
        out.truncate(run.size_out as usize);
        Ok(out)
    }

    fn sets(&self) -> &[Set<V4>] {
        // SAFETY: mapped as long as `self` lives; any bytes are sets.
        unsafe { slice::from_raw_parts(self.table.as_ptr(), self.hashing.sets() as usize) }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // SAFETY: the mapping of `of`, to which no reference is left.
        unsafe { libc::munmap(self.table.as_ptr().cast(), size_of_val(self.sets())) };
    }
}

impl Sets<V4> for Inside {
    fn hashing(&self) -> Option<&Hashing> {
        Some(&self.hashing)
    }

    fn set(&self, number: u32) -> Option<&Set<V4>> {
        self.sets().get(number as usize)
    }
}
