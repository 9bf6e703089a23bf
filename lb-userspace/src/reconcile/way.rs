//! How packets come to the backends of a virtual server now, and why not otherwise. Pure.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, SocketAddr},
};

use lb_common::abi::Holds;

use crate::{
    config::model::{ServerMode, VirtualServer},
    health::State,
};

/// A virtual server and a backend of it whose node turns packets.
pub type Turned = (SocketAddr, SocketAddr);

/// What decides about it.
#[derive(Clone, Copy, Debug)]
pub struct Surroundings<'a> {
    /// Addresses of this host.
    pub local: &'a BTreeSet<IpAddr>,
    /// Backends' addresses that this host reaches without a router.
    pub on_link: &'a BTreeSet<IpAddr>,
    /// What the other nodes say that they turn; `None` where there is nobody to hear.
    pub told: Option<&'a BTreeSet<Turned>>,
}

/// How new connections of one virtual server are carried.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Way {
    /// Whether each backend's packets are sent on as they are, in the order of the configuration.
    pub direct: Vec<bool>,
    /// Why not all, or who has not said that it does its part.
    pub because: Option<String>,
}

/// The other nodes' part in direct server return as this node sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Part {
    /// By virtual server.
    pub ways: Vec<Way>,
    /// VIPs that VRRP moves.
    pub moving: BTreeSet<IpAddr>,
    /// MAC addresses of the other backends' nodes.
    pub forwarders: BTreeSet<[u8; 6]>,
}

/// Decides for one virtual server; `states` are those of its backends.
pub fn way(server: &VirtualServer, states: &[State], around: &Surroundings<'_>) -> Way {
    if server.mode == ServerMode::Nat {
        return Way { direct: vec![false; server.backends.len()], because: None };
    }
    let vip = SocketAddr::new(server.address, server.port);
    let is_here = |address| around.local.contains(&address);
    let on_link: Vec<bool> = server
        .backends
        .iter()
        .map(|backend| is_here(backend.address) || around.on_link.contains(&backend.address))
        .collect();
    let turns: Vec<bool> = server
        .backends
        .iter()
        .map(|backend| {
            let told = (vip, SocketAddr::new(backend.address, backend.port));
            is_here(backend.address) || around.told.is_some_and(|all| all.contains(&told))
        })
        .collect();
    let named = |fits: &dyn Fn(usize) -> bool| {
        let names = (0..server.backends.len()).filter(|at| fits(*at)).map(|at| server.backends[at].name.as_str());
        names.collect::<Vec<_>>().join(", ")
    };
    // One that is down gets nothing new, and what it would do does not count.
    let counts = |at: usize| server.mode == ServerMode::Dsr || states.get(at) != Some(&State::Down);
    let far = named(&|at| counts(at) && !on_link[at]);
    let silent = named(&|at| counts(at) && !turns[at]);
    let mut because = Vec::new();
    if !far.is_empty() {
        because.push(format!("behind a router: {far}"));
    }
    match around.told {
        None if server.mode == ServerMode::Auto => {
            because.push("no [sync] section, by which nodes say that they turn packets".to_owned());
        }
        Some(_) if !silent.is_empty() => because.push(format!("not said to turn packets: {silent}")),
        _ => {}
    }
    let because = (!because.is_empty()).then(|| because.join("; "));
    let direct = match server.mode {
        ServerMode::Nat => Vec::new(),
        ServerMode::Dsr => on_link,
        ServerMode::Auto if because.is_some() => vec![false; server.backends.len()],
        ServerMode::Auto => on_link.iter().zip(&turns).map(|(near, turns)| *near && *turns).collect(),
    };
    Way { direct, because }
}

/// When this node holds the VIP of a virtual server.
pub fn holds(server: &VirtualServer, moving: &BTreeSet<IpAddr>) -> Holds {
    if server.elsewhere {
        Holds::Never
    } else if moving.contains(&server.address) {
        Holds::Leased
    } else {
        Holds::Always
    }
}

/// What this node turns: of each virtual server that wants it the first backend that is here.
pub fn turned<'a>(servers: &'a [VirtualServer], local: &'a BTreeSet<IpAddr>) -> impl Iterator<Item = Turned> + 'a {
    let wanted = servers.iter().filter(|server| server.mode != ServerMode::Nat);
    wanted.filter_map(|server| {
        let own = server.backends.iter().find(|backend| local.contains(&backend.address))?;
        Some((SocketAddr::new(server.address, server.port), SocketAddr::new(own.address, own.port)))
    })
}

