//! Single checks against stand-ins on loopback: every kind of answer, and every way of not getting one.

use std::{
    fs, io,
    sync::{
        Mutex,
        atomic::{AtomicU16, AtomicUsize, Ordering},
    },
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::JoinSet,
};

use super::*;
use crate::{
    config::model::Verify,
    health::{
        connection::BODY,
        counter::Outcome::{self, Dead, Refused, Silent},
        stand_in::{Authority, Deaf, Reply, StandIn, backend, check, closed_port, readyz, unverified, verified},
    },
};

/// Much longer than anything on loopback takes.
const SILENCE: Duration = Duration::from_secs(2);

fn probe(kind: CheckKind, address: SocketAddr) -> Probe {
    Probe::new(&check(kind), &backend(address)).unwrap()
}

/// As [`probe`], with `timeout` for a whole check.
fn hasty(kind: CheckKind, address: SocketAddr, timeout: Duration) -> Probe {
    Probe { timeout, ..probe(kind, address) }
}

async fn failure(probe: &mut Probe) -> (Option<Outcome>, String) {
    let failure = probe.check(SILENCE).await.expect_err("the check should fail");
    (failure.outcome, failure.to_string())
}

#[tokio::test]
async fn five_https_checks_use_one_connection() {
    let authority = Authority::new();
    let server = StandIn::start(Some(authority.server(&["127.0.0.1"])), |_| Reply::ok()).await;
    let mut probe = probe(CheckKind::Https(readyz(), verified(&authority, None)), server.address);
    for _ in 0..5 {
        let answer = probe.check(SILENCE).await.unwrap();
        assert_eq!(answer, format!("HTTP 200 from https://{}/readyz", server.address));
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn request_is_what_was_configured() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let server = StandIn::start(None, move |request| {
        let header = |name| request.headers().get(name).map(|v| v.to_str().unwrap().to_owned());
        log.lock().unwrap().push((
            request.method().to_string(),
            request.uri().to_string(),
            header("host"),
            header("user-agent"),
            header("authorization"),
        ));
        Reply::ok()
    })
    .await;
    let mut plain = probe(CheckKind::Http(readyz()), server.address);
    plain.check(SILENCE).await.unwrap();
    let request = HttpRequest { path: "/healthz?verbose".into(), host: Some("kube.example".into()), ..readyz() };
    probe(CheckKind::Http(request), server.address).check(SILENCE).await.unwrap();

    let agent = Some(format!("xvip/{}", env!("CARGO_PKG_VERSION")));
    let sent = |uri: &str, host: String| ("GET".to_owned(), uri.to_owned(), Some(host), agent.clone(), None);
    assert_eq!(
        *seen.lock().unwrap(),
        [sent("/readyz", server.address.to_string()), sent("/healthz?verbose", "kube.example".into())]
    );
}

#[tokio::test]
async fn failing_status_is_refused_and_quoted_and_keeps_the_connection() {
    let authority = Authority::new();
    let server = StandIn::start(Some(authority.server(&["127.0.0.1"])), |_| {
        Reply::Answer(500, "[+]ping ok\n[-]etcd failed: reason withheld\nreadyz failed\n".into())
    })
    .await;
    let mut probe = probe(CheckKind::Https(readyz(), unverified()), server.address);
    for _ in 0..3 {
        let expected = format!("HTTP 500 from https://{}/readyz: etcd failed: reason withheld", server.address);
        assert_eq!(failure(&mut probe).await, (Some(Refused), expected));
    }
    assert_eq!(server.accepted(), 1);
}

#[tokio::test]
async fn status_ranges_are_inclusive() {
    let status = Arc::new(AtomicU16::new(0));
    let next = status.clone();
    let server = StandIn::start(None, move |_| Reply::Answer(next.load(Ordering::SeqCst), String::new())).await;
    let request = HttpRequest { status: vec![(200, 299), (401, 401), (403, 403)], ..readyz() };
    let mut probe = probe(CheckKind::Http(request), server.address);
    for (code, healthy) in
        [(200, true), (299, true), (300, false), (401, true), (402, false), (403, true), (404, false), (500, false)]
    {
        status.store(code, Ordering::SeqCst);
        let result = probe.check(SILENCE).await;
        assert_eq!(result.is_ok(), healthy, "HTTP {code}: {result:?}");
    }
}

#[tokio::test]
async fn certificate_of_another_authority_is_refused() {
    let authority = Authority::new();
    let server = StandIn::start(Some(authority.server(&["127.0.0.1"])), |_| Reply::ok()).await;
    for (name, text) in [
        ("another", "certificate not signed by the configured authority"),
        ("kubernetes", "signature not by the configured authority, but perhaps by one of the same name"),
    ] {
        let other = Authority::called(name);
        let mut wary = probe(CheckKind::Https(readyz(), verified(&other, None)), server.address);
        let expected = format!("{}: {text}", server.address);
        assert_eq!(failure(&mut wary).await, (Some(Refused), expected));
    }
    let mut careless = probe(CheckKind::Https(readyz(), unverified()), server.address);
    careless.check(SILENCE).await.unwrap();
}

#[tokio::test]
async fn certificate_without_the_name_is_refused_and_its_names_told() {
    let authority = Authority::new();
    let tls = authority.server(&["kubernetes", "10.0.0.1"]);
    let server = StandIn::start(Some(tls), |_| Reply::ok()).await;
    let mut by_address = probe(CheckKind::Https(readyz(), verified(&authority, None)), server.address);
    let expected =
        format!("{}: certificate not valid for name 127.0.0.1: it has DNS:kubernetes, IP:10.0.0.1", server.address);
    assert_eq!(failure(&mut by_address).await, (Some(Refused), expected));

    let named = verified(&authority, Some("kubernetes"));
    probe(CheckKind::Https(readyz(), named), server.address).check(SILENCE).await.unwrap();
}

#[tokio::test]
async fn client_certificate_is_given_where_there_is_one() {
    let authority = Authority::new();
    let tls = authority.server_for_clients(&["127.0.0.1"]);
    let server = StandIn::start(Some(tls), |_| Reply::ok()).await;
    let bare = verified(&authority, None);
    let known = Tls { client_certificate: Some(authority.client()), ..bare.clone() };

    let mut anonymous = probe(CheckKind::Https(readyz(), bare), server.address);
    let expected = format!("{}: the server requires a client certificate", server.address);
    assert_eq!(failure(&mut anonymous).await, (Some(Refused), expected));
    probe(CheckKind::Https(readyz(), known), server.address).check(SILENCE).await.unwrap();
}

#[tokio::test]
async fn renewed_authority_counts_from_the_next_check() {
    let (old, new) = (Authority::new(), Authority::new());
    let server = StandIn::start(Some(new.server(&["127.0.0.1"])), |_| Reply::ok()).await;
    let mut probe = probe(CheckKind::Https(readyz(), verified(&old, None)), server.address);
    assert_eq!(failure(&mut probe).await.0, Some(Refused));
    fs::copy(new.path(), old.path()).unwrap();
    probe.check(SILENCE).await.unwrap();
}

#[tokio::test]
async fn unreadable_authority_says_nothing_of_the_backend() {
    let authority = Authority::new();
    let server = StandIn::start(Some(authority.server(&["127.0.0.1"])), |_| Reply::ok()).await;
    let missing = authority.dir().join("missing.crt");
    let tls = Tls { verify: Verify::Authority(missing.clone()), ..unverified() };
    let mut probe = probe(CheckKind::Https(readyz(), tls), server.address);
    let (outcome, text) = failure(&mut probe).await;
    assert_eq!(outcome, None);
    assert!(text.starts_with(&format!("check not made: cannot use {}: No such", missing.display())), "{text}");
}

#[tokio::test]
async fn token_is_read_again_when_it_changes() {
    let authority = Authority::new();
    let tls = authority.server(&["127.0.0.1"]);
    let server =
        StandIn::start(Some(tls), |request| match request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes) {
            Some(b"Bearer new") => Reply::ok(),
            _ => Reply::Answer(401, "Unauthorized".into()),
        })
        .await;
    let token = authority.dir().join("token");
    fs::write(&token, "old\n").unwrap();
    let request = HttpRequest { token_file: Some(token.clone()), ..readyz() };
    let mut probe = probe(CheckKind::Https(request, unverified()), server.address);
    let expected = format!("HTTP 401 from https://{}/readyz: Unauthorized", server.address);
    assert_eq!(failure(&mut probe).await, (Some(Refused), expected));

    fs::write(&token, "new\n").unwrap();
    probe.check(SILENCE).await.unwrap();
    assert_eq!(server.accepted(), 1, "a token needs no new connection");
}

