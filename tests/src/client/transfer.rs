//! Many bytes at once: random ones sent through `/echo` and compared with what comes back.

use std::net::SocketAddr;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use tokio::time::timeout;

use super::{Client, Failure, Stage, backend};

/// Sends `length` random bytes and reads them back within the client's time for a request. Gives who echoed them; an error if
/// one byte differs.
pub async fn transfer(client: &Client, source: Option<SocketAddr>, length: usize) -> Result<String, Failure> {
    let client = client.at("/echo");
    let mut sent = vec![0; length];
    fastrand::fill(&mut sent);
    let sent = Bytes::from(sent);
    let exchange = async {
        let stream = client.connect(source).await?;
        let stream = client.handshake(stream, client.tls(&["http/1.1"])).await?;
        let response = client.send(stream, "POST", Full::new(sent.clone())).await?;
        let (head, body) = response.into_parts();
        let read = body.collect().await.map_err(Failure::answer)?.to_bytes();
        match read == sent {
            true => Ok(backend(&head.headers)),
            false => Err(Failure::Other(format!("{length} bytes sent, {} others came back", read.len()))),
        }
    };
    timeout(client.timeout, exchange).await.unwrap_or(Err(Failure::Timeout(Stage::Answer)))
}
