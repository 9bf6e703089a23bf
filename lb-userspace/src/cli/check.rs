//! `xvip check`: the file by itself, then against this host, then against the backends.

use std::{fs, net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context as _;
use tokio::{net::TcpStream, runtime, task::JoinSet, time::timeout};

use super::{Failure, reload};
use crate::{
    admin::client,
    config::{
        self,
        model::{Authentication, Config, Vrrp},
    },
    host, supervisor,
};

/// How long a backend may take to answer a connection.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    file: super::File,
    /// Look at the file only, not at this host's interfaces or at the backends
    #[arg(long)]
    offline: bool,
    /// Print an example with every key and its default instead
    #[arg(long, conflicts_with = "offline")]
    example: bool,
    /// Ask the daemon what it would do if it reloaded this configuration, which changes nothing
    #[arg(long, conflicts_with_all = ["offline", "example"])]
    diff: bool,
    /// Its control socket, if not the one that the configuration names
    #[arg(long, value_name = "PATH", requires = "diff")]
    socket: Option<PathBuf>,
    /// What it would do, as JSON
    #[arg(long, requires = "diff")]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.example {
        return super::print(&config::example());
    }
    let file = &arguments.file.configuration;
    let config = config::load(file).map_err(|report| Failure::Configuration(report.to_string()))?;
    if arguments.diff {
        return compare(arguments, &config);
    }
    if !arguments.offline {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(fits(&config))?;
        runtime.block_on(reaches(&config))?;
    }
    let backends: usize = config.virtual_servers.iter().map(|server| server.backends.len()).sum();
    let mut text = format!(
        "{}: {} virtual servers, {backends} backends, no mistakes\n",
        file.display(),
        config.virtual_servers.len()
    );
    config.vrrp.iter().for_each(|instance| text += &summary(instance));
    config::hints(&config).iter().for_each(|hint| text += &format!("hint: {hint}\n"));
    super::print(&text)
}

/// What a reload would do. The text goes to the daemon, which may see other files than this process does under the same names.
fn compare(arguments: &Arguments, config: &Config) -> Result<(), Failure> {
    let file = &arguments.file.configuration;
    let text = fs::read_to_string(file).with_context(|| format!("reading {} again", file.display()))?;
    let socket = arguments.socket.as_ref().unwrap_or(&config.admin.control_socket);
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let outcome = runtime.block_on(client::compare(socket, text))?;
    reload::tell(outcome, arguments.json)
}

/// An instance in one line, to be compared with those of the other nodes.
fn summary(instance: &Vrrp) -> String {
    let Vrrp { name, interface, vrid, version, priority, interval, down_factor, .. } = instance;
    let list = |addresses: Vec<String>| addresses.join(", ");
    let to = match &instance.peers[..] {
        [] => "by multicast".to_owned(),
        peers => format!("to {}", list(peers.iter().map(ToString::to_string).collect())),
    };
    let how = match &instance.authentication {
        Authentication::None => "not authenticated",
        Authentication::Password(_) => "with a password",
        Authentication::Hmac(_) => "signed",
    };
    let at = instance.mac().map_or(String::new(), |mac| format!(" at {}", host::unicast::in_hex(mac)));
    format!(
        "vrrp {name}: VRID {vrid}, version {version}, on {interface}; {}{at}; priority {priority}, an advertisement every {} {to}, {how}; takeover \
         after {down_factor} missed\n",
        list(instance.addresses.iter().map(ToString::to_string).collect()),
        humantime::format_duration(*interval),
    )
}

/// Whether this host has what the configuration names.
async fn fits(config: &Config) -> Result<(), Failure> {
    let interfaces = host::interfaces(&host::connect()?).await?;
    let fitting = supervisor::carriers(config, &interfaces).and_then(|_| supervisor::hooked(config));
    fitting.map(drop).map_err(|error| Failure::Configuration(format!("error: {error:#}")))
}

/// Whether each backend answers a connection from here.
async fn reaches(config: &Config) -> Result<(), Failure> {
    let mut attempts = JoinSet::new();
    for server in &config.virtual_servers {
        for backend in &server.backends {
            let name = format!("{}/{}", server.name, backend.name);
            let address = SocketAddr::new(backend.address, server.check.port.unwrap_or(backend.port));
            attempts.spawn(async move {
                let reason = match timeout(PATIENCE, TcpStream::connect(address)).await {
                    Ok(Ok(_)) => return None,
                    Ok(Err(error)) => error.to_string(),
                    Err(_) => format!("no answer within {PATIENCE:?}"),
                };
                Some(format!("backend {name} at {address} is not reachable from this host: {reason}"))
            });
        }
    }
    let mut silent: Vec<String> = attempts.join_all().await.into_iter().flatten().collect();
    if silent.is_empty() {
        return Ok(());
    }
    silent.sort();
    let advice = "Start it, correct its address or port, or open the way to it; xvip runs without it and takes it in when its checks \
                  succeed. `xvip check --offline` looks at the file only.";
    Err(anyhow::anyhow!("{}. {advice}", silent.join("; ")).into())
}
