//! The stand-in against what was measured on a real kube-apiserver, fact by fact. Needs root.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    sync::Arc,
    time::{Duration, Instant},
};

use ipnet::IpNet;
use lb_tests::{
    apiserver::{Apiserver, Authority, KeyFiles, Options},
    client::{Answer, Client, Failure, Stage},
    lab::{Host, HostSpec, Lab},
    wait,
};
use rustls::{ClientConnection, StreamOwned, pki_types::ServerName};

const LIMIT: Duration = Duration::from_secs(10);
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 1));
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
const TARGET: SocketAddr = SocketAddr::new(ADDRESS, 6443);
const PROBES: [&str; 3] = ["/readyz", "/livez", "/healthz"];

/// One master, one client, and an authority.
struct Site {
    master: Host,
    peer: Host,
    authority: Authority,
    server: KeyFiles,
    lab: Lab,
}

impl Site {
    fn new(name: &str) -> Self {
        let mut lab = Lab::new(name).unwrap();
        let mut host = |name: &str, address: IpAddr| {
            let network = IpNet::new(address, 24).unwrap();
            lab.add(HostSpec::new(name).on("lan", [network])).unwrap()
        };
        let (master, peer) = (host("master", ADDRESS), host("peer", PEER));
        let authority = Authority::new(&lab.directory().join("pki")).unwrap();
        let server = (authority.server("master", &[ADDRESS.to_string()])).unwrap();
        Self { master, peer, authority, server, lab }
    }

    fn options(&self) -> Options {
        let certificate = self.authority.certificate();
        Options::new("master", vec![TARGET], self.server.clone(), certificate)
    }

    fn start(&self, options: &Options) -> Apiserver {
        Apiserver::start(&self.master, options).unwrap()
    }

    fn client(&self) -> Client {
        Client::new(TARGET, &self.authority.certificate()).unwrap()
    }

    fn request(&self, client: &Client) -> Result<Answer, Failure> {
        self.peer.run(|| client.request(None)).unwrap()
    }

    fn status(&self, path: &str) -> u16 {
        let answer = self.request(&self.client().at(path)).unwrap();
        answer.status.as_u16()
    }

    /// A watch over HTTP/2, of which the test sees every frame.
    fn watch(&self, path: &str) -> Http2 {
        let stream = self.peer.enter(|| TcpStream::connect(TARGET)).unwrap().unwrap();
        Http2::open(stream, &self.client(), path)
    }
}

#[test]
fn anonymous_may_ask_how_it_is_and_little_else() {
    let site = Site::new("anonymous");
    let _server = site.start(&site.options());
    for path in PROBES.into_iter().chain(["/version"]) {
        assert_eq!(site.status(path), 200, "{path}");
    }
    assert_eq!(site.status("/api"), 403);
    assert_eq!(site.status("/nothing"), 404);
    site.lab.assert_checksums_clean();
}

#[test]
fn without_anonymous_auth_a_certificate_or_token_is_needed() {
    let site = Site::new("identity");
    let options = Options { anonymous: false, token: Some("right".to_owned()), ..site.options() };
    let _server = site.start(&options);
    for path in PROBES.into_iter().chain(["/version", "/api"]) {
        assert_eq!(site.status(path), 401, "{path}");
    }

    let with_token = |token: &str| {
        let mut client = site.client();
        client.token = Some(token.to_owned());
        site.request(&client).unwrap().status.as_u16()
    };
    assert_eq!(with_token("right"), 200);
    assert_eq!(with_token("wrong"), 401);

    let with_certificate = |authority: &Authority| {
        let identity = authority.client("probe").unwrap();
        let trusted = site.authority.certificate();
        let client = Client::with_identity(TARGET, &trusted, Some(&identity)).unwrap();
        site.request(&client).unwrap().status.as_u16()
    };
    assert_eq!(with_certificate(&site.authority), 200);
    // An answer, not a TLS alert.
    let stranger = Authority::new(&site.lab.directory().join("stranger")).unwrap();
    assert_eq!(with_certificate(&stranger), 401);
}

#[test]
fn without_etcd_every_probe_fails_after_two_seconds() {
    let site = Site::new("etcd");
    let server = site.start(&site.options());
    server.stop_etcd(true).unwrap();
    for path in PROBES {
        let start = Instant::now();
        assert_eq!(site.status(path), 500, "{path}");
        let took = start.elapsed();
        assert!((Duration::from_millis(2010)..Duration::from_millis(2900)).contains(&took), "{path} took {took:?}");
    }
    server.stop_etcd(false).unwrap();
    let start = Instant::now();
    assert_eq!(site.status("/readyz"), 200);
    assert!(start.elapsed() < Duration::from_secs(1));
}

#[test]
fn unready_is_not_dead() {
    let site = Site::new("unready");
    let server = site.start(&site.options());
    server.set_ready(false).unwrap();
    assert_eq!(PROBES.map(|path| site.status(path)), [500, 200, 200]);
    server.set_ready(true).unwrap();
    assert_eq!(PROBES.map(|path| site.status(path)), [200, 200, 200]);
}

