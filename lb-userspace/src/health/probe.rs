//! One check of one backend, over a connection that is kept between checks.
//!
//! What fails on a kept connection because the peer closed it (its keep-alive ran out, it restarted) is tried again at once
//! on a new one, within the same timeout. Whether a failure means *refused*, *dead* or *silent* is decided by TCP, in the same timeout:
//!
//! * A host that vanished does not acknowledge the request. The kernel then ends the connection after the `silence` the caller
//!   allows (`TCP_USER_TIMEOUT`), and a connect is given no longer: silent.
//! * An answer that is late by three quarters of the timeout is waited for, while a second connection finds out whether TCP
//!   still answers. An apiserver without etcd needs 2.01 s for its answer and, with the default timeout, is spared this.
//! * A connection that is lost on a fresh attempt is followed by one more connect, which decides.

use std::{net::SocketAddr, path::Path, pin::pin, sync::Arc, time::Duration};

use http_body_util::Empty;
use hyper::{
    Request, Uri,
    body::Bytes,
    header::{ACCEPT, AUTHORIZATION, HOST, HeaderValue, USER_AGENT},
};
use rustls::{ClientConfig, pki_types::ServerName};
use thiserror::Error;
use tokio::time::{Instant, sleep_until};

use super::{
    connection::{Answer, Connection, connect, say_goodbye, without_answer},
    counter::Outcome,
    failure::{Broken, Failure, Reason, quote},
    tls,
    watched::{FileError, Watched},
};
use crate::config::model::{Backend, Check, CheckKind, HttpRequest, Tls};

/// Checks one backend, again and again.
pub(super) struct Probe {
    address: SocketAddr,
    timeout: Duration,
    /// `None` for a TCP check.
    http: Option<Http>,
}

/// A check that can never be made.
#[derive(Debug, Error)]
pub(super) enum Unusable {
    #[error("{0:?} is no path of an HTTP request")]
    Path(String),
    #[error("{0:?} is no Host header")]
    Host(String),
    #[error("{0:?} is no name of a TLS server")]
    ServerName(String),
}

impl Probe {
    pub(super) fn new(check: &Check, backend: &Backend) -> Result<Self, Unusable> {
        let address = SocketAddr::new(backend.address, check.port.unwrap_or(backend.port));
        let http = match &check.kind {
            CheckKind::Tcp => None,
            CheckKind::Http(request) => Some(Http::new(address, request, None)?),
            CheckKind::Https(request, tls) => Some(Http::new(address, request, Some(tls))?),
        };
        Ok(Self { address, timeout: check.timeout, http })
    }

    /// Makes one check and says what was answered.
    ///
    /// `silence` is how long the host may say nothing at all, not even by TCP.
    ///
    /// Cancel-safe: a check that is dropped half-way takes its connection with it, and the next one opens another.
    pub(super) async fn check(&mut self, silence: Duration) -> Result<String, Failure> {
        let start = Instant::now();
        let end = start + self.timeout;
        let Some(http) = &mut self.http else {
            let stream = connect(self.address, silence.min(self.timeout)).await?;
            say_goodbye(stream).await;
            return Ok(format!("connected to {}", self.address));
        };
        let (address, url) = (http.address, http.url.clone());

        let mut attempt = pin!(http.attempt(silence));
        let mut lives = pin!(async {
            sleep_until(start + self.timeout.mul_f64(0.75)).await;
            without_answer(address, end).await
        });
        let mut outcome = None;
        let done = loop {
            tokio::select! {
                biased;
                done = &mut attempt => break done,
                known = &mut lives, if outcome.is_none() => outcome = Some(known),
                () = sleep_until(end) => {
                    let slow = Reason::Slow { url, after: self.timeout };
                    return Err(Failure { reason: slow, outcome: outcome.or(Some(Outcome::Silent)) });
                }
            }
        };
        match done {
            // A refused check over a connection that broke: one more connect tells what is behind it.
            Err(Failure { reason: reason @ Reason::Lost { .. }, .. }) => {
                let outcome = without_answer(address, end).await;
                Err(Failure { reason, outcome: Some(outcome) })
            }
            done => done,
        }
    }
}

