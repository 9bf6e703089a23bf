//! What is no business of the data path, or no segment that it can carry.

use lb_common::abi::Counter;

use super::{CLIENT, OK, PASS, Scene, Script};
use crate::packets::{
    frames::{ACK, Extra, SYN, Segment},
    stage::{BACKEND_PORT, Family, HERE, REMOTE, VIP},
};

pub(super) fn fragment(scene: &Scene) -> Script {
    let frame = Segment { extra: Extra::Fragment, payload: vec![1; 64], ..scene.asks(REMOTE, ACK) }.bytes();
    Script::default().then("the first", frame.clone(), PASS, frame, &[Counter::Fragment])
}

pub(super) fn malformed(scene: &Scene) -> Script {
    let whole = Segment { payload: b"0123456789".to_vec(), ..scene.asks(REMOTE, ACK) }.bytes();
    let mut script = Script::default();
    for (what, cut) in [("cut in the payload", 1), ("no payload", 10), ("half a TCP header", 20), ("no TCP header", 30)]
    {
        let frame = whole[..whole.len() - cut].to_vec();
        script = script.then(what, frame.clone(), PASS, frame, &[Counter::Malformed]);
    }
    for offset in [0x40, 0x80] {
        let mut frame = whole.clone();
        let at = frame.len() - 30 + 12;
        frame[at] = offset;
        script = script.then("data offset", frame.clone(), PASS, frame, &[Counter::Malformed]);
    }
    script
}

pub(super) fn no_service(scene: &Scene) -> Script {
    let frame = Segment { to: scene.family.socket(VIP, 22), ..scene.asks(REMOTE, SYN) }.bytes();
    Script::default().then("SSH", frame.clone(), PASS, frame, &[Counter::NoService])
}

pub(super) fn not_ours(scene: &Scene) -> Script {
    let mut script = Script::default();
    let frame = scene.asks(REMOTE, SYN).bytes();
    let protocol = if scene.family == Family::Ipv4 { 23 } else { 20 };
    for (what, at, byte) in [
        ("to another host's MAC", 5, 99),
        ("ARP", 13, 0x06),
        ("UDP", protocol, 17),
        ("ICMP", protocol, 1),
        ("ICMPv6", protocol, 58),
    ] {
        let mut frame = frame.clone();
        frame[at] = byte;
        script = script.then(what, frame.clone(), PASS, frame, &[]);
    }
    let elsewhere = Segment { to: scene.family.socket(VIP + 1, REMOTE.port), ..scene.asks(REMOTE, SYN) }.bytes();
    let short = frame[..14 + 12].to_vec();
    script.then("another address", elsewhere.clone(), PASS, elsewhere, &[]).then(
        "cut in the IP header",
        short.clone(),
        PASS,
        short,
        &[],
    )
}

pub(super) fn leaves(scene: &Scene) -> Script {
    let reply = scene.answers(HERE, ACK);
    let stranger = Segment { from: scene.family.socket(HERE.backend + 1, BACKEND_PORT), ..reply.clone() }.bytes();
    let reply = Segment { to: scene.family.socket(CLIENT, scene.client_port), ..reply }.bytes();
    Script::default()
        .then("no connection", reply.clone(), OK, reply, &[])
        .leaving()
        .then("no backend", stranger.clone(), OK, stranger, &[])
        .leaving()
}
