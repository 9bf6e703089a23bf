//! Connections whose addresses are translated, from their first packet to what ends them.

use lb_common::{
    abi::{Backend, Counter, Port},
    wire::Tags,
};

use super::{CLIENT, DROP, OK, PASS, REDIRECT, Scene, Script, TRANSMIT, noted};
use crate::packets::{
    Change,
    frames::{ACK, Extra, FIN, PSH, RST, SYN, Segment},
    stage::{
        BACKEND_PORT, CLIENTS, EMPTY, Family, HERE, NEAR_MAC, REMOTE, STRANGER, TRUNK_MAC, TRUNK_TAG, TRUNKED,
        UNRESOLVED, UNROUTED, VIP, mac, settings,
    },
};

pub(super) fn connection(scene: &Scene) -> Script {
    let mut script = Script::default();
    let flags = [
        (true, SYN, &[Counter::Connected][..]),
        (false, SYN | ACK, &[]),
        (true, ACK, &[]),
        (true, ACK | PSH, &[]),
        (false, ACK | PSH, &[]),
        (true, FIN | ACK, &[]),
        (false, FIN | ACK, &[]),
        (true, SYN, &[Counter::Connected]),
    ];
    for (from_client, flags, counters) in flags {
        let payload = if flags & PSH == 0 { Vec::new() } else { b"GET /readyz".to_vec() };
        script = if from_client {
            let segment = Segment { payload, ..scene.asks(REMOTE, flags) };
            let out = scene.sent_on(REMOTE, &segment, NEAR_MAC).bytes();
            script.then("the client's", segment.bytes(), REDIRECT, out, counters)
        } else {
            let segment = Segment { payload, ..scene.answers(REMOTE, flags) };
            let out = scene.sent_back(REMOTE, &segment).bytes();
            script.then("the backend's", segment.bytes(), REDIRECT, out, counters)
        };
    }
    script
}

pub(super) fn rebuilt(scene: &Scene) -> Script {
    let data = Segment { payload: vec![0xff; 1448], ..scene.asks(REMOTE, ACK | PSH) };
    let out = scene.sent_on(REMOTE, &data, NEAR_MAC).bytes();
    let reply = scene.answers(REMOTE, ACK);
    Script::default().then("data", data.bytes(), REDIRECT, out, &[Counter::Rebuilt]).then(
        "the reply",
        reply.bytes(),
        REDIRECT,
        scene.sent_back(REMOTE, &reply).bytes(),
        &[],
    )
}

/// The second client's port is chosen by the clock, so only the replies to the first are known beforehand.
pub(super) fn collision(scene: &Scene) -> Script {
    let first = scene.asks(REMOTE, SYN);
    let second = Segment { from: scene.family.socket(CLIENTS[1], scene.client_port), ..first.clone() };
    let reply = scene.answers(REMOTE, SYN | ACK);
    let out = |segment| scene.sent_on(REMOTE, segment, NEAR_MAC).bytes();
    let tcp = if scene.family == Family::Ipv4 { 14 + 20 } else { 14 + 40 };
    Script::default()
        .then("the first", first.bytes(), REDIRECT, out(&first), &[Counter::Connected])
        .then("the second", second.bytes(), REDIRECT, out(&second), &[Counter::Connected])
        .but([tcp..tcp + 2, tcp + 16..tcp + 18])
        .then("the first one's reply", reply.bytes(), REDIRECT, scene.sent_back(REMOTE, &reply).bytes(), &[])
}

pub(super) fn options(scene: &Scene) -> Script {
    let syn = Segment {
        extra: Extra::Options,
        options: vec![2, 4, 5, 180, 4, 2, 1, 3, 3, 7, 1, 0],
        payload: b"odd".to_vec(),
        ..scene.asks(REMOTE, SYN)
    };
    let reply = Segment { extra: Extra::Options, ..scene.answers(REMOTE, SYN | ACK) };
    Script::default()
        .then("in", syn.bytes(), REDIRECT, scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(), &[Counter::Connected])
        .then("back", reply.bytes(), REDIRECT, scene.sent_back(REMOTE, &reply).bytes(), &[])
}

