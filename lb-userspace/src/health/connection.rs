//! TCP and HTTP/1.1 connections as checks use them: opened in a bounded time, and closed without an RST.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use http_body_util::{BodyExt, Empty};
use hyper::{
    Request, Response, StatusCode,
    body::{Bytes, Incoming},
    client::conn::http1::{SendRequest, handshake},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use socket2::{SockRef, Socket};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use super::{
    counter::Outcome,
    failure::{Broken, Failure, Reason},
};

/// The most of a body that is read; a connection with a longer one is not kept. A full `/readyz?verbose` has 3 KiB.
pub(super) const BODY: usize = 16 * 1024;

/// Linux's shortest retransmission timeout, which is also the usual one on a fast network.
const MIN_RTO: Duration = Duration::from_millis(200);

/// How long a connection that has served its purpose waits for the peer to close as well.
const GOODBYE: Duration = Duration::from_millis(100);

/// Connects, or says why not. The address may be this host's own.
pub(super) async fn connect(address: SocketAddr, within: Duration) -> Result<TcpStream, Failure> {
    match timeout(within, TcpStream::connect(address)).await {
        Err(_elapsed) => Err(Failure::silent(Reason::Silent { address, after: within })),
        Ok(Err(error)) => Err(Failure::connect(address, error)),
        // A connect to a closed port of this host can meet itself: RFC 9293, 3.5, simultaneous open.
        Ok(Ok(stream)) if stream.local_addr().is_ok_and(|local| local == address) => {
            let refused = io::Error::from_raw_os_error(libc::ECONNREFUSED);
            Err(Failure::connect(address, refused))
        }
        Ok(Ok(stream)) => Ok(stream),
    }
}

/// What a check has come to whose request got no answer: refused if `address` accepts a TCP connection until `end`. In doubt, for want of a
/// socket, it does.
pub(super) async fn without_answer(address: SocketAddr, end: Instant) -> Outcome {
    let connected = connect(address, end - Instant::now()).await;
    connected.err().and_then(|failure| failure.outcome).unwrap_or(Outcome::Refused)
}

/// Whether an address is this host's own, so that what is sent there does not leave it. Nothing is sent.
pub(super) fn is_own(address: IpAddr) -> bool {
    let any = match address {
        IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    // Whatever port; the kernel looks for a way and says by which address.
    let source = UdpSocket::bind((any, 0)).and_then(|socket| {
        socket.connect((address, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == address)
}

/// Closes by FIN, and reads what the peer still has to say: closing a socket with unread data would send an RST.
pub(super) async fn say_goodbye(mut stream: TcpStream) {
    let mut scrap = [0; 1024];
    let farewell = async {
        stream.shutdown().await?;
        while stream.read(&mut scrap).await? > 0 {}
        io::Result::Ok(())
    };
    // The verdict on the peer is known already, however it closes.
    let _closed = timeout(GOODBYE, farewell).await;
}

/// An HTTP/1.1 connection. The task that drives it ends with this value.
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// The same socket, for its options.
    socket: Socket,
    driver: JoinSet<hyper::Result<()>>,
}

/// What a request got.
pub(super) struct Answer {
    pub(super) status: StatusCode,
    /// The first [`BODY`] bytes.
    pub(super) body: Vec<u8>,
    /// That is all of it, so the connection can carry another request.
    pub(super) whole: bool,
}

impl Connection {
    /// `silence` is how long the peer may leave what is sent to it unacknowledged, here and in [`Self::exchange`].
    pub(super) async fn plain(stream: TcpStream, silence: Duration) -> Result<Self, Broken> {
        let socket = prepare(&stream, silence).map_err(Broken::Local)?;
        Self::start(socket, stream).await
    }

    pub(super) async fn secured(
        stream: TcpStream,
        silence: Duration,
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, Broken> {
        let socket = prepare(&stream, silence).map_err(Broken::Local)?;
        match TlsConnector::from(config).connect(name, stream).await {
            Ok(stream) => Self::start(socket, stream).await,
            Err(error) => Err(Broken::from(&error)),
        }
    }

    async fn start<T>(socket: Socket, io: T) -> Result<Self, Broken>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (sender, connection) = handshake(TokioIo::new(io)).await?;
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        Ok(Self { sender, socket, driver })
    }

    /// Sends a request and reads its answer.
    ///
    /// Not cancel-safe: a connection whose exchange was dropped is of no more use.
    pub(super) async fn exchange(
        &mut self,
        request: Request<Empty<Bytes>>,
        silence: Duration,
    ) -> Result<Answer, Broken> {
        self.socket.set_tcp_user_timeout(Some(user_timeout(silence))).map_err(Broken::Local)?;
        let response = match self.send(request).await {
            Ok(response) => response,
            Err(error) => return Err(self.reason(error).await),
        };
        let status = response.status();
        let (body, whole) = read(response.into_body()).await?;
        Ok(Answer { status, body, whole })
    }

    async fn send(&mut self, request: Request<Empty<Bytes>>) -> hyper::Result<Response<Incoming>> {
        self.sender.ready().await?;
        self.sender.send_request(request).await
    }

    /// Why a request failed. Where the connection ended before the request was on it, only the driver knows.
    async fn reason(&mut self, error: hyper::Error) -> Broken {
        if !error.is_canceled() && !error.is_closed() {
            return error.into();
        }
        match self.driver.join_next().await {
            Some(Ok(Err(cause))) => cause.into(),
            Some(Ok(Ok(())) | Err(_)) | None => error.into(),
        }
    }
}

/// Sets the options of a new connection and returns a second handle to it.
fn prepare(stream: &TcpStream, silence: Duration) -> io::Result<Socket> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream).try_clone()?;
    socket.set_tcp_user_timeout(Some(user_timeout(silence)))?;
    Ok(socket)
}

/// What to tell the kernel so that unacknowledged data ends a connection after about `silence`.
///
/// It counts from the first retransmission (`retrans_stamp` in net/ipv4/tcp_timer.c), one [`MIN_RTO`] and a round trip late.
fn user_timeout(silence: Duration) -> Duration {
    silence.saturating_sub(MIN_RTO).max(silence / 2)
}

/// The beginning of a body, and whether that is all of it.
async fn read(mut body: Incoming) -> Result<(Vec<u8>, bool), hyper::Error> {
    let mut read = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else {
            continue;
        };
        let room = BODY - read.len();
        if data.len() > room {
            read.extend_from_slice(&data[..room]);
            return Ok((read, false));
        }
        read.extend_from_slice(&data);
    }
    Ok((read, true))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    /// As when a TLS alert comes between the handshake and the first request.
    #[tokio::test]
    async fn end_before_the_request_still_has_its_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let silence = Duration::from_secs(2);
        let stream = connect(listener.local_addr().unwrap(), silence).await.unwrap();
        let mut connection = Connection::plain(stream, silence).await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        server.write_all(b"220 mail.example ESMTP\r\n").await.unwrap();
        let ended = async {
            while !connection.sender.is_closed() {
                tokio::task::yield_now().await;
            }
        };
        timeout(silence, ended).await.expect("nothing was asked for");

        let mut request = Request::new(Empty::new());
        request.headers_mut().insert("host", "127.0.0.1".parse().unwrap());
        match connection.exchange(request, silence).await {
            Err(Broken::Lost(text)) => assert_eq!(text, "received unexpected message from connection"),
            Err(other) => panic!("{other:?}"),
            Ok(answer) => panic!("HTTP {}", answer.status),
        }
    }
}