#[test]
fn on_sigterm_readyz_fails_at_once_and_a_watch_outlives_the_listener() {
    let site = Site::new("sigterm");
    let options = Options { shutdown_delay: Duration::from_secs(3), ..site.options() };
    let server = site.start(&options);
    let opened = Instant::now();
    let mut watch = site.watch("/watch?every=50ms");
    watch.event();

    let start = Instant::now();
    server.terminate().unwrap();
    assert_eq!(PROBES.map(|path| site.status(path)), [500, 200, 200]);
    server.wait_for_closed_listeners(LIMIT).unwrap();
    assert!(start.elapsed() >= options.shutdown_delay);
    let refused = site.request(&site.client()).unwrap_err();
    assert_eq!(refused, Failure::Refused(Stage::Connect));

    // Events up to the end of the listener may wait in buffers; the one of a second later cannot.
    let later = opened.elapsed().as_millis() as u64 / 50 + 20;
    while watch.event() < later {}
    drop(watch);
    let status = server.wait_for_end(LIMIT).unwrap();
    assert!(status.success(), "{status}");
}

#[test]
fn an_idle_watch_is_pinged() {
    let site = Site::new("ping");
    let options = Options { ping: Duration::from_millis(300), ..site.options() };
    let _server = site.start(&options);
    let mut watch = site.watch("/watch");
    watch.event();
    for _ in 0..3 {
        let start = Instant::now();
        let ping = watch.next(PING);
        assert_eq!(ping.payload.len(), 8);
        watch.acknowledge(&ping);
        assert!(start.elapsed() < Duration::from_secs(2));
    }
}

#[test]
fn plain_http_gets_400() {
    let site = Site::new("plain");
    let server = site.start(&site.options());
    let plain = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect(TARGET)?;
        stream.set_read_timeout(Some(LIMIT))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let answer = site.peer.enter(plain).unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.0 400 Bad Request"), "{answer}");

    // Connecting and closing is what floods an apiserver's log.
    let connect = || TcpStream::connect(TARGET).map(drop);
    site.peer.enter(connect).unwrap().unwrap();
    let line = format!("TLS handshake error from {PEER}:");
    wait::until("both handshake errors", LIMIT, || (server.log().matches(&line).count() == 2).then_some(())).unwrap();
}

#[test]
fn it_says_who_it_is_and_who_asks() {
    let site = Site::new("whoami");
    let others: [SocketAddr; 2] = ["10.9.0.1:8443", "[::1]:6443"].map(|a| a.parse().unwrap());
    let mut options = site.options();
    options.listen.extend(others);
    let server = site.start(&options);

    let client = site.client();
    let source = SocketAddr::new(PEER, 40_123);
    let answer = (site.peer.run(|| client.request(Some(source)))).unwrap().unwrap();
    assert_eq!(answer.backend, "master");
    let said: serde_json::Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(said["backend"], "master");
    assert_eq!(said["peer"], "10.9.0.2:40123");
    assert_eq!(said["local"], "10.9.0.1:6443");
    let line = "access 10.9.0.2:40123 \"GET /whoami HTTP/1.1\" 200";
    assert!(server.log().contains(line), "{}", server.log());

    for address in others {
        site.master.enter(|| TcpStream::connect(address)).unwrap().unwrap();
    }
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

/// Just enough of HTTP/2 (RFC 9113) to see the frames that a library hides.
struct Http2(StreamOwned<ClientConnection, TcpStream>);

#[derive(Debug)]
struct Http2Frame {
    kind: u8,
    flags: u8,
    payload: Vec<u8>,
}

impl Http2 {
    fn open(stream: TcpStream, client: &Client, path: &str) -> Self {
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let name = ServerName::from(TARGET.ip());
        let tls: Arc<_> = client.tls(&["h2"]);
        let mut http = Self(StreamOwned::new(ClientConnection::new(tls, name).unwrap(), stream));
        http.0.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").unwrap();
        http.send(SETTINGS, 0, 0, &[]);
        // HPACK's static table (RFC 7541): GET, https, and the path without indexing.
        let mut headers = vec![0x82, 0x87, 0x04, path.len() as u8];
        headers.extend(path.bytes());
        http.send(HEADERS, 0x05, 1, &headers);
        assert_eq!(http.0.conn.alpn_protocol(), Some(&b"h2"[..]));
        http
    }

    fn send(&mut self, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream];
        frame.extend(payload);
        self.0.write_all(&frame).unwrap();
        self.0.flush().unwrap();
    }

    fn acknowledge(&mut self, ping: &Http2Frame) {
        self.send(PING, ACK, 0, &ping.payload);
    }

    /// The next frame of a kind that is not an acknowledgement.
    fn next(&mut self, kind: u8) -> Http2Frame {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).unwrap();
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).unwrap();
            let frame = Http2Frame { kind: head[3], flags: head[4], payload };
            if frame.kind == kind && (kind == DATA || frame.flags & ACK == 0) {
                return frame;
            }
        }
    }

    /// The next event's number.
    fn event(&mut self) -> u64 {
        let event: serde_json::Value = serde_json::from_slice(&self.next(DATA).payload).unwrap();
        assert_eq!(event["type"], "BOOKMARK");
        event["number"].as_u64().unwrap()
    }
}
