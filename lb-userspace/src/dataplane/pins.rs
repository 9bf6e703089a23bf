//! An instance's place in a BPF filesystem: what is pinned there outlives the daemon, and the next one takes it over.
//!
//! ```text
//!   /sys/fs/bpf/xvip/            locked while a daemon lives
//!       v1/SETTINGS, v1/…        the maps, by the version of their layout
//!       links/2_xdp_native, …    what holds the programs on their interfaces
//! ```

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use aya::Ebpf;
use lb_common::abi::{LAYOUT, names};
use nix::fcntl::{Flock, FlockArg};

use super::links::Links;
use crate::host::process;

/// Pins could not be made or read.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error(
        "another xvip keeps its maps in {path}: {holder}. Stop that one, or give this one another dataplane.bpffs.",
        path = .path.display()
    )]
    Taken { path: PathBuf, holder: String },
    #[error(
        "pinning in {path}: {source}. Is a BPF filesystem mounted there, and writable? (mount -t bpf bpf /sys/fs/bpf)",
        path = path.display()
    )]
    Io { path: PathBuf, source: io::Error },
}

impl PinError {
    pub(super) fn new(path: &Path, source: io::Error) -> Self {
        Self::Io { path: path.to_owned(), source }
    }
}

/// The directory, which is this process's for as long as this lives, unless it is only looked at.
#[derive(Debug)]
pub(super) struct Pins {
    root: PathBuf,
    /// The kernel lets go of it even when the daemon is killed. `None` where it is only looked at.
    _lock: Option<Flock<File>>,
}

/// Ends the names of maps that are not in use yet.
const NEXT: &str = "_next";

impl Pins {
    /// Takes the directory, making it if need be.
    pub(super) fn claim(root: &Path) -> Result<Self, PinError> {
        loop {
            fs::create_dir_all(root).map_err(|error| PinError::new(root, error))?;
            match Self::lock(root)? {
                // Whoever had it may have removed the directory at its end: then this is the lock of nothing.
                Some(pins) => return Ok(pins),
                None => continue,
            }
        }
    }

    /// Takes the directory if it is there.
    pub(super) fn claim_present(root: &Path) -> Result<Option<Self>, PinError> {
        match Self::lock(root) {
            Err(PinError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            other => other,
        }
    }

    /// Leaves the directory to whoever has it.
    pub(super) fn look(root: &Path) -> Self {
        Self { root: root.to_owned(), _lock: None }
    }

    fn lock(root: &Path) -> Result<Option<Self>, PinError> {
        let failed = |error| PinError::new(root, error);
        let directory = File::open(root).map_err(failed)?;
        let inode = directory.metadata().map_err(failed)?.ino();
        let lock = Flock::lock(directory, FlockArg::LockExclusiveNonblock)
            .map_err(|_| PinError::Taken { path: root.to_owned(), holder: holder(inode) })?;
        let still = fs::metadata(root).is_ok_and(|now| now.ino() == inode);
        Ok(still.then(|| Self { root: root.to_owned(), _lock: Some(lock) }))
    }

    pub(super) fn links(&self) -> Links {
        Links::new(self.root.join("links"))
    }

    /// The directory of the maps.
    fn maps(&self) -> PathBuf {
        self.root.join(format!("v{LAYOUT}"))
    }

    /// Where a map is.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps().join(name)
    }

