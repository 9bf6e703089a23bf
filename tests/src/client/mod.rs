//! A client of the VIP: every request over a new TCP and TLS connection, and what became of each.
//!
//! Futures run in the namespace of the thread that polls them: start them with [`crate::lab::Host::run`].

mod echo;
mod failure;
mod load;
mod streams;
mod transfer;
mod watch;

use std::{
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::Result;
use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode,
    body::{Body, Bytes},
    client::conn::http1,
    header::{AUTHORIZATION, CONNECTION, HOST},
};
use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use rustls::{ClientConfig, client::Resumption, crypto::ring, pki_types::ServerName};
use tokio::{
    net::{TcpSocket, TcpStream},
    time::timeout,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

pub use self::{
    echo::{EchoPlan, EchoReport, echo},
    failure::{Failure, Stage},
    load::{Load, Outcome, Report, run},
    streams::{End, Episode, Streams},
    transfer::transfer,
    watch::Watch,
};
use crate::apiserver::{BACKEND_HEADER, KeyFiles, tls};

/// For one whole request; above the 2.01 s that an apiserver without etcd takes.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Where requests go and as whom.
#[derive(Clone, Debug)]
pub struct Client {
    pub target: SocketAddr,
    pub path: String,
    /// For one whole request: connect, handshake, answer.
    pub timeout: Duration,
    pub token: Option<String>,
    tls: Arc<ClientConfig>,
}

/// An answer, whatever its status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: StatusCode,
    /// Who answered; empty where it did not say.
    pub backend: String,
    pub body: String,
}

impl Client {
    /// A client that trusts one authority and asks for `/whoami`.
    pub fn new(target: SocketAddr, authority: &Path) -> Result<Self> {
        Self::with_identity(target, authority, None)
    }

    /// The same, with a client certificate.
    pub fn with_identity(target: SocketAddr, authority: &Path, identity: Option<&KeyFiles>) -> Result<Self> {
        let builder = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(tls::roots(authority)?);
        let mut config = match identity {
            Some(files) => {
                builder.with_client_auth_cert(tls::certificates(&files.certificate)?, tls::private_key(&files.key)?)?
            }
            None => builder.with_no_client_auth(),
        };
        // A ticket of one backend is nothing to another, and every handshake is to cost the same.
        config.resumption = Resumption::disabled();
        Ok(Self { target, path: "/whoami".to_owned(), timeout: TIMEOUT, token: None, tls: Arc::new(config) })
    }

    /// The same client for another path.
    pub fn at(&self, path: &str) -> Self {
        Self { path: path.to_owned(), ..self.clone() }
    }

    /// The TLS configuration, with other protocols offered.
    pub fn tls(&self, alpn: &[&str]) -> Arc<ClientConfig> {
        let mut config = ClientConfig::clone(&self.tls);
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config)
    }

    /// One request over a connection of its own, from `source` if given (port 0: any).
    pub async fn request(&self, source: Option<SocketAddr>) -> Result<Answer, Failure> {
        let mut stage = Stage::Connect;
        timeout(self.timeout, self.exchange(source, &mut stage)).await.unwrap_or(Err(Failure::Timeout(stage)))
    }

    async fn exchange(&self, source: Option<SocketAddr>, stage: &mut Stage) -> Result<Answer, Failure> {
        let stream = self.connect(source).await?;
        *stage = Stage::Handshake;
        let stream = self.handshake(stream, Arc::clone(&self.tls)).await?;
        *stage = Stage::Answer;
        self.ask(stream).await
    }

    /// One request over a connection that is open already.
    pub async fn request_over(&self, stream: TcpStream) -> Result<Answer, Failure> {
        let whole = async { self.ask(self.handshake(stream, Arc::clone(&self.tls)).await?).await };
        timeout(self.timeout, whole).await.unwrap_or(Err(Failure::Timeout(Stage::Answer)))
    }

    async fn ask(&self, stream: TlsStream<TcpStream>) -> Result<Answer, Failure> {
        let response = self.send(stream, "GET", Empty::<Bytes>::new()).await?;
        let (head, body) = response.into_parts();
        let body = body.collect().await.map_err(Failure::answer)?.to_bytes();
        Ok(Answer {
            status: head.status,
            backend: backend(&head.headers),
            body: String::from_utf8_lossy(&body).into_owned(),
        })
    }

    pub async fn connect(&self, source: Option<SocketAddr>) -> Result<TcpStream, Failure> {
        let stream = async {
            let socket = match self.target {
                SocketAddr::V4(_) => TcpSocket::new_v4()?,
                SocketAddr::V6(_) => TcpSocket::new_v6()?,
            };
            if let Some(source) = source {
                socket.set_reuseaddr(true)?;
                // Else bind takes a port for itself before the destination is known, and they run out.
                setsockopt(&socket.as_fd(), IpBindAddressNoPort, &true)?;
                socket.bind(source)?;
            }
            let stream = socket.connect(self.target).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        };
        stream.await.map_err(|e| Failure::io(Stage::Connect, &e))
    }

    /// TLS over an open connection; the certificate must name the target's address.
    pub async fn handshake(
        &self,
        stream: TcpStream,
        config: Arc<ClientConfig>,
    ) -> Result<TlsStream<TcpStream>, Failure> {
        let name = ServerName::from(self.target.ip());
        TlsConnector::from(config).connect(name, stream).await.map_err(|error| Failure::io(Stage::Handshake, &error))
    }

    /// HTTP/1.1, for one request; the connection lives as long as the answer's body is being read.
    async fn send<B>(
        &self,
        stream: TlsStream<TcpStream>,
        method: &str,
        body: B,
    ) -> Result<Response<hyper::body::Incoming>, Failure>
    where
        B: Body<Data = Bytes, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
        B: Send + 'static,
    {
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(Failure::answer)?;
        tokio::spawn(connection);
        let mut request = Request::builder()
            .method(method)
            .uri(&self.path)
            .header(HOST, self.target.to_string())
            .header(CONNECTION, "close");
        if let Some(token) = &self.token {
            request = request.header(AUTHORIZATION, format!("Bearer {token}"));
        }
        let request = request.body(body).map_err(|error| Failure::Other(error.to_string()))?;
        sender.send_request(request).await.map_err(Failure::answer)
    }
}

/// `count` addresses in a row, for a host that is to be many clients; add them with [`crate::lab::Host::add_address`].
pub fn addresses(first: IpAddr, count: u32) -> Vec<IpAddr> {
    (0..count)
        .map(|n| match first {
            IpAddr::V4(v4) => IpAddr::V4(u32::from(v4).wrapping_add(n).into()),
            IpAddr::V6(v6) => IpAddr::V6(u128::from(v6).wrapping_add(n.into()).into()),
        })
        .collect()
}

fn backend(headers: &hyper::HeaderMap) -> String {
    (headers.get(BACKEND_HEADER)).and_then(|name| name.to_str().ok()).unwrap_or_default().to_owned()
}
