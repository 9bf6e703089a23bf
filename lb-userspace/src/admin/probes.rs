//! `GET /healthz` and `GET /livez` for probes, on an address of the user's choice.

use std::net::SocketAddr;

use log::info;
use tokio::net::TcpListener;

use super::{
    Published,
    http::{self, Answer, READ_ONLY, Verb},
    metrics::ListenError,
    status::{Backend, Status, VirtualServer, state_name},
};
use crate::health::State;

/// The listener for probes.
#[derive(Debug)]
pub struct ProbeServer {
    listener: TcpListener,
}

impl ProbeServer {
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError { what: "probes", key: "healthz", address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        info!("probes on http://{address}/healthz");
        Ok(Self { listener })
    }

    /// Serves until it is dropped. Cancel-safe: answers under way are cut off.
    pub async fn serve(self, status: Published) {
        http::serve(self.listener, http::NO_BODY, move |_, verb, request| match (verb, request.uri().path()) {
            (Verb::Post, _) => Answer::not_allowed(READ_ONLY),
            (_, "/healthz") => match complaints(&status.borrow()) {
                found if found.is_empty() => Answer::text("ok\n".to_owned()),
                found => Answer::unavailable(found.join("\n") + "\n"),
            },
            (_, "/livez") => Answer::text("ok\n".to_owned()),
            _ => Answer::not_found("GET /healthz and GET /livez are served here\n"),
        })
        .await;
    }
}

/// A line for each virtual server that cannot send to anybody.
fn complaints(status: &Status) -> Vec<String> {
    let takes = |backend: &Backend| backend.state == State::Up && backend.weight > 0;
    let without = status.virtual_servers.iter().filter(|server| !server.backends.iter().any(takes));
    without.map(complaint).collect()
}

fn complaint(server: &VirtualServer) -> String {
    let state = |backend: &Backend| {
        let check = backend.last_check.as_ref().map_or("not checked yet", |check| check.text.as_str());
        match backend.weight {
            0 if backend.state == State::Up => format!("{} has weight 0", backend.name),
            _ => format!("{} is {} ({check})", backend.name, state_name(backend.state)),
        }
    };
    let states: Vec<String> = server.backends.iter().map(state).collect();
    format!("{} ({}): no backend takes connections: {}", server.name, server.vip(), states.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{super::status::tests::sample, *};

    #[test]
    fn each_virtual_server_needs_one_backend_that_takes_connections() {
        let mut status = sample();
        assert_eq!(
            complaints(&status),
            ["apiserver6 ([fd00:2::100]:16443): no backend takes connections: six is down (not checked yet)"]
        );
        status.virtual_servers[1].backends[0].state = State::Up;
        assert_eq!(complaints(&status), [""; 0]);
        status.virtual_servers[0].backends[0].weight = 0;
        let expected = "apiserver (192.168.2.100:16443): no backend takes connections: master-1 has weight 0, master-2 is draining (200 OK), \
                        master-3 is down (connect: connection refused)";
        assert_eq!(complaints(&status), [expected]);
    }
}
