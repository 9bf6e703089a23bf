//! The proxies of the write-ups: haproxy, and nginx with its stream module.

use std::{process::Command, sync::Arc};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::{PATIENCE, directory, write};
use crate::{
    lab::{Host, Process},
    wait,
};

/// A running proxy. It is killed with this.
#[derive(Debug)]
pub struct Proxy {
    process: Arc<Process>,
}

impl Proxy {
    /// Starts haproxy, and waits until it listens on a port.
    pub fn haproxy(host: &Host, configuration: &str, port: u16) -> Result<Self> {
        let directory = directory(host, "haproxy")?;
        let file = directory.join("haproxy.cfg");
        write(&file, configuration)?;
        let mut command = Command::new("haproxy");
        // -db foreground. Without the pid file of the package, the scripts that look for the process have one of their own.
        command.arg("-db").arg("-f").arg(file);
        let proxy = Self { process: host.spawn(command)? };
        write(&directory.join("haproxy.pid"), &proxy.process.pid().to_string())?;
        proxy.listening(host, port)
    }

    /// Starts nginx, and waits until it listens on a port. The configuration has no paths: those are given here.
    pub fn nginx(host: &Host, configuration: &str, port: u16) -> Result<Self> {
        let directory = directory(host, "nginx")?;
        let file = directory.join("nginx.conf");
        let own = format!("pid {0}/nginx.pid;\nerror_log {0}/error.log;\n", directory.display());
        write(&file, &(own + configuration))?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(file).arg("-e").arg(directory.join("error.log")).args(["-g", "daemon off;"]);
        Self { process: host.spawn(command)? }.listening(host, port)
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Ends it in order.
    pub fn stop(self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        self.process.wait(PATIENCE)?;
        Ok(())
    }

    fn listening(self, host: &Host, port: u16) -> Result<Self> {
        let what = format!("a proxy on port {port} of {}", host.name());
        wait::until(&what, PATIENCE, || {
            let connected = host.enter(|| std::net::TcpStream::connect(("127.0.0.1", port)));
            (self.process.exited().is_some() || matches!(connected, Ok(Ok(_)))).then_some(())
        })?;
        // Its own error tells more than that nobody listens.
        match self.process.exited() {
            Some(status) => Err(anyhow::anyhow!("{status}")).with_context(|| self.process.stderr()),
            None => Ok(self),
        }
    }
}
