//! News from the kernel: links, addresses, routes and neighbours, in batches and without the noise.

use std::{collections::BTreeSet, io, net::IpAddr, time::Duration};

use futures_util::{Stream, StreamExt as _};
use rtnetlink::{
    Handle, MulticastGroup,
    packet_core::{NetlinkMessage, NetlinkPayload},
    packet_route::RouteNetlinkMessage,
    sys::AsyncSocket as _,
};
use tokio::{
    sync::mpsc,
    task::{JoinHandle, coop::unconstrained},
    time::{Instant, sleep_until},
};

use super::{NetlinkError, news::Neighbours};

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
        connection.socket_mut().socket_mut().set_rx_buf_sz(RECEIVE_BUFFER)?;
        // After the subscription, so that no neighbour falls between.
        let neighbours = Neighbours::read(handle).await?;
        // One batch under way; while it waits, the next one grows.
        let (sender, batches) = mpsc::channel(1);
        let messages = messages.map(|(message, _)| message);
        let task = tokio::spawn(async move {
            // The connection first, so that it has read all there is whenever `forward` finds nothing to do.
            tokio::select! {
                biased;
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
///
/// The kernel reports an overrun before it hands out what it queued earlier, and drops everything until that queue is empty
/// (NETLINK_S_CONGESTED in net/netlink/af_netlink.c). So `Everything` is told until a pause shows that the queue was emptied:
/// told only at once, it would come before the last loss.
async fn forward(
    mut messages: impl Stream<Item = NetlinkMessage<RouteNetlinkMessage>> + Unpin,
    mut neighbours: Neighbours,
    batches: mpsc::Sender<BTreeSet<Change>>,
) {
    let mut batch = BTreeSet::new();
    let mut losing = false;
    let (mut first, mut last) = (Instant::now(), Instant::now());
    loop {
        let ripe = (last + QUIET).min(first + PATIENCE);
        let hand_on = async {
            sleep_until(ripe).await;
            batches.reserve().await
        };
        tokio::select! {
            biased;
            message = messages.next() => {
                let Some(message) = message else { return };
                last = Instant::now();
                losing |= matches!(message.payload, NetlinkPayload::Overrun(_));
                let Some(change) = neighbours.change(&message.payload) else { continue };
                if batch.is_empty() {
                    first = last;
                }
                batch.insert(change);
                if batch.len() > BATCH || batch.contains(&Change::Everything) {
                    batch = BTreeSet::from([Change::Everything]);
                }
            }
            // Unconstrained: in a storm the connection has used up the task's budget before the timer is asked.
            permit = unconstrained(hand_on), if !batch.is_empty() => {
                let Ok(permit) = permit else { return };
                permit.send(std::mem::take(&mut batch));
                if losing && last.elapsed() < QUIET {
                    (batch, first) = (BTreeSet::from([Change::Everything]), Instant::now());
                } else if losing {
                    losing = false;
                    neighbours.forget();
                }
            }
            () = batches.closed() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use rtnetlink::packet_route::{link::LinkMessage, neighbour::NeighbourState, route::RouteMessage};

    use super::{
        super::news::tests::{A, neighbour, payload},
        *,
    };

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
        assert_eq!(batches.recv().await, Some(BTreeSet::from([Change::Link, Change::Route])));
        assert!(batches.try_recv().is_err());
        drop(batches);
        task.await.unwrap();
    }

    /// After an overrun the kernel drops all that happens while the daemon reads what was queued before.
    #[tokio::test(start_paused = true)]
    async fn everything_is_told_after_the_last_loss() {
        const READING: Duration = Duration::from_secs(1);
        let begin = Instant::now();
        let overrun = stream::iter([NetlinkMessage::new(Default::default(), NetlinkPayload::Overrun(Vec::new()))]);
        let queued = stream::unfold((), |()| async {
            tokio::time::sleep(QUIET / 2).await;
            let route = payload(RouteNetlinkMessage::NewRoute(RouteMessage::default()));
            Some((NetlinkMessage::new(Default::default(), route), ()))
        });
        let queued = queued.take_until(sleep_until(begin + READING)).chain(stream::pending());
        let (sender, mut batches) = mpsc::channel(1);
        let task = tokio::spawn(forward(Box::pin(overrun.chain(queued)), Neighbours::default(), sender));

        let mut told = Instant::now();
        while let Ok(batch) = tokio::time::timeout(READING, batches.recv()).await {
            assert_eq!(batch, Some(BTreeSet::from([Change::Everything])));
            told = Instant::now();
        }
        assert!(told > begin + READING, "last told {:?} after the overrun", told - begin);
        drop(batches);
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_batch_too_large_to_be_worth_it_becomes_everything() {
        let many = (0..=u32::try_from(BATCH).unwrap()).map(|interface| {
            let mut message = neighbour(NeighbourState::Reachable, Some(A));
            message.header.ifindex = interface;
            NetlinkMessage::new(Default::default(), payload(RouteNetlinkMessage::NewNeighbour(message)))
        });
        let (sender, mut batches) = mpsc::channel(1);
        let endless = Box::pin(stream::iter(many.collect::<Vec<_>>()).chain(stream::pending()));
        let task = tokio::spawn(forward(endless, Neighbours::default(), sender));
        assert_eq!(batches.recv().await, Some(BTreeSet::from([Change::Everything])));
        drop(batches);
        task.await.unwrap();
    }
}
