//! The command line: arguments in, tables and exit codes out.

mod backends;
mod check;
mod detach;
mod logging;
mod reload;
mod upgrade;
mod vrrp;

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
    process::ExitCode,
    time::SystemTime,
};

use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::runtime;

use crate::{
    admin::{self, Status, client, exposition, table},
    config, supervisor,
};

/// Where the configuration is if nothing else is said.
const CONFIGURATION: &str = "/etc/xvip/xvip.toml";
/// Where the daemon answers if nothing else is said.
const CONTROL_SOCKET: &str = "/run/xvip/xvip.sock";

/// An in-kernel VIP load balancer for the Kubernetes control plane.
#[derive(Debug, Parser)]
#[command(name = "xvip", version, after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Carry traffic, until SIGTERM or Ctrl-C
    Run(File),
    /// Say what is wrong with a configuration, all of it at once
    Check(check::Arguments),
    /// Show virtual servers and backends
    Status {
        #[command(flatten)]
        daemon: Daemon,
        /// Everything, as JSON
        #[arg(long)]
        json: bool,
    },
    /// Have the daemon read its configuration again, as SIGHUP does; one with mistakes leaves the one before in place
    Reload(reload::Arguments),
    /// Drain backends, weigh them otherwise, or take that back
    #[command(subcommand)]
    Backends(backends::Verb),
    /// Have the daemon end and leave its connections to this program, which is started in its place by whatever runs it
    Upgrade(upgrade::Arguments),
    /// Remove what a daemon that runs no more has left: programs, maps and VIPs
    Detach(detach::Arguments),
    /// Print the daemon's metrics, as OpenMetrics
    Metrics(Daemon),
    /// Ask for something of VRRP
    #[command(subcommand)]
    Vrrp(vrrp::Verb),
    /// Print a shell's completion script
    Completions { shell: clap_complete::Shell },
}

#[derive(Debug, clap::Args)]
struct File {
    /// The configuration
    #[arg(short, long = "config", value_name = "FILE", default_value = CONFIGURATION)]
    configuration: PathBuf,
}

#[derive(Debug, clap::Args)]
struct Daemon {
    /// The daemon's control socket (admin.control_socket)
    #[arg(long, value_name = "PATH", default_value = CONTROL_SOCKET)]
    socket: PathBuf,
}

/// How a command failed.
#[derive(Debug)]
enum Failure {
    /// The command was right, its execution failed.
    Failed(anyhow::Error),
    /// The configuration is wrong; the text is complete.
    Configuration(String),
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    // Wrong usage ends here, with 2.
    let arguments = Arguments::parse();
    match execute(arguments.verb) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure::Failed(error)) => {
            eprintln!("error: {error:#}");
            ExitCode::from(1)
        }
        Err(Failure::Configuration(report)) => {
            eprintln!("{}", report.trim_end());
            ExitCode::from(2)
        }
    }
}

fn execute(verb: Verb) -> Result<(), Failure> {
    match verb {
        Verb::Run(file) => run(&file.configuration),
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Status { daemon, json } => {
            let status = ask(&daemon)?;
            let text = if json {
                serde_json::to_string_pretty(&status)? + "\n"
            } else {
                let now = SystemTime::now();
                let (summary, backends) = (table::summary(&status, now), table::backends(&status, now));
                let vrrp = admin::vrrp::table(&status, now);
                let (configuration, removed) = (table::configuration(&status, now), table::removed(&status, now));
                let sync = status.sync.as_ref().map(admin::sync::table).unwrap_or_default();
                let parts = [summary + &configuration, vrrp, sync, backends, table::modes(&status), removed];
                parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
            };
            print(&text)
        }
        Verb::Reload(arguments) => reload::run(&arguments),
        Verb::Backends(verb) => backends::run(verb),
        Verb::Upgrade(arguments) => upgrade::run(&arguments),
        Verb::Detach(arguments) => detach::run(&arguments),
        Verb::Metrics(daemon) => print(&exposition::render(&ask(&daemon)?)),
        Verb::Vrrp(verb) => vrrp::run(&verb),
        Verb::Completions { shell } => {
            clap_complete::generate(shell, &mut Arguments::command(), "xvip", &mut io::stdout());
            Ok(())
        }
    }
}

fn run(file: &Path) -> Result<(), Failure> {
    logging::start();
    let config = config::load(file).map_err(|report| Failure::Configuration(report.to_string()))?;
    // Two threads are plenty: packets are the kernel's work, this is checks and tables.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    Ok(runtime.block_on(supervisor::run(&config, file))?)
}

fn ask(daemon: &Daemon) -> anyhow::Result<Status> {
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(client::status(&daemon.socket))?)
}

/// Writes to standard output; a reader that has gone (`| head`) is no failure.
fn print(text: &str) -> Result<(), Failure> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(anyhow::Error::from(error).context("writing to standard output").into())
        }
        _ => Ok(()),
    }
}
