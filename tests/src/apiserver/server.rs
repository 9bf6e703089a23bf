//! The stand-in itself: listeners, connections, and the end of them.
//!
//! ```text
//!   SIGTERM  readyz 500 at once ... shutdown delay ... listeners closed, idle connections ended, watches live on
//!   SIGUSR1  etcd stops or returns        SIGUSR2  readyz fails or recovers; nothing else changes
//! ```

use std::{
    convert::Infallible,
    io,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, atomic::AtomicBool, atomic::Ordering},
    time::Duration,
};

use anyhow::{Context, Result};
use hyper::{Request, Response, Version, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
};
use rustls::pki_types::UnixTime;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::watch,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{
    routes::{self, Body, Caller, Policy, State},
    tls::{self, Judge},
};

/// Printed when all listeners are open.
pub(super) const SERVING: &str = "serving";
/// What Go's net/http answers to plain HTTP on a TLS port.
const PLAIN_HTTP: &[u8] = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n";
/// As Go listens: net.core.somaxconn of today's kernels.
const BACKLOG: u32 = 4096;
/// The kube-apiserver's `ReadHeaderTimeout`, by which Go bounds handshakes too.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(32);

/// The command line.
#[derive(Clone, Debug, clap::Parser)]
pub struct Arguments {
    /// The name given in every answer.
    #[arg(long)]
    pub(super) name: String,
    /// An address to listen on; may be given more than once.
    #[arg(long, required = true)]
    pub(super) listen: Vec<SocketAddr>,
    #[arg(long)]
    pub(super) certificate: PathBuf,
    #[arg(long)]
    pub(super) key: PathBuf,
    /// The authority of client certificates.
    #[arg(long)]
    pub(super) client_ca: PathBuf,
    /// A bearer token that is let in.
    #[arg(long)]
    pub(super) token: Option<String>,
    /// Answer 401 to whoever has neither certificate nor token.
    #[arg(long)]
    pub(super) no_anonymous: bool,
    /// Milliseconds between SIGTERM and the end of the listeners.
    #[arg(long, default_value_t = 0)]
    pub(super) shutdown_delay: u64,
    /// Milliseconds that open streams have after that.
    #[arg(long, default_value_t = 60_000)]
    pub(super) grace: u64,
    /// Milliseconds between two HTTP/2 PINGs.
    #[arg(long, default_value_t = 30_000)]
    pub(super) ping: u64,
}

struct Server {
    policy: Policy,
    state: State,
    acceptor: TlsAcceptor,
    judge: Judge,
    ping: Duration,
    /// True once connections are to end when they fall idle.
    closing: watch::Receiver<bool>,
}

/// Serves until SIGTERM and the end of the last stream, or of its grace.
pub async fn serve(arguments: Arguments) -> Result<()> {
    let (config, judge) = tls::server(&arguments.certificate, &arguments.key, &arguments.client_ca)?;
    let (close, closing) = watch::channel(false);
    let server = Arc::new(Server {
        policy: Policy { name: arguments.name, anonymous: !arguments.no_anonymous, token: arguments.token },
        state: State::default(),
        acceptor: TlsAcceptor::from(config),
        judge,
        ping: Duration::from_millis(arguments.ping),
        closing,
    });

    // Before the word that it serves: a signal sent after it must not kill.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut etcd = signal(SignalKind::user_defined1())?;
    let mut ready = signal(SignalKind::user_defined2())?;
    let mut listeners = JoinSet::new();
    for address in arguments.listen {
        let listener = listen(address).with_context(|| format!("listen on {address}"))?;
        listeners.spawn(accept(Arc::clone(&server), listener));
    }
    println!("{SERVING}");

    wait_for_end(&server.state, &mut terminate, &mut etcd, &mut ready).await;
    server.state.not_ready.store(true, Ordering::Relaxed);
    println!("shutting down");
    sleep(Duration::from_millis(arguments.shutdown_delay)).await;
    listeners.shutdown().await;
    println!("listeners closed");
    close.send_replace(true);
    drop(server);
    // The last connection drops the last receiver.
    let _ = timeout(Duration::from_millis(arguments.grace), close.closed()).await;
    Ok(())
}

