//! The VRRP thread on real sockets and clocks: nodes of the lab that hold a VIP among themselves, and a client that asks who has it.

use std::{
    net::IpAddr,
    os::fd::AsRawFd as _,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use lb_tests::{
    lab::{Host, HostSpec, Lab},
    peer::Keepalived,
    wait,
};
use lb_userspace::{
    host::{self, announce},
    vrrp::{
        Condition, InstanceId, Moment, Settings, State, Version, Vrid,
        packet::{ChecksumForm, Password},
        reception::{Auth, Discard},
        wire::{Event, Instance, InstanceView, Lease, Options, Wire},
    },
};
use nix::{
    sys::socket::{MsgFlags, recv},
    time::{ClockId, clock_gettime},
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressProtocol};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::sync::mpsc;

/// Far more than anything here takes, so that a failure ends.
const DEADLINE: Duration = Duration::from_secs(20);
const INTERVAL: Duration = Duration::from_millis(100);
/// How long a backup of priority 100 waits once its master has resigned.
const TURN: Duration = Duration::from_micros(20_000 * 156 / 256);
/// What the machine may be late by while it builds and runs other things.
const LATE: Duration = Duration::from_millis(250);
const VIP: &str = "192.168.2.100";
const VIP6: &str = "fd00:2::100";
const ME: InstanceId = InstanceId(0);

fn instance(priority: u8, vips: &[&str]) -> Instance {
    Instance {
        name: "apiserver".into(),
        interface: "eth0".into(),
        vrid: Vrid(51),
        settings: Settings {
            version: Version::V3,
            priority,
            interval: Duration::from_millis(100),
            down_factor: 3,
            preempt: true,
            preempt_delay: Duration::ZERO,
            sync_group: None,
            source: None,
            condition: Condition::default(),
            lease: None,
        },
        addresses: vips.iter().map(|vip| IpNet::from(vip.parse::<IpAddr>().unwrap())).collect(),
        virtual_mac: false,
        peers: Vec::new(),
        source: None,
        auth: Auth::None,
        checksum: ChecksumForm::default(),
        min_ttl: 255,
        label: None,
    }
}

/// One node with the thread.
struct Node {
    host: Host,
    wire: Wire,
}

impl Node {
    fn start(host: &Host, instance: Instance) -> anyhow::Result<Self> {
        Self::start_with(host, instance, Options::default())
    }

    fn start_with(host: &Host, instance: Instance, options: Options) -> anyhow::Result<Self> {
        let wire = host.enter(|| Wire::start(vec![instance], options))??;
        Ok(Self { host: host.clone(), wire })
    }

    fn view(&self) -> InstanceView {
        self.wire.views().borrow()[0].clone()
    }

    fn wait_for(&self, state: State) -> anyhow::Result<()> {
        self.wait_until(&format!("{state:?}"), |view| view.router.state == state)
    }

    fn wait_until(&self, what: &str, is_so: impl Fn(&InstanceView) -> bool) -> anyhow::Result<()> {
        let what = format!("{} to be {what}: {:?}", self.host.name(), self.view());
        Ok(wait::until(&what, DEADLINE, || is_so(&self.view()).then_some(()))?)
    }
}

fn now() -> Moment {
    Moment(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap().into())
}

/// Whether a host has an address now.
fn has(host: &Host, address: &str) -> anyhow::Result<bool> {
    let text = host.exec(&["ip", "-json", "address", "show"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let mut all = links.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array()).flatten();
    Ok(all.any(|known| known["local"] == address))
}

fn wait_for_address(host: &Host, address: &str) -> anyhow::Result<()> {
    let what = format!("{address} on {}", host.name());
    wait::until(&what, DEADLINE, || match has(host, address) {
        Ok(true) => Some(Ok(())),
        Ok(false) => None,
        Err(e) => Some(Err(e)),
    })?
}

fn mac(host: &Host) -> anyhow::Result<[u8; 6]> {
    let text = host.exec(&["ip", "-json", "link", "show", "dev", "eth0"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let text = links[0]["address"].as_str().context("a MAC")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>()?;
    Ok(bytes.as_slice().try_into()?)
}

/// Every frame that arrives at a host from now on.
struct Tap(Socket);

impl Tap {
    fn on(host: &Host) -> anyhow::Result<Self> {
        let every_protocol = Protocol::from(libc::ETH_P_ALL.to_be() >> 16);
        let socket = host.socket(Domain::PACKET, Type::RAW, Some(every_protocol))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(Self(socket))
    }

    fn wait_for(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<Vec<u8>> {
        let (begun, mut buffer) = (now(), [0; 2048]);
        while now() - begun < DEADLINE {
            let received = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty());
            let frame = &buffer[..received.with_context(|| format!("{what} did not arrive"))?];
            if wanted(frame) {
                return Ok(frame.to_vec());
            }
        }
        anyhow::bail!("other frames arrived, but not {what}")
    }

    fn wait_for_announcement(&self, by: [u8; 6], vip: &str) -> anyhow::Result<()> {
        let expected = announce::frame(by, vip.parse()?);
        self.wait_for(&format!("an announcement of {vip}"), |frame| frame == expected).map(drop)
    }
}

/// Two nodes and a client on one segment. The nodes' link-local addresses are good at once.
fn lab() -> anyhow::Result<(Lab, [Host; 3])> {
    let mut lab = Lab::new("wire")?;
    let mut host = |name: &str, last: u8| -> anyhow::Result<Host> {
        let nets = [format!("192.168.2.{last}/24"), format!("fd00:2::{last:x}/64")];
        let nets = nets.iter().map(|net| net.parse()).collect::<Result<Vec<IpNet>, _>>()?;
        Ok(lab.add(HostSpec::new(name).on("lan", nets))?)
    };
    let hosts = [host("a", 10)?, host("b", 11)?, host("client", 9)?];
    Ok((lab, hosts))
}

#[test]
fn the_higher_priority_is_master_and_hands_over_when_it_stops() -> anyhow::Result<()> {
    let with = |change: &dyn Fn(&mut Instance), priority: u8, vips: &[&str]| {
        let mut instance = instance(priority, vips);
        change(&mut instance);
        instance
    };
    let second = |instance: &mut Instance| {
        (instance.settings.version, instance.settings.interval) = (Version::V2, Duration::from_secs(1));
        instance.auth = Auth::Password(Password::new("1111"));
    };
    let unicast = |instance: &mut Instance| {
        let peers =
            ["192.168.2.10", "192.168.2.11", "fd00:2::a", "fd00:2::b"].map(|peer| peer.parse::<IpAddr>().unwrap());
        let is_ipv4 = instance.addresses[0].addr().is_ipv4();
        let is_peer = |peer: &IpAddr| {
            let me = if instance.settings.priority == 200 {
                ["192.168.2.10", "fd00:2::a"]
            } else {
                ["192.168.2.11", "fd00:2::b"]
            };
            peer.is_ipv4() == is_ipv4 && !me.contains(&peer.to_string().as_str())
        };
        instance.peers = peers.into_iter().filter(is_peer).collect();
    };
    type Change<'a> = &'a dyn Fn(&mut Instance);
    let table: [(&str, Change<'_>, &[&str]); 6] = [
        ("v3 multicast", &|_| {}, &[VIP]),
        ("v3 multicast IPv6", &|_| {}, &[VIP6]),
        ("v3 multicast, an IPv6 VIP beside", &|_| {}, &[VIP, VIP6]),
        ("v3 unicast", &unicast, &[VIP]),
        ("v3 unicast IPv6", &unicast, &[VIP6]),
        ("v2 multicast with password", &second, &[VIP]),
    ];
    let (_lab, [a, b, _client]) = lab()?;
    for (what, change, vips) in table {
        let b = Node::start(&b, with(change, 100, vips))?;
        let a = Node::start(&a, with(change, 200, vips))?;
        a.wait_for(State::Master).context(what)?;
        b.wait_until("backup of a", |view| view.router.master.is_some_and(|(_, priority)| priority == 200))?;
        for vip in vips {
            wait_for_address(&a.host, vip)?;
            ensure!(!has(&b.host, vip)?, "{what}: {vip} on both");
        }
        let view = b.view();
        ensure!(view.reports.is_empty(), "{what}: {:?}", view.reports);

        let begun = now();
        let Node { host, wire } = a;
        wire.stop();
        for vip in vips {
            ensure!(!has(&host, vip)?, "{what}: {vip} is still on the node that stopped");
        }
        b.wait_for(State::Master)?;
        let took = b.view().router.since - begun;
        ensure!((TURN..TURN + LATE).contains(&took), "{what}: taken over after {took:?}, its turn is {TURN:?}");
        for vip in vips {
            wait_for_address(&b.host, vip)?;
        }
    }
    Ok(())
}

#[test]
fn silence_is_noticed_and_the_link_is_told() -> anyhow::Result<()> {
    let (_lab, [a, b, client]) = lab()?;
    let macs = [mac(&a)?, mac(&b)?];
    let (a, b) = (Node::start(&a, instance(200, &[VIP, VIP6]))?, Node::start(&b, instance(100, &[VIP, VIP6]))?);
    a.wait_for(State::Master)?;
    b.wait_until("backup of a", |view| view.router.master.is_some())?;
    let tap = Tap::on(&client)?;
    let begun = now();
    a.host.unplug()?;
    b.wait_for(State::Master)?;
    let (down, took) = (INTERVAL * 3 + INTERVAL * 156 / 256, b.view().router.since - begun);
    // The last advert left up to an interval before.
    ensure!((down - INTERVAL..down + LATE).contains(&took), "taken over after {took:?}, down interval {down:?}");
    for vip in [VIP, VIP6] {
        tap.wait_for_announcement(macs[1], vip)?;
    }

    a.wait_for(State::Master)?;
    a.host.plug()?;
    b.wait_for(State::Backup)?;
    tap.wait_for_announcement(macs[0], VIP)?;
    ensure!(has(&a.host, VIP)? && !has(&b.host, VIP)?, "exactly one has it");
    Ok(())
}

#[test]
fn a_link_that_goes_is_a_fault_and_one_that_returns_is_used_again() -> anyhow::Result<()> {
    let (_lab, [a, b, client]) = lab()?;
    let (a, b) = (Node::start(&a, instance(200, &[VIP]))?, Node::start(&b, instance(100, &[VIP]))?);
    a.wait_for(State::Master)?;
    wait_for_address(&a.host, VIP)?;
    a.host.carrier_down()?;
    a.wait_for(State::Fault)?;
    ensure!(!has(&a.host, VIP)?, "no VIP without a carrier");
    b.wait_for(State::Master)?;

    let tap = Tap::on(&client)?;
    a.host.carrier_up()?;
    a.wait_for(State::Master)?;
    b.wait_for(State::Backup)?;
    tap.wait_for_announcement(mac(&a.host)?, VIP)?;
    Ok(())
}

#[test]
fn an_interface_that_is_made_anew_is_joined_again() -> anyhow::Result<()> {
    let (_lab, [a, b, _client]) = lab()?;
    // Inside the host, so that it can go and come: a bridge to the rest of the segment.
    let (a, b) = (Node::start(&a, instance(100, &[VIP]))?, Node::start(&b, instance(200, &[VIP]))?);
    b.wait_for(State::Master)?;
    a.wait_until("backup of b", |view| view.router.master.is_some())?;
    a.host.ip("link set eth0 down")?;
    a.host.ip("link set eth0 name old0")?;
    a.wait_for(State::Fault)?;
    a.host.ip("link add eth0 link old0 type macvlan mode bridge")?;
    a.host.ip("link set old0 up")?;
    a.host.ip("address flush dev old0")?;
    a.host.ip("link set eth0 up")?;
    a.host.ip("address add 192.168.2.10/24 dev eth0")?;
    // It hears the group on the new interface, or it would become master.
    a.wait_until("backup of b again", |view| view.router.state == State::Backup && view.router.master.is_some())?;
    b.wire.stop();
    a.wait_for(State::Master)?;
    wait_for_address(&a.host, VIP)
}

#[test]
fn a_vip_that_somebody_removes_is_put_back_and_announced() -> anyhow::Result<()> {
    let (_lab, [a, _b, client]) = lab()?;
    let a = Node::start(&a, instance(200, &[VIP, VIP6]))?;
    a.wait_for(State::Master)?;
    wait_for_address(&a.host, VIP6)?;
    let by = mac(&a.host)?;
    for (vip, net) in [(VIP, format!("{VIP}/32")), (VIP6, format!("{VIP6}/128"))] {
        let tap = Tap::on(&client)?;
        a.host.ip(&format!("address del {net} dev eth0"))?;
        wait_for_address(&a.host, vip)?;
        // More often than every ten seconds: the burst begins again.
        for _ in 0..3 {
            tap.wait_for_announcement(by, vip)?;
        }
    }
    Ok(())
}

/// As a former process of the same program has left it.
async fn add_marked(address: &str) -> anyhow::Result<()> {
    let handle = host::connect()?;
    let index = host::interfaces(&handle).await?.named("eth0")?.index;
    let mut request = handle.address().add(index, address.parse()?, 32);
    let mark = AddressAttribute::Protocol(AddressProtocol::Other(0x59));
    request.message_mut().attributes.push(mark);
    Ok(request.execute().await?)
}

#[test]
fn vips_that_were_left_behind_are_taken_away_at_the_start() -> anyhow::Result<()> {
    let (_lab, [a, b, _client]) = lab()?;
    let b = Node::start(&b, instance(200, &[VIP, VIP6]))?;
    b.wait_for(State::Master)?;
    // With another mask, and without a mark; and one that is in no configuration any more, with it.
    a.ip(&format!("address add {VIP}/24 dev eth0"))?;
    a.ip(&format!("address add {VIP6}/128 dev eth0 nodad"))?;
    a.run(|| add_marked("192.168.2.77"))??;
    ensure!(has(&a, "192.168.2.77")?);
    let a = Node::start(&a, instance(100, &[VIP, VIP6]))?;
    for vip in [VIP, VIP6] {
        ensure!(!has(&a.host, vip)?, "{vip} is still there");
    }
    ensure!(!has(&a.host, "192.168.2.77")?, "a VIP of a former configuration");
    ensure!(has(&a.host, "192.168.2.10")?, "an address that is nobody's VIP");
    Ok(())
}

#[test]
fn another_machine_with_the_vip_is_found_and_answered() -> anyhow::Result<()> {
    let (_lab, [a, _b, client]) = lab()?;
    client.ip(&format!("address add {VIP}/32 dev eth0"))?;
    client.ip(&format!("address add {VIP6}/128 dev eth0 nodad"))?;
    let theirs = mac(&client)?;
    let a = Node::start(&a, instance(200, &[VIP, VIP6]))?;
    // It says nothing until it is asked.
    a.wait_until("in conflict about both", |view| view.conflicts.len() == 2)?;
    for conflict in a.view().conflicts {
        ensure!(conflict.mac == Some(theirs), "{conflict:?}");
    }
    Ok(())
}

#[test]
fn what_leaves_is_what_the_protocol_says() -> anyhow::Result<()> {
    let (_lab, [a, _b, client]) = lab()?;
    let tap = Tap::on(&client)?;
    let v3 = Instance {
        settings: Settings { interval: Duration::from_millis(500), ..instance(100, &[VIP]).settings },
        ..instance(100, &[VIP])
    };
    let v2 = Instance {
        settings: Settings { version: Version::V2, interval: Duration::from_secs(1), ..instance(100, &[VIP]).settings },
        auth: Auth::Password(Password::new("solarfs250")),
        ..instance(100, &[VIP])
    };
    let golden: [(Instance, &[u8]); 2] = [
        (v3, &[0x31, 0x33, 0x64, 0x01, 0x00, 0x32, 0x04, 0x4b, 192, 168, 2, 100]),
        (
            v2,
            &[
                0x21, 0x33, 0x64, 0x01, 0x01, 0x01, 0xf1, 0x53, 192, 168, 2, 100, 0x73, 0x6f, 0x6c, 0x61, 0x72, 0x66,
                0x73, 0x32,
            ],
        ),
    ];
    for (instance, payload) in golden {
        let node = Node::start(&a, instance)?;
        let is_advert = |frame: &[u8]| frame.get(12..14) == Some(&[0x08, 0x00]) && frame.get(23) == Some(&112);
        let frame = tap.wait_for("an advert", is_advert)?;
        let (ethernet, rest) = frame.split_at(14);
        let (ip, advert) = rest.split_at(20);
        assert_eq!(ethernet[..6], [0x01, 0x00, 0x5e, 0x00, 0x00, 0x12], "the group's MAC");
        assert_eq!((ip[0], ip[1], ip[8]), (0x45, 0xc0, 255), "header length, type of service, TTL");
        assert_eq!((&ip[12..16], &ip[16..20]), (&[192, 168, 2, 10][..], &[224, 0, 0, 18][..]));
        assert_eq!(&advert[..payload.len()], payload);
        drop(node);
        // Stopping says so.
        let resigned = tap.wait_for("priority 0", |frame| is_advert(frame) && frame[36] == 0)?;
        assert_eq!(resigned[34..36], payload[..2]);
    }
    Ok(())
}

/// A renewal with its end, or an end at once.
type Asked = (IpAddr, Option<Moment>);

/// What was asked of the data plane, in its order.
#[derive(Clone, Debug, Default)]
struct Ledger(Arc<Mutex<Vec<Asked>>>, Arc<AtomicBool>);

impl Ledger {
    /// Whether it refuses everything from now on.
    fn refuse(&self, on: bool) {
        self.1.store(on, Ordering::SeqCst);
    }

    fn note(&self, asked: Asked) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        if self.1.load(Ordering::SeqCst) {
            return Err("the map is frozen".into());
        }
        self.0.lock().unwrap().push(asked);
        Ok(())
    }
}

impl Lease for Ledger {
    fn renew(&self, vip: IpAddr, until: Moment) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.note((vip, Some(until)))
    }

    fn revoke(&self, vip: IpAddr) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.note((vip, None))
    }
}

#[test]
fn every_advert_renews_the_lease_and_giving_up_ends_it() -> anyhow::Result<()> {
    let (_lab, [a, _b, _client]) = lab()?;
    let ledger = Ledger::default();
    let (events, mut told) = mpsc::channel(16);
    let options = Options { lease: Some(Box::new(ledger.clone())), events: Some(events), realtime: true };
    let node = Node::start_with(&a, instance(200, &[VIP]), options)?;
    ensure!(node.wire.scheduling().locked.is_ok(), "{:?}", node.wire.scheduling());
    ensure!(matches!(node.wire.scheduling().realtime, Some(Ok(()))), "{:?}", node.wire.scheduling());
    wait::until("ten leases", DEADLINE, || (ledger.0.lock().unwrap().len() >= 10).then_some(()))?;
    let before = now();
    node.wire.set_condition(ME, Condition { adjustment: 0, fault: true });
    node.wait_for(State::Fault)?;
    ensure!(!has(&a, VIP)?);
    let all = ledger.0.lock().unwrap().clone();
    let (renewed, ended) = all.split_at(all.iter().position(|(_, until)| until.is_none()).context("an end")?);
    ensure!(ended.iter().all(|(_, until)| until.is_none()), "nothing is renewed in a fault: {ended:?}");
    let times: Vec<Moment> = renewed.iter().filter_map(|(_, until)| *until).collect();
    ensure!(times.is_sorted(), "{times:?}");
    let last = *times.last().context("a lease")?;
    ensure!(last < before + INTERVAL * 3 + LATE, "three intervals from the advert, not more");

    let states: Vec<Event> = std::iter::from_fn(|| told.try_recv().ok()).collect();
    let states: Vec<(State, u8)> = states.iter().map(|event| (event.state, event.priority)).collect();
    assert_eq!(states, [(State::Backup, 200), (State::Master, 200), (State::Fault, 0)]);
    Ok(())
}

#[test]
fn a_lease_that_the_data_plane_does_not_take_is_a_fault() -> anyhow::Result<()> {
    let (_lab, [a, b, _client]) = lab()?;
    let ledger = Ledger::default();
    let options = Options { lease: Some(Box::new(ledger.clone())), ..Options::default() };
    let a = Node::start_with(&a, instance(200, &[VIP]), options)?;
    let b = Node::start(&b, instance(100, &[VIP]))?;
    a.wait_for(State::Master)?;
    b.wait_until("backup of a", |view| view.router.master.is_some())?;
    ledger.refuse(true);
    a.wait_until("in fault", |view| view.router.state == State::Fault && !view.fenced)?;
    ensure!(!has(&a.host, VIP)?);
    b.wait_for(State::Master)?;
    // What tracking says meanwhile does not end it.
    a.wire.set_condition(ME, Condition { adjustment: 5, fault: false });
    b.wait_until("master for a while", |view| view.sent >= 20)?;
    ensure!(a.view().router.state == State::Fault, "{:?}", a.view());

    ledger.refuse(false);
    a.wait_until("master again", |view| view.router.state == State::Master && view.fenced)?;
    ensure!(a.view().router.priority == 205, "{:?}", a.view());
    b.wait_for(State::Backup)
}

#[test]
fn an_interface_that_takes_no_second_mac_is_a_fault() -> anyhow::Result<()> {
    let (_lab, [a, _b, _client]) = lab()?;
    a.ip("link add mv0 link eth0 type macvlan mode bridge")?;
    a.ip("link set mv0 up")?;
    a.ip("address add 192.168.2.30/24 dev mv0")?;
    let mut instance = Instance { interface: "mv0".into(), virtual_mac: true, ..instance(200, &[VIP]) };
    Node::start(&a, instance.clone())?.wait_for(State::Fault)?;
    instance.virtual_mac = false;
    Node::start(&a, instance.clone())?.wait_for(State::Master)?;
    // One that does take it.
    (instance.interface, instance.virtual_mac) = ("eth0".into(), true);
    Node::start(&a, instance)?.wait_for(State::Master)
}

#[test]
fn a_released_vip_goes_to_the_peer_and_stays_there() -> anyhow::Result<()> {
    let (_lab, [a, b, client]) = lab()?;
    let (a, b) = (Node::start(&a, instance(200, &[VIP]))?, Node::start(&b, instance(100, &[VIP]))?);
    a.wait_for(State::Master)?;
    b.wait_until("backup of a", |view| view.router.master.is_some())?;
    // Told by itself, and to the MAC that was given.
    let neighbour = (client_address()?, mac(&client)?);
    b.wire.set_neighbours(ME, vec![neighbour]);
    let tap = Tap::on(&client)?;
    let begun = now();
    a.wire.release(None);
    b.wait_for(State::Master)?;
    let took = b.view().router.since - begun;
    ensure!((TURN..TURN + LATE).contains(&took), "{took:?}");
    tap.wait_for("an announcement for the client alone", |frame| {
        frame[..6] == neighbour.1
            && frame.get(12..14) == Some(&[0x08, 0x06])
            && frame.get(28..32) == Some(&[192, 168, 2, 100])
    })?;
    // It has heard its successor, and follows though its priority is higher.
    a.wait_until("backup of b", |view| view.router.master.is_some_and(|(_, priority)| priority == 100))?;
    ensure!(a.view().router.released && !has(&a.host, VIP)?);
    Ok(())
}

fn client_address() -> anyhow::Result<IpAddr> {
    Ok("192.168.2.9".parse()?)
}

/// One that takes part from the first host that `lab` gives, at half a second or, in version 2, one second.
fn keepalived(version: u8, priority: u8, peer: Option<(&str, &str)>) -> String {
    let (interval, auth) = match version {
        2 => ("1", "authentication {\nauth_type PASS\nauth_pass 1111\n}"),
        _ => ("0.5", ""),
    };
    let unicast =
        peer.map_or(String::new(), |(source, peer)| format!("unicast_src_ip {source}\nunicast_peer {{\n{peer}\n}}"));
    format!(
        "global_defs {{\nvrrp_version {version}\n}}\nvrrp_instance VI {{\nstate BACKUP\ninterface eth0\nvirtual_router_id 51\n\
         priority {priority}\nadvert_int {interval}\n{auth}\n{unicast}\nvirtual_ipaddress {{\n{VIP}/32\n}}\n}}\n"
    )
}

#[test]
fn keepalived_and_the_thread_take_over_from_each_other() -> anyhow::Result<()> {
    let (_lab, [a, b, _client]) = lab()?;
    for (version, peers) in [(3, None), (2, None), (2, Some(("192.168.2.11", "192.168.2.10")))] {
        let with_priority = |priority| {
            let mut instance = instance(priority, &[VIP]);
            instance.settings.interval = Duration::from_millis(500);
            if version == 2 {
                (instance.settings.version, instance.settings.interval) = (Version::V2, Duration::from_secs(1));
                instance.auth = Auth::Password(Password::new("1111"));
            }
            instance.peers = peers.iter().map(|(theirs, _)| theirs.parse().unwrap()).collect();
            instance
        };
        let what = format!("version {version}, peers {peers:?}");
        let theirs = Keepalived::start(&b, &keepalived(version, 100, peers))?;
        wait_for_address(&b, VIP).context(what.clone())?;
        let ours = Node::start(&a, with_priority(200))?;
        ours.wait_for(State::Master).context(what.clone())?;
        wait_for_address(&a, VIP)?;
        wait::until("keepalived to give the VIP up", DEADLINE, || has(&b, VIP).is_ok_and(|has| !has).then_some(()))?;
        ours.wire.stop();
        wait_for_address(&b, VIP).context(what.clone())?;

        let ours = Node::start(&a, with_priority(50))?;
        ours.wait_until("backup of keepalived", |view| view.router.master.is_some())?;
        let view = ours.view();
        ensure!(
            view.reports.is_empty() && Discard::ALL.iter().all(|reason| view.counters.discarded(*reason) == 0),
            "{what}: {view:?}"
        );
        let tallies = theirs.tallies()?;
        ensure!(tallies["VI"].received > 0 && tallies["VI"].errors.is_empty(), "{what}: {tallies:?}");
        theirs.stop()?;
        ours.wait_for(State::Master).context(what)?;
    }
    Ok(())
}

/// A keepalived waits its skew time of 609 ms first, and takes the VIP then from a lesser one, not from an equal one.
#[test]
fn the_thread_takes_over_before_a_keepalived_that_may_take_the_vip_from_it() -> anyhow::Result<()> {
    let (_lab, [a, b, c]) = lab()?;
    let with_priority = |priority| {
        let mut instance = instance(priority, &[VIP]);
        (instance.settings.version, instance.settings.interval) = (Version::V2, Duration::from_secs(1));
        instance.auth = Auth::Password(Password::new("1111"));
        instance
    };
    for (priority, stays) in [(50, false), (100, true)] {
        let master = Node::start(&a, with_priority(200))?;
        master.wait_for(State::Master)?;
        let theirs = Keepalived::start(&b, &keepalived(2, 100, None))?;
        let ours = Node::start(&c, with_priority(priority))?;
        ours.wait_until("backup of a", |view| view.router.master.is_some_and(|(_, priority)| priority == 200))?;
        let sent = master.view().sent;
        // The keepalived has heard it, too.
        wait::until("two adverts more", DEADLINE, || (master.view().sent >= sent + 2).then_some(()))?;

        master.wire.stop();
        ours.wait_for(State::Master)?;
        if stays {
            let sent = ours.view().sent;
            wait::until("three adverts more", DEADLINE, || (ours.view().sent >= sent + 3).then_some(()))?;
            ensure!(ours.view().router.state == State::Master && !has(&b, VIP)?, "an equal one does not take it");
        } else {
            ours.wait_until("backup of keepalived", |view| view.router.master.is_some_and(|(_, other)| other == 100))?;
            wait_for_address(&b, VIP)?;
            ensure!(!has(&c, VIP)?, "exactly one has it");
        }
        ensure!(theirs.tallies()?["VI"].errors.is_empty(), "{:?}", theirs.tallies()?);
        ours.wire.stop();
        theirs.stop()?;
    }
    Ok(())
}
