//! Why a check failed: in words that say what was answered, and what it means for the backend.

use std::{error::Error as StdError, fmt, io, net::SocketAddr, time::Duration};

use hyper::StatusCode;
use thiserror::Error;

use super::{counter::Outcome, tls, watched::FileError};

/// The most of an answer's body that a report quotes, in characters.
const QUOTE: usize = 160;

#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: Reason,
    /// `None` when the check could not be made, which says nothing of the backend.
    pub(super) outcome: Option<Outcome>,
}

#[derive(Debug, Error)]
pub(super) enum Reason {
    #[error("HTTP {} from {url}{}", status.as_u16(), quoted(quote))]
    Status { status: StatusCode, url: String, quote: String },
    #[error("no answer from {url} within {}", humantime::format_duration(*after))]
    Slow { url: String, after: Duration },
    #[error("{address} does not answer TCP (waited {})", humantime::format_duration(*after))]
    Silent { address: SocketAddr, after: Duration },
    #[error("{address}: {}", os_text(source))]
    Connect { address: SocketAddr, source: io::Error },
    #[error("{address}: {text}")]
    Tls { address: SocketAddr, text: String },
    #[error("no HTTP/1.1 from {url}: {text}")]
    Garbage { url: String, text: String },
    #[error("connection to {address} lost: {text}")]
    Lost { address: SocketAddr, text: String },
    #[error("check not made: {0}")]
    File(#[from] FileError),
    #[error("check not made: {}", os_text(.0))]
    Local(io::Error),
}

impl Failure {
    pub(super) fn refused(reason: Reason) -> Self {
        Self { reason, outcome: Some(Outcome::Refused) }
    }

    pub(super) fn dead(reason: Reason) -> Self {
        Self { reason, outcome: Some(Outcome::Dead) }
    }

    pub(super) fn silent(reason: Reason) -> Self {
        Self { reason, outcome: Some(Outcome::Silent) }
    }

    /// A failure on this side.
    pub(super) fn not_made(reason: impl Into<Reason>) -> Self {
        Self { reason: reason.into(), outcome: None }
    }

    pub(super) fn connect(address: SocketAddr, source: io::Error) -> Self {
        match source.raw_os_error() {
            // Out of descriptors, memory or ports, or forbidden by a local filter.
            Some(
                libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EPERM
                | libc::EACCES,
            ) => Self::not_made(Reason::Local(source)),
            Some(libc::ECONNREFUSED | libc::ECONNRESET) => Self::dead(Reason::Connect { address, source }),
            _ => Self::silent(Reason::Connect { address, source }),
        }
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Self {
        Self::not_made(error)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.reason, self.outcome) {
            (Reason::Lost { .. } | Reason::Slow { .. }, Some(Outcome::Dead | Outcome::Silent)) => {
                write!(f, "{}, and TCP does not answer any more", self.reason)
            }
            (reason, _) => reason.fmt(f),
        }
    }
}

/// How an exchange broke off.
#[derive(Debug)]
pub(super) enum Broken {
    /// The host did not acknowledge what was sent to it, or cannot be reached any more.
    Silent,
    /// The peer closed or reset the connection, or it ended for another reason.
    Lost(String),
    Tls(String),
    Garbage(String),
    /// This side could not go on.
    Local(io::Error),
}

impl From<hyper::Error> for Broken {
    fn from(error: hyper::Error) -> Self {
        if let Some(io) = cause::<io::Error>(&error) {
            return Self::from(io);
        }
        // A request that was cancelled by the end of its connection carries the reason of that end.
        let reason = error.source().and_then(cause::<hyper::Error>).unwrap_or(&error);
        if reason.is_parse() {
            return Self::Garbage(reason.to_string());
        }
        Self::Lost(reason.to_string())
    }
}

impl From<&io::Error> for Broken {
    fn from(error: &io::Error) -> Self {
        if let Some(tls) = error.get_ref().and_then(|inner| cause::<rustls::Error>(inner)) {
            return Self::Tls(tls::describe(tls));
        }
        match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                Self::Silent
            }
            io::ErrorKind::UnexpectedEof => Self::Lost("closed by the peer".into()),
            _ => Self::Lost(os_text(error)),
        }
    }
}

/// The part of a body that says what is wrong, safe to print.
///
/// Kubernetes lists every check as `[+]name ok` or `[-]name failed: reason`; then only the failed ones are quoted.
pub(super) fn quote(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body);
    let failed: Vec<_> = text.lines().filter_map(|line| line.trim().strip_prefix("[-]")).collect();
    let chosen = if failed.is_empty() { text.into_owned() } else { failed.join(", ") };
    let printable: String = chosen.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let words: Vec<_> = printable.split_whitespace().collect();
    let line = words.join(" ");
    match line.char_indices().nth(QUOTE) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

fn quoted(quote: &str) -> String {
    if quote.is_empty() { String::new() } else { format!(": {quote}") }
}

/// Finds an error of type `E` in the chain that starts with `error`.
fn cause<'a, E: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a E> {
    let mut next = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref() {
            return Some(found);
        }
        next = error.source();
    }
    None
}

/// "connection refused" in place of "Connection refused (os error 111)".
fn os_text(error: &io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_are_short_and_printable() {
        for (body, expected) in [
            (&b""[..], ""),
            (b"  \r\n", ""),
            (b"etcd failed\n", "etcd failed"),
            (b"\x1b[31mred\x1b[0m\x00 \xff", "[31mred [0m \u{fffd}"),
            (
                b"[+]ping ok\n[-]etcd failed: reason withheld\n[+]log ok\nreadyz check failed\n",
                "etcd failed: reason withheld",
            ),
            (b"[-]etcd failed: a\n[-]shutdown failed: b\n", "etcd failed: a, shutdown failed: b"),
        ] {
            assert_eq!(quote(body), expected);
        }
        let long = quote("é".repeat(1000).as_bytes());
        assert_eq!(long.chars().count(), QUOTE + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn own_troubles_say_nothing_of_the_backend() {
        let address = SocketAddr::from(([10, 0, 0, 1], 6443));
        let outcome = |errno| Failure::connect(address, io::Error::from_raw_os_error(errno)).outcome;
        for errno in [libc::EMFILE, libc::ENOBUFS, libc::EADDRNOTAVAIL, libc::EPERM] {
            assert_eq!(outcome(errno), None);
        }
        for errno in [libc::EHOSTUNREACH, libc::ENETUNREACH, libc::ETIMEDOUT] {
            assert_eq!(outcome(errno), Some(Outcome::Silent));
        }
        assert_eq!(
            [libc::ECONNREFUSED, libc::ECONNRESET].map(outcome),
            [Some(Outcome::Dead); 2],
            "somebody has answered"
        );
        let refused = Failure::connect(address, io::Error::from_raw_os_error(libc::ECONNREFUSED));
        assert_eq!(refused.to_string(), "10.0.0.1:6443: connection refused");
    }
}
