//! Direct server return: what the VIP's holder sends on as it is, and what the backend's node makes of it.

use std::net::IpAddr;

use lb_common::abi::{Backend, Counter, Holds, ServiceKey, Turned};

use super::{CLIENT, DROP, OK, PASS, REDIRECT, Scene, Script, TRANSMIT, icmp};
use crate::packets::{
    Change,
    frames::{ACK, Error, FIN, PSH, RST, SYN, Segment},
    stage::{
        BACKEND_PORT, HERE, NEAR_MAC, REMOTE, Service, TRUNK_MAC, TRUNK_TAG, TRUNKED, Tenure, UNRESOLVED, mac,
        settings, turning,
    },
};

/// MAC address of a node that sends on.
const FORWARDER: [u8; 6] = mac(11);

/// The backend's own xvip turns what is for it.
fn direct(scene: &Scene, service: Service) -> Change {
    service.backend(scene.family, Backend::DIRECT)
}

/// What a segment is on the way to the backend.
fn sent_on(service: Service, segment: &Segment) -> Segment {
    Segment { macs: [mac(service.backend), NEAR_MAC], hops: segment.hops - 1, ..segment.clone() }
}

pub(super) fn connection(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (flags, counters) in [
        (SYN, &[Counter::Connected][..]),
        (SYN, &[Counter::Connected]),
        (ACK, &[]),
        (ACK | PSH, &[]),
        (FIN | ACK, &[]),
        (ACK, &[]),
        (SYN, &[Counter::Connected]),
        (RST | ACK, &[]),
    ] {
        let payload = if flags & PSH == 0 { Vec::new() } else { b"GET /readyz".to_vec() };
        let segment = Segment { payload, ..scene.asks(REMOTE, flags) };
        let out = sent_on(REMOTE, &segment).bytes();
        script = script.then("the client's", segment.bytes(), REDIRECT, out, counters).after([direct(scene, REMOTE)]);
    }
    // What it was made with stays, whatever new connections get.
    let data = scene.asks(REMOTE, ACK);
    script
        .then("the mode has changed", data.bytes(), REDIRECT, sent_on(REMOTE, &data).bytes(), &[])
        .after([REMOTE.backend(scene.family, 0), settings(scene.generation + 1)])
}

/// The backend's node knows whether there is such a connection.
pub(super) fn unknown(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (port, flags) in [(1, ACK | PSH), (2, FIN | ACK), (3, RST)] {
        let from = scene.family.socket(CLIENT, scene.client_port + port);
        let segment = Segment { from, ..scene.asks(REMOTE, flags) };
        let out = sent_on(REMOTE, &segment).bytes();
        script =
            script.then("no SYN", segment.bytes(), REDIRECT, out, &[Counter::Rebuilt]).after([direct(scene, REMOTE)]);
    }
    script
}

/// It would not take a packet from its own address that comes by the link.
pub(super) fn hairpin(scene: &Scene) -> Script {
    let from = scene.family.socket(REMOTE.backend, scene.client_port);
    let syn = Segment { macs: [mac(1), mac(REMOTE.backend)], from, ..scene.asks(REMOTE, SYN) };
    let out = scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes();
    Script::default().then("SYN", syn.bytes(), REDIRECT, out, &[Counter::Connected]).after([direct(scene, REMOTE)])
}

pub(super) fn circling(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (flags, counters) in
        [(SYN, &[Counter::Connected, Counter::Circling][..]), (ACK, &[Counter::Circling]), (ACK, &[Counter::Circling])]
    {
        let frame = Segment { macs: [mac(1), mac(REMOTE.backend)], ..scene.asks(REMOTE, flags) }.bytes();
        script = script.then("from the backend", frame.clone(), DROP, frame, counters).after([direct(scene, REMOTE)]);
    }
    script
}

pub(super) fn tagged(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (flags, counters) in [(SYN, &[Counter::Connected][..]), (ACK, &[]), (ACK, &[])] {
        let segment = Segment { tags: vec![TRUNK_TAG], ..scene.asks(TRUNKED, flags) };
        let out = Segment { macs: [mac(TRUNKED.backend), TRUNK_MAC], hops: 63, ..segment.clone() };
        script = script
            .then("the client's", segment.bytes(), TRANSMIT, out.bytes(), counters)
            .after([direct(scene, TRUNKED)]);
    }
    script
}

