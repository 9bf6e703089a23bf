//! What is counted of packets.

/// Declares the counters: their order is their place in the map.
macro_rules! counters {
    ($($(#[doc = $doc:literal])* $name:ident = $label:literal,)*) => {
        /// Things that happen to packets and are counted. Packets that are not ours are not: they leave untouched and
        /// uncounted.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u32)]
        pub enum Counter { $($(#[doc = $doc])* $name,)* }

        impl Counter {
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// Name in metrics.
            pub const fn label(self) -> &'static str {
                match self { $(Self::$name => $label),* }
            }

            /// Meaning, for help texts.
            pub const fn help(self) -> &'static str {
                match self { $(Self::$name => concat!($($doc),*)),* }
            }
        }
    };
}

counters! {
    /// Connections that got a backend, repeated SYNs included.
    Connected = "connected",
    /// Connections that were found again without their SYN, after a lost entry.
    Rebuilt = "rebuilt",
    /// Connections of this host's own processes that got a backend.
    Local = "local",
    /// Connections of this host's own processes refused because no backend takes new ones.
    LocalRefused = "local_refused",
    /// Packets to a VIP that no virtual server asks for, left to the host.
    NoService = "no_service",
    /// Fragments to a VIP, left to the host: ports are in the first one only.
    Fragment = "fragment",
    /// Packets to a VIP whose lengths contradict each other, left to the host.
    Malformed = "malformed",
    /// Connections reset because no backend takes new ones.
    NoBackend = "no_backend",
    /// Connections reset because their backend is down.
    BackendDown = "backend_down",
    /// Segments that belong to no connection and cannot start one, dropped.
    Stray = "stray",
    /// Replies of backends to connections that are not known here, dropped: their client's next packet makes the entry again.
    Orphan = "orphan",
    /// Packets whose time to live ended here, dropped. Who sent a segment is told, but not too often.
    Expired = "expired",
    /// Connections dropped because no source port was free towards their backend.
    NoPort = "no_port",
    /// Connections dropped because the table would not take them.
    TableFull = "table_full",
    /// Half-open connections that gave way to newer ones.
    EvictedHalfOpen = "evicted_half_open",
    /// Closing connections that gave way to new ones, because the table is nearly full.
    EvictedClosing = "evicted_closing",
    /// Established connections without a packet for minutes that gave way to new ones, because the table is nearly full.
    EvictedIdle = "evicted_idle",
    /// Packets without a route to where they should go, dropped.
    NoRoute = "no_route",
    /// Packets that the kernel sent instead of XDP: the neighbour was not resolved, or the way out has other tags or no program.
    Unresolved = "unresolved",
    /// Packets dropped because the kernel's own way was closed too.
    NoMetadata = "no_metadata",
    /// ICMP errors about a connection, sent on to the end that they are for.
    IcmpError = "icmp_error",
    /// ICMP errors about connections that are not known here, left to the host.
    IcmpStranger = "icmp_stranger",
    /// ARP requests and neighbour solicitations for a VIP whose lease has ended, dropped: another node may hold it by now.
    Fenced = "fenced",
    /// Packets to a VIP whose lease ended longer ago than this node goes on carrying, dropped.
    Overdue = "overdue",
    /// Packets that would go back to the node that has sent them on, dropped.
    Circling = "circling",
    /// Packets of sources that the virtual server's lists deny, dropped.
    Denied = "denied",
    /// SYNs that a client had to repeat because its backend did not answer.
    Unanswered = "unanswered",
    /// Resets by which backends refused connections, dropped where another backend takes them: the client's next SYN goes there.
    Refused = "refused",
    /// Repeated SYNs given to another backend than the one that refused them or did not answer.
    Retried = "retried",
    /// SYNs beyond their virtual server's rate of new connections, dropped.
    OverRate = "over_rate",
    /// SYNs beyond that rate, refused.
    OverRateRefused = "over_rate_refused",
    /// SYNs beyond that rate that have come before and were let through.
    OverRateRepeated = "over_rate_repeated",
}

impl Counter {
    pub const COUNT: usize = Self::ALL.len();
}
