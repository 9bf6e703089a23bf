//! What is wrong with a peer, in words for those who run it.

use std::{fmt, net::IpAddr, time::Duration};

use super::Discard;
use crate::vrrp::{Version, Vrid, packet::AuthType};

/// Something wrong with what a sender sends. Its text goes on from the sender's address: "192.168.2.11 sends …".
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Finding {
    Truncated {
        length: usize,
    },
    Carp {
        vrid: Vrid,
    },
    Ttl {
        ttl: u8,
        least: u8,
    },
    Version {
        theirs: u8,
        ours: Version,
    },
    AuthType {
        theirs: AuthType,
        ours: AuthType,
    },
    Password,
    HmacMissing,
    HmacMalformed,
    HmacKey(u8),
    HmacWrong,
    /// Seconds by which the sender's clock is ahead of ours; negative if it is behind, or the packet is old.
    HmacStale {
        ahead: i32,
    },
    HmacReplay,
    /// In version 2 another one than ours; in version 3 zero.
    Interval {
        theirs: Duration,
        ours: Duration,
    },
    Type(u8),
    Checksum,
    Multicast,
    Unicast,
    OwnSource,
    NotPeer,
    /// No address in common: the VRID is used twice. Known of what is heard and of what is not.
    Clash {
        vrid: Vrid,
        theirs: Vec<IpAddr>,
    },
    /// Heard, though the lists of VIPs differ.
    Addresses {
        foreign: Vec<IpAddr>,
        missing: Vec<IpAddr>,
    },
    /// Heard; in version 3 the master's interval holds for all.
    OtherInterval {
        theirs: Duration,
        ours: Duration,
    },
    /// Heard, as long as the mode is not `enforce`.
    Unsealed,
}

impl Finding {
    /// The reason not to hear the advertisement, where this is one.
    pub fn discard(&self) -> Option<Discard> {
        Some(match self {
            Self::Truncated { .. } => Discard::Truncated,
            Self::Carp { .. } => Discard::Carp,
            Self::Ttl { .. } => Discard::Ttl,
            Self::Version { .. } => Discard::Version,
            Self::AuthType { .. } => Discard::AuthType,
            Self::Password => Discard::Password,
            Self::HmacMissing => Discard::HmacMissing,
            Self::HmacMalformed => Discard::HmacMalformed,
            Self::HmacKey(_) => Discard::HmacKey,
            Self::HmacWrong => Discard::HmacWrong,
            Self::HmacStale { .. } => Discard::HmacStale,
            Self::HmacReplay => Discard::HmacReplay,
            Self::Interval { .. } => Discard::Interval,
            Self::Type(_) => Discard::Type,
            Self::Checksum => Discard::Checksum,
            Self::Multicast | Self::Unicast => Discard::Cast,
            Self::OwnSource => Discard::OwnSource,
            Self::NotPeer => Discard::NotPeer,
            Self::Clash { .. } | Self::Addresses { .. } | Self::OtherInterval { .. } | Self::Unsealed => return None,
        })
    }

    /// The sender belongs to this virtual router as it seems, and is not heard for how one of the two is configured: it
    /// is master in its own eyes, this node may be in its own.
    pub fn makes_two_masters(&self) -> bool {
        match self {
            Self::Version { theirs, .. } => [2, 3].contains(theirs),
            Self::Interval { theirs, .. } => !theirs.is_zero(),
            Self::AuthType { .. }
            | Self::Password
            | Self::HmacMissing
            | Self::HmacMalformed
            | Self::HmacKey(_)
            | Self::HmacWrong
            | Self::HmacStale { .. }
            | Self::Multicast
            | Self::Unicast => true,
            _ => false,
        }
    }

    /// Whether the other one is about the same, whatever the details.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        std::mem::discriminant(self) == std::mem::discriminant(other)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.describe(formatter)?;
        if self.makes_two_masters() {
            formatter.write_str("; while this lasts it is not heard here, and both nodes may hold the VIP at once")?;
        }
        Ok(())
    }
}

