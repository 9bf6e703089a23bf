//! The health room against hosts that vanish: packets go into a veth whose other end ignores them. Needs root.

use std::{
    net::Ipv4Addr,
    num::NonZeroU32,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use lb_userspace::{
    config::model::{
        AllDown, Backend, Balance, Check, CheckKind, Excess, HttpRequest, OnDown, PreferLocal, ServerMode,
        VirtualServer,
    },
    health::{Checkers, Report, Reports, State},
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout},
};

/// Far more than anything here takes, so that a failure ends.
const DEADLINE: Duration = Duration::from_secs(20);

/// A host behind the veth that is there only while a local route leads to it.
const BACKEND: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 11);

/// Runs `test` on a thread whose network namespace is new and ends with it.
fn in_namespace(test: impl AsyncFnOnce() -> anyhow::Result<()> + Send + 'static) -> anyhow::Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run it as root, with `cargo xtask test`"
    );
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("unshare")?;
        ip("link set lo up")?;
        ip("link add near type veth peer name far")?;
        ip("link set near up")?;
        ip("link set far up")?;
        ip("address add 192.0.2.10/24 dev near")?;
        // Not the address of the other end, which therefore drops what comes.
        ip("neighbour add 192.0.2.11 lladdr 02:00:00:00:00:11 dev near nud permanent")?;
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(test())
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("ip (package iproute2)")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The host comes to life here, or vanishes without a word.
fn backend_is_there(there: bool) -> anyhow::Result<()> {
    let verb = if there { "add" } else { "del" };
    ip(&format!("route {verb} local {BACKEND} dev lo table local src 192.0.2.10"))
}

/// Answers every request with 200 and counts connections.
struct Server {
    port: u16,
    connections: Arc<AtomicUsize>,
    _task: JoinSet<()>,
}

async fn serve() -> anyhow::Result<Server> {
    let listener = TcpListener::bind((BACKEND, 0)).await?;
    let port = listener.local_addr()?.port();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let mut task = JoinSet::new();
    task.spawn(async move {
        let mut streams = JoinSet::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            streams.spawn(async move {
                // A request comes in one segment.
                while stream.read(&mut [0; 1024]).await? > 0 {
                    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await?;
                }
                std::io::Result::Ok(())
            });
        }
    });
    Ok(Server { port, connections, _task: task })
}

fn check_every_second(port: u16, fall: u32) -> anyhow::Result<Checkers> {
    let request = HttpRequest { path: "/readyz".into(), status: vec![(200, 200)], host: None, token_file: None };
    Ok(Checkers::spawn(&[VirtualServer {
        name: "api".into(),
        address: Ipv4Addr::new(192, 0, 2, 100).into(),
        port: 6443,
        interface: None,
        mode: ServerMode::Nat,
        elsewhere: false,
        on_down: OnDown::Reset,
        balance: Balance::default(),
        slow_start: Duration::ZERO,
        prefer_local: PreferLocal::default(),
        all_down: AllDown::default(),
        connection_rate: 0,
        over_rate: Excess::default(),
        allow: Vec::new(),
        deny: Vec::new(),
        drain: Duration::ZERO,
        check: Check {
            kind: CheckKind::Http(request),
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(3),
            rise: NonZeroU32::MIN,
            fall: NonZeroU32::new(fall).context("fall")?,
            jitter_percent: 50,
            port: None,
        },
        backends: vec![Backend { name: "m1".into(), address: BACKEND.into(), port, weight: 1, backup: false }],
    }]))
}

/// Waits for a report of the only backend that is as `wanted`.
async fn until(reports: &mut watch::Receiver<Reports>, wanted: impl Fn(&Report) -> bool) -> anyhow::Result<Report> {
    let all = timeout(DEADLINE, reports.wait_for(|all| all.values().all(&wanted))).await??.clone();
    Ok(all.values().next().context("a backend")?.clone())
}

/// From the last good check of a host that then vanishes, until its backend is down.
async fn time_to_notice(fall: u32) -> anyhow::Result<(Duration, Report)> {
    backend_is_there(true)?;
    let server = serve().await?;
    let checkers = check_every_second(server.port, fall)?;
    let mut reports = checkers.reports();
    until(&mut reports, |report| report.checks == 3 && report.state == State::Up).await?;
    ensure!(server.connections.load(Ordering::SeqCst) == 1, "three checks on one connection");

    backend_is_there(false)?;
    let gone = Instant::now();
    let first = until(&mut reports, |report| report.failures == 1).await?;
    until(&mut reports, |report| report.state == State::Down).await?;
    let noticed = gone.elapsed();
    checkers.stop().await;
    Ok((noticed, first))
}

/// The first failed check is one on the kept connection: it must not take the whole timeout, let alone two.
#[test]
fn vanished_host_is_down_within_interval_times_fall_plus_a_second() -> anyhow::Result<()> {
    in_namespace(async || {
        for (fall, silence) in [(3, "1s"), (1, "600ms")] {
            let (noticed, first) = time_to_notice(fall).await?;
            let text = first.last_check.context("a check")?.text;
            ensure!(text.contains(&format!("does not answer TCP (waited {silence})")), "fall {fall}: {text}");
            let promise = Duration::from_secs(u64::from(fall) + 1);
            ensure!(noticed <= promise, "fall {fall}: down after {noticed:?}");
            println!("fall {fall}: a vanished host was down after {noticed:?} of {promise:?}");
        }
        Ok(())
    })
}
