//! The thread and Debian's keepalived on one segment.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use lb_tests::{peer::Keepalived, wait};
use lb_userspace::vrrp::{
    State, Version,
    packet::Password,
    reception::{Auth, Discard},
};

use super::node::{DEADLINE, Node, VIP, has, instance, lab, wait_for_address};

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
