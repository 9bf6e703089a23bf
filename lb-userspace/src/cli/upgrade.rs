//! `xvip upgrade`: run by the new program, it looks whether that can go on where the daemon is now, and has the daemon make room for it.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use tokio::{
    runtime,
    time::{Instant, sleep},
};

use super::Failure;
use crate::{
    admin::{
        Status,
        client::{self, ClientError},
    },
    config,
    dataplane::{Loss, losses},
    supervisor,
};

const VERSION: &str = env!("CARGO_PKG_VERSION");
/// For the daemon's end: it hands over VIPs that move, and carries nothing on itself.
const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: super::File,
    /// Say what would be kept and lost, and change nothing
    #[arg(long)]
    check: bool,
    /// Go on although open connections are forgotten
    #[arg(long)]
    forget: bool,
    /// How long to wait for the next daemon, which systemd or the like starts; 0 where it is started by hand afterwards
    #[arg(long, value_name = "TIME", value_parser = humantime::parse_duration, default_value = "30s")]
    wait: Duration,
    /// The daemon's control socket, if not the one that the configuration names
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let file = &arguments.file.configuration;
    let config = config::load(file).map_err(|report| Failure::Configuration(report.to_string()))?;
    let socket = arguments.socket.as_ref().unwrap_or(&config.admin.control_socket);
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let before = runtime.block_on(client::status(socket))?;
    let losses = losses(&supervisor::options(&config))?.with_context(|| {
        format!("no data plane is pinned in {}: does the daemon use another one?", config.dataplane.bpffs.display())
    })?;
    super::print(&outlook(&before.version, &losses))?;
    if arguments.check {
        return Ok(());
    }
    if losses.iter().any(|loss| loss.connections) && !arguments.forget {
        return Err(anyhow!("nothing was changed. `xvip upgrade --forget` goes on all the same").into());
    }
    super::print(&runtime.block_on(replace(socket, &before, arguments.wait))?)
}

/// What the next daemon goes on with.
fn outlook(version: &str, losses: &[Loss]) -> String {
    let mut text = format!("xvip {version} runs, this is {VERSION}\n");
    if losses.iter().all(|loss| !loss.connections) {
        text += "open connections go on\n";
    }
    losses.iter().for_each(|loss| text += &format!("{}\n", loss.text));
    text
}

/// Has the daemon end, and waits for the next one. What became of it.
async fn replace(socket: &Path, before: &Status, patience: Duration) -> anyhow::Result<String> {
    let begun = Instant::now();
    client::hand_over(socket).await?;
    let next = |status: &Status| status.started != before.started;
    while matches!(client::status(socket).await, Ok(status) if !next(&status)) {
        if begun.elapsed() > PATIENCE {
            anyhow::bail!("the daemon has not ended within {PATIENCE:?}; its log tells more");
        }
        sleep(LOOK).await;
    }
    if patience.is_zero() {
        return Ok("the daemon has ended and the data plane goes on: start the next one now (xvip run)\n".to_owned());
    }
    let ended = Instant::now();
    loop {
        match client::status(socket).await {
            Ok(status) if next(&status) => {
                let took = humantime::format_duration(Duration::from_millis(begun.elapsed().as_millis() as u64));
                return Ok(format!("xvip {} has taken over, {took} after the order\n", status.version));
            }
            Err(error @ ClientError::Forbidden { .. }) => return Err(error.into()),
            _ if ended.elapsed() > patience => {
                anyhow::bail!(
                    "the daemon has ended, and nobody has started the next one within {patience:?}. The data plane goes on as it is: start it \
                     (systemctl start xvip, or xvip run -c FILE)"
                );
            }
            _ => sleep(LOOK).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_is_told() {
        let loss = |connections, text: &str| Loss { connections, text: text.to_owned() };
        let kept = outlook("0.0.9", &[loss(false, "what COUNTERS held is lost: why")]);
        assert_eq!(
            kept,
            format!("xvip 0.0.9 runs, this is {VERSION}\nopen connections go on\nwhat COUNTERS held is lost: why\n")
        );
        let lost = outlook("0.0.9", &[loss(true, "the table of connections does not fit")]);
        assert!(lost.ends_with("the table of connections does not fit\n") && !lost.contains("go on"), "{lost}");
    }
}
