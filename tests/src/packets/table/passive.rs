//! Backends that refuse a SYN or leave it unanswered, and where the client's next SYN goes.

use lb_common::abi::{
    Backend,
    Counter::{Connected, NoService, Refused, Retried, Unanswered},
};

use super::{CLIENT, DROP, OK, PASS, REDIRECT, SHOT, Scene, Script};
use crate::packets::{
    frames::{ACK, RST, SYN, Segment},
    stage::{BACKEND_PORT, HERE, NEAR_MAC, PAIR, REMOTE, SPARE, mac},
};

pub(super) fn refused(scene: &Scene) -> Script {
    let [syn, ack, end] = [SYN, ACK, RST | ACK].map(|flags| scene.asks(PAIR, flags));
    let on = |service, segment| scene.sent_on(service, segment, NEAR_MAC).bytes();
    let refusal = scene.answers(PAIR, RST | ACK);
    let reply = scene.answers(SPARE, SYN | ACK);
    let back = |segment| scene.sent_back(PAIR, segment).bytes();
    let reset = scene.answers(SPARE, RST | ACK);
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, on(PAIR, &syn), &[Connected])
        .then("RST", refusal.bytes(), DROP, refusal.bytes(), &[Refused])
        .then("RST once more", refusal.bytes(), DROP, refusal.bytes(), &[Refused])
        .then("SYN again", syn.bytes(), REDIRECT, on(SPARE, &syn), &[Connected, Retried])
        .then("SYN+ACK", reply.bytes(), REDIRECT, back(&reply), &[])
        .then("ACK", ack.bytes(), REDIRECT, on(SPARE, &ack), &[])
        .then("the end of an open connection", reset.bytes(), REDIRECT, back(&reset), &[])
        .then("the client's own", end.bytes(), REDIRECT, on(SPARE, &end), &[])
}

pub(super) fn refused_by_all(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let refusal = scene.answers(REMOTE, RST | ACK);
    let on = scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes();
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, on.clone(), &[Connected])
        .then("RST", refusal.bytes(), REDIRECT, scene.sent_back(REMOTE, &refusal).bytes(), &[])
        .then("SYN again", syn.bytes(), REDIRECT, on, &[Connected])
}

/// As while all checks fail and all take connections all the same: the other would refuse, too.
pub(super) fn refused_by_failing(scene: &Scene) -> Script {
    let syn = scene.asks(PAIR, SYN);
    let refusal = scene.answers(PAIR, RST | ACK);
    let on = scene.sent_on(PAIR, &syn, NEAR_MAC).bytes();
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, on.clone(), &[Connected])
        .then("RST", refusal.bytes(), REDIRECT, scene.sent_back(PAIR, &refusal).bytes(), &[])
        .after([SPARE.backend(scene.family, Backend::FAILING)])
        .then("SYN again", syn.bytes(), REDIRECT, on, &[Connected])
}

pub(super) fn unanswered(scene: &Scene) -> Script {
    let syn = scene.asks(PAIR, SYN);
    let on = |service, segment| scene.sent_on(service, segment, NEAR_MAC).bytes();
    let late = scene.answers(PAIR, SYN | ACK);
    let reply = scene.answers(SPARE, SYN | ACK);
    let back = scene.sent_back(PAIR, &reply).bytes();
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, on(PAIR, &syn), &[Connected])
        .then("SYN again", syn.bytes(), REDIRECT, on(PAIR, &syn), &[Connected, Unanswered])
        .then("the third", syn.bytes(), REDIRECT, on(SPARE, &syn), &[Connected, Unanswered, Retried])
        .then("the first backend's answer, late", late.bytes(), PASS, late.bytes(), &[NoService])
        .then("the second's", reply.bytes(), REDIRECT, back, &[])
        .then("SYN of who has not got it", syn.bytes(), REDIRECT, on(SPARE, &syn), &[Connected])
}

/// The kernel of this host refuses, and the client's SYN goes to another one.
pub(super) fn refused_here(scene: &Scene) -> Script {
    let syn = scene.asks(HERE, SYN);
    let up = Segment {
        from: scene.family.socket(CLIENT, scene.local_port()),
        to: scene.family.socket(HERE.backend, BACKEND_PORT),
        hops: 63,
        ..syn.clone()
    };
    let refusal = Segment {
        macs: [mac(CLIENT), NEAR_MAC],
        from: up.to,
        to: up.from,
        hops: 64,
        options: vec![1; 8],
        ..scene.asks(HERE, RST | ACK)
    };
    let told = Segment { from: syn.to, to: syn.from, ..refusal.clone() };
    let on = scene.sent_on(SPARE, &syn, NEAR_MAC).bytes();
    let other = scene.answers(SPARE, RST | ACK);
    let (shared, alone) = (HERE.shared(scene.family), HERE.alone(scene.family));
    Script::default()
        .then("SYN", syn.bytes(), PASS, up.bytes(), &[Connected])
        .after([shared])
        .then("RST", refusal.bytes(), SHOT, refusal.bytes(), &[Refused])
        .leaving()
        .then("SYN again", syn.bytes(), REDIRECT, on, &[Connected, Retried])
        .then("RST of the other, too", other.bytes(), DROP, other.bytes(), &[Refused])
        .then("SYN where there is no other", syn.bytes(), PASS, up.bytes(), &[Connected, Retried])
        .after([alone])
        .then("RST", refusal.bytes(), OK, told.bytes(), &[])
        .leaving()
}
