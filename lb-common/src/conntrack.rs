//! TCP phases of a connection, as far as a load balancer between the two ends can tell them.
//!
//! ```text
//!             SYN              SYN+ACK             ACK of client
//!   (none) ---------> SynSent ---------> SynReceived ---------> Established
//!                        |                    |                 /         \
//!                        |                    |     FIN, client            FIN, backend
//!                        |                    |               v             v
//!                        |                    |       ClientClosing   BackendClosing
//!                        |                    |     FIN, backend \       / FIN, client
//!                        v        RST         v                   v     v
//!                        +--------------------+-----------------> Closed
//! ```
//! A backend that answers the SYN with a reset has refused it. Where another backend can take the connection, that is `Refused`, of which
//! the client is told nothing: its next SYN starts anew.

use crate::wire::Flags;

/// How far a connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    SynSent = 0,
    SynReceived = 1,
    Established = 2,
    /// The client has sent its last byte.
    ClientClosing = 3,
    /// The backend has.
    BackendClosing = 4,
    /// Both have, or one has reset.
    Closed = 5,
    /// The backend has reset it in answer to the SYN, and the client does not know.
    Refused = u8::MAX,
}

/// Who sent a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    Client,
    Backend,
}

/// Kinds of idle timeout: connections in the same class live equally long without a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Patience {
    Syn = 0,
    Established = 1,
    Closing = 2,
}

impl Phase {
    #[cfg(any(test, feature = "user"))]
    pub const ALL: [Self; 7] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::ClientClosing,
        Self::BackendClosing,
        Self::Closed,
        Self::Refused,
    ];

    /// Reads a stored phase; what is not one counts as closed.
    #[inline(always)]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            0 => Self::SynSent,
            1 => Self::SynReceived,
            2 => Self::Established,
            3 => Self::ClientClosing,
            4 => Self::BackendClosing,
            u8::MAX => Self::Refused,
            _ => Self::Closed,
        }
    }

    /// The phase after a segment. A connection that was rebuilt after a failover starts as `Established`.
    #[inline(always)]
    #[must_use]
    pub const fn after(self, sender: Sender, flags: Flags) -> Self {
        if flags.any(Flags::RST) {
            return Self::Closed;
        }
        match (self, sender) {
            (Self::SynSent | Self::Refused, Sender::Backend) if flags.any(Flags::SYN) => Self::SynReceived,
            (Self::SynReceived, Sender::Client) if flags.any(Flags::FIN) => Self::ClientClosing,
            (Self::SynReceived, Sender::Client) if flags.any(Flags::ACK) => Self::Established,
            (Self::SynReceived | Self::Established, Sender::Backend) if flags.any(Flags::FIN) => Self::BackendClosing,
            (Self::Established, Sender::Client) if flags.any(Flags::FIN) => Self::ClientClosing,
            (Self::ClientClosing, Sender::Backend) | (Self::BackendClosing, Sender::Client)
                if flags.any(Flags::FIN) =>
            {
                Self::Closed
            }
            (same, _) => same,
        }
    }

    /// Whether a SYN from the client starts a new connection under the same ports.
    #[inline(always)]
    pub const fn may_restart(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived | Self::Closed | Self::Refused)
    }

    #[inline(always)]
    pub const fn patience(self) -> Patience {
        match self {
            Self::SynSent | Self::SynReceived | Self::Refused => Patience::Syn,
            Self::Established => Patience::Established,
            Self::ClientClosing | Self::BackendClosing | Self::Closed => Patience::Closing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Phase::*, Sender::*, *};

    #[test]
    fn every_transition() {
        let syn = Flags::SYN;
        let syn_ack = Flags::SYN.with(Flags::ACK);
        let ack = Flags::ACK;
        let fin = Flags::FIN.with(Flags::ACK);
        let rst = Flags::RST;
        //        phase          from the client: SYN  SYN+ACK  ACK  FIN  RST                        from the backend: the same
        let table = [
            (
                SynSent,
                [SynSent, SynSent, SynSent, SynSent, Closed],
                [SynReceived, SynReceived, SynSent, SynSent, Closed],
            ),
            (
                SynReceived,
                [SynReceived, Established, Established, ClientClosing, Closed],
                [SynReceived, SynReceived, SynReceived, BackendClosing, Closed],
            ),
            (
                Established,
                [Established, Established, Established, ClientClosing, Closed],
                [Established, Established, Established, BackendClosing, Closed],
            ),
            (
                ClientClosing,
                [ClientClosing, ClientClosing, ClientClosing, ClientClosing, Closed],
                [ClientClosing, ClientClosing, ClientClosing, Closed, Closed],
            ),
            (
                BackendClosing,
                [BackendClosing, BackendClosing, BackendClosing, Closed, Closed],
                [BackendClosing, BackendClosing, BackendClosing, BackendClosing, Closed],
            ),
            (Closed, [Closed; 5], [Closed; 5]),
            (
                Refused,
                [Refused, Refused, Refused, Refused, Closed],
                [SynReceived, SynReceived, Refused, Refused, Closed],
            ),
        ];
        assert_eq!(table.map(|(phase, ..)| phase), Phase::ALL);
        for (phase, client, backend) in table {
            for (at, flags) in [syn, syn_ack, ack, fin, rst].into_iter().enumerate() {
                assert_eq!(phase.after(Client, flags), client[at], "{phase:?}, client sends {flags:?}");
                assert_eq!(phase.after(Backend, flags), backend[at], "{phase:?}, backend sends {flags:?}");
            }
        }
    }

    #[test]
    fn stored_phases_come_back() {
        for phase in Phase::ALL {
            assert_eq!(Phase::from_raw(phase as u8), phase);
        }
        assert_eq!(Phase::from_raw(254), Closed);
    }
}