async fn wait_for_end(state: &State, terminate: &mut Signal, etcd: &mut Signal, ready: &mut Signal) {
    let toggle = |flag: &AtomicBool, on: &str, off: &str| {
        let was = flag.fetch_xor(true, Ordering::Relaxed);
        println!("{}", if was { off } else { on });
    };
    loop {
        tokio::select! {
            _ = etcd.recv() => toggle(&state.etcd_stopped, "etcd stopped", "etcd returned"),
            _ = ready.recv() => toggle(&state.not_ready, "not ready", "ready again"),
            _ = terminate.recv() => return,
        }
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn accept(server: Arc<Server>, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => {
                let peer = canonical(peer);
                let server = Arc::clone(&server);
                tokio::spawn(async move {
                    if let Err(error) = server.connection(stream, peer).await {
                        // The apiserver's own words, for whoever counts what checks do to its log.
                        println!("http: TLS handshake error from {peer}: {error}");
                    }
                });
            }
            // Out of descriptors, say; the next one may do.
            Err(error) => {
                println!("accept: {error}");
                sleep(Duration::from_millis(10)).await;
            }
        }
    }
}

impl Server {
    async fn connection(self: Arc<Self>, mut stream: TcpStream, peer: SocketAddr) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let local = canonical(stream.local_addr()?);
        let tls = timeout(HANDSHAKE_LIMIT, async {
            if is_plain_http(&stream).await? {
                reject(&mut stream).await?;
                return Err(io::Error::other("client sent an HTTP request to an HTTPS server"));
            }
            self.acceptor.accept(stream).await
        })
        .await??;
        let certified = tls.get_ref().1.peer_certificates().is_some_and(|chain| {
            chain.split_first().is_some_and(|(leaf, intermediates)| {
                self.judge.verify_client_cert(leaf, intermediates, UnixTime::now()).is_ok()
            })
        });
        let caller = Caller { peer, local, certified };

        let mut closing = self.closing.clone();
        let ping = self.ping;
        let service = service_fn(move |request| {
            let server = Arc::clone(&self);
            async move { Ok::<_, Infallible>(server.answer(request, caller).await) }
        });
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder.http2().timer(TokioTimer::new()).keep_alive_interval(ping);
        let connection = builder.serve_connection(TokioIo::new(tls), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = connection.as_mut() => return Ok(()),
            _ = closing.wait_for(|&closing| closing) => connection.as_mut().graceful_shutdown(),
        }
        // How a connection ends is its client's affair.
        let _ = connection.await;
        Ok(())
    }

    async fn answer(&self, request: Request<Incoming>, caller: Caller) -> Response<Body> {
        let line = format!("{} {} {}", request.method(), request.uri().path(), version(request.version()));
        let response = routes::answer(request, caller, &self.policy, &self.state).await;
        println!("access {} \"{line}\" {}", caller.peer, response.status().as_u16());
        response
    }
}

/// A TLS record starts with 0x16; Go looks for the methods too.
async fn is_plain_http(stream: &TcpStream) -> io::Result<bool> {
    let mut start = [0; 5];
    let length = stream.peek(&mut start).await?;
    if length == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "EOF"));
    }
    let methods = ["GET /", "HEAD ", "POST ", "PUT /", "OPTIO"];
    Ok(methods.iter().any(|method| method.as_bytes().starts_with(&start[..length])))
}

/// The request is read first: closing with unread bytes would reset the connection before the answer is seen.
async fn reject(stream: &mut TcpStream) -> io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await?;
    stream.write_all(PLAIN_HTTP).await?;
    stream.shutdown().await
}

/// IPv4 as such, where the listener is of both families.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// As Go's access logs have it.
fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_2 => "HTTP/2.0",
        Version::HTTP_11 => "HTTP/1.1",
        _ => "HTTP/1.0",
    }
}
