//! How many advertisements were heard, and why the others were not.

/// Why an advertisement was not heard: the first rule that it broke.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Discard {
    /// Of another virtual router; nothing is wrong with it.
    OtherVrid,
    Truncated,
    Carp,
    Ttl,
    Version,
    AuthType,
    Password,
    HmacMissing,
    HmacMalformed,
    HmacKey,
    HmacWrong,
    HmacStale,
    HmacReplay,
    Interval,
    Type,
    Checksum,
    /// Multicast where unicast is expected, or the other way round.
    Cast,
    OwnSource,
    NotPeer,
}

impl Discard {
    /// In the order of their counters.
    pub const ALL: [Self; 19] = [
        Self::OtherVrid,
        Self::Truncated,
        Self::Carp,
        Self::Ttl,
        Self::Version,
        Self::AuthType,
        Self::Password,
        Self::HmacMissing,
        Self::HmacMalformed,
        Self::HmacKey,
        Self::HmacWrong,
        Self::HmacStale,
        Self::HmacReplay,
        Self::Interval,
        Self::Type,
        Self::Checksum,
        Self::Cast,
        Self::OwnSource,
        Self::NotPeer,
    ];

    /// As a label of a metric.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OtherVrid => "other_vrid",
            Self::Truncated => "truncated",
            Self::Carp => "carp",
            Self::Ttl => "ttl",
            Self::Version => "version",
            Self::AuthType => "auth_type",
            Self::Password => "password",
            Self::HmacMissing => "hmac_missing",
            Self::HmacMalformed => "hmac_malformed",
            Self::HmacKey => "hmac_key",
            Self::HmacWrong => "hmac_wrong",
            Self::HmacStale => "hmac_stale",
            Self::HmacReplay => "hmac_replay",
            Self::Interval => "interval",
            Self::Type => "type",
            Self::Checksum => "checksum",
            Self::Cast => "cast",
            Self::OwnSource => "own_source",
            Self::NotPeer => "not_peer",
        }
    }
}

/// Since the daemon started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub accepted: u64,
    /// Accepted with priority 0: a master that resigned.
    pub resigned: u64,
    /// Accepted though the addresses are not those of this node.
    pub other_addresses: u64,
    /// Accepted though the interval is not that of this node.
    pub other_interval: u64,
    /// Accepted without the trailer that is not demanded yet.
    pub unsealed: u64,
    discarded: [u64; Discard::ALL.len()],
}

impl Counters {
    pub fn discarded(&self, reason: Discard) -> u64 {
        self.discarded[reason as usize]
    }

    pub(super) fn accept(&mut self, priority: u8) {
        self.accepted += 1;
        self.resigned += u64::from(priority == 0);
    }

    pub(super) fn discard(&mut self, reason: Discard) -> Discard {
        self.discarded[reason as usize] += 1;
        reason
    }
}
