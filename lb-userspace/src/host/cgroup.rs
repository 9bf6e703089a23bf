//! The root of this host's cgroups, which every process is below: found from the mounts, also from inside a container.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::sys::statfs::{CGROUP2_SUPER_MAGIC, fstatfs};

/// Inode of the root of the hierarchy, whatever namespace it is looked at from (kernel: kernfs numbers from 1 on). A container sees its own
/// cgroup as a root, which has another number.
const ROOT: u64 = 1;

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error(
        "no cgroup v2 hierarchy of this host is in sight ({seen}). On a host, mount one: mount -t cgroup2 none /sys/fs/cgroup/unified. In a container, share \
         the host's processes (hostPID: true, privileged), or mount the host's /sys/fs/cgroup into it and set dataplane.cgroup to where it is. \
         dataplane.cgroup = \"off\" does without local clients."
    )]
    NotFound { seen: String },
    #[error("{} is no directory of a cgroup v2 hierarchy. Set dataplane.cgroup to one, or to \"auto\".", path.display())]
    NotACgroup { path: PathBuf },
    #[error("opening cgroup {}: {source}. Set dataplane.cgroup to a directory of a cgroup v2 hierarchy, or to \"auto\".", path.display())]
    Open { path: PathBuf, source: io::Error },
}

/// Opens a directory of a cgroup v2 hierarchy.
pub fn open(path: &Path) -> Result<File, CgroupError> {
    let file = File::open(path).map_err(|source| CgroupError::Open { path: path.to_owned(), source })?;
    match fstatfs(&file) {
        Ok(found) if found.filesystem_type() == CGROUP2_SUPER_MAGIC => Ok(file),
        _ => Err(CgroupError::NotACgroup { path: path.to_owned() }),
    }
}

/// Opens the root of this host's hierarchy: among this process's mounts, or else among those of the host's first process, which a
/// container sees if it shares the host's processes.
pub fn root() -> Result<(PathBuf, File), CgroupError> {
    let mut seen = Vec::new();
    for (process, prefix) in [("self", ""), ("1", "/proc/1/root")] {
        let mounts = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
        for point in mount_points(&mounts) {
            let path = PathBuf::from(format!("{prefix}{point}"));
            match open(&path) {
                Ok(file) if file.metadata().is_ok_and(|metadata| metadata.ino() == ROOT) => return Ok((path, file)),
                _ => seen.push(path.display().to_string()),
            }
        }
    }
    let seen = if seen.is_empty() { "none is mounted".to_owned() } else { format!("seen: {}", seen.join(", ")) };
    Err(CgroupError::NotFound { seen })
}

/// Where cgroup v2 is mounted, from /proc/PID/mountinfo (proc(5)): after the root and the mount point come options and, behind a
/// hyphen, the type.
fn mount_points(mountinfo: &str) -> impl Iterator<Item = String> {
    mountinfo.lines().filter_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let point = mount.split(' ').nth(4)?;
        (filesystem.split(' ').next() == Some("cgroup2")).then(|| unescaped(point))
    })
}

/// Space, tab, newline and backslash stand as octal numbers.
fn unescaped(path: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .into_iter()
        .fold(path.to_owned(), |path, (code, character)| path.replace(code, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_of_version_2_are_picked_out() {
        let mountinfo = "\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /sys/fs/cgroup ro,nosuid - tmpfs tmpfs ro,mode=755
31 30 0:27 / /sys/fs/cgroup/unified rw,nosuid shared:10 - cgroup2 cgroup2 rw,nsdelegate
32 30 0:28 / /sys/fs/cgroup/systemd rw,nosuid - cgroup cgroup rw,name=systemd
40 22 0:27 /../.. /host/sys/fs\\040cgroup rw - cgroup2 none rw
";
        let found: Vec<String> = mount_points(mountinfo).collect();
        assert_eq!(found, ["/sys/fs/cgroup/unified", "/host/sys/fs cgroup"]);
    }

    #[test]
    fn an_ordinary_directory_is_no_cgroup() {
        let directory = tempfile::tempdir().unwrap();
        let refused = open(directory.path()).unwrap_err().to_string();
        assert!(refused.contains("is no directory of a cgroup v2 hierarchy"), "{refused}");
        let absent = open(&directory.path().join("absent")).unwrap_err().to_string();
        assert!(absent.contains("No such file"), "{absent}");
    }
}
