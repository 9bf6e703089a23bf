//! A cgroup that threads of this program join, so that what is attached to it concerns nobody else on this machine.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsRawFd, RawFd},
    path::{Path, PathBuf},
};

use lb_userspace::host::cgroup;

use super::{Error, PREFIX, io_error};

/// BPF_PROG_QUERY in include/uapi/linux/bpf.h, and the hooks at connect, getpeername and release.
const BPF_PROG_QUERY: libc::c_int = 16;
const HOOKS: [u32; 5] = [10, 11, 29, 30, 34];

/// Threads that join it take the sockets that they make with them. Its directory goes with this, if no thread is left.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    /// Makes a threaded cgroup (kernel: Documentation/admin-guide/cgroup-v2.rst, "Threads") below this program's own.
    pub fn new(name: &str) -> Result<Self, Error> {
        let path = own()?.join(format!("{PREFIX}{}-{name}", std::process::id()));
        let failed = |what: &str| io_error(format!("{what} {}", path.display()));
        fs::create_dir(&path).map_err(failed("make"))?;
        let cgroup = Self { path: path.clone() };
        fs::write(path.join("cgroup.type"), "threaded").map_err(failed("make a threaded cgroup of"))?;
        Ok(cgroup)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Puts this thread into it; threads and processes that it starts are in it too.
    pub fn join(&self) -> Result<(), Error> {
        // 0 is the one who writes.
        fs::write(self.path.join("cgroup.threads"), "0").map_err(io_error(format!("join {}", self.path.display())))
    }

    /// How many programs are attached to it at the hooks for local clients.
    pub fn programs(&self) -> Result<u32, Error> {
        let failed = || io_error(format!("ask for the programs of {}", self.path.display()));
        let directory = File::open(&self.path).map_err(failed())?;
        HOOKS.iter().map(|hook| attached(directory.as_raw_fd(), *hook).map_err(failed())).sum()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir(&self.path) {
            eprintln!("removing {}: {error}", self.path.display());
        }
    }
}

/// Removes the cgroups among `orphans` of this program's own.
pub(super) fn sweep(orphans: impl FnOnce(&str) -> Vec<String>) -> Result<(), Error> {
    let own = own()?;
    for name in orphans(&own.to_string_lossy()) {
        // Another program may be sweeping too.
        match fs::remove_dir(own.join(&name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(io_error(format!("remove {name}"))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The directory of the cgroup that this program is in.
fn own() -> Result<PathBuf, Error> {
    let (root, _) = cgroup::root().map_err(|error| io_error("find the cgroups")(io::Error::other(error)))?;
    let mine = fs::read_to_string("/proc/self/cgroup").map_err(io_error("read /proc/self/cgroup"))?;
    let path = mine.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
    Ok(root.join(path))
}

fn attached(cgroup: RawFd, hook: u32) -> io::Result<u32> {
    /// The part of `union bpf_attr` for BPF_PROG_QUERY.
    #[repr(C)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        ids: u64,
        count: u32,
        padding: u32,
    }
    let mut query = Query {
        target: cgroup.cast_unsigned(),
        attach_type: hook,
        query_flags: 0,
        attach_flags: 0,
        ids: 0,
        count: 0,
        padding: 0,
    };
    // SAFETY: `query` is a `repr(C)` prefix of `union bpf_attr` without implicit padding, alive and of the size given; the kernel writes
    // the flags and the count inside it.
    let outcome = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(query.count) }
}
