//! Daemons of the product under test, and what they say of themselves.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Output, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, anyhow, bail};
use lb_userspace::admin::status::{Backend, Status};
use nix::sys::signal::Signal;

use crate::{
    lab::{Host, Process},
    topology::Deployment,
    wait,
};

/// A backend's first check may take its whole timeout before the daemon gives up waiting for it.
const START_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running daemon on one host of the lab. It ends with this.
#[derive(Debug)]
pub struct Xvip {
    process: Arc<Process>,
    host: Host,
    binary: PathBuf,
    socket: PathBuf,
}

impl Xvip {
    /// Writes the node's configuration and starts the daemon with it; it carries traffic when this returns.
    pub fn start(deployment: &Deployment, node: &str) -> Result<Self> {
        Self::start_with(deployment, node, &deployment.xvip_config(node)?)
    }

    /// The same with a configuration of one's own.
    pub fn start_with(deployment: &Deployment, node: &str, configuration: &str) -> Result<Self> {
        Self::launch(deployment.host(node)?, &deployment.control_socket(node)?, configuration)
    }

    /// Starts the daemon on any host; `socket` is the control socket that the configuration names.
    pub fn launch(host: &Host, socket: &Path, configuration: &str) -> Result<Self> {
        Self::launch_edition(binary()?, host, socket, configuration)
    }

    fn launch_edition(binary: PathBuf, host: &Host, socket: &Path, configuration: &str) -> Result<Self> {
        let mut command = Command::new(&binary);
        command.arg("run").arg("-c").arg(write(host, configuration)?);
        let process = host.spawn(command)?;
        let xvip = Self { process, host: host.clone(), binary, socket: socket.to_owned() };
        let over = || (xvip.process.exited().is_some() || xvip.status().is_ok()).then_some(());
        let late = wait::until("xvip to come up", START_LIMIT, over);
        if late.is_err() || xvip.process.exited().is_some() {
            bail!("xvip on {} did not come up:\n{}", host.name(), xvip.process.stderr());
        }
        Ok(xvip)
    }

    /// Runs `xvip run` or `xvip check` to its end on a host, with a configuration that it should refuse.
    pub fn refuse(host: &Host, verb: &str, configuration: &str) -> Result<Output> {
        let mut command = Command::new(binary()?);
        command.arg(verb).arg("-c").arg(write(host, configuration)?);
        Self::finish(host, command)
    }

    /// The program, to be started in some other way than here.
    pub fn program() -> Result<PathBuf> {
        binary()
    }

    /// Runs another command of the program on this daemon's host, with its control socket.
    pub fn command(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(&self.binary);
        command.args(words).arg("--socket").arg(&self.socket);
        Self::finish(&self.host, command)
    }

    /// Writes another configuration for [`Xvip::reload`], SIGHUP or `check --diff`.
    pub fn rewrite(&self, configuration: &str) -> Result<PathBuf> {
        write(&self.host, configuration)
    }

    /// Has the daemon follow another configuration; an error if it does not.
    pub fn reload(&self, configuration: &str) -> Result<()> {
        self.rewrite(configuration)?;
        let output = self.command(&["reload"])?;
        if !output.status.success() {
            bail!("{}\n{}", String::from_utf8_lossy(&output.stderr), self.log());
        }
        Ok(())
    }

    /// Has another edition of the program take this one's place, which is started when this has ended, as a supervisor does it.
    pub fn upgrade(self, edition: &Path, configuration: &str) -> Result<Self> {
        let mut command = Command::new(edition);
        command.arg("upgrade").arg("-c").arg(write(&self.host, configuration)?);
        let order = self.host.spawn(command)?;
        let over = || (self.process.exited().is_some() || order.exited().is_some()).then_some(());
        wait::until("the daemon to end", STOP_LIMIT, over)?;
        if self.process.exited().is_none_or(|status| !status.success()) {
            bail!("xvip upgrade: {}{}\n{}", order.stdout(), order.stderr(), self.log());
        }
        let next = Self::launch_edition(edition.to_owned(), &self.host, &self.socket, configuration)?;
        if !order.wait(STOP_LIMIT)?.success() {
            bail!("xvip upgrade: {}{}", order.stdout(), order.stderr());
        }
        Ok(next)
    }

    pub fn status(&self) -> Result<Status> {
        let output = self.command(&["status", "--json"])?;
        if !output.status.success() {
            bail!("{}", String::from_utf8_lossy(&output.stderr));
        }
        serde_json::from_slice(&output.stdout).context("reading the status")
    }

    /// Waits until the status fulfils a condition.
    pub fn wait_for(&self, what: &str, limit: Duration, condition: impl Fn(&Status) -> bool) -> Result<Status> {
        let mut last = None;
        let met = wait::until(what, limit, || {
            last = self.status().ok();
            last.clone().filter(&condition)
        });
        met.map_err(|late| anyhow!("{late}; last: {last:#?}\n{}", self.process.stderr()))
    }

    pub fn log(&self) -> String {
        self.process.stderr()
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Ends it in order and tells how it ended.
    pub fn stop(self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        Ok(self.process.wait(STOP_LIMIT)?)
    }

    fn finish(host: &Host, mut command: Command) -> Result<Output> {
        command.stdin(Stdio::null());
        Ok(host.enter(|| command.output())??)
    }
}

/// All backends of a status with a name, over every virtual server.
pub fn backends<'a>(status: &'a Status, name: &str) -> Vec<&'a Backend> {
    let all = status.virtual_servers.iter().flat_map(|server| &server.backends);
    all.filter(|backend| backend.name == name).collect()
}

fn write(host: &Host, configuration: &str) -> Result<PathBuf> {
    let path = host.directory().join("xvip.toml");
    fs::write(&path, configuration).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

/// The program beside this one: the real `xvip` for the demo, `lab-xvip` for tests, which live one directory deeper.
pub fn binary() -> Result<PathBuf> {
    let own = env::current_exe().context("finding this program's own path")?;
    let directory = own.parent().context("a program is in a directory")?;
    let candidate = match directory.file_name().is_some_and(|name| name == "deps") {
        true => directory.with_file_name("lab-xvip"),
        false => directory.join("xvip"),
    };
    if !candidate.exists() {
        bail!("{} is not there: build it with `cargo xtask build` or `cargo build -p lb-tests`", candidate.display());
    }
    Ok(candidate)
}
