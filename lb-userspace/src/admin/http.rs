//! A small HTTP/1.1 server: one function from a request to an answer, over any listener.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Incoming},
    header,
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use log::{debug, info, warn};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{Semaphore, oneshot},
    task::JoinSet,
    time::timeout,
};

/// Connections served at once; one more waits in the listener's backlog. Scrapers and people need a handful.
const CONNECTIONS: usize = 64;
/// A connection is closed after this, whatever it does: so none of the above is held for long.
const CONNECTION: Duration = Duration::from_secs(60);
/// For what is only looked at.
pub(super) const NO_BODY: usize = 0;
/// For the head of a request.
const HEAD: Duration = Duration::from_secs(5);
/// Accepting fails when descriptors run out: wait for some to be closed rather than spin.
const AFTER_FAILURE: Duration = Duration::from_millis(100);

/// Who is at the other end, as far as the kernel vouches for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    Process { uid: u32, gid: u32, pid: Option<i32> },
    Unknown,
}

/// What goes back.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    content_type: &'static str,
    allowed: Option<&'static str>,
    body: String,
}

/// An answer, or a promise of one.
#[derive(Debug)]
pub(super) enum Reply {
    Now(Answer),
    /// Of whoever has the other end.
    Later(oneshot::Receiver<Answer>),
}

impl From<Answer> for Reply {
    fn from(answer: Answer) -> Self {
        Self::Now(answer)
    }
}

/// What to do with a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    /// GET, and HEAD, of which hyper leaves out the body.
    Get,
    Post,
}

/// What [`Verb::Get`] stands for.
pub(super) const READ_ONLY: &str = "GET, HEAD";

impl Answer {
    pub(super) fn new(content_type: &'static str, body: String) -> Self {
        Self { status: StatusCode::OK, content_type, allowed: None, body }
    }

    pub(super) fn text(body: String) -> Self {
        Self::new("text/plain; charset=utf-8", body)
    }

    pub(super) fn not_found(hint: &str) -> Self {
        Self { status: StatusCode::NOT_FOUND, ..Self::text(hint.to_owned()) }
    }

    pub(super) fn failed(reason: &str) -> Self {
        Self { status: StatusCode::INTERNAL_SERVER_ERROR, ..Self::text(reason.to_owned()) }
    }

    pub(super) fn unavailable(reason: String) -> Self {
        Self { status: StatusCode::SERVICE_UNAVAILABLE, ..Self::text(reason) }
    }

    /// What was asked for is begun, and not done yet.
    pub(super) fn accepted(what: &str) -> Self {
        Self { status: StatusCode::ACCEPTED, ..Self::text(what.to_owned()) }
    }

    pub(super) fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_string(value) {
            Ok(json) => Self::new("application/json", json),
            Err(error) => Self::failed(&format!("writing the answer: {error}\n")),
        }
    }

    /// It cannot be done as things are.
    pub(super) fn conflict(reason: &str) -> Self {
        Self { status: StatusCode::CONFLICT, ..Self::text(reason.to_owned()) }
    }

    /// `allowed` is what may be done with this path, such as "GET, HEAD".
    pub(super) fn not_allowed(allowed: &'static str) -> Self {
        let text = Self::text(format!("only {allowed} is served here\n"));
        Self { status: StatusCode::METHOD_NOT_ALLOWED, allowed: Some(allowed), ..text }
    }
}

/// Something that connections come from.
pub(super) trait Listener {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    async fn accept(&self) -> io::Result<(Self::Stream, Peer)>;
}

impl Listener for TcpListener {
    type Stream = TcpStream;
    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        Ok((TcpListener::accept(self).await?.0, Peer::Unknown))
    }
}

impl Listener for UnixListener {
    type Stream = UnixStream;
    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _) = UnixListener::accept(self).await?;
        // SO_PEERCRED: who connected, as it was then.
        let peer =
            stream.peer_cred().map_or(Peer::Unknown, |c| Peer::Process { uid: c.uid(), gid: c.gid(), pid: c.pid() });
        Ok((stream, peer))
    }
}

/// Answers by `respond`, and refuses unknown methods and bodies of more than `largest` bytes, until it is dropped; then open connections
/// end, too.
pub(super) async fn serve<L, F, R>(listener: L, largest: usize, respond: F)
where
    L: Listener,
    F: Fn(Peer, Verb, &Request<Bytes>) -> R + Send + Sync + 'static,
    R: Into<Reply>,
{
    let respond = Arc::new(respond);
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = places.clone().acquire_owned().await else {
            return;
        };
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(e) => {
                warn!("accepting a connection: {e}");
                tokio::time::sleep(AFTER_FAILURE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let respond = respond.clone();
        connections.spawn(async move {
            let service = service_fn(move |request| {
                let respond = respond.clone();
                async move { Ok::<_, Infallible>(into_response(answer(peer, request, largest, &*respond).await)) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEAD);
            let served = timeout(CONNECTION, http.serve_connection(TokioIo::new(stream), service));
            if let Ok(Err(e)) = served.await {
                debug!("connection of {peer:?}: {e}");
            }
            drop(place);
        });
    }
}

async fn answer<R: Into<Reply>>(
    peer: Peer,
    request: Request<Incoming>,
    largest: usize,
    respond: impl Fn(Peer, Verb, &Request<Bytes>) -> R,
) -> Answer {
    let (head, body) = request.into_parts();
    let Ok(body) = Limited::new(body, largest).collect().await else {
        return Answer::conflict("what was sent with this request is too long, or was cut off\n");
    };
    let request = Request::from_parts(head, body.to_bytes());
    let reply = match *request.method() {
        Method::GET | Method::HEAD => respond(peer, Verb::Get, &request).into(),
        Method::POST => respond(peer, Verb::Post, &request).into(),
        _ => Answer::not_allowed(READ_ONLY).into(),
    };
    let answer = match reply {
        Reply::Now(answer) => answer,
        Reply::Later(answer) => answer.await.unwrap_or_else(|_| Answer::failed("the daemon ends\n")),
    };
    if answer.status == StatusCode::METHOD_NOT_ALLOWED {
        info!("refused {} {} of {peer:?}", request.method(), request.uri().path());
    }
    answer
}

fn into_response(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(answer.body));
    *response.status_mut() = answer.status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(answer.content_type));
    if let Some(allowed) = answer.allowed {
        response.headers_mut().insert(header::ALLOW, header::HeaderValue::from_static(allowed));
    }
    response
}
