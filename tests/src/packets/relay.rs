//! One daemon after another over the same pins: the programs stay on their interface in between, and connections go on.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use lb_common::{abi::Counter, datapath::LOOPBACK};
use lb_userspace::{
    dataplane::{Dataplane, Options},
    host::{self, Handle, qdisc},
};

use super::{
    frames::{ACK, Extra, SYN, Segment},
    stage::{CLIENTS, Family, REMOTE, Stage, VIP, mac, settings},
};

/// Where a BPF filesystem is mounted, here and in the virtual machines.
const BPFFS: &str = "/sys/fs/bpf";
const INTERFACE: &str = "near";
/// `XDP_REDIRECT`.
const REDIRECT: u32 = 4;

/// Plays it. Needs root.
pub(super) fn run() -> anyhow::Result<()> {
    Stage::set(|stage| {
        let pins = Path::new(BPFFS).join(format!("xvip-relay-{}", std::process::id()));
        tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(relay(stage, pins))
    })
}

async fn relay(stage: Stage, pins: PathBuf) -> anyhow::Result<()> {
    let handle = host::connect()?;
    let load = || {
        let options = Options { max_connections: 1024, virtual_servers: 16, bpffs: Some(pins.clone()) };
        Dataplane::load(&options).context("loading")
    };
    let mut first = load()?;
    let generation = first.former_generation() + 1;
    attach(&handle, &mut first).await?;
    first.apply(&stage.tables())?;
    first.apply(&[settings(generation)])?;
    first.take_over(true)?;
    ensure!(first.ingress(&segment(SYN))?.action == REDIRECT, "the SYN is not sent on");
    ensure!(
        programs(&handle).await? == (Some(first.ingress_id()?), filters(&first, stage.near)),
        "the first is not there"
    );
    let left = (Some(first.ingress_id()?), filters(&first, stage.near));
    let first_inherits = first.inherits();
    first.keep();
    ensure!(programs(&handle).await? == left, "it has not stayed");

    let mut second = load()?;
    ensure!(second.former_generation() == generation, "generation {}", second.former_generation());
    attach(&handle, &mut second).await?;
    ensure!(programs(&handle).await? == left, "the first is gone before the second has tables");
    second.apply(&stage.tables())?;
    second.apply(&[settings(generation + 1)])?;
    second.take_over(true)?;
    ensure!(programs(&handle).await? == (Some(second.ingress_id()?), left.1), "the second is not in its place");
    ensure!(second.ingress(&segment(ACK))?.action == REDIRECT, "the ACK is not sent on");
    let counters = second.counters()?;
    ensure!(
        (counters[&Counter::Connected], counters[&Counter::Rebuilt]) == (1, 0),
        "the connection was lost: {counters:?}"
    );
    ensure!(first_inherits && second.inherits(), "the loopback interface has no program");
    let qdiscs = second.qdiscs();
    ensure!(
        qdiscs == if left.1 > 0 { BTreeSet::from([LOOPBACK, stage.near]) } else { BTreeSet::new() },
        "qdiscs of {qdiscs:?}"
    );
    drop(second);
    for interface in qdiscs {
        ensure!(qdisc::remove_unused(&handle, interface).await?, "the qdisc is still there");
    }
    ensure!(programs(&handle).await? == (None, 0), "something has stayed: {:?}", programs(&handle).await?);
    ensure!(!pins.exists(), "pins have stayed");
    Ok(())
}

async fn attach(handle: &Handle, dataplane: &mut Dataplane) -> anyhow::Result<()> {
    let interfaces = host::interfaces(handle).await?;
    let interface = interfaces.named(INTERFACE)?;
    dataplane.attach(INTERFACE, interface.index, None, interface.xdp)?;
    Ok(())
}

/// What a data plane needs of classifiers that have no link on that interface: one in each direction, before Linux 6.6.
fn filters(dataplane: &Dataplane, interface: u32) -> usize {
    2 * usize::from(dataplane.qdiscs().contains(&interface))
}

/// The XDP program on the interface, and how many classifiers without a link.
async fn programs(handle: &Handle) -> anyhow::Result<(Option<u32>, usize)> {
    let interfaces = host::interfaces(handle).await?;
    let interface = interfaces.named(INTERFACE)?;
    let mut filters = 0;
    for egress in [false, true] {
        let asked = handle.traffic_filter(interface.index.cast_signed()).get();
        let asked = if egress { asked.egress() } else { asked.ingress() };
        let found: Vec<_> = asked.execute().try_collect().await?;
        // Each is told twice, the first time without the program.
        filters += found.iter().filter(|message| message.header.handle != 0_u32.into()).count();
    }
    Ok((interface.xdp, filters))
}

fn segment(flags: u8) -> Vec<u8> {
    let segment = Segment {
        macs: [mac(1), mac(CLIENTS[0])],
        tags: Vec::new(),
        from: Family::Ipv4.socket(CLIENTS[0], 40_000),
        to: Family::Ipv4.socket(VIP, REMOTE.port),
        hops: 64,
        extra: Extra::None,
        sequence: 1,
        acknowledgement: 0,
        flags,
        window: 64_240,
        options: Vec::new(),
        payload: Vec::new(),
    };
    segment.bytes()
}
