//! `xvip reload`: asks, and tells what came of it.

use tokio::runtime;

use super::{Daemon, Failure};
use crate::admin::{
    client,
    reload::{Outcome, Verdict},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    daemon: Daemon,
    /// What came of it, as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(client::reload(&arguments.daemon.socket))?;
    tell(outcome, arguments.json)
}

/// Prints an outcome, and fails as it did.
pub(super) fn tell(outcome: Outcome, json: bool) -> Result<(), Failure> {
    let text = if json { serde_json::to_string_pretty(&outcome)? + "\n" } else { outcome.table() };
    super::print(&text)?;
    let problem = outcome.problem.unwrap_or_default();
    match outcome.verdict {
        Verdict::Applied | Verdict::Possible => Ok(()),
        Verdict::Refused => Err(Failure::Configuration(problem)),
        Verdict::Failed => Err(Failure::Failed(anyhow::Error::msg(problem))),
    }
}
