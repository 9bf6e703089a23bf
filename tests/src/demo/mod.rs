//! The demo: deployment C, its real addresses, the real xvip on both load balancers, many clients. A backend is killed and comes
//! back; then the load balancer that holds the VIP is lost, in three ways, and comes back each time.

mod claims;
mod failover;
mod interrupt;
mod live;
mod screen;
mod show;
mod traffic;

use std::{
    env,
    net::{IpAddr, SocketAddr},
    path::Path,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lb_userspace::health::State;

use self::{
    claims::{Claim, Moments, Record, Shares},
    failover::Failover,
    interrupt::{Interrupt, Interrupted},
    screen::Screen,
    show::{Appliance, Show},
    traffic::{Requests, SOURCES, Streams},
};
use crate::{
    apiserver::Apiserver,
    client::Outcome,
    topology::{Deployment, Topology},
    xvip::{self, Xvip},
};

/// Holds the VIP while it can.
const NODE: &str = "ha-lb-a";
const PARTNER: &str = "ha-lb-b";
const VICTIM: &str = "master-2";
/// Quicker than the default of 2 s and 3, so that nobody has to wait.
const INTERVAL: Duration = Duration::from_millis(500);
const FALL: u32 = 2;
/// From a backend's death, or its return, until xvip acts on it: interval × fall + 1 s.
const ALLOWED: Duration = Duration::from_millis(2000);
/// For whatever has a limit of its own that is judged afterwards.
const PATIENCE: Duration = Duration::from_secs(15);
const STEADY: Duration = Duration::from_secs(3);
const OUTAGE: Duration = Duration::from_secs(5);
/// Streams on each backend that is left alone, and as many of the victim's clients while it is dead.
const STREAMS: usize = 5;
/// What a shell gives for a program that Ctrl-C has ended.
const INTERRUPTED: u8 = 130;

/// What the recording of a demo gives.
struct Summary {
    claims: Vec<Claim>,
    before: Shares,
    during: Shares,
    after: Shares,
    masters: Vec<String>,
    /// A client of each backend, for the user to try.
    clients: Vec<(IpAddr, String)>,
}

/// Shows it, or with `check` judges it unattended; whatever happens, nothing is left on the host.
pub fn main(check: bool) -> ExitCode {
    match Interrupt::watch().and_then(|interrupt| run(check, &interrupt)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) if error.is::<Interrupted>() => {
            eprintln!("interrupted; everything is removed");
            ExitCode::from(INTERRUPTED)
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Everything from the first namespace to the last. Gives whether every promise was kept.
fn run(check: bool, interrupt: &Interrupt) -> Result<bool> {
    let mut screen = Screen::new(check);
    screen.tell("building C: 2 load balancers, 3 masters, 3 workers, a client");
    let deployment = Topology::C.build("demo")?;
    interrupt.check()?;
    let mut apiservers = deployment.start_apiservers()?;
    interrupt.check()?;
    let mut first = Some(start_xvip(&deployment, NODE)?);
    interrupt.check()?;
    let second = start_xvip(&deployment, PARTNER)?;
    interrupt.check()?;
    screen.tell(&format!(
        "xvip runs on {NODE} and {PARTNER}; it checks every {INTERVAL:?}, and {FALL} failures are enough"
    ));

    let summary = perform(&mut screen, interrupt, &deployment, &mut apiservers, &mut first)?;
    let first = first.context("the first appliance came back")?;
    report(&screen, &summary);
    let kept = summary.claims.iter().all(|claim| claim.holds);
    if !check {
        invite(&screen, &deployment, &first, &summary)?;
        interrupt.wait();
        screen.print("");
    }
    for xvip in [second, first] {
        let ended = xvip.stop()?;
        ensure!(ended.success(), "xvip ended with {ended}");
    }
    Ok(kept)
}

/// Starts one of the two, and waits until it is ready to hold the VIPs.
fn start_xvip(deployment: &Deployment, node: &str) -> Result<Xvip> {
    let priority = if node == NODE { 100 } else { 98 };
    let quick = (deployment.xvip_config(node)?)
        .replace("interval = \"2s\"", &format!("interval = \"{INTERVAL:?}\""))
        .replace("fall = 3", &format!("fall = {FALL}"));
    let mut text = quick;
    for (vrid, name, v6) in [(51, "ipv4", false), (52, "ipv6", true)] {
        let vip = Topology::C.endpoint(v6).ip();
        text += &format!(
            "\n[[vrrp]]\nname = \"{name}\"\ninterface = \"eth0\"\nvrid = {vrid}\nversion = 3\npriority = {priority}\naddresses = [\"{vip}\"]\n"
        );
    }
    let xvip = Xvip::start_with(deployment, node, &text)?;
    xvip.wait_for("all backends up", PATIENCE, |status| {
        let mut all = status.virtual_servers.iter();
        all.all(|server| server.backends.iter().all(|backend| backend.state == State::Up))
    })?;
    Ok(xvip)
}

/// The story itself.
fn perform(
    screen: &mut Screen,
    interrupt: &Interrupt,
    deployment: &Deployment,
    apiservers: &mut [Apiserver],
    first: &mut Option<Xvip>,
) -> Result<Summary> {
    let masters: Vec<String> =
        deployment.nodes().iter().filter(|node| node.runs_apiserver).map(|node| node.name.clone()).collect();
    let position = masters.iter().position(|name| name == VICTIM).context("the victim is a master")?;
    let victim = &mut apiservers[position];

    let vip = Topology::C.endpoint(false);
    let (host, client) = (deployment.client_host(), deployment.client(vip)?);
    let requests = Requests::start(host, client.clone())?;
    let mut appliances = Vec::new();
    for node in [NODE, PARTNER] {
        appliances.push(Appliance::new(node, deployment.control_socket(node)?));
    }
    let mut show = Show::new(screen, interrupt, requests, (vip, appliances))?;
    show.until("every client to be answered", PATIENCE, |show| show.live.owners().len() == SOURCES as usize)?;
    show.screen.tell(&format!("{SOURCES} clients ask; each stays with the backend that its address picks"));
    let others = masters.iter().filter(|name| *name != VICTIM);
    let sources: Vec<IpAddr> = others.flat_map(|name| show.live.sources_of(name, STREAMS)).collect();
    let clients =
        masters.iter().flat_map(|name| Some((*show.live.sources_of(name, 1).first()?, name.clone()))).collect();
    let stranded = show.live.sources_of(VICTIM, STREAMS);
    let streams = Streams::open(host, client.clone(), &sources);
    show.hold(STEADY)?;

    show.screen.tell(&format!("killing {VICTIM} (SIGKILL)"));
    let killed = Instant::now();
    victim.kill();
    let noticed = show.until("xvip to notice", PATIENCE, |show| show.state(VICTIM) == Some(State::Down))?;
    let took = (noticed - killed).as_secs_f64();
    show.screen.tell(&format!("xvip noticed after {took:.1} s; its clients go to the others"));
    let refuge = Streams::open(host, client, &stranded);
    // Those that had begun before may still fail.
    show.hold(Duration::from_secs(1))?;
    let failed = show.live.failed();
    show.hold(OUTAGE.saturating_sub(Duration::from_secs(1)))?;
    let since = show.live.failed() - failed;
    show.screen.tell(&format!("{failed} requests failed until then, {since} since"));

    show.screen.tell(&format!("starting {VICTIM} again"));
    *victim = deployment.start_apiserver(VICTIM)?;
    let listening = Instant::now();
    let up = show.until("xvip to take it back", PATIENCE, |show| show.state(VICTIM) == Some(State::Up))?;
    let back = show.until("an answer of it", PATIENCE, |show| show.live.of(VICTIM).answered > 0)?;
    let took = (up - listening).as_secs_f64();
    show.screen.tell(&format!("{VICTIM} is in use again after {took:.1} s; its clients return"));
    show.hold(STEADY)?;

    let (native, packets) = (show.is_native(), show.packets());
    let (streams, refuge, act) = (streams.finish()?, refuge.finish()?, Instant::now());
    let moved = Failover::new(deployment, first)?.perform(&mut show)?;
    let report = show.finish()?;
    // Requests that the moves may have hit are no matter of the first act.
    let (outcomes, moving): (Vec<Outcome>, Vec<Outcome>) =
        report.outcomes.iter().cloned().partition(|outcome| outcome.ended() < act);
    let failed = moving.iter().filter(|outcome| outcome.result.is_err()).count();
    screen.tell(&format!("{failed} of {} requests failed meanwhile{}", moving.len(), claims::kinds(moving.iter())));
    let record = Record::new(&outcomes, VICTIM, Moments { killed, noticed, listening, up, back });
    let mut claims = record.claims(masters.len(), ALLOWED);
    let elsewhere = |backend: &str| backend != VICTIM;
    claims.push(claims::streams("streams of the others", &streams, elsewhere));
    claims.push(claims::streams("streams begun meanwhile", &refuge, elsewhere));
    claims.extend(moved);
    let wrong = deployment.lab.checksum_errors()?;
    claims.push(Claim::new(wrong.is_empty(), format!("wrong checksums on all hosts: {}", wrong.len())));
    // A TLS request is far more than ten packets.
    let enough = packets > 10 * outcomes.iter().filter(|outcome| outcome.result.is_ok()).count() as u64;
    let mode = if native { "native" } else { "generic" };
    claims.push(Claim::new(native && enough, format!("XDP mode {mode}; xvip carried {packets} packets")));
    let [before, during, after] =
        [Shares::of(record.before()), Shares::of(record.during()), Shares::of(record.after())];
    Ok(Summary { claims, before, during, after, masters, clients })
}

fn report(screen: &Screen, summary: &Summary) {
    screen.print(&format!("\n  {:14}{:>13}{:>15}{:>15}", "requests", "before", "without it", "after"));
    for name in &summary.masters {
        let [before, during, after] =
            [&summary.before, &summary.during, &summary.after].map(|shares| shares.shown(name));
        screen.print(&format!("  {name:14}{before:>13}{during:>15}{after:>15}"));
    }
    screen.print("");
    for claim in &summary.claims {
        screen.print(&format!("  {claim}"));
    }
    let passed = summary.claims.iter().filter(|claim| claim.holds).count();
    screen.print(&format!("\ndemo: {passed} passed, {} failed", summary.claims.len() - passed));
}

/// What to try in another terminal.
fn invite(screen: &Screen, deployment: &Deployment, xvip: &Xvip, summary: &Summary) -> Result<()> {
    let sudo = if env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    let program = xvip::binary()?;
    let here = env::current_dir()?;
    let program = program.strip_prefix(&here).unwrap_or(&program);
    let vip: SocketAddr = Topology::C.endpoint(false);
    let namespace = deployment.client_host().netns();
    screen.print("\nAll of it still runs. In another terminal:\n");
    screen.print(&status_line(sudo, program, xvip.socket()));
    screen.print("");
    for (source, name) in &summary.clients {
        screen.print(&format!("  # {name}"));
        screen.print(&format!(
            "  {sudo}ip netns exec {namespace} \\\n    curl -k --interface {source} https://{vip}/whoami"
        ));
    }
    screen.print("\nCtrl-C ends the demo and removes everything.");
    Ok(())
}

fn status_line(sudo: &str, program: &Path, socket: &Path) -> String {
    format!("  {sudo}{} status \\\n    --socket {}", program.display(), socket.display())
}
