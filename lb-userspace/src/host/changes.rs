//! News from the kernel: links, addresses, routes and neighbours, in batches and without the noise.

use std::{
    collections::{BTreeSet, HashMap},
    io,
    net::IpAddr,
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, TryStreamExt as _};
use log::warn;
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::{
        RouteNetlinkMessage,
        neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
        route::RouteFlags,
    },
    sys::AsyncSocket as _,
};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::NetlinkError;

/// Something that happened to this host's network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Change {
    /// The kernel's queue ran over, or too much happened at once: anything may have changed.
    Everything,
    Link,
    Address,
    Route,
    /// A neighbour became usable, changed its MAC, or (`mac: None`) is unreachable or forgotten. Nothing is said of the
    /// daily round of reachable, stale, delay and probe.
    Neighbour {
        interface: u32,
        address: IpAddr,
        mac: Option<[u8; 6]>,
    },
}

/// The stream of changes. Dropping it ends the task behind it.
#[derive(Debug)]
pub struct Changes {
    batches: mpsc::Receiver<BTreeSet<Change>>,
    task: JoinHandle<()>,
}

/// A batch is handed on when nothing more came for this long: adding an address takes the kernel a handful of messages.
const QUIET: Duration = Duration::from_millis(20);
/// A batch waits no longer than this, however busy the kernel is.
const PATIENCE: Duration = Duration::from_millis(200);
/// A larger batch is worth less than [`Change::Everything`].
const BATCH: usize = 1024;
/// Receive buffer of the socket, in bytes (the kernel clamps it to net.core.rmem_max): some thousand messages.
const RECEIVE_BUFFER: u32 = 1 << 20;

const GROUPS: [MulticastGroup; 6] = [
    MulticastGroup::Link,
    MulticastGroup::Neigh,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv6Route,
];

#[derive(Debug, thiserror::Error)]
pub enum SubscribeError {
    #[error("opening a netlink socket for change events: {0}")]
    Socket(#[from] io::Error),
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
}

impl Changes {
    /// Subscribes in this thread's network namespace; everything that happens after the return is told.
    pub async fn subscribe(handle: &Handle) -> Result<Self, SubscribeError> {
        let (mut connection, _, messages) = rtnetlink::new_multicast_connection(&GROUPS)?;
        connection
            .socket_mut()
            .socket_mut()
            .set_rx_buf_sz(RECEIVE_BUFFER)?;
        // After the subscription, so that no neighbour falls between.
        let neighbours = Neighbours::read(handle).await?;
        // One batch under way; while it waits, the next one grows.
        let (sender, batches) = mpsc::channel(1);
        let messages = messages.map(|(message, _)| message);
        let task = tokio::spawn(async move {
            tokio::select! {
                () = connection => {}
                () = forward(messages, neighbours, sender) => {}
            }
        });
        Ok(Self { batches, task })
    }

