//! Per-interface forwarding, which `bpf_fib_lookup` insists on: on an interface without it every answer is
//! BPF_FIB_LKUP_RET_FWD_DISABLED.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use log::{info, warn};

/// The sysctls that were changed, with the values to put back when it is dropped. A crash leaves them changed, and the next
/// daemon then takes them for the administrator's.
#[derive(Debug, Default)]
pub struct Forwarding {
    /// In the order of writing; restored in reverse.
    changed: Vec<Sysctl>,
}

#[derive(Debug)]
struct Sysctl {
    path: PathBuf,
    before: String,
    written: &'static str,
}

#[derive(Debug, thiserror::Error)]
#[error(
    "turning on {}: {source}. The data plane finds the way to a backend only through interfaces that forward. \
     Run xvip with CAP_NET_ADMIN and, in a container, with /proc/sys/net writable, or set the value to {value} beforehand.",
    path.display()
)]
pub struct ForwardingError {
    path: PathBuf,
    value: &'static str,
    source: io::Error,
}

/// Which families have virtual servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Families {
    pub ipv4: bool,
    pub ipv6: bool,
}

impl Forwarding {
    /// Turns forwarding on for each interface, where it is off, in this thread's network namespace. What was changed before a
    /// failure is put back.
    pub fn enable<'a>(
        interfaces: impl IntoIterator<Item = &'a str>,
        families: Families,
    ) -> Result<Self, ForwardingError> {
        Self::enable_under(Path::new("/proc/sys/net"), interfaces, families)
    }

    // Names may hold dots (eth0.100), so the paths are built from parts: `sysctl` would split them.
    fn enable_under<'a>(
        root: &Path,
        interfaces: impl IntoIterator<Item = &'a str>,
        families: Families,
    ) -> Result<Self, ForwardingError> {
        let mut forwarding = Self::default();
        for name in interfaces {
            if families.ipv4 {
                forwarding.replace(root.join("ipv4/conf").join(name).join("forwarding"), "0", "1")?;
            }
            if families.ipv6 {
                let directory = root.join("ipv6/conf").join(name);
                // A forwarding interface ignores router advertisements unless accept_ra is 2, and drops the default routes
                // learned from them at the moment forwarding is turned on: hence before it.
                if fs::read_to_string(directory.join("forwarding")).is_ok_and(|value| value.trim() == "0") {
                    forwarding.replace(directory.join("accept_ra"), "1", "2")?;
                }
                forwarding.replace(directory.join("forwarding"), "0", "1")?;
            }
        }
        Ok(forwarding)
    }

    /// Leaves everything as it is now.
    pub fn keep(mut self) {
        self.changed.clear();
    }

    /// Writes `to` where the file says `from`; any other value already does.
    fn replace(&mut self, path: PathBuf, from: &str, to: &'static str) -> Result<(), ForwardingError> {
        let result = (|| {
            let before = fs::read_to_string(&path)?.trim().to_owned();
            if before == from {
                fs::write(&path, to)?;
                info!("{} was {before}, now {to}", path.display());
                self.changed.push(Sysctl { path: path.clone(), before, written: to });
            }
            Ok(())
        })();
        result.map_err(|source| ForwardingError { path, value: to, source })
    }
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        for Sysctl { path, before, written } in self.changed.drain(..).rev() {
            // Somebody else has set it since, or the interface is gone: theirs to keep.
            if !fs::read_to_string(&path).is_ok_and(|now| now.trim() == written) {
                continue;
            }
            match fs::write(&path, &before) {
                Ok(()) => info!("{} is {before} again", path.display()),
                Err(e) => warn!("putting {} back to {before}: {e}", path.display()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Families = Families { ipv4: true, ipv6: true };

    /// A tree like /proc/sys/net: (path, value).
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, value) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, format!("{value}\n")).unwrap();
        }
        root
    }

    fn values(root: &tempfile::TempDir, paths: &[&str]) -> Vec<String> {
        paths.iter().map(|p| fs::read_to_string(root.path().join(p)).unwrap().trim().to_owned()).collect()
    }

    const V4: &str = "ipv4/conf/eth0.100/forwarding";
    const V6: &str = "ipv6/conf/eth0.100/forwarding";
    const RA: &str = "ipv6/conf/eth0.100/accept_ra";

    #[test]
    fn turns_on_what_is_off_and_puts_it_back() {
        // (before, families, during)
        let on = "1";
        let table = [
            (["0", "0", "1"], BOTH, ["1", "1", "2"]),
            (["0", "0", "0"], BOTH, ["1", "1", "0"]),
            (["0", "0", "2"], BOTH, ["1", "1", "2"]),
            ([on, on, "1"], BOTH, [on, on, "1"]),
            (["0", "0", "1"], Families { ipv4: true, ipv6: false }, ["1", "0", "1"]),
            (["0", "0", "1"], Families { ipv4: false, ipv6: true }, ["0", "1", "2"]),
        ];
        for (before, families, during) in table {
            let root = tree(&[(V4, before[0]), (V6, before[1]), (RA, before[2])]);
            let forwarding = Forwarding::enable_under(root.path(), ["eth0.100"], families).unwrap();
            assert_eq!(values(&root, &[V4, V6, RA]), during, "{before:?} {families:?}");
            drop(forwarding);
            assert_eq!(values(&root, &[V4, V6, RA]), before, "{before:?} {families:?}");
        }
    }

    #[test]
    fn a_failure_leaves_nothing_changed_and_names_the_file() {
        let root = tree(&[(V4, "0"), (V6, "0"), (RA, "1")]);
        let error = Forwarding::enable_under(root.path(), ["eth0.100", "eth9"], BOTH).unwrap_err();
        assert!(error.to_string().contains("ipv4/conf/eth9/forwarding"), "{error}");
        assert_eq!(values(&root, &[V4, V6, RA]), ["0", "0", "1"]);
    }

    #[test]
    fn what_somebody_else_set_since_is_theirs() {
        let root = tree(&[(V4, "0"), (V6, "0"), (RA, "1")]);
        let forwarding = Forwarding::enable_under(root.path(), ["eth0.100"], BOTH).unwrap();
        fs::write(root.path().join(RA), "0").unwrap();
        drop(forwarding);
        assert_eq!(values(&root, &[V4, V6, RA]), ["0", "0", "0"]);
    }
}
