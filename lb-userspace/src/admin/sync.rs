//! How connections are shared with other nodes: as JSON and as text.

use std::{
    fmt::Write as _,
    net::SocketAddr,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use super::table::columns;

const HEADER: &str = "SYNC PEER\tSTATE\tHEARD\tTOLD\tTAKEN IN\tREFUSED";

/// Connections shared with the nodes that may take the VIPs over.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sync {
    pub peers: Vec<Peer>,
    /// Connections of peers that were taken in, each time counted.
    pub taken: u64,
    /// Those that have ended since.
    pub ended: u64,
    /// Connections that were not taken in: there was no room, or another one in their place.
    pub refused: u64,
    /// Connections of virtual servers or backends that are unknown here, or of a backend on this node, which cannot go on with them.
    pub foreign: u64,
}

/// Another node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    pub address: SocketAddr,
    pub connected: bool,
    /// Since it was heard last; `None` if it never was.
    #[serde(default, with = "seconds")]
    pub silent: Option<Duration>,
    /// Connections told to it, and heard from it, each time counted.
    pub told: u64,
    pub heard: u64,
    /// Datagrams that were not heard.
    pub refused: u64,
    /// Why the last of them was not.
    pub reason: Option<String>,
}

/// A header and one line for each peer; below, what needs attention.
pub fn table(sync: &Sync) -> String {
    let line = |peer: &Peer| {
        let heard = peer.silent.map_or("never".to_owned(), |silent| {
            let now = SystemTime::now();
            format!("{} ago", super::table::age(now, now.checked_sub(silent).unwrap_or(now)))
        });
        let state = if peer.connected { "connected" } else { "silent" };
        [
            peer.address.to_string(),
            state.to_owned(),
            heard,
            peer.told.to_string(),
            peer.heard.to_string(),
            peer.refused.to_string(),
        ]
        .join("\t")
    };
    let mut text = columns(HEADER, sync.peers.iter().map(line));
    for peer in sync.peers.iter().filter(|peer| !peer.connected) {
        if let Some(reason) = &peer.reason {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{}: a datagram was not heard: {reason}", peer.address);
        }
    }
    text
}

mod seconds {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    #[expect(clippy::ref_option, reason = "serde's signature")]
    pub(super) fn serialize<S: Serializer>(time: &Option<Duration>, to: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.as_secs_f64()).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Duration>, D::Error> {
        let time = Option::<f64>::deserialize(from)?;
        time.map(|time| Duration::try_from_secs_f64(time).map_err(serde::de::Error::custom)).transpose()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(in crate::admin) fn sample() -> Sync {
        let peer = Peer {
            address: SocketAddr::from(([192, 168, 2, 20], 9096)),
            connected: true,
            silent: Some(Duration::from_millis(250)),
            told: 1200,
            heard: 30,
            refused: 0,
            reason: None,
        };
        let silent = Peer {
            address: SocketAddr::from(([192, 168, 2, 30], 9096)),
            connected: false,
            silent: None,
            told: 0,
            heard: 0,
            refused: 2,
            reason: Some("the keys differ".to_owned()),
        };
        Sync { peers: vec![peer, silent], taken: 28, ended: 5, refused: 1, foreign: 2 }
    }

    #[test]
    fn who_is_silent_is_said_to_be_and_why() {
        let expected = "\
SYNC PEER          STATE      HEARD   TOLD  TAKEN IN  REFUSED
192.168.2.20:9096  connected  0s ago  1200  30        0
192.168.2.30:9096  silent     never   0     0         2
192.168.2.30:9096: a datagram was not heard: the keys differ
";
        assert_eq!(table(&sample()), expected);
    }

    #[test]
    fn json_comes_back() {
        let json = serde_json::to_string(&sample()).expect("JSON");
        assert_eq!(serde_json::from_str::<Sync>(&json).expect("the same"), sample());
    }
}