pub(super) fn unresolved(scene: &Scene) -> Script {
    let syn = scene.asks(UNRESOLVED, SYN);
    let (family, mut neighbour) = (if scene.family.nobody().is_ipv4() { 2_u32 } else { 10 }, [0; 16]);
    match scene.family.address(UNRESOLVED.backend) {
        IpAddr::V4(v4) => neighbour[..4].copy_from_slice(&v4.octets()),
        IpAddr::V6(v6) => neighbour = v6.octets(),
    }
    let up = Segment { hops: 63, ..syn.clone() };
    let note = [b"xvip", &scene.stage.near.to_ne_bytes()[..], &family.to_ne_bytes(), &neighbour, &up.bytes()].concat();
    Script::default()
        .then("SYN", syn.bytes(), PASS, note, &[Counter::Connected, Counter::Unresolved])
        .after([direct(scene, UNRESOLVED)])
}

pub(super) fn down(scene: &Scene) -> Script {
    let [syn, ack] = [SYN, ACK].map(|flags| scene.asks(REMOTE, flags));
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, sent_on(REMOTE, &syn).bytes(), &[Counter::Connected])
        .after([direct(scene, REMOTE)])
        .then("ACK", ack.bytes(), REDIRECT, sent_on(REMOTE, &ack).bytes(), &[])
        .then("more", ack.bytes(), TRANSMIT, scene.reset(&ack), &[Counter::BackendDown])
        .after([REMOTE.backend(scene.family, Backend::DIRECT | Backend::DOWN), settings(scene.generation + 1)])
}

/// What the backend's node has sent, a router tells the VIP about: it is for that node.
pub(super) fn too_big(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let reply = Segment { payload: vec![7; 333], from: syn.to, to: syn.from, ..scene.asks(REMOTE, ACK | PSH) };
    let mut script = Script::default()
        .then("SYN", syn.bytes(), REDIRECT, sent_on(REMOTE, &syn).bytes(), &[Counter::Connected])
        .after([direct(scene, REMOTE)]);
    for quoted in icmp::QUOTED {
        let error = icmp::too_big(scene, &reply, quoted);
        let out = Error { macs: [mac(REMOTE.backend), NEAR_MAC], hops: error.hops - 1, ..error.clone() };
        script = script.then("too big", error.bytes(), REDIRECT, out.bytes(), &[Counter::IcmpError]);
    }
    let back = Error { macs: [mac(1), mac(REMOTE.backend)], ..icmp::too_big(scene, &reply, 8) }.bytes();
    script.then("from that node", back.clone(), DROP, back, &[Counter::Circling])
}

/// That this node turns what is for a virtual server, for its backend of [`HERE`].
fn turns(scene: &Scene, service: Service, holds: Holds) -> [Change; 3] {
    let turned = Turned::new(HERE.id(scene.family), holds);
    [
        Change::Serve(service.key(scene.family).turned(), turned.stored()),
        Change::Serve(ServiceKey::forwarder(FORWARDER), lb_common::abi::ServiceId::BACKEND),
        turning(scene.generation + 1),
    ]
}

/// What a segment is on its way up to the backend here.
fn up(scene: &Scene, segment: &Segment) -> Segment {
    Segment {
        from: scene.family.socket(CLIENT, scene.local_port()),
        to: scene.family.socket(HERE.backend, BACKEND_PORT),
        hops: segment.hops - 1,
        ..segment.clone()
    }
}

pub(super) fn turned(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (flags, counters) in
        [(SYN, &[Counter::Connected][..]), (ACK | PSH, &[]), (ACK | PSH, &[]), (FIN | ACK, &[]), (ACK, &[])]
    {
        let macs = [mac(1), FORWARDER];
        let segment = Segment { macs, payload: b"odd".to_vec(), ..scene.asks(REMOTE, flags) };
        let up = up(scene, &segment);
        let reply = Segment {
            macs: [mac(CLIENT), NEAR_MAC],
            from: up.to,
            to: up.from,
            hops: 64,
            ..scene.asks(REMOTE, flags | ACK)
        };
        let out = Segment { from: segment.to, to: segment.from, ..reply.clone() };
        script = script
            .then("up the stack", segment.bytes(), PASS, up.bytes(), counters)
            .after(turns(scene, REMOTE, Holds::Never))
            .then("the reply", reply.bytes(), OK, out.bytes(), &[])
            .leaving();
    }
    script
}

