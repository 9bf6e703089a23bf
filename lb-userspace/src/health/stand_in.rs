//! A small server for tests: HTTP/1.1 with or without TLS, that answers, hangs, closes and counts as it is told.

use std::{
    convert::Infallible,
    fs,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    num::NonZeroU32,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use http_body_util::Full;
use hyper::{
    Request, Response,
    body::{Bytes, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::{
    RootCertStore, ServerConfig,
    crypto::ring,
    pki_types::{CertificateDer, PrivatePkcs8KeyDer},
    server::WebPkiClientVerifier,
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;

use crate::config::model::{Backend, Check, CheckKind, HttpRequest, Tls, Verify};

/// What a request gets.
pub(super) enum Reply {
    Answer(u16, String),
    /// 200, after a while.
    Late(Duration),
    /// Nothing, while the connection stays open.
    Hang,
}

impl Reply {
    pub(super) fn ok() -> Self {
        Self::Answer(200, "ok".into())
    }
}

pub(super) struct StandIn {
    pub(super) address: SocketAddr,
    accepted: Arc<AtomicUsize>,
    closing: watch::Sender<()>,
    _listener: JoinSet<()>,
}

impl StandIn {
    /// Serves on a port of its own.
    pub(super) async fn start(
        tls: Option<Arc<ServerConfig>>,
        reply: impl Fn(&Request<Incoming>) -> Reply + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        Self::serve(listener, tls, reply)
    }

    pub(super) fn serve(
        listener: TcpListener,
        tls: Option<Arc<ServerConfig>>,
        reply: impl Fn(&Request<Incoming>) -> Reply + Clone + Send + Sync + 'static,
    ) -> Self {
        let address = listener.local_addr().unwrap();
        let accepted = Arc::new(AtomicUsize::new(0));
        let (closing, closed) = watch::channel(());
        let mut task = JoinSet::new();
        let counter = accepted.clone();
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                counter.fetch_add(1, Ordering::SeqCst);
                let (tls, reply, mut closed) = (tls.clone(), reply.clone(), closed.clone());
                closed.mark_unchanged();
                connections.spawn(async move {
                    tokio::select! {
                        () = connection(stream, tls, reply) => {}
                        _ = closed.changed() => {}
                    }
                });
            }
        });
        Self { address, accepted, closing, _listener: task }
    }

    /// TCP connections accepted so far.
    pub(super) fn accepted(&self) -> usize {
        self.accepted.load(Ordering::SeqCst)
    }

    /// Closes every connection, as at the end of a keep-alive time, and goes on listening.
    pub(super) fn close_connections(&self) {
        self.closing.send_replace(());
    }
}

async fn connection(
    mut stream: TcpStream,
    tls: Option<Arc<ServerConfig>>,
    reply: impl Fn(&Request<Incoming>) -> Reply + Clone + Send + Sync + 'static,
) {
    let Some(tls) = tls else {
        return requests(stream, reply).await;
    };
    let mut first = [0];
    if !matches!(stream.peek(&mut first).await, Ok(1)) {
        return;
    }
    if first != [0x16] {
        // As Go's server does with anything but a TLS record of type handshake.
        let answer = "HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
        let _answered = stream.write_all(answer.as_bytes()).await;
        let _closed = stream.shutdown().await;
        return;
    }
    if let Ok(stream) = TlsAcceptor::from(tls).accept(stream).await {
        if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
            // A real server would go on in a protocol that checks do not speak.
            return;
        }
        requests(stream, reply).await;
    }
}

async fn requests(io: impl AsyncRead + AsyncWrite + Unpin, reply: impl Fn(&Request<Incoming>) -> Reply + Clone) {
    let service = service_fn(move |request| {
        let reply = reply(&request);
        async move {
            let (status, body) = match reply {
                Reply::Hang => std::future::pending().await,
                Reply::Late(wait) => {
                    tokio::time::sleep(wait).await;
                    (200, "ok".into())
                }
                Reply::Answer(status, body) => (status, body),
            };
            let mut response = Response::new(Full::new(Bytes::from(body)));
            *response.status_mut() = status.try_into().unwrap();
            Ok::<_, Infallible>(response)
        }
    });
    let _ended = http1::Builder::new().serve_connection(TokioIo::new(io), service).await;
}

/// A certificate authority, and the files of what it has signed.
pub(super) struct Authority {
    dir: TempDir,
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
}