pub(super) fn transmitted(scene: &Scene) -> Script {
    let syn = Segment { tags: vec![TRUNK_TAG], ..scene.asks(TRUNKED, SYN) };
    let plain = scene.asks(TRUNKED, ACK);
    Script::default()
        .then("with it", syn.bytes(), TRANSMIT, scene.sent_on(TRUNKED, &syn, TRUNK_MAC).bytes(), &[Counter::Connected])
        .then(
            "without",
            plain.bytes(),
            PASS,
            noted(scene.stage.trunk, &scene.rewritten(TRUNKED, &plain)),
            &[Counter::Unresolved],
        )
}

pub(super) fn two_tags(scene: &Scene) -> Script {
    let syn = Segment { tags: vec![7, 8], ..scene.asks(REMOTE, SYN) };
    let out = noted(scene.stage.near, &scene.rewritten(REMOTE, &syn));
    Script::default().then("SYN", syn.bytes(), PASS, out, &[Counter::Connected, Counter::Unresolved])
}

pub(super) fn no_port(scene: &Scene) -> Script {
    let near = Port { interface: scene.stage.near, tags: Tags(0) };
    let syn = scene.asks(REMOTE, SYN);
    let ack = scene.asks(REMOTE, ACK);
    let out = |segment: &Segment| noted(scene.stage.near, &scene.rewritten(REMOTE, segment));
    Script::default()
        .then("without", syn.bytes(), PASS, out(&syn), &[Counter::Connected, Counter::Unresolved])
        .after([Change::Forget(near)])
        .then("with it again", ack.bytes(), REDIRECT, scene.sent_on(REMOTE, &ack, NEAR_MAC).bytes(), &[])
        .after([Change::Port(near, near)])
}

pub(super) fn unresolved(scene: &Scene) -> Script {
    let out = |segment: &Segment| noted(scene.stage.near, &scene.rewritten(UNRESOLVED, segment));
    let (syn, ack) = (scene.asks(UNRESOLVED, SYN), scene.asks(UNRESOLVED, ACK));
    Script::default().then("SYN", syn.bytes(), PASS, out(&syn), &[Counter::Connected, Counter::Unresolved]).then(
        "ACK",
        ack.bytes(),
        PASS,
        out(&ack),
        &[Counter::Unresolved],
    )
}

/// A client whose neighbour is unknown: answers go by the routing table, not to whoever brought the packet.
pub(super) fn stranger(scene: &Scene) -> Script {
    let from = scene.family.socket(STRANGER, scene.client_port);
    let syn = Segment { from, macs: [mac(9), mac(8)], ..scene.asks(REMOTE, SYN) };
    let reply = scene.answers(REMOTE, SYN | ACK);
    let back = Segment { macs: reply.macs, to: from, ..scene.sent_back(REMOTE, &reply) };
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(), &[Counter::Connected])
        .then("the reply", reply.bytes(), PASS, noted(scene.stage.near, &back), &[Counter::Unresolved])
}

pub(super) fn unrouted(scene: &Scene) -> Script {
    let syn = scene.asks(UNROUTED, SYN).bytes();
    Script::default().then("SYN", syn.clone(), DROP, syn, &[Counter::Connected, Counter::NoRoute])
}

pub(super) fn no_backend(scene: &Scene) -> Script {
    let mut script = Script::default();
    for flags in [SYN, ACK, FIN | ACK, FIN] {
        for (payload, options, extra, tags) in [
            (vec![], vec![], Extra::None, vec![]),
            (vec![9; 1001], vec![2, 4, 5, 180], Extra::None, vec![TRUNK_TAG]),
            (vec![], vec![1; 40], Extra::Options, vec![]),
        ] {
            let segment = Segment { payload, options, extra, tags, ..scene.asks(EMPTY, flags) };
            script = script.then("a segment", segment.bytes(), TRANSMIT, scene.reset(&segment), &[Counter::NoBackend]);
        }
    }
    script
}