struct Http {
    address: SocketAddr,
    url: String,
    path: Uri,
    host: HeaderValue,
    status: Vec<(u16, u16)>,
    token: Option<Watched<HeaderValue>>,
    tls: Option<(ServerName<'static>, Watched<Arc<ClientConfig>>)>,
    kept: Option<Connection>,
}

impl Http {
    fn new(address: SocketAddr, request: &HttpRequest, tls: Option<&Tls>) -> Result<Self, Unusable> {
        let scheme = if tls.is_some() { "https" } else { "http" };
        let host = request.host.clone().unwrap_or_else(|| address.to_string());
        let tls = tls.map(|tls| {
            let name = tls::server_name(tls, address.ip())
                .map_err(|_invalid| Unusable::ServerName(tls.server_name.clone().unwrap_or_default()))?;
            Ok((name, tls::watched_config(tls)))
        });
        Ok(Self {
            address,
            url: format!("{scheme}://{address}{}", request.path),
            path: request.path.parse().map_err(|_invalid| Unusable::Path(request.path.clone()))?,
            host: HeaderValue::from_str(&host).map_err(|_invalid| Unusable::Host(host))?,
            status: request.status.clone(),
            token: request.token_file.as_deref().map(watched_token),
            tls: tls.transpose()?,
            kept: None,
        })
    }

    /// One check on the kept connection, or on a new one.
    async fn attempt(&mut self, silence: Duration) -> Result<String, Failure> {
        if let Some((_, config)) = &mut self.tls
            && config.refresh()?
        {
            // Another certificate or authority counts from the next handshake.
            self.kept = None;
        }
        if let Some(token) = &mut self.token {
            token.refresh()?;
        }
        if let Some(kept) = self.kept.take() {
            match self.ask(kept, silence).await {
                Ok(answer) => return self.judge(&answer),
                Err(Broken::Silent) => return Err(self.failure(Broken::Silent, silence)),
                // Closed by the peer, or no longer of use: a fresh connection decides.
                Err(Broken::Lost(_) | Broken::Tls(_) | Broken::Garbage(_) | Broken::Local(_)) => {}
            }
        }
        let fresh = self.open(silence).await?;
        match self.ask(fresh, silence).await {
            Ok(answer) => self.judge(&answer),
            Err(broken) => Err(self.failure(broken, silence)),
        }
    }

    async fn open(&self, silence: Duration) -> Result<Connection, Failure> {
        let stream = connect(self.address, silence).await?;
        let opened = match &self.tls {
            None => Connection::plain(stream, silence).await,
            Some((name, config)) => {
                let config = config.value().expect("refreshed before every attempt").clone();
                Connection::secured(stream, silence, config, name.clone()).await
            }
        };
        opened.map_err(|broken| self.failure(broken, silence))
    }

    /// One request; keeps the connection where it can be used again.
    async fn ask(&mut self, mut connection: Connection, silence: Duration) -> Result<Answer, Broken> {
        let answer = connection.exchange(self.request(), silence).await?;
        if answer.whole {
            self.kept = Some(connection);
        }
        Ok(answer)
    }

    fn request(&self) -> Request<Empty<Bytes>> {
        let mut request = Request::new(Empty::new());
        *request.uri_mut() = self.path.clone();
        let headers = request.headers_mut();
        headers.insert(HOST, self.host.clone());
        headers.insert(USER_AGENT, HeaderValue::from_static(concat!("xvip/", env!("CARGO_PKG_VERSION"))));
        headers.insert(ACCEPT, HeaderValue::from_static("*/*"));
        if let Some(token) = self.token.as_ref().and_then(Watched::value) {
            headers.insert(AUTHORIZATION, token.clone());
        }
        request
    }

    fn judge(&self, answer: &Answer) -> Result<String, Failure> {
        let (status, code) = (answer.status, answer.status.as_u16());
        if self.status.iter().any(|(from, to)| (*from..=*to).contains(&code)) {
            return Ok(format!("HTTP {code} from {}", self.url));
        }
        let (url, quote) = (self.url.clone(), quote(&answer.body));
        Err(Failure::refused(Reason::Status { status, url, quote }))
    }

    fn failure(&self, broken: Broken, silence: Duration) -> Failure {
        let (address, url) = (self.address, self.url.clone());
        match broken {
            Broken::Silent => Failure::silent(Reason::Silent { address, after: silence }),
            Broken::Lost(text) => Failure::refused(Reason::Lost { address, text }),
            Broken::Tls(text) => Failure::refused(Reason::Tls { address, text }),
            Broken::Local(error) => Failure::not_made(Reason::Local(error)),
            Broken::Garbage(text) => Failure::refused(Reason::Garbage { url, text }),
        }
    }
}

fn watched_token(path: &Path) -> Watched<HeaderValue> {
    let path = path.to_owned();
    Watched::new(vec![path.clone()], move || {
        let text = std::fs::read_to_string(&path).map_err(|e| FileError::new(&path, e))?;
        let token = text.trim();
        if token.is_empty() {
            return Err(FileError::new(&path, "it has no token"));
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_invalid| FileError::new(&path, "its content is no bearer token"))?;
        value.set_sensitive(true);
        Ok(value)
    })
}

#[cfg(test)]
mod tests;
