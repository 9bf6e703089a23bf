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
    sync::{Backends, Key, Known, Options, Sync, View},
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

/// Backends by what all nodes know them by, in the numbering of the tables; `local` are this host's own addresses, whose backends are left out
/// unless this node `inherits` their connections. VIPs by whether they are `held`.
pub(super) fn backends(
    servers: &[VirtualServer],
    numbers: &Numbers,
    local: &BTreeSet<IpAddr>,
    inherits: bool,
    held: &[bool],
) -> Backends {
    let mut backends = Backends::default();
    let mut know = |vip: SocketAddr, backend: SocketAddr, id| {
        let is_here = local.contains(&backend.ip());
        if inherits || !is_here {
            backends.known.insert((vip, backend), Known { id, is_here });
        }
    };
    for server in servers {
        let vip = SocketAddr::new(server.address, server.port);
        for backend in &server.backends {
            if let Some(id) = numbers.backend(&Endpoint::of(server, backend)) {
                know(vip, SocketAddr::new(backend.address, backend.port), id);
            }
        }
    }
    // Their connections go on here, and so they should on the other nodes.
    for (endpoint, removed) in numbers.removed().filter(|(_, removed)| !removed.over) {
        let vip = SocketAddr::new(endpoint.vip(), u16::from_be_bytes(endpoint.service().port()));
        know(vip, SocketAddr::new(endpoint.address(), endpoint.port()), removed.id);
    }
    backends.held = servers.iter().zip(held).filter_map(|(server, held)| held.then_some(server.address)).collect();
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
    fn backends_have_the_numbers_of_the_tables_and_this_hosts_own_are_told_from_the_others() {
        let text = config::example();
        let config = parse(&text, "example").expect("the example");
        let servers = &config.virtual_servers;
        let mut given = Numbers::default();
        given.follow(&[], servers, Duration::ZERO).expect("few enough");
        let all = backends(servers, &given, &BTreeSet::new(), false, &[true]);
        let own = servers[0].backends[1].address;
        let [others, inherited] =
            [false, true].map(|inherits| backends(servers, &given, &BTreeSet::from([own]), inherits, &[false]));
        let numbers = |backends: &Backends| backends.known.values().map(|known| known.id.0).collect::<Vec<_>>();
        let here = |backends: &Backends| backends.known.values().map(|known| known.is_here).collect::<Vec<_>>();
        assert_eq!((numbers(&all), numbers(&others)), (vec![0, 1, 2], vec![0, 2]));
        assert_eq!((numbers(&inherited), here(&inherited)), (vec![0, 1, 2], vec![false, true, false]));
        assert_eq!((here(&all), here(&others)), (vec![false; 3], vec![false; 2]));
        let mut fewer = servers.clone();
        fewer[0].backends.pop();
        given.follow(servers, &fewer, Duration::ZERO).expect("few enough");
        let drains = backends(&fewer, &given, &BTreeSet::new(), false, &[true]);
        assert_eq!(drains.known, all.known, "one that was removed has connections yet");
        given.expire(Duration::MAX);
        assert_eq!(numbers(&backends(&fewer, &given, &BTreeSet::new(), false, &[true])), [0, 1]);
        assert_eq!((all.held.len(), others.held.len()), (1, 0));
    }
}
