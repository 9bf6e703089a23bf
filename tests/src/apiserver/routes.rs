//! What the stand-in answers: pure decisions first, then bodies.

use std::{
    convert::Infallible,
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use futures_util::{Stream, StreamExt, stream};
use http_body_util::{BodyExt, Full, StreamBody, combinators::BoxBody};
use hyper::{
    HeaderMap, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{AUTHORIZATION, CONTENT_TYPE},
};
use serde_json::json;

/// The header that names the backend in every answer.
pub const BACKEND_HEADER: &str = "x-backend";
/// How long a real apiserver's probes take to fail without etcd (measured).
const ETCD_TIMEOUT: Duration = Duration::from_millis(2010);

pub(super) type Body = BoxBody<Bytes, hyper::Error>;

/// What can be changed while it runs.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) not_ready: AtomicBool,
    pub(super) etcd_stopped: AtomicBool,
}

/// What does not change.
#[derive(Clone, Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) anonymous: bool,
    pub(super) token: Option<String>,
}

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caller {
    pub(super) peer: SocketAddr,
    pub(super) local: SocketAddr,
    pub(super) certified: bool,
}

pub(super) async fn answer(
    request: Request<Incoming>,
    caller: Caller,
    policy: &Policy,
    state: &State,
) -> Response<Body> {
    let mut response = route(request, caller, policy, state).await;
    if let Ok(name) = policy.name.parse() {
        response.headers_mut().insert(BACKEND_HEADER, name);
    }
    response
}

async fn route(request: Request<Incoming>, caller: Caller, policy: &Policy, state: &State) -> Response<Body> {
    let user = match user(request.headers(), caller, policy) {
        Ok(user) => user,
        Err(status) => return text(status, "Unauthorized"),
    };
    match request.uri().path() {
        path @ ("/readyz" | "/healthz" | "/livez") => {
            if state.etcd_stopped.load(Ordering::Relaxed) {
                tokio::time::sleep(ETCD_TIMEOUT).await;
            }
            // Looked at again: etcd may be back.
            if state.etcd_stopped.load(Ordering::Relaxed) {
                text(StatusCode::INTERNAL_SERVER_ERROR, "[-]etcd failed")
            } else if path == "/readyz" && state.not_ready.load(Ordering::Relaxed) {
                text(StatusCode::INTERNAL_SERVER_ERROR, "[-]shutdown failed")
            } else {
                text(StatusCode::OK, "ok")
            }
        }
        "/version" => text(StatusCode::OK, r#"{"major":"1","minor":"36"}"#),
        "/api" if user == User::Anonymous => {
            text(StatusCode::FORBIDDEN, r#"forbidden: User "system:anonymous" cannot get path "/api""#)
        }
        "/api" => text(StatusCode::OK, r#"{"kind":"APIVersions"}"#),
        "/whoami" => text(
            StatusCode::OK,
            json!({"backend": policy.name, "peer": caller.peer, "local": caller.local}).to_string(),
        ),
        "/watch" => {
            let every = request.uri().query().and_then(every);
            streamed(events(every))
        }
        "/echo" => Response::new(request.into_body().boxed()),
        _ => text(StatusCode::NOT_FOUND, "404 page not found"),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum User {
    Anonymous,
    Known,
}

/// A wrong token is refused even where nobody needs one, as the apiserver does it.
fn user(headers: &HeaderMap, caller: Caller, policy: &Policy) -> Result<User, StatusCode> {
    let bearer = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    match bearer {
        _ if caller.certified => Ok(User::Known),
        Some(token) if policy.token.as_deref() == Some(token) => Ok(User::Known),
        None if policy.anonymous => Ok(User::Anonymous),
        _ => Err(StatusCode::UNAUTHORIZED),
    }
}

/// `every=100ms` of a watch's query.
fn every(query: &str) -> Option<Duration> {
    let millis = query.strip_prefix("every=")?.strip_suffix("ms")?;
    millis.parse().ok().map(Duration::from_millis)
}

/// One numbered event at once, then one each `every`, or none ever again.
fn events(every: Option<Duration>) -> impl Stream<Item = Bytes> {
    stream::unfold(0u64, move |number| async move {
        match (number, every) {
            (0, _) => {}
            (_, Some(every)) => tokio::time::sleep(every).await,
            (_, None) => std::future::pending().await,
        }
        let line = format!("{{\"type\":\"BOOKMARK\",\"number\":{number}}}\n");
        Some((Bytes::from(line), number + 1))
    })
}

fn streamed(chunks: impl Stream<Item = Bytes> + Send + Sync + 'static) -> Response<Body> {
    let frames = chunks.map(|chunk| Ok(Frame::data(chunk)));
    Response::new(BodyExt::boxed(StreamBody::new(frames)))
}

fn text(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(body.into()).map_err(|never: Infallible| match never {});
    let mut response = Response::new(body.boxed());
    *response.status_mut() = status;
    let kind = hyper::header::HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(anonymous: bool, certified: bool, bearer: Option<&str>) -> Result<User, u16> {
        let policy = Policy { name: "master-1".into(), anonymous, token: Some("right".into()) };
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let caller = Caller { peer: address, local: address, certified };
        let mut headers = HeaderMap::new();
        if let Some(token) = bearer {
            headers.insert(AUTHORIZATION, format!("Bearer {token}").parse().unwrap());
        }
        user(&headers, caller, &policy).map_err(|status| status.as_u16())
    }

    #[test]
    fn who_is_let_in() {
        assert_eq!(judged(true, false, None), Ok(User::Anonymous));
        assert_eq!(judged(true, false, Some("right")), Ok(User::Known));
        assert_eq!(judged(true, false, Some("wrong")), Err(401));
        assert_eq!(judged(false, false, None), Err(401));
        assert_eq!(judged(false, true, None), Ok(User::Known));
        assert_eq!(judged(false, false, Some("right")), Ok(User::Known));
    }

    #[test]
    fn a_watch_can_be_asked_for_events() {
        assert_eq!(every("every=250ms"), Some(Duration::from_millis(250)));
        assert_eq!(every("every=1"), None);
        assert_eq!(every("watch=true"), None);
    }
}
