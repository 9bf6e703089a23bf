//! `xvip backends`: orders for backends while the daemon runs.

use tokio::runtime;

use super::{Daemon, Failure};
use crate::{
    admin::client,
    reconcile::{Request, Wish},
};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Verb {
    /// Send no new connections to these backends; those they have go on
    Drain(Order),
    /// Take back whatever was ordered for these backends: they are as configured again
    Enable(Which),
    /// Give these backends another share of new connections than the configured one
    Weight {
        /// From 0 to 256
        #[arg(value_parser = clap::value_parser!(u16).range(0..=256))]
        weight: u16,
        #[command(flatten)]
        order: Order,
    },
}

#[derive(Debug, clap::Args)]
pub(super) struct Which {
    /// By name, in every virtual server that has it, or as VIRTUAL-SERVER/NAME
    #[arg(required = true, value_name = "NAME")]
    backends: Vec<String>,
    #[command(flatten)]
    daemon: Daemon,
}

#[derive(Debug, clap::Args)]
pub(super) struct Order {
    #[command(flatten)]
    which: Which,
    /// Also after a restart of the daemon, though not of the node
    #[arg(long)]
    persist: bool,
}

pub(super) fn run(verb: Verb) -> Result<(), Failure> {
    let (wish, Which { backends, daemon }, persist) = match verb {
        Verb::Drain(Order { which, persist }) => (Wish::Drain, which, persist),
        Verb::Enable(which) => (Wish::Enable, which, false),
        Verb::Weight { weight, order: Order { which, persist } } => (Wish::Weight(weight), which, persist),
    };
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let request = Request { wish, backends, persist };
    super::print(&runtime.block_on(client::order(&daemon.socket, &request))?)
}
