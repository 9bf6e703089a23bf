//! What must hold before the daemon touches anything; each refusal says how to mend it.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use nix::sys::{
    statfs::{BPF_FS_MAGIC, statfs},
    statvfs::{FsFlags, statvfs},
};

/// The first kernel that has everything the programs use.
pub const OLDEST_KERNEL: (u32, u32) = (5, 15);

/// Capabilities and their bits (include/uapi/linux/capability.h). NET_RAW is for the ARP and neighbour announcements.
const NEEDED: [(&str, u32); 4] = [("CAP_NET_ADMIN", 12), ("CAP_NET_RAW", 13), ("CAP_PERFMON", 38), ("CAP_BPF", 39)];
/// Stands for PERFMON and BPF, as it did before they were split off it.
const SYS_ADMIN: u32 = 21;

#[derive(Debug, thiserror::Error)]
pub enum PreflightError {
    #[error(
        "this process lacks {missing}, without which it can neither load programs nor hold a VIP. Start xvip as root \
         (sudo xvip run …), or give it these capabilities: AmbientCapabilities= in a systemd unit, \
         securityContext.capabilities.add in Kubernetes."
    )]
    Capabilities { missing: String },
    #[error(
        "{} is on no BPF filesystem, so the maps cannot be shown there. Mount one with: \
         mount -t bpf bpf {} (in a container, mount the host's /sys/fs/bpf into it), or set dataplane.bpffs to a directory on one.",
        path.display(), mount.display()
    )]
    Bpffs { path: PathBuf, mount: PathBuf },
    #[error(
        "{} is on a BPF filesystem that is mounted read-only, so nothing can be pinned there. Remount it with: \
         mount -o remount,rw {} (in a container, mount the host's without readOnly), or set dataplane.bpffs to a directory on another one.",
        path.display(), mount.display()
    )]
    ReadOnly { path: PathBuf, mount: PathBuf },
    #[error(
        "kernel {release} is too old: xvip needs Linux {}.{} or newer. Boot a newer kernel; Debian 12, Ubuntu 22.04 and RHEL 9 \
         have one.", OLDEST_KERNEL.0, OLDEST_KERNEL.1
    )]
    Kernel { release: String },
    #[error("reading {}: {source}. xvip needs /proc: mount it with mount -t proc proc /proc.", path.display())]
    Proc { path: PathBuf, source: io::Error },
}

/// Everything that needs no configuration but the directory of the pins.
pub fn check(bpffs: &Path) -> Result<(), PreflightError> {
    kernel()?;
    capabilities()?;
    self::bpffs(bpffs)
}

/// Refuses a kernel older than [`OLDEST_KERNEL`].
pub fn kernel() -> Result<(), PreflightError> {
    let release = read("/proc/sys/kernel/osrelease")?.trim().to_owned();
    match version(&release) {
        Some(version) if version < OLDEST_KERNEL => Err(PreflightError::Kernel { release }),
        // A release that cannot be read is a custom kernel's: the verifier has the last word.
        _ => Ok(()),
    }
}

/// Refuses a process without the capabilities that the daemon uses. The effective set tells the truth in containers, too,
/// where uid 0 alone means little.
pub fn capabilities() -> Result<(), PreflightError> {
    let missing = missing_capabilities(effective_set(&read("/proc/self/status")?));
    if missing.is_empty() { Ok(()) } else { Err(PreflightError::Capabilities { missing: missing.join(", ") }) }
}

/// Refuses a directory that is not on a BPF filesystem, or on one that cannot be written. It need not exist yet: then its nearest existing parent counts.
pub fn bpffs(path: &Path) -> Result<(), PreflightError> {
    let existing = path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"));
    let (path, mount) = (path.to_owned(), mount_point(path));
    if !statfs(existing).is_ok_and(|fs| fs.filesystem_type() == BPF_FS_MAGIC) {
        return Err(PreflightError::Bpffs { path, mount });
    }
    if statvfs(existing).is_ok_and(|fs| fs.flags().contains(FsFlags::ST_RDONLY)) {
        return Err(PreflightError::ReadOnly { path, mount });
    }
    Ok(())
}

/// Where a filesystem for `path` belongs: the kernel's own place if `path` is below it.
fn mount_point(path: &Path) -> PathBuf {
    let usual = Path::new("/sys/fs/bpf");
    if path.starts_with(usual) { usual.to_owned() } else { path.parent().unwrap_or(path).to_owned() }
}

fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The CapEff line of /proc/self/status; nothing where there is none.
fn effective_set(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn missing_capabilities(effective: u64) -> Vec<&'static str> {
    let has = |bit: u32| effective & (1 << bit) != 0;
    let met = |&(_, bit): &(&str, u32)| has(bit) || (bit > SYS_ADMIN && has(SYS_ADMIN));
    NEEDED.iter().filter(|needed| !met(needed)).map(|(name, _)| *name).collect()
}

fn read(path: &str) -> Result<String, PreflightError> {
    fs::read_to_string(path).map_err(|source| PreflightError::Proc { path: path.into(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_releases_compare_by_number() {
        let table = [
            ("5.14.0-362.el9.x86_64", true),
            ("5.15.0-91-generic", false),
            ("5.4.0", true),
            ("6.1.0-32-cloud-amd64", false),
            ("6.18.44+", false),
            ("10.0", false),
        ];
        for (release, old) in table {
            assert_eq!(version(release).unwrap() < OLDEST_KERNEL, old, "{release}");
        }
        assert_eq!(version("custom"), None);
    }

    #[test]
    fn missing_capabilities_are_named() {
        let status =
            |set: &str| format!("Name:\txvip\nCapPrm:\t000001ffffffffff\nCapEff:\t{set}\nCapBnd:\t000001ffffffffff\n");
        let table: &[(&str, &[&str])] = &[
            ("000001ffffffffff", &[]),
            ("0000000000000000", &["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_PERFMON", "CAP_BPF"]),
            // What Docker grants by default: NET_RAW is among it.
            ("00000000a80425fb", &["CAP_NET_ADMIN", "CAP_PERFMON", "CAP_BPF"]),
            // SYS_ADMIN, NET_ADMIN and NET_RAW.
            ("0000000000203000", &[]),
        ];
        for (set, missing) in table {
            assert_eq!(missing_capabilities(effective_set(&status(set))), *missing, "{set}");
        }
    }

    #[test]
    fn an_ordinary_directory_is_no_bpf_filesystem() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("bpf/xvip/maps");
        let message = bpffs(&path).unwrap_err().to_string();
        assert!(message.contains(&format!("mount -t bpf bpf {}", path.parent().unwrap().display())), "{message}");
    }

    #[test]
    fn the_usual_place_is_mounted_as_a_whole() {
        assert_eq!(mount_point(Path::new("/sys/fs/bpf/xvip/one")), Path::new("/sys/fs/bpf"));
    }
}
