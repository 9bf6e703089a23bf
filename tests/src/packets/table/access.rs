//! Clients that may not use a virtual server.

use std::net::SocketAddr;

use lb_common::abi::{Access, Counter, Range};

use super::{CLIENT, DROP, PASS, REDIRECT, Scene, Script, TRANSMIT};
use crate::packets::{
    Change,
    frames::{ACK, PSH, RST, SYN, Segment},
    stage::{CLIENTS, EMPTY, HERE, NEAR_MAC, REMOTE, Service, settings},
};

/// A rule for the client's address without its last `free` bits.
fn rule(scene: &Scene, service: Service, free: u32, access: Access) -> Change {
    Change::Rule(service.range(scene.family, CLIENT, free), access)
}

fn unrule(scene: &Scene, service: Service, free: u32) -> Change {
    Change::Unrule(service.range(scene.family, CLIENT, free))
}

pub(super) fn most_specific(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let other = Segment { from: scene.family.socket(CLIENTS[1], scene.client_port + 1), ..syn.clone() };
    let on = |segment: &Segment| scene.sent_on(REMOTE, segment, NEAR_MAC).bytes();
    let everybody = Range::everybody(REMOTE.service(scene.family));
    let mut script = Script::default();
    let steps = [
        ("a wide range", rule(scene, REMOTE, 8, Access::DENIED), &syn, false),
        ("its neighbour too", rule(scene, REMOTE, 8, Access::DENIED), &other, false),
        ("the address itself", rule(scene, REMOTE, 0, Access::ALLOWED), &syn, true),
        ("not its neighbour", rule(scene, REMOTE, 0, Access::ALLOWED), &other, false),
        ("the other way round", rule(scene, REMOTE, 0, Access::DENIED), &syn, false),
        ("wide and narrow", rule(scene, REMOTE, 8, Access::ALLOWED), &syn, false),
        ("the wide one is left", unrule(scene, REMOTE, 0), &syn, true),
        ("all but a range", Change::Rule(everybody, Access::DENIED), &syn, true),
        ("all", unrule(scene, REMOTE, 8), &syn, false),
        ("nobody again", Change::Unrule(everybody), &other, true),
    ];
    for (number, (what, change, segment, is_sent)) in (2..).zip(steps) {
        // Each a connection of its own.
        let from = SocketAddr::new(segment.from.ip(), scene.client_port + number);
        let segment = &Segment { from, ..segment.clone() };
        let (action, out, counter) = match is_sent {
            true => (REDIRECT, on(segment), Counter::Connected),
            false => (DROP, segment.bytes(), Counter::Denied),
        };
        script = script.then(what, segment.bytes(), action, out, &[counter]).after([change]);
    }
    script
}

/// A connection that is there ends when its client is denied, and nobody is told.
pub(super) fn denied_later(scene: &Scene) -> Script {
    let [syn, data] = [SYN, ACK | PSH].map(|flags| scene.asks(REMOTE, flags));
    let reply = scene.answers(REMOTE, SYN | ACK);
    let sent = scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes();
    let deny = rule(scene, REMOTE, 0, Access::DENIED);
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, sent.clone(), &[Counter::Connected])
        .then("the reply", reply.bytes(), REDIRECT, scene.sent_back(REMOTE, &reply).bytes(), &[])
        .then("data", data.bytes(), DROP, data.bytes(), &[Counter::Denied])
        .after([deny, settings(scene.generation + 1)])
        .then("the backend after all", reply.bytes(), PASS, reply.bytes(), &[Counter::NoService])
        .then("once more", data.bytes(), DROP, data.bytes(), &[Counter::Denied])
        .then("allowed again", syn.bytes(), REDIRECT, sent, &[Counter::Connected])
        .after([unrule(scene, REMOTE, 0)])
}

/// Who is denied learns nothing, whatever else is the matter; who is not is treated as ever.
pub(super) fn denied_silently(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (service, flags) in [(EMPTY, SYN), (EMPTY, ACK), (HERE, SYN), (HERE, RST)] {
        let frame = scene.asks(service, flags).bytes();
        let deny = rule(scene, service, 3, Access::DENIED);
        script = script.then("denied", frame.clone(), DROP, frame, &[Counter::Denied]).after([deny]);
    }
    let syn = scene.asks(EMPTY, SYN);
    script
        .then("not denied", syn.bytes(), TRANSMIT, scene.reset(&syn), &[Counter::NoBackend])
        .after([EMPTY, HERE].map(|service| unrule(scene, service, 3)))
}
