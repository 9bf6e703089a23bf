//! What daemons have in use while all is well, and what is there when they have ended.

use std::{collections::BTreeMap, fs, path::PathBuf};

use anyhow::{Context as _, Result};
use nix::unistd::Pid;

use crate::{
    pair::{NODES, Pair},
    traces::Traces,
};

/// Descriptors that checks and questions have open at one moment and not at another.
const FDS: usize = 24;
/// Room that an allocator may keep, in KiB.
const MEMORY: u64 = 24 << 10;

/// A daemon at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Size {
    fds: usize,
    /// Resident, in KiB.
    memory: u64,
    pins: usize,
}

/// The sizes of each node's daemons, when all was well.
#[derive(Debug, Default)]
pub(super) struct Sizes(BTreeMap<&'static str, Vec<Size>>);

impl Sizes {
    pub(super) fn look(&mut self, pair: &Pair) -> Result<()> {
        for node in NODES {
            let pins = pins(&pair.host(node).bpffs()?)?;
            let size = size(pair.xvip(node).process().pid(), pins)?;
            self.0.entry(node).or_default().push(size);
        }
        Ok(())
    }

    /// Who has grown, from the first look to the last.
    pub(super) fn grown(&self) -> Vec<String> {
        let grown = |(node, sizes): (&&str, &Vec<Size>)| {
            let (first, last) = (sizes.first()?, sizes.last()?);
            let more =
                last.fds > first.fds + FDS || last.memory > first.memory * 3 / 2 + MEMORY || last.pins != first.pins;
            more.then(|| format!("{node} has grown from {first:?} to {last:?}"))
        };
        self.0.iter().filter_map(grown).collect()
    }
}

fn size(pid: Pid, pins: usize) -> Result<Size> {
    let directory = PathBuf::from(format!("/proc/{pid}"));
    let status = fs::read_to_string(directory.join("status"))?;
    let memory = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let memory = memory.split_whitespace().next().context("VmRSS is empty")?.parse()?;
    Ok(Size { fds: fs::read_dir(directory.join("fd"))?.count(), memory, pins })
}

/// Everything that is pinned below a directory.
fn pins(directory: &PathBuf) -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))? {
        let entry = entry?;
        count += if entry.file_type()?.is_dir() { pins(&entry.path())? } else { 1 };
    }
    Ok(count)
}

/// What both hosts are like without a daemon.
pub(super) fn traces(pair: &Pair) -> Result<Vec<Traces>> {
    let of = |node| Traces::of(pair.host(node), "eth0", &pair.deployment.control_socket(node)?);
    NODES.into_iter().map(of).collect()
}

/// What daemons that have ended have left on their hosts.
pub(super) fn left(pair: &Pair, before: &[Traces]) -> Result<Vec<String>> {
    let after = traces(pair)?;
    let pairs = NODES.into_iter().zip(after.iter().zip(before));
    Ok(pairs
        .flat_map(|(node, (after, before))| {
            after.since(before).into_iter().map(move |trace| format!("{node}: {trace}"))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_grown_is_told() {
        let size = |fds, memory, pins| Size { fds, memory, pins };
        let grown = |last| Sizes(BTreeMap::from([("a", vec![size(60, 20_000, 21), last])])).grown().len();
        assert_eq!(grown(size(80, 40_000, 21)), 0);
        assert_eq!([size(85, 20_000, 21), size(60, 60_000, 21), size(60, 20_000, 22)].map(grown), [1; 3]);
    }
}