pub(super) fn stray(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (service, flags) in [(REMOTE, RST), (REMOTE, RST | ACK), (EMPTY, RST)] {
        let frame = scene.asks(service, flags).bytes();
        script = script.then("RST", frame.clone(), DROP, frame, &[Counter::Stray]);
    }
    script
}

pub(super) fn down(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let data = Segment { payload: b"are you there?".to_vec(), ..scene.asks(REMOTE, ACK | PSH) };
    let late = scene.answers(REMOTE, ACK);
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(), &[Counter::Connected])
        .then("data", data.bytes(), TRANSMIT, scene.reset(&data), &[Counter::BackendDown])
        .after([REMOTE.backend(scene.family, Backend::DOWN), settings(scene.generation + 1)])
        .then("the backend after all", late.bytes(), PASS, late.bytes(), &[Counter::NoService])
}

pub(super) fn gone(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let reply = scene.answers(REMOTE, SYN | ACK);
    let ack = scene.asks(REMOTE, ACK);
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(), &[Counter::Connected])
        .then("the reply", reply.bytes(), REDIRECT, scene.sent_back(REMOTE, &reply).bytes(), &[])
        .after([Change::Backend(REMOTE.id(scene.family), Backend::absent()), settings(scene.generation + 1)])
        .then("more", ack.bytes(), REDIRECT, scene.sent_on(REMOTE, &ack, NEAR_MAC).bytes(), &[])
}

pub(super) fn local(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (flags, counters) in [(SYN, &[Counter::Connected][..]), (ACK | PSH, &[])] {
        let segment = Segment { payload: b"odd".to_vec(), ..scene.asks(HERE, flags) };
        let up = Segment {
            from: scene.family.socket(CLIENT, scene.local_port()),
            to: scene.family.socket(HERE.backend, BACKEND_PORT),
            hops: 63,
            ..segment.clone()
        };
        let reply = Segment {
            macs: [mac(CLIENT), NEAR_MAC],
            from: up.to,
            to: up.from,
            hops: 64,
            options: vec![1, 1, 1, 0],
            ..scene.asks(HERE, flags | ACK)
        };
        let turned = Segment { from: segment.to, to: segment.from, ..reply.clone() };
        script = script
            .then("up the stack", segment.bytes(), PASS, up.bytes(), counters)
            .then("the reply", reply.bytes(), OK, turned.bytes(), &[])
            .leaving();
    }
    script
}

pub(super) fn expired(scene: &Scene) -> Script {
    let last = |segment: &Segment| Segment { hops: 1, ..segment.clone() };
    let told = |script: Script, what, segment: &Segment| {
        script.then(what, segment.bytes(), TRANSMIT, segment.time_exceeded(), &[Counter::Expired])
    };
    let syn = scene.asks(REMOTE, SYN);
    let script = told(Script::default(), "one hop", &last(&syn));
    let enough = Segment { hops: 2, ..syn.clone() };
    let out = scene.sent_on(REMOTE, &enough, NEAR_MAC).bytes();
    // Nothing was made of the first.
    let mut script = script.then("two", enough.bytes(), REDIRECT, out, &[Counter::Connected]);
    for extra in [Extra::None, Extra::Options] {
        for tags in [vec![], vec![7], vec![7, 8]] {
            for length in [0, 1, 2, 3, 1_400] {
                let payload = (0..length).map(|byte| byte as u8).collect();
                let data = Segment { extra, tags: tags.clone(), payload, ..last(&scene.asks(REMOTE, ACK | PSH)) };
                script = told(script, "data", &data);
            }
        }
    }
    let script = told(script, "the reply", &last(&scene.answers(REMOTE, SYN | ACK)));
    let elsewhere = Segment { to: scene.family.socket(VIP, 22), ..last(&syn) }.bytes();
    script.then("another port", elsewhere.clone(), PASS, elsewhere, &[Counter::NoService])
}
