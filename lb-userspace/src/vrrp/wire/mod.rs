//! The VIPs on the wire: one thread of its own that drives every virtual router of this node over real sockets and clocks.
//!
//! It waits for nothing but its sockets and its timer: requests come through a queue, lines of the log leave through another thread, and
//! what tokio's tasks do cannot delay an advert. Each time it wakes it takes in all that has arrived, and only then looks what is due.

mod claims;
mod clock;
mod driver;
mod filter;
mod framed;
mod journal;
mod lease;
mod links;
mod netlink;
mod network;
mod port;
mod realtime;
mod rounds;
mod running;
mod socket;
mod view;

use std::{
    fmt, io,
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
};

use ipnet::IpNet;
use nix::sys::eventfd::{EfdFlags, EventFd};
use tokio::sync::{mpsc, watch};

use self::{
    driver::{Command, Driver, End},
    view::Publisher,
};
pub use self::{lease::Lease, realtime::Scheduling, running::Conflict, view::InstanceView};
use super::{
    Condition, InstanceId, Settings, State, Vrid,
    packet::{ChecksumForm, Family},
    reception::{Auth, Rules},
};

/// Requests that wait while the thread is busy: far more than there are conditions to change. Who has more to ask waits.
const COMMANDS: usize = 256;

/// One virtual router of the configuration.
#[derive(Clone, Debug)]
pub struct Instance {
    pub name: String,
    pub interface: String,
    pub vrid: Vrid,
    /// The source in them is found by the thread.
    pub settings: Settings,
    /// At least one. The first one's family is the instance's; those of the other family come and go with it, and are not
    /// advertised.
    pub addresses: Vec<IpNet>,
    /// Whether the VIPs are at the virtual router's MAC. The data plane's part of that is up to the [`Lease`].
    pub virtual_mac: bool,
    /// Adverts go to these alone, instead of to the group.
    pub peers: Vec<IpAddr>,
    /// The address that adverts come from, instead of the interface's first.
    pub source: Option<IpAddr>,
    pub auth: Auth,
    /// Of what is sent; both are heard.
    pub checksum: ChecksumForm,
    /// The least TTL of what peers send. Over multicast it is always 255.
    pub min_ttl: u8,
    /// Of the IPv4 addresses, such as `eth0:vip`.
    pub label: Option<String>,
}

/// How the thread runs, and whom it tells.
#[derive(Default)]
pub struct Options {
    /// Try for a real-time priority.
    pub realtime: bool,
    pub lease: Option<Box<dyn Lease>>,
    /// Every change of state, for hooks. One that finds no room is lost: the thread does not wait.
    pub events: Option<mpsc::Sender<Event>>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options").field("realtime", &self.realtime).finish_non_exhaustive()
    }
}

/// An instance has changed its state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub id: InstanceId,
    pub state: State,
    pub priority: u8,
}

#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("starting the VRRP thread: {0}")]
    Thread(io::Error),
    #[error("asking the kernel for interfaces and addresses: {0}")]
    Network(io::Error),
    #[error("making a timer: {0}")]
    Timer(io::Error),
}

/// The thread. [`Wire::stop`] hands the VIPs over; dropping it does the same.
#[derive(Debug)]
pub struct Wire {
    commands: SyncSender<Command>,
    wake: Arc<EventFd>,
    views: watch::Receiver<Arc<Vec<InstanceView>>>,
    scheduling: Scheduling,
    thread: Option<JoinHandle<()>>,
}

impl Wire {
    /// Starts the thread in the network namespace of the calling one. On return left-over VIPs are off, and adverts are heard.
    /// An interface that does not exist yet is waited for.
    pub fn start(instances: Vec<Instance>, options: Options) -> Result<Self, StartError> {
        let wake = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC);
        let wake = Arc::new(wake.map_err(|errno| StartError::Thread(errno.into()))?);
        let (commands, queue) = sync_channel(COMMANDS);
        let (publisher, views) = Publisher::new();
        let (started, outcome) = sync_channel(1);
        let theirs = wake.clone();
        let run = move || match Driver::open(instances, options, theirs, queue, publisher) {
            Ok((driver, scheduling)) => {
                // The starter waits for it.
                let _ = started.send(Ok(scheduling));
                driver.run();
            }
            Err(e) => drop(started.send(Err(e))),
        };
        let thread = thread::Builder::new().name("xvip-vrrp".into()).spawn(run).map_err(StartError::Thread)?;
        let ended = || StartError::Thread(io::Error::other("it ended at once"));
        let scheduling = outcome.recv().map_err(|_| ended())??;
        Ok(Self { commands, wake, views, scheduling, thread: Some(thread) })
    }

    /// What tracking says of this node.
    pub fn set_condition(&self, id: InstanceId, condition: Condition) {
        self.ask(Command::Condition(id, condition));
    }

    /// Who is told by itself when the instance's VIPs come here, by address and MAC; the first are the first.
    pub fn set_neighbours(&self, id: InstanceId, neighbours: Vec<(IpAddr, [u8; 6])>) {
        self.ask(Command::Neighbours(id, neighbours));
    }

    /// Hands VIPs over to a peer, if there is one: those of one instance and its sync group, or all.
    pub fn release(&self, which: Option<InstanceId>) {
        self.ask(Command::Release(which));
    }

    /// The state of every instance, in the order of the configuration. It ends with the thread.
    pub fn views(&self) -> watch::Receiver<Arc<Vec<InstanceView>>> {
        self.views.clone()
    }

    /// What the thread got of what it asked for.
    pub fn scheduling(&self) -> &Scheduling {
        &self.scheduling
    }

    /// On return priority 0 is out, and the VIPs are off. It takes a few system calls, and blocks for them.
    pub fn stop(mut self) {
        self.end(End::Stop);
    }

    /// Ends for another thread that goes on. On return priority 0 is out for those in `resigning`, with their groups, and their VIPs are off;
    /// the others' are where they were, and a new thread that is given their leases goes on with them. It blocks as [`Wire::stop`] does.
    pub fn leave(mut self, resigning: Vec<InstanceId>) {
        self.end(End::Leave(resigning));
    }

    fn ask(&self, command: Command) {
        // A thread that has ended does nothing more; the end of the views tells of that.
        if self.commands.send(command).is_ok() {
            // It fails only when it is woken already.
            let _ = self.wake.write(1);
        }
    }

    fn end(&mut self, end: End) {
        if let Some(thread) = self.thread.take() {
            self.ask(Command::End(end));
            if thread.join().is_err() {
                log::error!("the VRRP thread had failed");
            }
        }
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.end(End::Stop);
    }
}

impl Instance {
    fn family(&self) -> Family {
        self.addresses.first().map_or(Family::V4, |vip| Family::of(vip.addr()))
    }

    /// The virtual MAC that the VIPs are at, if they are at one.
    fn mac(&self) -> Option<[u8; 6]> {
        self.virtual_mac.then(|| self.family().virtual_mac(self.vrid))
    }

    /// The VIPs that stand in adverts.
    fn advertised(&self) -> impl Iterator<Item = IpAddr> {
        let family = self.family();
        self.addresses.iter().map(IpNet::addr).filter(move |vip| Family::of(*vip) == family)
    }

    fn rules(&self, source: Option<IpAddr>) -> Rules {
        Rules {
            version: self.settings.version,
            vrid: self.vrid,
            family: self.family(),
            auth: self.auth.clone(),
            peers: self.peers.clone(),
            min_ttl: self.min_ttl,
            addresses: self.advertised().collect(),
            interval: self.settings.interval,
            source,
        }
    }
}