#[tokio::test]
async fn connection_closed_while_idle_is_no_failure() {
    let authority = Authority::new();
    let server = StandIn::start(Some(authority.server(&["127.0.0.1"])), |_| Reply::ok()).await;
    let mut probe = probe(CheckKind::Https(readyz(), unverified()), server.address);
    for round in 1..=5 {
        probe.check(SILENCE).await.unwrap();
        assert_eq!(server.accepted(), round);
        server.close_connections();
    }
}

/// The server takes the request on the kept connection, and then closes without an answer.
#[tokio::test]
async fn connection_closed_instead_of_an_answer_is_tried_again() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let server = StandIn::start(None, move |_| {
        // The second request is the first one on a kept connection.
        if count.fetch_add(1, Ordering::SeqCst) == 1 { Reply::Hang } else { Reply::ok() }
    })
    .await;
    let mut probe = probe(CheckKind::Http(readyz()), server.address);
    probe.check(SILENCE).await.unwrap();
    let close = async {
        while requests.load(Ordering::SeqCst) < 2 {
            tokio::task::yield_now().await;
        }
        server.close_connections();
    };
    let (checked, ()) = tokio::join!(probe.check(SILENCE), close);
    checked.unwrap();
    assert_eq!(server.accepted(), 2);
}

#[tokio::test]
async fn restarted_server_is_met_on_a_new_connection_and_a_dead_one_is_dead() {
    let server = StandIn::start(None, |_| Reply::ok()).await;
    let address = server.address;
    let mut probe = probe(CheckKind::Http(readyz()), address);
    probe.check(SILENCE).await.unwrap();

    drop(server);
    let expected = format!("{address}: connection refused");
    assert_eq!(failure(&mut probe).await, (Some(Dead), expected));

    let listener = TcpListener::bind(address).await.unwrap();
    let _server = StandIn::serve(listener, None, |_| Reply::ok());
    probe.check(SILENCE).await.unwrap();
}