pub(super) fn held(scene: &Scene) -> Script {
    let mut script = Script::default();
    let mut port = 0;
    let mut next = |sender| {
        port += 1;
        let from = scene.family.socket(CLIENT, scene.client_port + port);
        Segment { macs: [mac(1), sender], from, ..scene.asks(REMOTE, ACK) }
    };
    let local = |segment: &Segment| {
        let share = u32::from(segment.from.port()) * (32_768 - 1_024) / 65_536;
        Segment { from: scene.family.socket(CLIENT, 1_024 + share as u16), ..up(scene, segment) }
    };
    let client = mac(CLIENT);
    for (what, holds, tenure, sender, chooses) in [
        ("another node's VIP", Holds::Never, Tenure::Unbounded, client, false),
        ("this node's VIP", Holds::Always, Tenure::Unbounded, client, true),
        ("sent on by a node that holds it, too", Holds::Always, Tenure::Unbounded, FORWARDER, false),
        ("never held here", Holds::Leased, Tenure::Unbounded, client, false),
        ("held", Holds::Leased, Tenure::Running, client, true),
        ("held by two for a moment", Holds::Leased, Tenure::Running, FORWARDER, false),
        ("just given away", Holds::Leased, Tenure::Over, client, true),
        ("given away", Holds::Leased, Tenure::LongOver, client, false),
    ] {
        let segment = next(sender);
        let (action, out) = match chooses {
            true => (REDIRECT, sent_on(REMOTE, &segment)),
            false => (PASS, local(&segment)),
        };
        let changes = turns(scene, REMOTE, holds).into_iter().chain([direct(scene, REMOTE)]);
        script =
            script.then(what, segment.bytes(), action, out.bytes(), &[Counter::Rebuilt]).after(changes).under(tenure);
        // Known now: the same, whoever holds the VIP afterwards, unless it was this node's as holder.
        if !chooses {
            script = script
                .then("once more", segment.bytes(), PASS, out.bytes(), &[])
                .under(Tenure::LongOver)
                .then("and in the hands of another", segment.bytes(), PASS, out.bytes(), &[])
                .under(Tenure::Running);
        }
    }
    let last = next(client).bytes();
    script
        .then("another port", last.clone(), DROP, last, &[Counter::Overdue])
        .after([settings(scene.generation + 2)])
        .under(Tenure::LongOver)
}

/// A client uses a port again by which this node has sent on a connection while it held the VIP.
pub(super) fn port_again(scene: &Scene) -> Script {
    let [syn, ack] = [SYN, ACK].map(|flags| scene.asks(REMOTE, flags));
    let held = turns(scene, REMOTE, Holds::Leased).into_iter().chain([direct(scene, REMOTE)]);
    Script::default()
        .then("held", syn.bytes(), REDIRECT, sent_on(REMOTE, &syn).bytes(), &[Counter::Connected])
        .after(held)
        .under(Tenure::Running)
        .then("established", ack.bytes(), REDIRECT, sent_on(REMOTE, &ack).bytes(), &[])
        .then("late, as if it were held here yet", ack.bytes(), DROP, ack.bytes(), &[Counter::Overdue])
        .under(Tenure::LongOver)
        .then("anew, by who holds it now", syn.bytes(), PASS, up(scene, &syn).bytes(), &[Counter::Connected])
        .then("which is turned", ack.bytes(), PASS, up(scene, &ack).bytes(), &[])
}

pub(super) fn own_down(scene: &Scene) -> Script {
    let [syn, ack] = [SYN, ACK].map(|flags| scene.asks(REMOTE, flags));
    let down = HERE.backend(scene.family, Backend::DOWN);
    let out = up(scene, &syn).bytes();
    Script::default()
        .then("SYN", syn.bytes(), PASS, out, &[Counter::Connected])
        .after(turns(scene, REMOTE, Holds::Never))
        .then("more", ack.bytes(), TRANSMIT, scene.reset(&ack), &[Counter::BackendDown])
        .after([down, turning(scene.generation + 2)])
        .then("anew", syn.bytes(), TRANSMIT, scene.reset(&syn), &[Counter::BackendDown])
}

pub(super) fn too_big_here(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let seen = up(scene, &syn);
    let sent = Segment { from: seen.to, to: seen.from, ..scene.asks(REMOTE, ACK) };
    let turned = Segment { from: syn.to, to: syn.from, ..sent.clone() };
    let mut script = Script::default()
        .then("up the stack", syn.bytes(), PASS, seen.bytes(), &[Counter::Connected])
        .after(turns(scene, REMOTE, Holds::Never));
    for quoted in icmp::QUOTED {
        let error = icmp::too_big(scene, &turned, quoted);
        let out = Error { macs: error.macs, ..icmp::heard(scene, &error, HERE.backend, CLIENT, &sent) };
        script = script.then("too big", error.bytes(), PASS, out.bytes(), &[Counter::IcmpError]);
    }
    script
}
