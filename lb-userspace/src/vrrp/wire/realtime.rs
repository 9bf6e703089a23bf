//! Keeps the thread from waiting for the disk or for other work: pages in memory, a stack that is there, a real-time priority.

use std::{ffi::c_void, fs, hint::black_box, io, num::NonZeroUsize, ptr::NonNull};

use nix::sys::{
    mman::{MlockAllFlags, MmapAdvise, madvise, mlockall},
    resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit},
};

use super::journal::Journal;

/// The lowest real-time priority: before every normal task, after every other real-time one.
const PRIORITY: i32 = 1;
/// More than the thread's deepest calls take, in bytes; threads have 2 MiB.
const STACK: usize = 256 * 1024;

/// What the thread got of what it asked for; an error says why not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scheduling {
    pub locked: Result<(), String>,
    /// `None` if it was not asked for.
    pub realtime: Option<Result<(), String>>,
}

impl Scheduling {
    pub(super) fn tell(&self, journal: &mut Journal) {
        match &self.locked {
            Ok(()) => journal.info("VRRP: memory is locked".into()),
            Err(e) => journal.warn(format!("VRRP: memory is not locked ({e}): the disk may delay an advert")),
        }
        match &self.realtime {
            Some(Ok(())) => journal.info(format!("VRRP: runs with real-time priority {PRIORITY}")),
            Some(Err(e)) => {
                journal.warn(format!("VRRP: runs without real-time priority ({e}): a busy machine may delay an advert"))
            }
            None => {}
        }
    }
}

/// Arranges for the calling thread to run when it has to.
pub(super) fn settle(realtime: bool) -> Scheduling {
    let locked = lock_memory().map_err(|e| e.to_string());
    touch_stack();
    Scheduling { locked, realtime: realtime.then(|| be_first().map_err(|e| e.to_string())) }
}

/// Pages stay in memory once touched. Those of the program itself are touched now: a takeover runs code that may never have run before.
/// Locking without `MCL_ONFAULT` would fill in every stack of the process to its full size.
fn lock_memory() -> io::Result<()> {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    // Under a limit that cannot be lifted, what is mapped later would be refused once the limit is reached.
    let unlimited = getrlimit(Resource::RLIMIT_MEMLOCK)?.0 == RLIM_INFINITY
        || setrlimit(Resource::RLIMIT_MEMLOCK, RLIM_INFINITY, RLIM_INFINITY).is_ok();
    let future = if unlimited { MlockAllFlags::MCL_FUTURE } else { MlockAllFlags::empty() };
    mlockall(MlockAllFlags::MCL_CURRENT | future | on_fault)?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    for (start, length) in maps.lines().filter_map(program_part) {
        // SAFETY: MADV_POPULATE_READ changes no page and unmaps none; it only brings in what is mapped.
        // Before Linux 5.14 it is unknown and refused.
        let _ = unsafe { madvise(start, length.get(), MmapAdvise::MADV_POPULATE_READ) };
    }
    Ok(())
}

/// Where a line of /proc/self/maps tells of code or constants from a file, and how long that is.
fn program_part(line: &str) -> Option<(NonNull<c_void>, NonZeroUsize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let private_read_only = fields.next()?.starts_with("r-") && line.contains(" /");
    let start = NonNull::new(std::ptr::without_provenance_mut(start)).filter(|_| private_read_only)?;
    Some((start, NonZeroUsize::new(end.checked_sub(start.addr().get())?)?))
}

/// Large, so that its pages are in memory before they are needed.
#[inline(never)]
fn touch_stack() {
    black_box([0_u8; STACK]);
}

fn be_first() -> io::Result<()> {
    // A limit would kill the process for having worked (setrlimit(2)); a thread with one is better off without priority.
    if getrlimit(Resource::RLIMIT_RTTIME)? != (RLIM_INFINITY, RLIM_INFINITY) {
        setrlimit(Resource::RLIMIT_RTTIME, RLIM_INFINITY, RLIM_INFINITY)?;
    }
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: 0 is the calling thread, and the parameters live until the call returns.
    // Threads and processes that this one starts are normal again.
    let outcome =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const parameters) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_found_in_its_own_map() {
        let code = "55d0c0a00000-55d0c0b00000 r-xp 00001000 fd:01 1234   /usr/bin/xvip";
        let (start, length) = program_part(code).unwrap();
        assert_eq!((start.addr().get(), length.get()), (0x55d0_c0a0_0000, 0x10_0000));
        for other in [
            "55d0c0a00000-55d0c0b00000 rw-p 00001000 fd:01 1234   /usr/bin/xvip",
            "7ffd4c000000-7ffd4c021000 r-xp 00000000 00:00 0      [vdso]",
            "7f0000000000-7f0000200000 ---p 00000000 00:00 0",
            "",
        ] {
            assert_eq!(program_part(other), None, "{other}");
        }
        let maps = fs::read_to_string("/proc/self/maps").unwrap();
        let here = program_part as *const () as usize;
        let holds = |(start, length): (NonNull<c_void>, NonZeroUsize)| {
            (start.addr().get()..start.addr().get() + length.get()).contains(&here)
        };
        assert!(maps.lines().filter_map(program_part).any(holds), "this function is not in\n{maps}");
    }
}
