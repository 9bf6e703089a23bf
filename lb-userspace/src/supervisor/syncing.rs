//! What the sharing of connections needs to know of this node, and how it is shown.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::mpsc::Receiver,
};

use anyhow::Context as _;

use crate::{
    admin,
    config::{
        self,
        model::{self, VirtualServer},
    },
    dataplane::{Connection, Dataplane},
    reconcile::{Endpoint, Numbers},
    sync::{Backends, Key, Options, Sync, View},
};

/// Starts it, where it is configured. `over` are connections that this daemon has ended.
pub(super) fn start(
    configured: Option<&model::Sync>,
    dataplane: &mut Dataplane,
    over: Receiver<Connection>,
) -> anyhow::Result<Option<Sync>> {
    let Some(model::Sync { listen, peers, key_file }) = configured else {
        return Ok(None);
    };
    let secret = config::shared_key(key_file).map_err(|why| anyhow::anyhow!("{} {why}", key_file.display()))?;
    let mirror = dataplane.mirror().context("reading connections")?;
    let options = Options { listen: *listen, peers: peers.clone(), key: Key::new(&secret) };
    Ok(Some(Sync::start(options, mirror, over)?))
}

/// Backends by what all nodes know them by, in the numbering of the tables; `local` are this host's own addresses, where no connection
/// of another node can go on. VIPs by whether they are `held`.
pub(super) fn backends(
    servers: &[VirtualServer],
    numbers: &Numbers,
    local: &BTreeSet<IpAddr>,
    held: &[bool],
) -> Backends {
    let mut backends = Backends::default();
    for (server, held) in servers.iter().zip(held) {
        let vip = SocketAddr::new(server.address, server.port);
        for backend in server.backends.iter().filter(|backend| !local.contains(&backend.address)) {
            let id = numbers.backend(&Endpoint::of(server, backend));
            backends.known.extend(id.map(|id| ((vip, SocketAddr::new(backend.address, backend.port)), id)));
        }
        if *held {
            backends.held.insert(server.address);
        }
    }
    // Their connections go on here, and so they should on the other nodes.
    for (endpoint, removed) in numbers.removed().filter(|(endpoint, _)| !local.contains(&endpoint.address())) {
        let vip = SocketAddr::new(endpoint.vip(), u16::from_be_bytes(endpoint.service().port()));
        let address = SocketAddr::new(endpoint.address(), endpoint.port());
        backends.known.extend((!removed.over).then_some(((vip, address), removed.id)));
    }
    backends
}

pub(super) fn shown(view: View) -> admin::sync::Sync {
    let peers = view.peers.into_iter().map(|peer| admin::sync::Peer {
        address: peer.address,
        connected: peer.is_connected,
        silent: peer.silent,
        told: peer.told,
        heard: peer.heard,
        refused: peer.refused,
        reason: peer.reason.map(|reason| reason.to_string()),
    });
    admin::sync::Sync {
        peers: peers.collect(),
        taken: view.taken,
        ended: view.ended,
        refused: view.refused,
        foreign: view.foreign,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::parse;

    #[test]
    fn backends_have_the_numbers_of_the_tables_and_this_hosts_own_are_left_out() {
        let text = config::example();
        let config = parse(&text, "example").expect("the example");
        let servers = &config.virtual_servers;
        let mut given = Numbers::default();
        given.follow(&[], servers, Duration::ZERO).expect("few enough");
        let all = backends(servers, &given, &BTreeSet::new(), &[true]);
        let own = servers[0].backends[1].address;
        let others = backends(servers, &given, &BTreeSet::from([own]), &[false]);
        let numbers = |backends: &Backends| backends.known.values().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!((numbers(&all), numbers(&others)), (vec![0, 1, 2], vec![0, 2]));
        let mut fewer = servers.clone();
        fewer[0].backends.pop();
        given.follow(servers, &fewer, Duration::ZERO).expect("few enough");
        let drains = backends(&fewer, &given, &BTreeSet::new(), &[true]);
        assert_eq!(drains.known, all.known, "one that was removed has connections yet");
        given.expire(Duration::MAX);
        assert_eq!(numbers(&backends(&fewer, &given, &BTreeSet::new(), &[true])), [0, 1]);
        assert_eq!((all.held.len(), others.held.len()), (1, 0));
    }
}
