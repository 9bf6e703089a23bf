//! Network namespaces: their numbers, and going into those of pods.

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::{
        fd::{AsFd, AsRawFd as _},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use nix::{
    sched::{CloneFlags, setns},
    sys::socket::{AddressFamily, SockFlag, SockType, socket},
};

/// Where iproute2 and container runtimes keep namespaces without a process.
const NAMED: &str = "/run/netns";
/// This thread's own.
const OWN: &str = "/proc/thread-self/ns/net";

/// The number of this thread's network namespace, which is never used again while the machine runs.
pub fn cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    cookie_of(socket.as_fd())
}

fn cookie_of(socket: impl AsFd) -> io::Result<u64> {
    let mut cookie = 0_u64;
    let mut length = size_of::<u64>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes, which is the size of `cookie`.
    let outcome = unsafe {
        libc::getsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if outcome == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

/// Calls `visit` inside each of the wanted namespaces that can be found, and gives those that cannot. A namespace is found by a process
/// in it, or by its name; others than this thread's need CAP_SYS_ADMIN, and CAP_SYS_PTRACE for processes of other users.
///
/// The thread goes from one to the next and comes back: nothing that minds may run on it meanwhile.
pub fn visit(mut wanted: BTreeSet<u64>, mut visit: impl FnMut(u64)) -> BTreeSet<u64> {
    // Most often all is in the one we are in.
    if let Ok(own) = cookie()
        && wanted.remove(&own)
    {
        visit(own);
    }
    if wanted.is_empty() {
        return wanted;
    }
    let Ok(home) = File::open(OWN) else {
        return wanted;
    };
    let mut tried: BTreeSet<_> = inode(Path::new(OWN)).into_iter().collect();
    for path in entries(Path::new(NAMED), "").chain(entries(Path::new("/proc"), "ns/net")) {
        if wanted.is_empty() {
            break;
        }
        if inode(&path).is_ok_and(|inode| tried.insert(inode))
            && let Ok(number) = enter(&path)
            && wanted.remove(&number)
        {
            visit(number);
        }
    }
    if let Err(error) = setns(home, CloneFlags::CLONE_NEWNET) {
        log::error!("coming back to this program's network namespace: {error}");
    }
    wanted
}

fn inode(path: &Path) -> io::Result<(u64, u64)> {
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

fn enter(path: &Path) -> io::Result<u64> {
    setns(File::open(path)?, CloneFlags::CLONE_NEWNET)?;
    cookie()
}

/// Everything in a directory that may be absent, or something below each.
fn entries(directory: &Path, below: &'static str) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(move |entry| if below.is_empty() { entry.path() } else { entry.path().join(below) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_namespace_has_one_number_and_is_visited() {
        let own = cookie().unwrap();
        assert_eq!(cookie().unwrap(), own);
        assert_ne!(own, 0);
        let mut visited = Vec::new();
        let missing = visit(BTreeSet::from([own]), |number| visited.push(number));
        assert_eq!((visited, missing), (vec![own], BTreeSet::new()));
    }
}
