//! What the thread asks of the data plane, and what it does when that refuses.

use std::{
    net::IpAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
};

use anyhow::{Context as _, ensure};
use lb_tests::wait;
use lb_userspace::vrrp::{
    Condition, Moment, State,
    wire::{Event, Instance, Lease, Options},
};
use tokio::sync::mpsc;

use super::node::{DEADLINE, INTERVAL, LATE, ME, Node, VIP, has, instance, lab, now};

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