impl Authority {
    pub(super) fn new() -> Self {
        Self::called("kubernetes")
    }

    pub(super) fn called(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("ca.crt"), certificate.pem()).unwrap();
        Self { dir, certificate: certificate.der().clone(), issuer: Issuer::new(params, key) }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.dir.path().join("ca.crt")
    }

    pub(super) fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// A server with a certificate for `names`.
    pub(super) fn server(&self, names: &[&str]) -> Arc<ServerConfig> {
        self.server_config(names, None)
    }

    /// A server that also requires client certificates of this authority.
    pub(super) fn server_for_clients(&self, names: &[&str]) -> Arc<ServerConfig> {
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).unwrap();
        self.server_config(names, Some(roots))
    }

    fn server_config(&self, names: &[&str], clients: Option<RootCertStore>) -> Arc<ServerConfig> {
        let (certificate, key) = self.sign(names, ExtendedKeyUsagePurpose::ServerAuth);
        let provider = Arc::new(ring::default_provider());
        let builder =
            ServerConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions().unwrap();
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(roots) => builder.with_client_cert_verifier(
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap(),
            ),
        };
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        let mut config = builder.with_single_cert(vec![certificate.der().clone()], key.into()).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    /// The files of a client's certificate and key.
    pub(super) fn client(&self) -> (PathBuf, PathBuf) {
        let (certificate, key) = self.sign(&["checker"], ExtendedKeyUsagePurpose::ClientAuth);
        let paths = (self.dir.path().join("client.crt"), self.dir.path().join("client.key"));
        fs::write(&paths.0, certificate.pem()).unwrap();
        fs::write(&paths.1, key.serialize_pem()).unwrap();
        paths
    }

    fn sign(&self, names: &[&str], usage: ExtendedKeyUsagePurpose) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().copied().map(String::from).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.extended_key_usages = vec![usage];
        (params.signed_by(&key, &self.issuer).unwrap(), key)
    }
}

pub(super) fn backend(address: SocketAddr) -> Backend {
    Backend { name: "one".into(), address: address.ip(), port: address.port(), weight: 1, backup: false }
}

/// A port of this host on which nothing listens.
pub(super) fn closed_port() -> SocketAddr {
    let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    listener.local_addr().unwrap()
}

pub(super) fn check(kind: CheckKind) -> Check {
    Check {
        kind,
        interval: Duration::from_secs(2),
        timeout: Duration::from_secs(3),
        rise: NonZeroU32::new(2).unwrap(),
        fall: NonZeroU32::new(3).unwrap(),
        jitter_percent: 10,
        port: None,
    }
}

pub(super) fn readyz() -> HttpRequest {
    HttpRequest { path: "/readyz".into(), status: vec![(200, 200)], host: None, token_file: None }
}

/// TLS that verifies by `authority`, for `name` or else the address.
pub(super) fn verified(authority: &Authority, name: Option<&str>) -> Tls {
    Tls { verify: Verify::Authority(authority.path()), server_name: name.map(String::from), client_certificate: None }
}

pub(super) fn unverified() -> Tls {
    Tls { verify: Verify::No, server_name: None, client_certificate: None }
}

/// Accepts `first` connections into `listener`'s queue of length 0, and lets SYNs fall on the floor after that.
pub(super) struct Deaf {
    pub(super) address: SocketAddr,
    pub(super) listener: socket2::Socket,
    queue: Vec<socket2::Socket>,
}

impl Deaf {
    /// Listens with the shortest queue there is.
    pub(super) fn new() -> Self {
        let listener = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = (IpAddr::from(Ipv4Addr::LOCALHOST), 0).into();
        listener.bind(&any.into()).unwrap();
        listener.listen(0).unwrap();
        let address = listener.local_addr().unwrap().as_socket().unwrap();
        Self { address, listener, queue: Vec::new() }
    }

    /// Fills the queue, until a connect is no longer answered.
    pub(super) fn fill(&mut self) {
        loop {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            // On loopback the answer to a SYN is there before connect() returns to its caller.
            let answered = socket.connect_timeout(&self.address.into(), Duration::from_millis(100)).is_ok();
            self.queue.push(socket);
            if !answered {
                return;
            }
            assert!(self.queue.len() < 10, "the queue has no end");
        }
    }
}