/// Waits out real time: the sockets are real.
#[tokio::test]
async fn hanging_server_is_refused_after_the_timeout() {
    let server = StandIn::start(None, |_| Reply::Hang).await;
    let timeout = Duration::from_millis(400);
    let mut probe = hasty(CheckKind::Http(readyz()), server.address, timeout);
    for connections in [2, 4] {
        let start = Instant::now();
        let expected = format!("no answer from http://{}/readyz within 400ms", server.address);
        assert_eq!(failure(&mut probe).await, (Some(Refused), expected));
        assert!(start.elapsed() >= timeout && start.elapsed() < timeout * 2);
        assert_eq!(server.accepted(), connections, "one for the check, one to see whether TCP lives");
    }
}

#[tokio::test]
async fn slow_answer_is_waited_for() {
    let server = StandIn::start(None, |_| Reply::Late(Duration::from_millis(350))).await;
    let mut probe = hasty(CheckKind::Http(readyz()), server.address, Duration::from_millis(400));
    probe.check(SILENCE).await.unwrap();
    assert_eq!(server.accepted(), 2, "TCP was asked for meanwhile");
    probe.check(SILENCE).await.unwrap();
    assert_eq!(server.accepted(), 3, "the connection was kept");
}

/// The kept connection is acknowledged but not answered, and a new one is not even accepted: one timeout decides.
#[tokio::test]
async fn hanging_server_without_tcp_is_silent_in_one_timeout() {
    let mut deaf = Deaf::new();
    let timeout = Duration::from_millis(400);
    let mut probe = hasty(CheckKind::Http(readyz()), deaf.address, timeout);
    let accept = deaf.listener.try_clone().unwrap();
    let answered = tokio::task::spawn_blocking(move || {
        let (mut stream, _) = accept.accept().unwrap();
        io::Read::read(&mut stream, &mut [0; 1024]).unwrap();
        io::Write::write_all(&mut stream, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
        stream
    });
    probe.check(SILENCE).await.unwrap();
    let _open = answered.await.unwrap();

    deaf.fill();
    let start = Instant::now();
    let (outcome, text) = failure(&mut probe).await;
    assert_eq!(outcome, Some(Silent), "{text}");
    assert!(text.ends_with("within 400ms, and TCP does not answer any more"), "{text}");
    assert!(start.elapsed() < timeout + Duration::from_millis(200));
}

#[tokio::test]
async fn host_that_does_not_answer_a_syn_is_silent_after_the_silence() {
    let mut deaf = Deaf::new();
    deaf.fill();
    for kind in [CheckKind::Tcp, CheckKind::Http(readyz())] {
        let mut probe = probe(kind, deaf.address);
        let start = Instant::now();
        let failure = probe.check(Duration::from_millis(150)).await.unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(failure.outcome, Some(Silent));
        let expected = format!("{} does not answer TCP (waited 150ms)", deaf.address);
        assert_eq!(failure.to_string(), expected);
    }
}

#[tokio::test]
async fn closed_port_is_dead_for_every_kind() {
    for kind in [CheckKind::Tcp, CheckKind::Http(readyz()), CheckKind::Https(readyz(), unverified())] {
        let address = closed_port();
        let expected = format!("{address}: connection refused");
        assert_eq!(failure(&mut probe(kind, address)).await, (Some(Dead), expected));
    }
}

#[tokio::test]
async fn plain_http_to_a_tls_port_is_refused() {
    let authority = Authority::new();
    let server = StandIn::start(Some(authority.server(&["127.0.0.1"])), |_| Reply::ok()).await;
    let mut probe = probe(CheckKind::Http(readyz()), server.address);
    let expected =
        format!("HTTP 400 from http://{}/readyz: Client sent an HTTP request to an HTTPS server.", server.address);
    assert_eq!(failure(&mut probe).await, (Some(Refused), expected));
}

#[tokio::test]
async fn tls_to_a_plain_port_is_refused() {
    let server = StandIn::start(None, |_| Reply::ok()).await;
    let mut probe = probe(CheckKind::Https(readyz(), unverified()), server.address);
    let expected = format!("{}: the port does not speak TLS", server.address);
    assert_eq!(failure(&mut probe).await, (Some(Refused), expected));
}

/// Says `words` to every connection, at once or when spoken to, and closes it.
async fn parrot(words: &'static [u8], listens: bool) -> (SocketAddr, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut task = JoinSet::new();
    task.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            if listens {
                let _heard = stream.read(&mut [0; 1024]).await;
            }
            let _said = stream.write_all(words).await;
            say_goodbye(stream).await;
        }
    });
    (address, task)
}

