//! Watches as kubelets and controllers keep them: one HTTP/2 stream whose answer never ends, on a connection of its own.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http2::{self, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::timeout;

use super::{Client, Failure, Stage, backend};

/// A watch whose first event has come.
#[derive(Debug)]
pub struct Watch {
    /// Who answers.
    pub backend: String,
    body: Incoming,
    /// The connection would be ended with it.
    _sender: SendRequest<Empty<Bytes>>,
}

impl Client {
    /// Opens a watch, from `source` if given (port 0: any).
    pub async fn watch(&self, source: Option<SocketAddr>) -> Result<Watch, Failure> {
        timeout(self.timeout, self.begin_watch(source)).await.unwrap_or(Err(Failure::Timeout(Stage::Answer)))
    }

    async fn begin_watch(&self, source: Option<SocketAddr>) -> Result<Watch, Failure> {
        let stream = self.connect(source).await?;
        let stream = self.handshake(stream, self.tls(&["h2"])).await?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(Failure::answer)?;
        tokio::spawn(connection);
        let request = Request::get(format!("https://{}/watch", self.target)).body(Empty::new());
        let request = request.map_err(|error| Failure::Other(error.to_string()))?;
        let response = sender.send_request(request).await.map_err(Failure::answer)?;
        let backend = backend(response.headers());
        let mut watch = Watch { backend, body: response.into_body(), _sender: sender };
        match watch.next().await? {
            Some(_) => Ok(watch),
            None => Err(Failure::Closed(Stage::Answer)),
        }
    }
}

impl Watch {
    /// Waits for the next part of the answer; `None` at its orderly end.
    ///
    /// Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Failure> {
        let frame = self.body.frame().await.transpose().map_err(Failure::answer)?;
        Ok(frame.and_then(|frame| frame.into_data().ok()))
    }
}
