//! What programs that died have left of their labs, found by the pid in its name.

use std::{fs, path::Path, process::Command};

use nix::{
    errno::Errno,
    sys::signal::kill,
    unistd::{Pid, Uid},
};

use super::{
    BPFFS, Error, Lab, PREFIX, RUN_DIR, cgroup, io_error,
    netns::{self, NETNS_DIR, run},
};

impl Lab {
    /// Removes what labs of programs that no longer run have left: processes, namespaces, pins and files.
    /// Gives the names of the namespaces.
    pub fn sweep() -> Result<Vec<String>, Error> {
        if !Uid::effective().is_root() {
            return Err(Error::NotRoot);
        }
        let namespaces = orphans(NETNS_DIR);
        for name in &namespaces {
            netns::kill_inside(name);
            let removed = run(Command::new("ip").args(["netns", "del", name]));
            // Another program may be sweeping too.
            if Path::new(NETNS_DIR).join(name).exists() {
                removed?;
            }
        }
        cgroup::sweep(orphans)?;
        for directory in [BPFFS, RUN_DIR] {
            for name in orphans(directory) {
                remove_directory(&Path::new(directory).join(name))?;
            }
        }
        Ok(namespaces)
    }
}

/// That it is gone already, by another program's sweep, is no error.
pub(super) fn remove_directory(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Err(error) if path.exists() => Err(io_error(format!("remove {}", path.display()))(error)),
        _ => Ok(()),
    }
}

/// Entries of a directory that are named after a lab of a program that has ended.
fn orphans(directory: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    (entries.flatten())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| owner(name).is_some_and(|pid| kill(pid, None) == Err(Errno::ESRCH)))
        .collect()
}

/// The pid in `xv-<pid>-…`.
fn owner(name: &str) -> Option<Pid> {
    let (pid, _) = name.strip_prefix(PREFIX)?.split_once('-')?;
    pid.parse().ok().filter(|&pid| pid > 0).map(Pid::from_raw)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_of_labs_have_an_owner() {
        assert_eq!(owner("xv-42-demo0-client"), Some(Pid::from_raw(42)));
        for other in ["xv-42", "xv--1-a", "xv-0-a", "xv-a-b", "xvip", "cni-42-a"] {
            assert_eq!(owner(other), None, "{other}");
        }
    }
}