    /// The next batch, never empty. `None` after the netlink socket failed: subscribe again, and take everything as changed.
    /// Cancel-safe.
    pub async fn next(&mut self) -> Option<BTreeSet<Change>> {
        self.batches.recv().await
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Gathers messages into batches until either end is closed.
async fn forward(
    mut messages: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
    mut neighbours: Neighbours,
    batches: mpsc::Sender<BTreeSet<Change>>,
) {
    let mut batch = BTreeSet::new();
    let (mut first, mut last) = (Instant::now(), Instant::now());
    loop {
        let ripe = (last + QUIET).min(first + PATIENCE);
        let hand_on = async {
            sleep_until(ripe).await;
            batches.reserve().await
        };
        tokio::select! {
            message = messages.next() => {
                let Some(message) = message else { return };
                let Some(change) = neighbours.change(&message.payload) else { continue };
                last = Instant::now();
                if batch.is_empty() {
                    first = last;
                }
                batch.insert(change);
                if batch.len() > BATCH || change == Change::Everything {
                    batch = BTreeSet::from([Change::Everything]);
                }
            }
            permit = hand_on, if !batch.is_empty() => {
                let Ok(permit) = permit else { return };
                permit.send(std::mem::take(&mut batch));
            }
            () = batches.closed() => return,
        }
    }
}

/// The MACs of usable neighbours, by interface and address: what tells news from noise.
#[derive(Debug, Default)]
struct Neighbours(HashMap<(u32, IpAddr), [u8; 6]>);

impl Neighbours {
    async fn read(handle: &Handle) -> Result<Self, NetlinkError> {
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

    /// What a message means, if it means anything.
    fn change(&mut self, payload: &NetlinkPayload<RouteNetlinkMessage>) -> Option<Change> {
        use RouteNetlinkMessage as M;
        match payload {
            NetlinkPayload::Overrun(_) => {
                warn!("the kernel's netlink queue ran over: taking everything as changed");
                // What was lost is unknown: better one change told twice than one untold.
                self.0.clear();
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

    fn update(&mut self, message: &NeighbourMessage, mac: Option<[u8; 6]>) -> Option<Change> {
        let interface = message.header.ifindex;
        let address = message.attributes.iter().find_map(|a| match a {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => {
                Some(IpAddr::V4(*address))
            }
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => {
                Some(IpAddr::V6(*address))
            }
            _ => None,
        })?;
        if address.is_multicast() {
            return None;
        }
        let before = match mac {
            Some(mac) => self.0.insert((interface, address), mac),
            None => self.0.remove(&(interface, address)),
        };
        (before != mac).then_some(Change::Neighbour {
            interface,
            address,
            mac,
        })
    }
}

/// The MAC that the kernel would send to now (NUD_VALID of include/net/neighbour.h).
fn usable_mac(message: &NeighbourMessage) -> Option<[u8; 6]> {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    if !matches!(
        message.header.state,
        Permanent | Noarp | Reachable | Probe | Stale | Delay
    ) {
        return None;
    }
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rtnetlink::packet_route::{link::LinkMessage, route::RouteMessage};

    use super::*;

    const ADDRESS: &str = "192.168.2.11";
    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

    fn neighbour(state: NeighbourState, mac: Option<[u8; 6]>) -> NeighbourMessage {
        let mut message = NeighbourMessage::default();
        message.header.ifindex = 2;
        message.header.state = state;
        let IpAddr::V4(address) = ADDRESS.parse().unwrap() else {
            unreachable!()
        };
        message
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::Inet(
                address,
            )));
        message
            .attributes
            .extend(mac.map(|mac| NeighbourAttribute::LinkLayerAddress(mac.to_vec())));
        message
    }

    fn payload(message: RouteNetlinkMessage) -> NetlinkPayload<RouteNetlinkMessage> {
        NetlinkPayload::InnerMessage(message)
    }

    #[test]
    fn only_news_of_a_neighbour_is_told() {
        use NeighbourState::{Delay, Failed, Incomplete, Probe, Reachable, Stale};
        let told = |mac| {
            Some(Change::Neighbour {
                interface: 2,
                address: ADDRESS.parse().unwrap(),
                mac,
            })
        };
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
            assert_eq!(
                neighbours.change(&message),
                expected,
                "step {step}: {state:?}"
            );
        }
        let gone = payload(RouteNetlinkMessage::DelNeighbour(neighbour(Stale, Some(B))));
        assert_eq!(neighbours.change(&gone), told(None));
        assert_eq!(neighbours.change(&gone), None);
    }

    #[test]
    fn cached_route_exceptions_are_noise() {
        let mut route = RouteMessage::default();
        let mut neighbours = Neighbours::default();
        assert_eq!(
            neighbours.change(&payload(RouteNetlinkMessage::NewRoute(route.clone()))),
            Some(Change::Route)
        );
        route.header.flags = RouteFlags::Cloned;
        assert_eq!(
            neighbours.change(&payload(RouteNetlinkMessage::NewRoute(route))),
            None
        );
    }

    #[test]
    fn after_an_overrun_neighbours_are_news_again() {
        let mut neighbours = Neighbours::default();
        let message = payload(RouteNetlinkMessage::NewNeighbour(neighbour(
            NeighbourState::Stale,
            Some(A),
        )));
        assert!(neighbours.change(&message).is_some());
        assert_eq!(neighbours.change(&message), None);
        assert_eq!(
            neighbours.change(&NetlinkPayload::Overrun(Vec::new())),
            Some(Change::Everything)
        );
        assert!(neighbours.change(&message).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_becomes_one_batch() {
        let message = |message| NetlinkMessage::new(Default::default(), payload(message));
        let storm: Vec<_> = (0..1000)
            .flat_map(|_| {
                [
                    RouteNetlinkMessage::NewLink(LinkMessage::default()),
                    RouteNetlinkMessage::NewRoute(RouteMessage::default()),
                ]
            })
            .map(message)
            .collect();
        let (sender, mut batches) = mpsc::channel(1);
        let endless = Box::pin(stream::iter(storm).chain(stream::pending()));
        let task = tokio::spawn(forward(endless, Neighbours::default(), sender));
        assert_eq!(
            batches.recv().await,
            Some(BTreeSet::from([Change::Link, Change::Route]))
        );
        assert!(batches.try_recv().is_err());
        drop(batches);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_too_large_to_be_worth_it_becomes_everything() {
        let many = (0..=u32::try_from(BATCH).unwrap()).map(|interface| {
            let mut message = neighbour(NeighbourState::Reachable, Some(A));
            message.header.ifindex = interface;
            NetlinkMessage::new(
                Default::default(),
                payload(RouteNetlinkMessage::NewNeighbour(message)),
            )
        });
        let (sender, mut batches) = mpsc::channel(1);
        let endless = Box::pin(stream::iter(many.collect::<Vec<_>>()).chain(stream::pending()));
        let task = tokio::spawn(forward(endless, Neighbours::default(), sender));
        assert_eq!(
            batches.recv().await,
            Some(BTreeSet::from([Change::Everything]))
        );
        drop(batches);
        task.await.unwrap();
    }
}
