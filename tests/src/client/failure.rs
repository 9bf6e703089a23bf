//! Why a request failed: few kinds, so that they can be counted.

use std::{fmt, io};

use hyper::StatusCode;

/// How far a request had come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Connect,
    Handshake,
    Answer,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    Refused(Stage),
    Reset(Stage),
    /// This host has closed it (`ECONNABORTED`).
    Aborted(Stage),
    /// The peer closed the connection without having answered.
    Closed(Stage),
    Timeout(Stage),
    Unreachable(Stage),
    /// An answer that is not 200.
    Status(u16),
    /// Bytes that are not this connection's.
    Foreign(String),
    Other(String),
}

impl Failure {
    pub(super) fn io(stage: Stage, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => Self::Refused(stage),
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Reset(stage),
            io::ErrorKind::ConnectionAborted => Self::Aborted(stage),
            io::ErrorKind::UnexpectedEof => Self::Closed(stage),
            io::ErrorKind::TimedOut => Self::Timeout(stage),
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Self::Unreachable(stage),
            // What TLS cannot decrypt.
            io::ErrorKind::InvalidData if stage == Stage::Answer => Self::Foreign(error.to_string()),
            _ => Self::Other(error.to_string()),
        }
    }

    /// Looks for the socket's error below hyper's own.
    pub(super) fn answer(error: hyper::Error) -> Self {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
        while let Some(current) = cause {
            if let Some(io) = current.downcast_ref::<io::Error>() {
                return Self::io(Stage::Answer, io);
            }
            // It does not tell as a cause what ended it.
            if let Some(io) = current.downcast_ref::<h2::Error>().and_then(h2::Error::get_io) {
                return Self::io(Stage::Answer, io);
            }
            cause = current.source();
        }
        if error.is_incomplete_message() || error.is_canceled() {
            return Self::Closed(Stage::Answer);
        }
        Self::Other(error.to_string())
    }

    pub(super) fn status(status: StatusCode) -> Self {
        Self::Status(status.as_u16())
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connect => "connect",
            Self::Handshake => "TLS handshake",
            Self::Answer => "answer",
        })
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(stage) => write!(f, "{stage}: refused"),
            Self::Reset(stage) => write!(f, "{stage}: reset"),
            Self::Aborted(stage) => write!(f, "{stage}: closed by this host"),
            Self::Closed(stage) => write!(f, "{stage}: closed early"),
            Self::Timeout(stage) => write!(f, "{stage}: timed out"),
            Self::Unreachable(stage) => write!(f, "{stage}: unreachable"),
            Self::Status(code) => write!(f, "answered {code}"),
            Self::Foreign(what) => write!(f, "foreign bytes: {what}"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

impl std::error::Error for Failure {}
