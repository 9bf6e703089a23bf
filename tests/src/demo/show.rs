//! The running demo: looks at the traffic and at xvip again and again, draws both, and waits for what comes next.

use std::{
    net::SocketAddr,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use lb_userspace::{
    admin::{
        client,
        status::{Backend, Mode, Status, VirtualServer},
    },
    health::State,
};
use tokio::runtime::{self, Runtime};

use super::{
    interrupt::Interrupt,
    live::Live,
    screen::{Picture, Row, Screen},
    traffic::{Requests, SOURCES},
};
use crate::client::Report;

/// Between two looks: also how exactly the demo knows when xvip has noticed something.
const LOOK: Duration = Duration::from_millis(25);

#[derive(Debug)]
pub(super) struct Show<'a> {
    pub(super) screen: &'a mut Screen,
    pub(super) live: Live,
    pub(super) status: Status,
    interrupt: &'a Interrupt,
    requests: Requests,
    vip: SocketAddr,
    appliances: Vec<Appliance>,
    /// Which of them holds the VIP.
    holder: usize,
    runtime: Runtime,
}

/// A node with an xvip that may hold the VIP.
#[derive(Debug)]
pub(super) struct Appliance {
    node: &'static str,
    socket: PathBuf,
    /// Behind a cut cable it goes on, and holds a VIP that nobody sees.
    connected: bool,
}

impl Appliance {
    pub(super) fn new(node: &'static str, socket: PathBuf) -> Self {
        Self { node, socket, connected: true }
    }
}

impl<'a> Show<'a> {
    pub(super) fn new(
        screen: &'a mut Screen,
        interrupt: &'a Interrupt,
        requests: Requests,
        (vip, appliances): (SocketAddr, Vec<Appliance>),
    ) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let first = appliances.first().context("a demo without appliances")?;
        let status = runtime.block_on(client::status(&first.socket))?;
        Ok(Self { screen, live: Live::default(), status, interrupt, requests, vip, appliances, holder: 0, runtime })
    }

    /// Goes on for some time.
    pub(super) fn hold(&mut self, time: Duration) -> Result<()> {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.look()?;
        }
        Ok(())
    }

    /// Goes on until a condition is met, and gives the moment.
    pub(super) fn until(&mut self, what: &str, limit: Duration, met: impl Fn(&Self) -> bool) -> Result<Instant> {
        let start = Instant::now();
        while !met(self) {
            if start.elapsed() > limit {
                bail!("waited {limit:?} in vain for {what}");
            }
            self.look()?;
        }
        Ok(Instant::now())
    }

    pub(super) fn state(&self, backend: &str) -> Option<State> {
        self.backends().iter().find(|known| known.name == backend).map(|known| known.state)
    }

    /// Packets to and from backends that xvip has counted.
    pub(super) fn packets(&self) -> u64 {
        self.backends().iter().map(|backend| backend.packets).sum()
    }

    pub(super) fn is_native(&self) -> bool {
        let interfaces = &self.status.interfaces;
        !interfaces.is_empty() && interfaces.iter().all(|interface| interface.mode == Mode::Native)
    }

    /// Tells whether a node's cable is in.
    pub(super) fn set_connected(&mut self, node: &str, connected: bool) {
        let own = self.appliances.iter_mut().filter(|appliance| appliance.node == node);
        own.for_each(|appliance| appliance.connected = connected);
    }

    /// Stops the requests; the last picture stays.
    pub(super) fn finish(self) -> Result<Report> {
        let picture = self.picture();
        self.screen.settle(&picture);
        self.requests.finish()
    }

    fn look(&mut self) -> Result<()> {
        self.interrupt.check()?;
        thread::sleep(LOOK);
        for outcome in self.requests.ended() {
            self.live.add(&outcome);
        }
        self.live.forget(Instant::now());
        self.ask()?;
        let picture = self.picture();
        self.screen.show(&picture);
        Ok(())
    }

    /// The status of whoever holds the VIP; while nobody does, the last one stays.
    fn ask(&mut self) -> Result<()> {
        let mut silence = None;
        let mut answered = false;
        for (index, appliance) in self.appliances.iter().enumerate().filter(|(_, appliance)| appliance.connected) {
            match self.runtime.block_on(client::status(&appliance.socket)) {
                Ok(status) => {
                    answered = true;
                    if server(&status, self.vip).is_some_and(|server| server.held) {
                        (self.status, self.holder) = (status, index);
                    }
                }
                Err(error) => silence = Some(error),
            }
        }
        silence.filter(|_| !answered).map_or(Ok(()), Err).context("asking xvip")
    }

    fn backends(&self) -> &[Backend] {
        server(&self.status, self.vip).map_or(&[], |server| &server.backends)
    }

    fn picture(&self) -> Picture {
        let row = |backend: &Backend| Row {
            name: backend.name.clone(),
            state: backend.state,
            recent: self.live.of(&backend.name),
        };
        let mode = if self.is_native() { "native" } else { "generic" };
        Picture {
            title: format!("https://{}   xvip on {}, XDP {mode}", self.vip, self.appliances[self.holder].node),
            rows: self.backends().iter().map(row).collect(),
            footer: format!(
                "{SOURCES} clients   {} requests, {} failed   {} packets",
                self.live.total(),
                self.live.failed(),
                self.packets()
            ),
        }
    }
}

fn server(status: &Status, vip: SocketAddr) -> Option<&VirtualServer> {
    status.virtual_servers.iter().find(|server| server.vip() == vip)
}
