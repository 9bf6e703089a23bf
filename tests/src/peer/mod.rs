//! Programs of others that run in the lab as they run in the field: keepalived, FRR's vrrpd, haproxy and nginx. Each has its own
//! files in its host's directory, stays in the foreground, and ends by its pid.

mod keepalived;
mod proxy;
mod vrrpd;

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, Result};

pub use self::{
    keepalived::{Keepalived, Tally},
    proxy::Proxy,
    vrrpd::{Virtual, Vrrpd},
};
use crate::lab::Host;

/// For a program to come up or to end by itself.
const PATIENCE: Duration = Duration::from_secs(15);

/// A directory of its own for one program on a host, empty.
fn directory(host: &Host, program: &str) -> Result<PathBuf> {
    let path = host.directory().join(program);
    // What an earlier run of the program has left there would be taken for this one's.
    if path.exists() {
        fs::remove_dir_all(&path).with_context(|| format!("emptying {}", path.display()))?;
    }
    fs::create_dir_all(&path).with_context(|| format!("making {}", path.display()))?;
    Ok(path)
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

/// Writes a shell script that root may run.
pub fn script(path: &Path, text: &str) -> Result<()> {
    write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).with_context(|| format!("chmod {}", path.display()))
}
