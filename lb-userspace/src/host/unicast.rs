//! MAC addresses that an interface listens to beside its own (`bridge fdb show dev eth0`): those of virtual routers. They are the
//! interface's until somebody takes them off, whatever becomes of the process that asked for them.

use std::collections::BTreeSet;

use futures_util::TryStreamExt as _;
use rtnetlink::{
    Handle,
    packet_route::{
        AddressFamily,
        link::{LinkAttribute, LinkMessage},
        neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState},
    },
};

use super::NetlinkError;

/// Takes these off every interface that listens to them.
pub async fn remove(handle: &Handle, macs: &BTreeSet<[u8; 6]>) -> Result<(), NetlinkError> {
    if macs.is_empty() {
        return Ok(());
    }
    let failed = |source| NetlinkError::new("removing virtual MACs", source);
    let links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(failed)?;
    let theirs: BTreeSet<[u8; 6]> = links.iter().filter_map(mac_of).collect();
    let asked = handle.neighbours().get().set_address_family(AddressFamily::Bridge);
    let all: Vec<NeighbourMessage> = asked.execute().try_collect().await.map_err(failed)?;
    for (index, mac) in all.iter().filter_map(listened) {
        if !macs.contains(&mac) || theirs.contains(&mac) {
            continue;
        }
        let removed = handle.neighbours().del(message(index, mac)).execute().await;
        match removed.map_err(failed) {
            Err(e) if !matches!(e.errno(), Some(libc::ENOENT | libc::ENODEV)) => return Err(e),
            _ => log::info!("virtual MAC {} removed from interface {index}", in_hex(mac)),
        }
    }
    Ok(())
}

/// The request that makes an interface listen to `mac`, or not any more.
pub(crate) fn message(index: u32, mac: [u8; 6]) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    message.header.flags = NeighbourFlags::Own;
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.to_vec())];
    message
}

/// The request for all of them.
pub(crate) fn question() -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = AddressFamily::Bridge;
    message
}

/// The interface and the virtual router's MAC that it listens to, if the message says so.
pub(crate) fn listened(message: &NeighbourMessage) -> Option<(u32, [u8; 6])> {
    let mac = message.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(mac) => <[u8; 6]>::try_from(mac.as_slice()).ok(),
        _ => None,
    })?;
    // What a bridge has learned is not permanent.
    let listens = message.header.family == AddressFamily::Bridge && message.header.state == NeighbourState::Permanent;
    (listens && matches!(mac, [0, 0, 0x5e, 0, 1 | 2, _])).then_some((message.header.ifindex, mac))
}

/// A link that has such a MAC itself, as a macvlan of keepalived, listens by itself.
pub(crate) fn mac_of(link: &LinkMessage) -> Option<[u8; 6]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(mac) => mac.as_slice().try_into().ok(),
        _ => None,
    })
}

pub(crate) fn in_hex(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