#[tokio::test]
async fn garbage_is_refused() {
    let (address, _task) = parrot(b"500 what?\r\n\r\n", true).await;
    let expected = format!("no HTTP/1.1 from http://{address}/readyz: invalid HTTP version parsed");
    let mut probe = probe(CheckKind::Http(readyz()), address);
    assert_eq!(failure(&mut probe).await, (Some(Refused), expected));
}

#[tokio::test]
async fn server_that_speaks_first_is_refused() {
    let (address, _task) = parrot(b"220 mail.example ESMTP\r\n", false).await;
    let (outcome, text) = failure(&mut probe(CheckKind::Http(readyz()), address)).await;
    assert_eq!(outcome, Some(Refused), "{text}");
    // Whether its words come before the request is on its way is a matter of luck.
    assert!(text.contains("HTTP version") || text.contains("unexpected message"), "{text}");
}

#[tokio::test]
async fn close_without_a_word_is_refused_while_tcp_lives() {
    let (address, _task) = parrot(b"", true).await;
    for (kind, text) in [
        (CheckKind::Http(readyz()), "connection closed before message completed"),
        (CheckKind::Https(readyz(), unverified()), "closed by the peer"),
    ] {
        let expected = format!("connection to {address} lost: {text}");
        assert_eq!(failure(&mut probe(kind, address)).await, (Some(Refused), expected));
    }
}

#[tokio::test]
async fn long_body_is_cut_and_its_connection_not_kept() {
    for (length, connections) in [(BODY, 1), (BODY + 1, 2)] {
        let server = StandIn::start(None, move |_| Reply::Answer(200, "x".repeat(length))).await;
        let mut probe = probe(CheckKind::Http(readyz()), server.address);
        probe.check(SILENCE).await.unwrap();
        probe.check(SILENCE).await.unwrap();
        assert_eq!(server.accepted(), connections, "{length} bytes");
    }
}

#[tokio::test]
async fn tcp_check_closes_by_fin_and_hears_the_server_out() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut probe = probe(CheckKind::Tcp, listener.local_addr().unwrap());
    let serve = async {
        let (mut stream, _) = listener.accept().await?;
        assert_eq!(stream.read(&mut [0; 16]).await?, 0);
        // A socket that is closed and not only shut down answers with an RST, which the second write meets.
        stream.write_all(b"220 mail.example ESMTP\r\n").await?;
        stream.write_all(b"421 bye\r\n").await
    };
    let (checked, served) = tokio::join!(probe.check(SILENCE), serve);
    checked.unwrap();
    served.unwrap();
}

#[tokio::test]
async fn another_port_can_be_checked() {
    let server = StandIn::start(None, |_| Reply::ok()).await;
    let check = Check { port: Some(server.address.port()), ..check(CheckKind::Http(readyz())) };
    let mut probe = Probe::new(&check, &backend(closed_port())).unwrap();
    probe.check(SILENCE).await.unwrap();
}

#[tokio::test]
async fn dropped_check_takes_its_connection_with_it() {
    let requests = Arc::new(AtomicUsize::new(0));
    let count = requests.clone();
    let server =
        StandIn::start(
            None,
            move |_| {
                if count.fetch_add(1, Ordering::SeqCst) == 1 { Reply::Hang } else { Reply::ok() }
            },
        )
        .await;
    let mut probe = probe(CheckKind::Http(readyz()), server.address);
    probe.check(SILENCE).await.unwrap();
    tokio::select! {
        _ = probe.check(SILENCE) => panic!("the second request hangs"),
        () = async { while requests.load(Ordering::SeqCst) < 2 { tokio::task::yield_now().await } } => {}
    }
    probe.check(SILENCE).await.unwrap();
    assert_eq!(server.accepted(), 2);
}
