//! A stand-in for the kube-apiserver: its TLS, its probes, its way of shutting down, and nothing of its work.
//!
//! Each behaviour was measured on kube-apiserver 1.36 with etcd 3.5: readyz fails at once on SIGTERM while healthz and
//! livez last until the listener closes; without etcd all three answer 500 after 2.01 s; an open watch outlives the
//! listener and gets an HTTP/2 PING every 30 s; plain HTTP gets 400; strangers get 401 or 403, not a TLS alert.

mod authority;
mod routes;
mod server;
pub(crate) mod tls;

use std::{
    env, fs,
    net::SocketAddr,
    path::PathBuf,
    process::{Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use nix::sys::signal::Signal;

pub use self::{
    authority::{Authority, KeyFiles},
    routes::BACKEND_HEADER,
    server::{Arguments, serve},
};
use crate::lab::{Error, Host, Process, io_error};

const BINARY: &str = "lab-apiserver";
const START_LIMIT: Duration = Duration::from_secs(10);
const SIGNAL_LIMIT: Duration = Duration::from_secs(5);

/// How one stand-in is to run.
#[derive(Clone, Debug)]
pub struct Options {
    pub name: String,
    pub listen: Vec<SocketAddr>,
    pub server: KeyFiles,
    /// The authority of client certificates.
    pub client_authority: PathBuf,
    pub token: Option<String>,
    pub anonymous: bool,
    /// From SIGTERM to the end of the listeners.
    pub shutdown_delay: Duration,
    /// What open streams have after that.
    pub grace: Duration,
    /// Between two HTTP/2 PINGs.
    pub ping: Duration,
}

impl Options {
    /// As kubeadm starts one, with the shutdown delay that was measured with.
    pub fn new(name: &str, listen: Vec<SocketAddr>, server: KeyFiles, client_authority: PathBuf) -> Self {
        Self {
            name: name.to_owned(),
            listen,
            server,
            client_authority,
            token: None,
            anonymous: true,
            shutdown_delay: Duration::from_secs(8),
            grace: Duration::from_secs(60),
            ping: Duration::from_secs(30),
        }
    }

    fn command(&self) -> Result<Command, Error> {
        let mut command = Command::new(binary()?);
        command.args(["--name", &self.name]);
        for address in &self.listen {
            command.arg("--listen").arg(address.to_string());
        }
        let files = [
            ("--certificate", &self.server.certificate),
            ("--key", &self.server.key),
            ("--client-ca", &self.client_authority),
        ];
        for (option, path) in files {
            command.arg(option).arg(path);
        }
        if let Some(token) = &self.token {
            command.args(["--token", token]);
        }
        if !self.anonymous {
            command.arg("--no-anonymous");
        }
        let times = [("--shutdown-delay", self.shutdown_delay), ("--grace", self.grace), ("--ping", self.ping)];
        for (option, time) in times {
            command.arg(option).arg(time.as_millis().to_string());
        }
        Ok(command)
    }
}

/// A stand-in that runs on a host.
#[derive(Debug)]
pub struct Apiserver {
    process: Arc<Process>,
    etcd_stopped: AtomicBool,
    not_ready: AtomicBool,
}

impl Apiserver {
    /// Starts it and waits until it listens.
    pub fn start(host: &Host, options: &Options) -> Result<Self, Error> {
        let process = host.spawn(options.command()?)?;
        process.wait_for_output(server::SERVING, START_LIMIT)?;
        Ok(Self { process, etcd_stopped: AtomicBool::new(false), not_ready: AtomicBool::new(false) })
    }

    /// What it has printed: a line for every request (`access PEER "GET /readyz HTTP/2.0" 200`) and failed handshake.
    pub fn log(&self) -> String {
        self.process.stdout()
    }

    pub fn stop_etcd(&self, stopped: bool) -> Result<(), Error> {
        let (on, off) = ("etcd stopped", "etcd returned");
        self.toggle(&self.etcd_stopped, stopped, Signal::SIGUSR1, [off, on])
    }

    /// Makes /readyz fail, and only that: draining.
    pub fn set_ready(&self, ready: bool) -> Result<(), Error> {
        let (on, off) = ("not ready", "ready again");
        self.toggle(&self.not_ready, !ready, Signal::SIGUSR2, [off, on])
    }

    /// SIGTERM: the orderly end. Returns when /readyz fails.
    pub fn terminate(&self) -> Result<(), Error> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait_for_output("shutting down", SIGNAL_LIMIT)
    }

    pub fn wait_for_end(&self, limit: Duration) -> Result<ExitStatus, Error> {
        self.process.wait(limit)
    }

    /// Waits until nothing listens any more; connections may still be open.
    pub fn wait_for_closed_listeners(&self, limit: Duration) -> Result<(), Error> {
        self.process.wait_for_output("listeners closed", limit)
    }

    /// Stops it in place: the kernel still accepts connections and nobody answers.
    pub fn freeze(&self) -> Result<(), Error> {
        self.process.signal(Signal::SIGSTOP)
    }

    pub fn thaw(&self) -> Result<(), Error> {
        self.process.signal(Signal::SIGCONT)
    }

    /// SIGKILL: the kernel resets its connections and refuses new ones.
    pub fn kill(&self) {
        self.process.kill();
    }

    /// Sends `signal` if `flag` is not yet `wanted`, and waits until the stand-in says so once more than before.
    fn toggle(&self, flag: &AtomicBool, wanted: bool, signal: Signal, words: [&str; 2]) -> Result<(), Error> {
        if flag.swap(wanted, Ordering::Relaxed) == wanted {
            return Ok(());
        }
        let word = words[usize::from(wanted)];
        let count = || self.log().lines().filter(|&line| line == word).count();
        let before = count();
        self.process.signal(signal)?;
        let said = || (count() > before).then_some(());
        Ok(crate::wait::until(word, SIGNAL_LIMIT, said)?)
    }
}

/// Cargo puts binaries into the directory above that of the tests.
fn binary() -> Result<PathBuf, Error> {
    let own = env::current_exe().map_err(io_error("find this program's own path"))?;
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join(BINARY))
        .find(|path| fs::exists(path).unwrap_or(false))
        .ok_or(Error::NotBuilt { binary: BINARY })
}
