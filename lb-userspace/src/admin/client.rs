//! The other end of the control socket, for the command line.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{Request, StatusCode, body::Bytes, client::conn::http1, header, http::request};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use tokio::{net::UnixStream, time::timeout};

use super::{Status, reload::Outcome};

/// For the whole exchange.
const DEADLINE: Duration = Duration::from_secs(10);
/// Thousands of backends fit.
const LARGEST_STATUS: usize = 16 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no xvip daemon listens on {}. Start one (systemctl start xvip, or xvip run -c FILE), or name its control socket \
         if it has another.", socket.display()
    )]
    NotRunning { socket: PathBuf },
    #[error("this user may not open {}. Become root (sudo), or a member of the group that owns it.", socket.display())]
    Forbidden { socket: PathBuf },
    #[error("the daemon on {} did not answer within {} s. Look at its log (journalctl -u xvip).", socket.display(), DEADLINE.as_secs())]
    Silent { socket: PathBuf },
    #[error("the daemon on {} ended before it had answered. Look at its log (journalctl -u xvip).", socket.display())]
    Ended { socket: PathBuf },
    #[error("{0}")]
    Refused(String),
    #[error("asking the daemon on {}: {reason}. It may be of another version than this command.", socket.display())]
    Talk { socket: PathBuf, reason: String },
}

/// Asks the daemon that listens on `socket` for its status.
pub async fn status(socket: &Path) -> Result<Status, ClientError> {
    read(socket, &ask(socket, Request::get("/v1/status"), String::new()).await?)
}

/// Asks it to read its configuration again, and waits until it has.
pub async fn reload(socket: &Path) -> Result<Outcome, ClientError> {
    read(socket, &ask(socket, Request::post("/v1/reload"), String::new()).await?)
}

/// Asks it what it would do if its configuration were this text.
pub async fn compare(socket: &Path, text: String) -> Result<Outcome, ClientError> {
    read(socket, &ask(socket, Request::post("/v1/compare"), text).await?)
}

/// Orders something for backends. What follows, in words.
pub async fn order(socket: &Path, order: &crate::reconcile::Request) -> Result<String, ClientError> {
    let talk = |e: serde_json::Error| ClientError::Talk { socket: socket.to_owned(), reason: e.to_string() };
    let body = serde_json::to_string(order).map_err(talk)?;
    let said = ask(socket, Request::post("/v1/backends"), body).await?;
    Ok(String::from_utf8_lossy(&said).into_owned())
}

/// Asks it to end and to leave the data plane to the next daemon. It begins to when this returns.
pub async fn hand_over(socket: &Path) -> Result<(), ClientError> {
    match ask(socket, Request::post("/v1/handover"), String::new()).await {
        // It does not wait until everybody has read its answers.
        Ok(_) | Err(ClientError::Ended { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Asks it to hand VIPs over: those of one instance and its sync group, or all. It begins to when this returns.
pub async fn release(socket: &Path, instance: Option<&str>) -> Result<(), ClientError> {
    let query = instance.map(|name| format!("?instance={name}")).unwrap_or_default();
    ask(socket, Request::post(format!("/v1/vrrp/release{query}")), String::new()).await.map(drop)
}

fn read<T: DeserializeOwned>(socket: &Path, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|e| ClientError::Talk { socket: socket.to_owned(), reason: e.to_string() })
}

async fn ask(socket: &Path, request: request::Builder, body: String) -> Result<Bytes, ClientError> {
    let silent = |_| ClientError::Silent { socket: socket.to_owned() };
    timeout(DEADLINE, exchange(socket, request, body)).await.map_err(silent)?
}

async fn exchange(socket: &Path, request: request::Builder, body: String) -> Result<Bytes, ClientError> {
    let talk = |reason: String| ClientError::Talk { socket: socket.to_owned(), reason };
    let stream = UnixStream::connect(socket).await.map_err(|e| match e.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
            ClientError::NotRunning { socket: socket.to_owned() }
        }
        io::ErrorKind::PermissionDenied => ClientError::Forbidden { socket: socket.to_owned() },
        _ => talk(e.to_string()),
    })?;
    let request = request.header(header::HOST, "xvip").body(Full::<Bytes>::from(body));
    let request = request.map_err(|e| talk(e.to_string()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|e| talk(e.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| match error.is_incomplete_message() {
            true => ClientError::Ended { socket: socket.to_owned() },
            false => talk(error.to_string()),
        })?;
        let status = response.status();
        let body = Limited::new(response.into_body(), LARGEST_STATUS).collect().await;
        let body = body.map_err(|e| talk(e.to_string()))?.to_bytes();
        match status {
            StatusCode::OK | StatusCode::ACCEPTED => Ok(body),
            StatusCode::CONFLICT => Err(ClientError::Refused(String::from_utf8_lossy(&body).trim().to_owned())),
            _ => Err(talk(format!("{status}: {}", String::from_utf8_lossy(&body).trim()))),
        }
    };
    tokio::pin!(answer);
    // The connection moves the bytes; it ends first only when the daemon closes it, and the answer then says how far it came.
    tokio::select! {
        answered = &mut answer => answered,
        _ = connection => answer.await,
    }
}
