//! `xvip detach`: ends a data plane that goes on without a daemon.

use std::{collections::BTreeSet, path::PathBuf};

use tokio::runtime;

use super::Failure;
use crate::{
    config,
    dataplane::Left,
    host::{self, qdisc, unicast, vip},
    supervisor,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: super::File,
    /// The instance that pins in this directory (dataplane.bpffs), whatever its configuration says
    #[arg(long, value_name = "DIR", conflicts_with = "configuration")]
    bpffs: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (bpffs, configured, configured_macs) = match &arguments.bpffs {
        Some(bpffs) => (bpffs.clone(), BTreeSet::new(), BTreeSet::new()),
        None => {
            let config = config::load(&arguments.file.configuration)
                .map_err(|report| Failure::Configuration(report.to_string()))?;
            (config.dataplane.bpffs.clone(), supervisor::vips(&config), supervisor::macs(&config))
        }
    };
    let left = Left::find(&bpffs)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let removed = runtime.block_on(async {
        let handle = host::connect()?;
        let pinned = left.iter().flat_map(|left| &left.vips).copied();
        // First the VIPs: nobody should be drawn to a node that no longer forwards.
        let removed = vip::remove_left(&handle, &configured.into_iter().chain(pinned).collect()).await?;
        let macs = left.iter().flat_map(|left| &left.macs).copied().chain(configured_macs).collect();
        unicast::remove(&handle, &macs).await?;
        let Some(left) = left else {
            return anyhow::Ok((0, removed.len()));
        };
        let (interfaces, qdiscs) = (left.interfaces.len(), left.qdiscs.clone());
        left.detach()?;
        for index in qdiscs {
            qdisc::remove_unused(&handle, index).await?;
        }
        Ok((interfaces, removed.len()))
    })?;
    let (interfaces, vips) = removed;
    super::print(&format!("{}: {interfaces} interfaces detached, {vips} VIPs removed\n", bpffs.display()))
}
