//! `GET /metrics` and `GET /healthz` on loopback.

use std::{io, net::SocketAddr};

use log::info;
use tokio::net::TcpListener;

use super::{
    Published, exposition,
    http::{self, Answer, READ_ONLY, Verb},
};

/// A listener could not be opened.
#[derive(Debug, thiserror::Error)]
#[error(
    "serving {what} on {address}: {source}. Set admin.{key} to a free address of this host, or to \"off\" to serve none."
)]
pub struct ListenError {
    pub(super) what: &'static str,
    /// In the section `[admin]`.
    pub(super) key: &'static str,
    pub(super) address: SocketAddr,
    pub(super) source: io::Error,
}

/// `GET /metrics` and `GET /healthz` on one address.
#[derive(Debug)]
pub struct MetricsServer {
    listener: TcpListener,
}

impl MetricsServer {
    pub async fn bind(address: SocketAddr) -> Result<Self, ListenError> {
        let failed = |source| ListenError { what: "metrics", key: "metrics", address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        info!("metrics on http://{address}/metrics");
        Ok(Self { listener })
    }

    pub fn address(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until it is dropped. Cancel-safe: answers under way are cut off.
    pub async fn serve(self, status: Published) {
        http::serve(self.listener, http::NO_BODY, move |_, verb, request| {
            match (verb, request.uri().path()) {
                (Verb::Post, _) => Answer::not_allowed(READ_ONLY),
                // That this answers at all is the health of the daemon; that of the backends is in the metrics.
                (_, "/healthz") => Answer::text("ok\n".to_owned()),
                (_, "/metrics") => Answer::new(exposition::CONTENT_TYPE, exposition::render(&status.borrow())),
                _ => Answer::not_found("GET /metrics and GET /healthz are served here\n"),
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpStream,
        sync::watch,
    };

    use super::{super::status::tests::sample, *};

    async fn request(address: SocketAddr, line: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{line} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut response = String::new();
        stream.read_to_string(&mut response).await.unwrap();
        response
    }

    #[tokio::test]
    async fn a_scrape_gets_the_latest_status() {
        let server = MetricsServer::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let address = server.address().unwrap();
        let (publish, status) = watch::channel(Arc::new(sample()));
        let serving = tokio::spawn(server.serve(status));

        let response = request(address, "GET /metrics").await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
        assert!(
            response.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n"),
            "{response}"
        );
        assert!(response.contains("\nxvip_tracked_connections 24\n") && response.ends_with("# EOF\n"), "{response}");
        publish.send_modify(|status| Arc::make_mut(status).connections.tracked = 25);
        assert!(request(address, "GET /metrics").await.contains("\nxvip_tracked_connections 25\n"));

        assert!(request(address, "GET /healthz").await.ends_with("\r\n\r\nok\n"));
        assert!(request(address, "GET /").await.starts_with("HTTP/1.1 404 "));
        for method in ["DELETE", "POST"] {
            let response = request(address, &format!("{method} /metrics")).await;
            assert!(
                response.starts_with("HTTP/1.1 405 ") && response.contains("\r\nallow: GET, HEAD\r\n"),
                "{response}"
            );
        }
        serving.abort();
    }

    #[tokio::test]
    async fn a_taken_address_is_named() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let message = MetricsServer::bind(address).await.unwrap_err().to_string();
        assert!(message.starts_with(&format!("serving metrics on {address}: ")), "{message}");
    }
}
