//! ICMP errors about connections.

use lb_common::abi::Counter;

use super::{CLIENT, PASS, REDIRECT, Scene, Script};
use crate::packets::{
    frames::{ACK, Error, Extra, PSH, SYN, Segment},
    stage::{BACKEND_PORT, Family, HERE, Host, NEAR_MAC, REMOTE, STRANGER, VIP, mac},
};

/// How much of a segment is quoted: with its checksum, without it, all.
pub(super) const QUOTED: [usize; 3] = [20, 8, usize::MAX];

/// What a router between the two says to the VIP.
pub(super) fn too_big(scene: &Scene, about: &Segment, quoted: usize) -> Error {
    Error {
        macs: [mac(1), mac(9)],
        from: scene.family.address(STRANGER),
        to: scene.family.address(VIP),
        hops: 60,
        mtu: 1400,
        about: Segment { hops: about.hops - 2, ..about.clone() },
        quoted,
    }
}

/// What the end that sent the packet hears instead.
pub(super) fn heard(scene: &Scene, error: &Error, by: Host, from: Host, about: &Segment) -> Error {
    Error {
        macs: [mac(by), NEAR_MAC],
        from: scene.family.address(from),
        to: scene.family.address(by),
        hops: error.hops - 1,
        about: Segment { hops: error.about.hops, ..about.clone() },
        ..error.clone()
    }
}

pub(super) fn too_big_for_the_backend(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    // Extension headers are not looked through in what is quoted.
    let extra = if scene.family == Family::Ipv4 { Extra::Options } else { Extra::None };
    let data = Segment { extra, payload: vec![7; 333], ..scene.asks(REMOTE, ACK | PSH) };
    let sent = scene.sent_on(REMOTE, &data, NEAR_MAC);
    let mut script = Script::default()
        .then("SYN", syn.bytes(), REDIRECT, scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(), &[Counter::Connected])
        .then(
            "the reply",
            scene.answers(REMOTE, SYN | ACK).bytes(),
            REDIRECT,
            scene.sent_back(REMOTE, &scene.answers(REMOTE, SYN | ACK)).bytes(),
            &[],
        );
    for quoted in QUOTED {
        let error = too_big(scene, &sent, quoted);
        let out = heard(scene, &error, CLIENT, VIP, &data).bytes();
        script = script.then("too big", error.bytes(), REDIRECT, out, &[Counter::IcmpError]);
    }
    script
}

pub(super) fn too_big_for_the_client(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let reply = Segment { payload: vec![7; 333], ..scene.answers(REMOTE, ACK | PSH) };
    let sent = scene.sent_back(REMOTE, &reply);
    let mut script = Script::default().then(
        "SYN",
        syn.bytes(),
        REDIRECT,
        scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(),
        &[Counter::Connected],
    );
    for quoted in QUOTED {
        let error = too_big(scene, &sent, quoted);
        let out = heard(scene, &error, REMOTE.backend, VIP, &reply).bytes();
        script = script.then("too big", error.bytes(), REDIRECT, out, &[Counter::IcmpError]);
    }
    script
}

pub(super) fn too_big_from_here(scene: &Scene) -> Script {
    let syn = scene.asks(HERE, SYN);
    let seen = scene.family.socket(CLIENT, scene.local_port());
    let up = Segment { from: seen, to: scene.family.socket(HERE.backend, BACKEND_PORT), hops: 63, ..syn.clone() };
    let sent = Segment { from: up.to, to: seen, ..scene.asks(HERE, ACK) };
    let turned = Segment { from: syn.to, to: syn.from, ..sent.clone() };
    let mut script = Script::default().then("up the stack", syn.bytes(), PASS, up.bytes(), &[Counter::Connected]);
    for quoted in QUOTED {
        let error = too_big(scene, &turned, quoted);
        let out = Error { macs: error.macs, ..heard(scene, &error, HERE.backend, CLIENT, &sent) };
        script = script.then("too big", error.bytes(), PASS, out.bytes(), &[Counter::IcmpError]);
    }
    script
}

pub(super) fn stranger(scene: &Scene) -> Script {
    let sent = scene.sent_on(REMOTE, &scene.asks(REMOTE, ACK), NEAR_MAC);
    let frame = too_big(scene, &sent, 8).bytes();
    Script::default().then("too big", frame.clone(), PASS, frame, &[Counter::IcmpStranger])
}

/// What the host's own kernel discards by the same lengths is left to it.
pub(super) fn malformed(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let sent = scene.sent_on(REMOTE, &syn, NEAR_MAC);
    let error = too_big(scene, &sent, 20).bytes();
    // Where the length of the IP packet stands, and what of it the header has no part in.
    let at = if scene.family == Family::Ipv4 { 16 } else { 18 };
    let length = u16::from_be_bytes([error[at], error[at + 1]]);
    let mut script = Script::default().then("SYN", syn.bytes(), REDIRECT, sent.bytes(), &[Counter::Connected]);
    for (what, length) in [("longer than the frame", length + 1), ("seven bytes of TCP", length - 13)] {
        let mut frame = error.clone();
        frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
        script = script.then(what, frame.clone(), PASS, frame, &[Counter::Malformed]);
    }
    let mut cut = error;
    cut.truncate(cut.len() - 13);
    script.then("cut", cut.clone(), PASS, cut, &[Counter::Malformed])
}
