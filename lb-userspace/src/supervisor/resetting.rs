//! Clients of a backend that is down, told so at once: those that only wait would not find out by themselves for long.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, SocketAddr},
    sync::mpsc::{self, Receiver, Sender, SyncSender},
    thread,
    time::Duration,
};

use lb_common::abi::{Backend, BackendId};
use tokio::sync::watch;

use super::closing::address;
use crate::{
    dataplane::{Connection, Ended, Ender},
    host::ResetSocket,
};

/// So many resets are sent at once…
const BURST: usize = 128;
/// …with this between two bursts: 100 thousand a second, which neither a switch nor a neighbour's queue takes amiss.
const PAUSE: Duration = Duration::from_millis(1);
/// Bursts' pauses to wait for room in the socket's buffer.
const PATIENCE: u32 = 100;

/// Asks for clients to be reset. The thread behind it ends with this.
#[derive(Debug)]
pub(super) struct Resetter(Sender<Request>);

#[derive(Debug)]
struct Request {
    down: BTreeMap<BackendId, Backend>,
    local: BTreeSet<IpAddr>,
}

impl Resetter {
    /// Starts the thread: a walk over a large table takes a while, and sending as well. `count` is how many were reset so far; `over` goes to
    /// whoever tells other nodes.
    pub(super) fn start(ender: Ender, count: watch::Sender<u64>, over: SyncSender<Connection>) -> io::Result<Self> {
        let (sender, requests) = mpsc::channel();
        thread::Builder::new().name("xvip-resetter".to_owned()).spawn(move || run(&ender, &requests, &count, &over))?;
        Ok(Self(sender))
    }

    /// Resets the clients of these backends, soon, as far as they go by one of this host's addresses.
    pub(super) fn reset(&self, down: BTreeMap<BackendId, Backend>, local: BTreeSet<IpAddr>) {
        if self.0.send(Request { down, local }).is_err() {
            log::error!("clients of dead backends are reset only at their next packet: the thread for that has ended");
        }
    }
}

fn run(ender: &Ender, requests: &Receiver<Request>, count: &watch::Sender<u64>, over: &SyncSender<Connection>) {
    while let Ok(Request { down, local }) = requests.recv() {
        let mut by_vip: BTreeMap<IpAddr, Vec<Ended>> = BTreeMap::new();
        for ended in ender.end(&down, &local) {
            by_vip.entry(ended.reset.from.ip()).or_default().push(ended);
        }
        let mut sent: BTreeMap<BackendId, u64> = BTreeMap::new();
        for (vip, ended) in by_vip {
            if let Err(error) = send(vip, &ended, || ender.may_claim(vip), &mut sent) {
                log::warn!("idle clients of {vip} are not all reset: {error}");
            }
            // They are over, whether or not their clients could be told. Where no other node is, nobody listens.
            for Ended { connection, .. } in ended {
                let _ = over.send(connection);
            }
        }
        for (backend, number) in &sent {
            let backend = down[backend];
            let backend = SocketAddr::new(address(backend.mapped()), u16::from_be_bytes(backend.port()));
            log::info!("reset {number} connections of backend {backend}, which is down");
        }
        count.send_modify(|count| *count += sent.values().sum::<u64>());
    }
}

/// Sends resets burst by burst, as long as this node may. Another one that has taken the VIP goes on with the rest.
fn send(vip: IpAddr, ended: &[Ended], may: impl Fn() -> bool, sent: &mut BTreeMap<BackendId, u64>) -> io::Result<()> {
    let socket = ResetSocket::open(vip)?;
    let mut failed = None;
    for (number, burst) in ended.chunks(BURST).enumerate() {
        if number > 0 {
            thread::sleep(PAUSE);
        }
        if !may() {
            return Err(io::Error::other("another node has taken the VIP"));
        }
        for Ended { backend, reset, .. } in burst {
            match patiently(|| socket.send(reset)) {
                Ok(()) => *sent.entry(*backend).or_default() += 1,
                Err(error) => failed = Some(error),
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// Waits for room.
fn patiently(mut work: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    for _ in 0..PATIENCE {
        match work() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(PAUSE),
            done => return done,
        }
    }
    work()
}
