//! The VRRP thread on real sockets and clocks: nodes of the lab that hold a VIP among themselves, and a client that asks who has it.

use std::{net::IpAddr, time::Duration};

use anyhow::{Context as _, ensure};
use lb_userspace::{
    host,
    vrrp::{Settings, State, Version, packet::Password, reception::Auth, wire::Instance},
};
use rtnetlink::packet_route::address::{AddressAttribute, AddressProtocol};

mod keepalived;
mod leases;
mod node;

use node::{INTERVAL, LATE, ME, Node, TURN, Tap, VIP, VIP6, has, instance, lab, mac, now, wait_for_address};

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

fn client_address() -> anyhow::Result<IpAddr> {
    Ok("192.168.2.9".parse()?)
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
