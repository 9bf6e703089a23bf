//! Connections of this host's own sockets: counted, and closed when their backend is down.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
    sync::mpsc::{self, Receiver, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use lb_common::abi::{BackendId, Local};
use tokio::sync::watch;

use super::Alive;
use crate::{
    dataplane::Locals,
    host::{namespace, sockets},
};

/// A socket may have chosen its backend just before that went down, and be seen nowhere yet when the others are closed: so they are
/// looked for once more after this.
const AGAIN: Duration = Duration::from_millis(250);
/// How often connections are counted.
const COUNT: Duration = Duration::from_secs(2);

/// Asks for connections to be closed. The thread behind it ends with this.
#[derive(Debug)]
pub(super) struct Closer(Sender<BTreeSet<BackendId>>);

impl Closer {
    /// Starts the thread, which goes from one network namespace to another: sockets are closed from inside theirs.
    pub(super) fn start(locals: Locals, counts: watch::Sender<Alive>) -> io::Result<Self> {
        if let Err(error) = sockets::probe() {
            log::warn!(
                "the kernel does not let sockets be closed ({error}; CONFIG_INET_DIAG_DESTROY or CAP_NET_ADMIN is missing): local connections to a \
                 backend that is down stay open until they notice themselves"
            );
        }
        let (sender, requests) = mpsc::channel();
        thread::Builder::new().name("xvip-closer".to_owned()).spawn(move || run(&locals, &requests, &counts))?;
        Ok(Self(sender))
    }

    /// Closes all connections to these backends, soon.
    pub(super) fn close(&self, backends: BTreeSet<BackendId>) {
        if self.0.send(backends).is_err() {
            log::error!("local connections are not closed: the thread for that has ended");
        }
    }
}

fn run(locals: &Locals, requests: &Receiver<BTreeSet<BackendId>>, counts: &watch::Sender<Alive>) {
    let mut again: Option<(Instant, BTreeSet<BackendId>)> = None;
    loop {
        let patience = again.as_ref().map_or(COUNT, |(at, _)| at.saturating_duration_since(Instant::now()));
        match requests.recv_timeout(patience) {
            Ok(backends) => {
                close(locals, &backends);
                let pending = again.take().map(|(_, pending)| pending).unwrap_or_default();
                again = Some((Instant::now() + AGAIN, &pending | &backends));
            }
            Err(RecvTimeoutError::Timeout) => {
                if let Some((_, backends)) = again.take() {
                    close(locals, &backends);
                }
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
        match locals.all() {
            Ok(all) => drop(counts.send_replace(count(&all))),
            Err(error) => log::warn!("counting local connections: {error}"),
        }
    }
}

fn count(all: &BTreeMap<u64, Local>) -> Alive {
    let mut counts = Alive::new();
    for local in all.values() {
        *counts.entry(local.backend).or_default() += 1;
    }
    counts
}

fn close(locals: &Locals, backends: &BTreeSet<BackendId>) {
    let all = match locals.all() {
        Ok(all) => all,
        Err(error) => return log::error!("closing local connections: {error}"),
    };
    let mut groups = groups(&all, backends);
    let wanted = groups.keys().copied().collect();
    let mut closed = 0;
    let missing = namespace::visit(wanted, |netns| {
        for (backend, cookies) in groups.remove(&netns).unwrap_or_default() {
            match sockets::close(backend, &cookies) {
                Ok(count) => closed += count,
                Err(error) => log::error!("closing local connections to {backend}: {error}"),
            }
        }
    });
    if closed > 0 {
        log::info!("closed {closed} local connections to backends that are down");
    }
    if !missing.is_empty() {
        log::warn!(
            "{} network namespaces have connections to backends that are down, and are out of reach: to close them, xvip needs CAP_SYS_ADMIN, \
             CAP_SYS_PTRACE and, in a container, sight of the host's processes (hostPID: true)",
            missing.len()
        );
    }
}

/// Cookies of sockets by network namespace and backend.
type Groups = BTreeMap<u64, BTreeMap<SocketAddr, BTreeSet<u64>>>;

fn groups(all: &BTreeMap<u64, Local>, backends: &BTreeSet<BackendId>) -> Groups {
    let mut groups = Groups::new();
    for (cookie, local) in all.iter().filter(|(_, local)| backends.contains(&local.backend)) {
        let backend = SocketAddr::new(address(local.address), u16::from_be_bytes(local.port));
        groups.entry(local.netns).or_default().entry(backend).or_default().insert(*cookie);
    }
    groups
}

pub(super) fn address(mapped: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(mapped).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_grouped_by_where_they_are_and_lead() {
        let local = |netns, backend, last| Local {
            netns,
            backend: BackendId(backend),
            asked_port: 16443_u16.to_be_bytes(),
            port: 6443_u16.to_be_bytes(),
            asked: Ipv6Addr::LOCALHOST.octets(),
            address: std::net::Ipv4Addr::new(10, 0, 0, last).to_ipv6_mapped().octets(),
        };
        let all = BTreeMap::from([
            (1, local(7, 0, 11)),
            (2, local(7, 0, 11)),
            (3, local(8, 0, 11)),
            (4, local(7, 1, 12)),
            (5, local(7, 2, 12)),
        ]);
        let endpoint = |last| SocketAddr::from(([10, 0, 0, last], 6443));
        let down = BTreeSet::from([BackendId(0), BackendId(2)]);
        let expected = Groups::from([
            (7, BTreeMap::from([(endpoint(11), BTreeSet::from([1, 2])), (endpoint(12), BTreeSet::from([5]))])),
            (8, BTreeMap::from([(endpoint(11), BTreeSet::from([3]))])),
        ]);
        assert_eq!(groups(&all, &down), expected);
        assert_eq!(count(&all), Alive::from([(BackendId(0), 3), (BackendId(1), 1), (BackendId(2), 1)]));
    }
}
