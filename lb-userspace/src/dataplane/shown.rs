//! The maps, shown in a BPF filesystem for `bpftool` while the daemon lives.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use aya::Ebpf;
use lb_common::abi::names;
use nix::fcntl::{Flock, FlockArg};

/// The maps could not be shown.
#[derive(Debug, thiserror::Error)]
pub enum ShowError {
    #[error(
        "another xvip keeps its maps in {path}. Stop that one, or give this one another dataplane.bpffs.",
        path = .0.display()
    )]
    Taken(PathBuf),
    #[error(
        "showing the maps in {path}: {source}. Is a BPF filesystem mounted there, and writable? (mount -t bpf bpf /sys/fs/bpf)",
        path = path.display()
    )]
    Pin { path: PathBuf, source: io::Error },
}

/// Maps shown in a directory, which is removed at the end.
#[derive(Debug)]
pub(super) struct Shown {
    path: PathBuf,
    /// Held while the directory is ours; the kernel lets go of it even when the daemon is killed.
    _lock: Flock<File>,
}

impl Shown {
    pub(super) fn new(ebpf: &Ebpf, path: &Path) -> Result<Self, ShowError> {
        let failed = |source| ShowError::Pin { path: path.to_owned(), source };
        fs::create_dir_all(path).map_err(failed)?;
        let directory = File::open(path).map_err(failed)?;
        let lock =
            Flock::lock(directory, FlockArg::LockExclusiveNonblock).map_err(|_| ShowError::Taken(path.to_owned()))?;
        // What a killed daemon has left is no use to anyone: its programs went with it.
        for left in fs::read_dir(path).map_err(failed)? {
            fs::remove_file(left.map_err(failed)?.path()).map_err(failed)?;
        }
        let shown = Self { path: path.to_owned(), _lock: lock };
        for name in names::MAPS {
            let map = ebpf.map(name).ok_or_else(|| failed(io::Error::other(format!("no map {name}"))))?;
            map.pin(path.join(name)).map_err(|error| failed(io::Error::other(error)))?;
        }
        Ok(shown)
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }
}
