//! What a netlink message means to the daemon, if it means anything.

use std::{collections::HashMap, net::IpAddr};

use futures_util::TryStreamExt as _;
use log::warn;
use rtnetlink::{
    Handle,
    packet_core::NetlinkPayload,
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::RouteFlags,
    },
};

use super::{Change, NetlinkError};

/// The MACs of usable neighbours, by interface and address: what tells news from noise.
#[derive(Debug, Default)]
pub struct Neighbours(HashMap<(u32, IpAddr), [u8; 6]>);

impl Neighbours {
    /// Asks the kernel.
    pub async fn read(handle: &Handle) -> Result<Self, NetlinkError> {
        let all: Vec<NeighbourMessage> = handle
            .neighbours()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|e| NetlinkError::new("listing the neighbours", e))?;
        let mut neighbours = Self::default();
        for message in &all {
            neighbours.update(message, usable_mac(message));
        }
        Ok(neighbours)
    }

    /// Interface, address and MAC of each.
    pub fn iter(&self) -> impl Iterator<Item = (u32, IpAddr, [u8; 6])> {
        self.0.iter().map(|(&(interface, address), &mac)| (interface, address, mac))
    }

    /// What a message means, if it means anything.
    pub(super) fn change(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
        use RouteNetlinkMessage as M;
        match payload {
            NetlinkPayload::Overrun(_) => {
                warn!("the kernel's netlink queue ran over: taking everything as changed");
                self.forget();
                Some(Change::Everything)
            }
            NetlinkPayload::InnerMessage(message) => match message {
                M::NewLink(_) | M::DelLink(_) => Some(Change::Link),
                M::NewAddress(_) | M::DelAddress(_) => Some(Change::Address),
                // Clones are per-destination exceptions (path MTU), no routes.
                M::NewRoute(route) | M::DelRoute(route) => {
                    (!route.header.flags.contains(RouteFlags::Cloned)).then_some(Change::Route)
                }
                M::NewNeighbour(neighbour) => self.update(neighbour, usable_mac(neighbour)),
                M::DelNeighbour(neighbour) => self.update(neighbour, None),
                _ => None,
            },
            _ => None,
        }
    }

    /// Makes every neighbour news again: better one change told twice than one untold.
    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    fn update(&mut self, message: &NeighbourMessage, mac: Option<[u8; 6]>) -> Option<Change> {
        let interface = message.header.ifindex;
        let address = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
            _ => None,
        })?;
        if address.is_multicast() {
            return None;
        }
        let before = match mac {
            Some(mac) => self.0.insert((interface, address), mac),
            None => self.0.remove(&(interface, address)),
        };
        (before != mac).then_some(Change::Neighbour { interface, address, mac })
    }
}

/// The MAC that the kernel would send to now (NUD_VALID of include/net/neighbour.h).
fn usable_mac(message: &NeighbourMessage) -> Option<[u8; 6]> {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    if !matches!(message.header.state, Permanent | Noarp | Reachable | Probe | Stale | Delay) {
        return None;
    }
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

#[cfg(test)]
pub(super) mod tests {
    use rtnetlink::packet_route::route::RouteMessage;

    use super::*;

    const ADDRESS: &str = "192.168.2.11";
    pub(crate) const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

    pub(crate) fn neighbour(state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.header.state = state;
        let IpAddr::V4(address) = ADDRESS.parse().unwrap() else { unreachable!() };
        message.attributes.push(NeighbourAttribute::Destination(NeighbourAddress::Inet(address)));
        message.attributes.extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    pub(crate) fn payload(message: RouteNetlinkMessage) -> NetlinkPayload<RouteNetlinkMessage> {
        NetlinkPayload::InnerMessage(message)
    }

    #[test]
    fn only_news_of_a_neighbour_is_told() {
        use NeighbourState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};
        let told = |mac| Some(Change::Neighbour { interface: 2, address: ADDRESS.parse().unwrap(), mac });
        let mut neighbours = Neighbours::default();
        let table = [
            (Incomplete, None, None),
            (Reachable, Some(A), told(Some(A))),
            (Stale, Some(A), None),
            (Delay, Some(A), None),
            (Probe, Some(A), None),
            (Reachable, Some(A), None),
            (Stale, Some(B), told(Some(B))),
            // The kernel keeps the last MAC in a failed entry.
            (Failed, Some(B), told(None)),
            (Failed, Some(B), None),
            (Incomplete, None, None),
            (Reachable, Some(B), told(Some(B))),
        ];
        for (step, (state, mac, expected)) in table.into_iter().enumerate() {
            let message = payload(RouteNetlinkMessage::NewNeighbour(neighbour(state, mac)));
            assert_eq!(neighbours.change(&message), expected, "step {step}: {state:?}");
        }
        let gone = payload(RouteNetlinkMessage::DelNeighbour(neighbour(Stale, Some(B))));
        assert_eq!(neighbours.change(&gone), told(None));
        assert_eq!(neighbours.change(&gone), None);
    }

    #[test]
    fn cached_route_exceptions_are_noise() {
        let mut route = RouteMessage::default();
        let mut neighbours = Neighbours::default();
        assert_eq!(neighbours.change(&payload(RouteNetlinkMessage::NewRoute(route.clone()))), Some(Change::Route));
        route.header.flags = RouteFlags::Cloned;
        assert_eq!(neighbours.change(&payload(RouteNetlinkMessage::NewRoute(route))), None);
    }

    #[test]
    fn after_an_overrun_neighbours_are_news_again() {
        let mut neighbours = Neighbours::default();
        let message = payload(RouteNetlinkMessage::NewNeighbour(neighbour(NeighbourState::Stale, Some(A))));
        assert!(neighbours.change(&message).is_some());
        assert_eq!(neighbours.change(&message), None);
        assert_eq!(neighbours.change(&NetlinkPayload::Overrun(Vec::new())), Some(Change::Everything));
        assert!(neighbours.change(&message).is_some());
    }
}