/// MAC addresses of the nodes of other backends that packets may be sent on by, as far as they are known.
pub fn forwarders(
    servers: &[VirtualServer],
    local: &BTreeSet<IpAddr>,
    macs: &BTreeMap<IpAddr, [u8; 6]>,
) -> BTreeSet<[u8; 6]> {
    let wanted = servers.iter().filter(|server| server.mode != ServerMode::Nat);
    let others = wanted.flat_map(|server| &server.backends).filter(|backend| !local.contains(&backend.address));
    others.filter_map(|backend| macs.get(&backend.address).copied()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::desired::tests::server;

    fn decided(mode: ServerMode, states: [State; 3], near: &[u8], told: Option<&[u8]>) -> (Vec<bool>, Option<String>) {
        let server = VirtualServer { mode, ..server("a", 100, 3) };
        let address = |number: &u8| IpAddr::from([192, 168, 2, 10 + number]);
        let vip = SocketAddr::new(server.address, server.port);
        let told: Option<BTreeSet<Turned>> =
            told.map(|told| told.iter().map(|number| (vip, SocketAddr::new(address(number), 6443))).collect());
        let around = Surroundings {
            local: &BTreeSet::from([address(&1)]),
            on_link: &near.iter().map(address).collect(),
            told: told.as_ref(),
        };
        let Way { direct, because } = way(&server, &states, &around);
        (direct, because)
    }

    #[test]
    fn each_mode_in_all_surroundings() {
        use State::{Down, Up};
        let up = [Up; 3];
        let one_down = [Up, Up, Down];
        let auto = ServerMode::Auto;
        let silent = |who: &str| Some(format!("not said to turn packets: {who}"));
        let table = [
            (ServerMode::Nat, up, &[2, 3][..], Some(&[2, 3][..]), [false; 3], None),
            (ServerMode::Dsr, up, &[2, 3], None, [true; 3], None),
            (ServerMode::Dsr, up, &[2, 3], Some(&[2]), [true; 3], silent("m3")),
            (ServerMode::Dsr, up, &[2], None, [true, true, false], Some("behind a router: m3".to_owned())),
            (auto, up, &[2, 3], Some(&[2, 3]), [true; 3], None),
            (auto, up, &[2, 3], Some(&[3]), [false; 3], silent("m2")),
            (auto, up, &[2], Some(&[2, 3]), [false; 3], Some("behind a router: m3".to_owned())),
            (auto, one_down, &[2, 3], Some(&[2]), [true, true, false], None),
            (
                auto,
                up,
                &[2, 3],
                None,
                [false; 3],
                Some("no [sync] section, by which nodes say that they turn packets".to_owned()),
            ),
        ];
        for (mode, states, near, told, direct, because) in table {
            assert_eq!(decided(mode, states, near, told), (direct.to_vec(), because), "{mode:?} {near:?} {told:?}");
        }
    }

    #[test]
    fn this_node_turns_for_its_own_backend_and_knows_the_others() {
        let servers = [
            server("plain", 99, 2),
            VirtualServer { mode: ServerMode::Dsr, ..server("a", 100, 3) },
            VirtualServer { mode: ServerMode::Auto, elsewhere: true, ..server("b", 101, 1) },
        ];
        let address = |last| IpAddr::from([192, 168, 2, last]);
        let local = BTreeSet::from([address(12)]);
        let own = (SocketAddr::new(address(100), 16443), SocketAddr::new(address(12), 6443));
        assert_eq!(turned(&servers, &local).collect::<Vec<_>>(), [own]);
        let macs = [11, 12, 50].map(|last| (address(last), [2, 0, 0, 0, 0, last]));
        assert_eq!(forwarders(&servers, &local, &macs.into()), BTreeSet::from([[2, 0, 0, 0, 0, 11]]));
        let moving = BTreeSet::from([address(100)]);
        let holds = servers.iter().map(|server| holds(server, &moving)).collect::<Vec<_>>();
        assert_eq!(holds, [Holds::Always, Holds::Leased, Holds::Never]);
    }
}
