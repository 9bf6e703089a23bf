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
        status::{Backend, Mode, Status},
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
    node: String,
    socket: PathBuf,
    runtime: Runtime,
}

impl<'a> Show<'a> {
    pub(super) fn new(
        screen: &'a mut Screen,
        interrupt: &'a Interrupt,
        requests: Requests,
        (vip, node, socket): (SocketAddr, &str, PathBuf),
    ) -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
        let status = runtime.block_on(client::status(&socket))?;
        Ok(Self {
            screen,
            live: Live::default(),
            status,
            interrupt,
            requests,
            vip,
            node: node.to_owned(),
            socket,
            runtime,
        })
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
        self.status = self.runtime.block_on(client::status(&self.socket)).context("asking xvip")?;
        let picture = self.picture();
        self.screen.show(&picture);
        Ok(())
    }

    fn backends(&self) -> &[Backend] {
        let own = self.status.virtual_servers.iter().find(|server| server.vip() == self.vip);
        own.map_or(&[], |server| &server.backends)
    }

    fn picture(&self) -> Picture {
        let row = |backend: &Backend| Row {
            name: backend.name.clone(),
            state: backend.state,
            recent: self.live.of(&backend.name),
        };
        let mode = if self.is_native() { "native" } else { "generic" };
        Picture {
            title: format!("https://{}   xvip on {}, XDP {mode}", self.vip, self.node),
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