impl Finding {
    fn describe(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Truncated { length } => write!(f, "sends packets that end too early, after {length} bytes"),
            Self::Carp { vrid } => write!(
                f,
                "speaks CARP (OpenBSD, pfSense, OPNsense) with the number {vrid}, which is the VRID here: CARP and \
                 VRRP use the same MAC address for it, so give one of the two another number"
            ),
            Self::Ttl { ttl, least } => write!(
                f,
                "sends advertisements that arrive with TTL {ttl} instead of {least} or more: they passed a router, or \
                 are forged"
            ),
            Self::Version { theirs, ours } => {
                write!(f, "speaks VRRP version {theirs}, this node version {ours}: set the same version on both")
            }
            Self::AuthType { theirs, ours } => write!(
                f,
                "authenticates with {}, this node with {}: set the same on both{}",
                AuthName(*theirs),
                AuthName(*ours),
                if *theirs == AuthType::Ah { " (AH is not part of VRRP any more, and not spoken here)" } else { "" }
            ),
            Self::Password => write!(f, "sends another password than the one configured here"),
            Self::HmacMissing => write!(
                f,
                "sends no HMAC, which this node demands: give it the key, or set the mode to permissive until all have \
                 it"
            ),
            Self::HmacMalformed => write!(f, "sends a trailer that is no HMAC of a kind known here"),
            Self::HmacKey(id) => write!(f, "uses the HMAC key {id}, which this node does not have"),
            Self::HmacWrong => {
                write!(f, "sends a wrong HMAC: its key differs from the one of the same number here, or it is forged")
            }
            Self::HmacStale { ahead } => {
                let (seconds, way) = (ahead.unsigned_abs(), if *ahead > 0 { "ahead of" } else { "behind" });
                write!(
                    f,
                    "has a clock {seconds} s {way} the one here (set both by NTP), or somebody repeats a recording"
                )
            }
            Self::HmacReplay => {
                write!(f, "sent this before: somebody repeats a recording, or the network doubles packets")
            }
            Self::Interval { theirs, .. } if theirs.is_zero() => write!(f, "announces an interval of zero"),
            Self::Interval { theirs, ours } => write!(
                f,
                "advertises every {theirs:?}, this node every {ours:?}: version 2 demands the same interval on both"
            ),
            Self::Type(number) => write!(f, "sends packets of type {number}; advertisements have type 1"),
            Self::Checksum => write!(f, "sends advertisements with a wrong checksum: damaged on the way, or forged"),
            Self::Multicast => {
                write!(
                    f,
                    "advertises to the multicast group, this node to its peers: configure both for one of the two"
                )
            }
            Self::Unicast => {
                write!(
                    f,
                    "advertises to this node alone, which has no peers: configure both for multicast or for unicast"
                )
            }
            Self::OwnSource => write!(
                f,
                "is this node's own address: another machine uses it too, or the network brings packets back (a loop)"
            ),
            Self::NotPeer => write!(f, "is not among the peers: add it there, or find out who it is"),
            Self::Clash { vrid, theirs } => write!(
                f,
                "uses VRID {vrid} for {}, which this node does not serve: two clusters share the number, give one of \
                 them another",
                List(theirs)
            ),
            Self::Addresses { foreign, missing } => {
                write!(f, "has another list of VIPs:")?;
                match foreign[..] {
                    [] => {}
                    _ => write!(f, " {} only there", List(foreign))?,
                }
                match (&foreign[..], &missing[..]) {
                    (_, []) => Ok(()),
                    (others, _) => {
                        write!(f, "{} {} only here", if others.is_empty() { "" } else { "," }, List(missing))
                    }
                }
            }
            Self::OtherInterval { theirs, ours } => write!(
                f,
                "advertises every {theirs:?}, this node every {ours:?}: how long a takeover takes depends on who is \
                 master"
            ),
            Self::Unsealed => write!(f, "sends no HMAC yet; it would not be heard in the mode enforce"),
        }
    }
}

/// A few addresses of a list that may have 255.
struct List<'a>(&'a [IpAddr]);

impl fmt::Display for List<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 4;
        for (index, address) in self.0.iter().take(SHOWN).enumerate() {
            write!(formatter, "{}{address}", if index == 0 { "" } else { ", " })?;
        }
        match self.0.len().checked_sub(SHOWN) {
            Some(more @ 1..) => write!(formatter, " and {more} more"),
            _ => Ok(()),
        }
    }
}

struct AuthName(AuthType);

impl fmt::Display for AuthName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            AuthType::None => formatter.write_str("nothing"),
            AuthType::Password => formatter.write_str("a password"),
            AuthType::Ah => formatter.write_str("IPsec AH"),
            AuthType::Other(number) => write!(formatter, "type {number}, which does not exist,"),
        }
    }
}
