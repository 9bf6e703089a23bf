//! What is measured of sharing connections with other nodes.

use std::fmt;

use super::Families;
use crate::admin::sync::{Peer, Sync};

pub(super) fn families(sync: &Sync, encoder: &mut Families<'_, '_>) -> fmt::Result {
    let peers = |value: fn(&Peer) -> u64| {
        sync.peers.iter().map(|peer| ([("peer", peer.address.to_string())], value(peer))).collect::<Vec<_>>()
    };
    encoder.gauges(
        "sync_peer_up",
        "Whether the peer hears this node and is heard",
        None,
        peers(|p| p.connected.into()),
    )?;
    encoder.counters("sync_told", "Connections told to the peer, each time counted", None, peers(|p| p.told))?;
    encoder.counters("sync_heard", "Connections heard from the peer, each time counted", None, peers(|p| p.heard))?;
    let help = "Datagrams of the peer that were not heard: without proof, old, or malformed";
    encoder.counters("sync_refused_datagrams", help, None, peers(|p| p.refused))?;
    let outcomes = [("taken", sync.taken), ("ended", sync.ended), ("refused", sync.refused), ("foreign", sync.foreign)];
    let help = "Connections heard from peers, by what became of them here";
    encoder.counters("sync_connections", help, None, outcomes.map(|(name, count)| ([("outcome", name)], count)))
}