    /// Where maps of other layouts are.
    pub(super) fn other_layouts(&self) -> Vec<PathBuf> {
        let is_layout = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix('v'));
            name.is_some_and(|number| number.parse::<u32>().is_ok())
        };
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(is_layout).filter(|path| *path != self.maps()).collect()
    }

    /// Pins the maps beside those that are in use. `kept` are those already.
    pub(super) fn stage(&self, ebpf: &Ebpf, kept: &[&str]) -> Result<(), PinError> {
        fs::create_dir_all(self.maps()).map_err(|error| PinError::new(&self.maps(), error))?;
        self.discard_staged()?;
        for name in names::MAPS.into_iter().filter(|name| !kept.contains(name)) {
            let path = self.map(&format!("{name}{NEXT}"));
            let pinned = ebpf.map(name).ok_or_else(|| io::Error::other("no such map"));
            let pinned = pinned.and_then(|map| map.pin(&path).map_err(io::Error::other));
            pinned.map_err(|error| PinError::new(&path, error))?;
        }
        Ok(())
    }

    /// Puts the staged maps in the place of those that were in use.
    pub(super) fn publish(&self) -> Result<(), PinError> {
        for staged in self.staged()? {
            let path = staged.display().to_string();
            let place = path.strip_suffix(NEXT).unwrap_or(&path);
            fs::rename(&staged, place).map_err(|error| PinError::new(&staged, error))?;
        }
        Ok(())
    }

    pub(super) fn discard_staged(&self) -> Result<(), PinError> {
        self.staged()?.iter().try_for_each(|staged| fs::remove_file(staged).map_err(|e| PinError::new(staged, e)))
    }

    fn staged(&self) -> Result<Vec<PathBuf>, PinError> {
        let failed = |error| PinError::new(&self.maps(), error);
        let mut staged = Vec::new();
        for entry in fs::read_dir(self.maps()).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            if path.to_string_lossy().ends_with(NEXT) {
                staged.push(path);
            }
        }
        Ok(staged)
    }

    /// Removes the maps and, once it is empty, the directory. Links have to be removed before.
    pub(super) fn remove(&self) -> Result<(), PinError> {
        fs::remove_dir_all(&self.root).map_err(|error| PinError::new(&self.root, error))
    }

    /// Removes what has nothing in it: after a start that came to nothing.
    pub(super) fn remove_empty(&self) {
        for directory in [self.maps(), self.root.join("links"), self.root.clone()] {
            // Full is as good as gone.
            let _ = fs::remove_dir(directory);
        }
    }
}

/// The process that has locked a file, in words.
fn holder(inode: u64) -> String {
    let Some(id) = fs::read_to_string("/proc/locks").ok().and_then(|locks| locker(&locks, inode)) else {
        return "a process outside of this container".to_owned();
    };
    process::named(id)
}

/// Reads /proc/locks: `1: FLOCK  ADVISORY  WRITE 1234 00:1f:5678 0 EOF`.
fn locker(locks: &str, inode: u64) -> Option<u32> {
    let held = locks.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let ours = |words: &Vec<&str>| {
        words.get(1) == Some(&"FLOCK")
            && words.get(5).and_then(|file| file.rsplit(':').next()) == Some(&inode.to_string())
    };
    held.filter(ours).find_map(|words| words[4].parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_holder_of_a_lock_is_told() {
        let locks = "1: POSIX  ADVISORY  WRITE 11 00:1f:77 0 EOF\n\
                     2: FLOCK  ADVISORY  WRITE 12 00:1f:78 0 EOF\n\
                     3: FLOCK  ADVISORY  WRITE 13 00:1f:77 0 EOF\n\
                     3: -> FLOCK  ADVISORY  WRITE 14 00:1f:77 0 EOF\n";
        assert_eq!(locker(locks, 77), Some(13));
        assert_eq!(locker(locks, 79), None);
    }

    #[test]
    fn a_directory_is_taken_once_and_again_after_its_removal() {
        let parent = tempfile::tempdir().unwrap();
        let root = parent.path().join("xvip");
        assert!(Pins::claim_present(&root).unwrap().is_none());
        let first = Pins::claim(&root).unwrap();
        let PinError::Taken { holder, .. } = Pins::claim(&root).unwrap_err() else { panic!("taken") };
        assert!(holder.starts_with(&format!("process {} (", std::process::id())), "{holder}");
        first.remove().unwrap();
        let second = Pins::claim(&root).unwrap();
        drop(first);
        assert!(root.exists());
        drop(second);
        assert!(Pins::claim_present(&root).unwrap().is_some());
    }

    #[test]
    fn staged_maps_take_the_place_of_those_in_use() {
        let parent = tempfile::tempdir().unwrap();
        let pins = Pins::claim(parent.path()).unwrap();
        fs::create_dir(pins.maps()).unwrap();
        fs::create_dir(parent.path().join("v0")).unwrap();
        for (name, content) in [("A", "old"), ("A_next", "new"), ("B", "kept")] {
            fs::write(pins.map(name), content).unwrap();
        }
        pins.publish().unwrap();
        let read = |name| fs::read_to_string(pins.map(name)).ok();
        assert_eq!([read("A"), read("A_next"), read("B")], [Some("new".into()), None, Some("kept".into())]);
        assert_eq!(pins.other_layouts(), [parent.path().join("v0")]);
    }
}
