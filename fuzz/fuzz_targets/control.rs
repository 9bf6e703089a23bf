//! Any bytes to the control socket: what is asked for is whole and short, each answer is HTTP, and whoever calls next is served.

#![no_main]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use lb_userspace::{
    admin::{
        ControlSocket, Status,
        reload::{Outcome, Verdict},
        socket::Command,
        vrrp::{Advertisements, Instance, State},
    },
    config::{self, model::VirtualServer},
    reconcile::Orders,
};
use libfuzzer_sys::fuzz_target;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    runtime::Runtime,
    sync::{mpsc, watch},
};

const CONFIGURATION: &str = include_str!("../seeds/config/appliance.toml");
/// As in the daemon.
const LARGEST: usize = 1 << 20;
/// What a caller who has done nothing wrong asks.
const PLAIN: &[u8] = b"GET /v1/status HTTP/1.1\r\nHost: xvip\r\nConnection: close\r\n\r\n";

/// What was passed on, in all inputs together.
static COMMANDS: AtomicUsize = AtomicUsize::new(0);

struct Daemon {
    runtime: Runtime,
    path: PathBuf,
}

fuzz_target!(|data: &[u8]| {
    static DAEMON: OnceLock<Daemon> = OnceLock::new();
    let Daemon { runtime, path } = DAEMON.get_or_init(Daemon::start);
    runtime.block_on(async {
        let before = COMMANDS.load(Ordering::Relaxed);
        let answers = said(path, data).await;
        assert!(answers.is_empty() || answers.starts_with(b"HTTP/1."), "{}", String::from_utf8_lossy(&answers));
        let posts = data.windows(4).filter(|four| four == b"POST").count();
        assert!(COMMANDS.load(Ordering::Relaxed) - before <= posts, "nobody asked for that");
        let plain = said(path, PLAIN).await;
        assert!(plain.starts_with(b"HTTP/1.1 200 OK\r\n"), "{}", String::from_utf8_lossy(&plain));
    });
});

/// All that comes back. The clock is tokio's own, and stands still while anybody has something to do: so timeouts come at once, in their order.
async fn said(path: &Path, bytes: &[u8]) -> Vec<u8> {
    let mut stream = UnixStream::connect(path).await.expect("there is a place in the backlog");
    let mut answers = Vec::new();
    // A server that has seen enough closes.
    let _ = stream.write_all(bytes).await;
    let _ = stream.read_to_end(&mut answers).await;
    answers
}

impl Daemon {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let runtime = runtime.expect("a runtime");
        let path = std::env::temp_dir().join(format!("xvip-fuzz-{}", std::process::id())).join("control.sock");
        runtime.block_on(async {
            let socket = ControlSocket::bind(&path).expect("a directory of its own");
            let (publish, status) = watch::channel(Arc::new(status()));
            let (sender, commands) = mpsc::channel(8);
            tokio::spawn(socket.serve(status, sender));
            tokio::spawn(async move {
                follow(commands).await;
                drop(publish);
            });
        });
        Self { runtime, path }
    }
}

/// As the supervisor would, without a kernel.
async fn follow(mut commands: mpsc::Receiver<Command>) {
    let servers = config::parse(CONFIGURATION, "seed").expect("a good one").virtual_servers;
    let mut orders = Orders::default();
    while let Some(command) = commands.recv().await {
        COMMANDS.fetch_add(1, Ordering::Relaxed);
        match command {
            Command::Release(instance) => assert!(instance.is_none_or(|name| name == "VI_1")),
            Command::Reload(judgement) => judgement.tell(&outcome(None)),
            // The daemon would end; here it goes on, and hears more.
            Command::HandOver(judgement) => judgement.done(String::new()),
            Command::Compare { text, judgement } => {
                assert!(text.len() <= LARGEST);
                judgement.tell(&outcome(config::parse(&text, "sent").err().map(|report| report.to_string())));
            }
            Command::Order { request, judgement } => match orders.follow(&request, &servers) {
                Ok(meant) => {
                    assert!(!meant.is_empty() && are_there(&meant, &servers));
                    judgement.done(meant.join("\n"));
                }
                Err(unfit) => judgement.refuse(&unfit.to_string()),
            },
        }
        // What was written down is read the same.
        let written = orders.written();
        assert_eq!(Orders::read(written.clone(), &servers).written(), written);
    }
}

fn are_there(meant: &[String], servers: &[VirtualServer]) -> bool {
    let all: BTreeSet<String> = servers
        .iter()
        .flat_map(|server| server.backends.iter().map(|backend| format!("{}/{}", server.name, backend.name)))
        .collect();
    meant.iter().all(|name| all.contains(name))
}

fn outcome(problem: Option<String>) -> Outcome {
    let verdict = if problem.is_some() { Verdict::Refused } else { Verdict::Possible };
    Outcome { verdict, differences: Vec::new(), problem }
}

fn status() -> Status {
    let now = SystemTime::UNIX_EPOCH;
    let instance = Instance {
        name: "VI_1".to_owned(),
        interface: "eth0".to_owned(),
        vrid: 51,
        version: 3,
        state: State::Master,
        since: now,
        priority: 100,
        configured_priority: 100,
        master: None,
        transitions: 1,
        vips: Vec::new(),
        sync_group: None,
        released: false,
        tracked: Vec::new(),
        advertisements: Advertisements::default(),
        reports: Vec::new(),
    };
    Status { vrrp: vec![instance], ..Status::starting(now, Path::new("seed.toml")) }
}
