//! The cases. Frames out are written as the frames in with what must have changed, and put together from nothing.

mod access;
mod direct;
mod icmp;
mod passive;
mod policies;
mod virtual_mac;

use std::ops::Range;

use lb_common::{
    abi::{Backend, Counter, Port},
    wire::Tags,
};

use super::{
    Change,
    discovery::{Question, answer},
    frames::{ACK, Extra, FIN, PSH, RST, SYN, Segment},
    stage::{
        BACKEND_PORT, CLIENTS, EMPTY, Family, HERE, Host, NEAR_MAC, REMOTE, STRANGER, Service, Stage, TRUNK_MAC,
        TRUNK_TAG, TRUNKED, Tenure, UNRESOLVED, UNROUTED, VIP, mac, settings,
    },
};

const DROP: u32 = 1;
const PASS: u32 = 2;
const TRANSMIT: u32 = 3;
const REDIRECT: u32 = 4;
/// What a classifier returns for a packet that goes on.
const OK: u32 = 0;
/// For one that does not.
const SHOT: u32 = 2;

const CLIENT: Host = CLIENTS[0];

/// Who plays in a case.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene {
    pub(super) stage: Stage,
    pub(super) family: Family,
    pub(super) client_port: u16,
    /// Of the settings at the start; the next two are the case's too.
    pub(super) generation: u32,
}

/// What happens in a case.
#[derive(Debug, Default)]
pub(super) struct Script {
    pub(super) steps: Vec<Step>,
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Program {
    Ingress,
    Egress,
}

/// One run of a program.
#[derive(Debug)]
pub(super) struct Step {
    pub(super) what: &'static str,
    /// Applied first.
    pub(super) before: Vec<Change>,
    /// How it stands with the VIP's lease from here on, if that changes.
    pub(super) tenure: Option<Tenure>,
    pub(super) program: Program,
    pub(super) frame: Vec<u8>,
    pub(super) action: u32,
    pub(super) out: Vec<u8>,
    /// Places in it of which nothing is known beforehand.
    pub(super) open: Vec<Range<usize>>,
    /// What is counted, in the order of the counters.
    pub(super) counters: Vec<Counter>,
}

type Case = fn(&Scene) -> Script;

pub(super) const TABLE: &[(&str, Case)] = &[
    ("a connection there and back", connection),
    ("a segment without its SYN", rebuilt),
    ("two clients with one port", collision),
    ("payload of odd length, IP options and TCP options", options),
    ("one tag, and the way out has it too", transmitted),
    ("two tags, and the way out has none", two_tags),
    ("an interface that XDP must not send from", no_port),
    ("a neighbour that is not resolved", unresolved),
    ("a client whose neighbour is not resolved", stranger),
    ("a route that is not there", unrouted),
    ("no backend takes new connections", no_backend),
    ("a reset is not answered", stray),
    ("the backend is down", down),
    ("the backend is gone from the configuration", gone),
    ("a backend on this host", local),
    ("of the ranges that a client is in, the most specific counts", access::most_specific),
    ("a client is denied that has a connection", access::denied_later),
    ("who is denied is told nothing", access::denied_silently),
    ("backends take turns", policies::turns),
    ("the fewest connections for the weight", policies::fewest),
    ("beyond the rate of new connections", policies::rate),
    ("each connection by itself", policies::flows),
    ("a direct connection", direct::connection),
    ("direct segments without their SYN", direct::unknown),
    ("a backend's own node asks for the VIP", direct::hairpin),
    ("what was sent on comes back", direct::circling),
    ("one tag on a direct connection", direct::tagged),
    ("a backend's neighbour that is not resolved", direct::unresolved),
    ("the backend of a direct connection is down", direct::down),
    ("a router before the client of a direct connection", direct::too_big),
    ("what another node has sent on", direct::turned),
    ("whoever holds the VIP, this node turns or chooses", direct::held),
    ("a port that was another connection's before the VIP left", direct::port_again),
    ("the backend that packets are turned for is down", direct::own_down),
    ("a router before the client of a backend here", direct::too_big_here),
    ("a router before the backend", icmp::too_big_for_the_backend),
    ("a router before the client", icmp::too_big_for_the_client),
    ("a reply of a backend on this host is too big", icmp::too_big_from_here),
    ("an error about nobody's connection", icmp::stranger),
    ("an error whose lengths contradict each other", icmp::malformed),
    ("a backend refuses, and another takes the connection", passive::refused),
    ("the only backend refuses", passive::refused_by_all),
    ("a backend refuses, and the other one is failing", passive::refused_by_failing),
    ("a backend leaves a SYN unanswered", passive::unanswered),
    ("a backend on this host refuses", passive::refused_here),
    ("the last hop", expired),
    ("a fragment", fragment),
    ("lengths that contradict each other", malformed),
    ("a port that nobody asks for", no_service),
    ("what is not ours", not_ours),
    ("what leaves and is not ours", leaves),
    ("who has the VIP, and its lease runs or is over", solicited),
    ("neighbour discovery that asks for no VIP, its lease over", not_solicited),
    ("a connection whose VIP's lease is over", outlived),
    ("the host speaks for a VIP at a virtual MAC", virtual_mac::spoken),
];

impl Script {
    fn then(mut self, what: &'static str, frame: Vec<u8>, action: u32, out: Vec<u8>, counters: &[Counter]) -> Self {
        let counters = counters.to_vec();
        self.steps.push(Step {
            what,
            before: Vec::new(),
            tenure: None,
            program: Program::Ingress,
            frame,
            action,
            out,
            open: Vec::new(),
            counters,
        });
        self
    }

    /// What the last step makes of these places is not looked at.
    fn but(mut self, places: impl IntoIterator<Item = Range<usize>>) -> Self {
        self.steps.last_mut().expect("a step").open.extend(places);
        self
    }

    /// The last step runs after these changes.
    fn after(mut self, changes: impl IntoIterator<Item = Change>) -> Self {
        self.steps.last_mut().expect("a step").before.extend(changes);
        self
    }

    /// The last step runs after the VIP's lease has become this.
    fn under(mut self, tenure: Tenure) -> Self {
        self.steps.last_mut().expect("a step").tenure = Some(tenure);
        self
    }

    /// The last step is on the way out of the host.
    fn leaving(mut self) -> Self {
        self.steps.last_mut().expect("a step").program = Program::Egress;
        self
    }
}

impl Scene {
    /// What a client sends to a virtual server.
    fn asks(&self, service: Service, flags: u8) -> Segment {
        Segment {
            macs: [mac(1), mac(CLIENT)],
            tags: Vec::new(),
            from: self.family.socket(CLIENT, self.client_port),
            to: self.family.socket(VIP, service.port),
            hops: 64,
            extra: Extra::None,
            sequence: 0x1234_5678,
            acknowledgement: if flags & ACK == 0 { 0 } else { 0x9abc_def0 },
            flags,
            window: 64_240,
            options: Vec::new(),
            payload: Vec::new(),
        }
    }

    /// What it is on the way to the backend, by an interface with that MAC.
    fn sent_on(&self, service: Service, segment: &Segment, out_of: [u8; 6]) -> Segment {
        Segment { macs: [mac(service.backend), out_of], ..self.rewritten(service, segment) }
    }

    /// The same with the Ethernet header as it was.
    fn rewritten(&self, service: Service, segment: &Segment) -> Segment {
        Segment {
            from: self.family.socket(VIP, segment.from.port()),
            to: self.family.socket(service.backend, BACKEND_PORT),
            hops: segment.hops - 1,
            ..segment.clone()
        }
    }

    /// What the backend answers.
    fn answers(&self, service: Service, flags: u8) -> Segment {
        Segment {
            macs: [mac(1), mac(service.backend)],
            from: self.family.socket(service.backend, BACKEND_PORT),
            to: self.family.socket(VIP, self.client_port),
            ..self.asks(service, flags)
        }
    }

    /// What that is on the way to the client.
    fn sent_back(&self, service: Service, segment: &Segment) -> Segment {
        Segment {
            macs: [mac(CLIENT), NEAR_MAC],
            from: self.family.socket(VIP, service.port),
            to: self.family.socket(CLIENT, self.client_port),
            hops: segment.hops - 1,
            ..segment.clone()
        }
    }

    /// A reset to a segment (RFC 9293 §3.10.7.1), with what the segment left behind it as padding to 60 bytes.
    fn reset(&self, segment: &Segment) -> Vec<u8> {
        let controls = u32::from(segment.flags & SYN != 0) + u32::from(segment.flags & FIN != 0);
        let next = segment.sequence.wrapping_add(segment.payload.len() as u32 + controls);
        let (sequence, acknowledgement, flags) =
            if segment.flags & ACK != 0 { (segment.acknowledgement, 0, RST) } else { (0, next, RST | ACK) };
        let reset = Segment {
            macs: [segment.macs[1], segment.macs[0]],
            from: segment.to,
            to: segment.from,
            hops: 64,
            sequence,
            acknowledgement,
            flags,
            window: 0,
            options: Vec::new(),
            payload: Vec::new(),
            ..segment.clone()
        };
        let mut frame = reset.bytes();
        let arrived = segment.bytes();
        let padded = arrived.len().min(60).max(frame.len());
        frame.extend(&arrived[frame.len()..padded]);
        frame
    }

    /// The port under which a backend on this host sees the client.
    fn local_port(&self) -> u16 {
        let share = u32::from(self.client_port) * (32_768 - 1_024) / 65_536;
        1_024 + share as u16
    }
}

/// A frame with the note for `tc_ingress` in front.
fn noted(interface: u32, segment: &Segment) -> Vec<u8> {
    [b"xvip", &interface.to_ne_bytes()[..], &[0; 20], &segment.bytes()].concat()
}

fn connection(scene: &Scene) -> Script {
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

fn rebuilt(scene: &Scene) -> Script {
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
fn collision(scene: &Scene) -> Script {
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

fn options(scene: &Scene) -> Script {
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

fn transmitted(scene: &Scene) -> Script {
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

fn two_tags(scene: &Scene) -> Script {
    let syn = Segment { tags: vec![7, 8], ..scene.asks(REMOTE, SYN) };
    let out = noted(scene.stage.near, &scene.rewritten(REMOTE, &syn));
    Script::default().then("SYN", syn.bytes(), PASS, out, &[Counter::Connected, Counter::Unresolved])
}

fn no_port(scene: &Scene) -> Script {
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

fn unresolved(scene: &Scene) -> Script {
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
fn stranger(scene: &Scene) -> Script {
    let from = scene.family.socket(STRANGER, scene.client_port);
    let syn = Segment { from, macs: [mac(9), mac(8)], ..scene.asks(REMOTE, SYN) };
    let reply = scene.answers(REMOTE, SYN | ACK);
    let back = Segment { macs: reply.macs, to: from, ..scene.sent_back(REMOTE, &reply) };
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(), &[Counter::Connected])
        .then("the reply", reply.bytes(), PASS, noted(scene.stage.near, &back), &[Counter::Unresolved])
}

fn unrouted(scene: &Scene) -> Script {
    let syn = scene.asks(UNROUTED, SYN).bytes();
    Script::default().then("SYN", syn.clone(), DROP, syn, &[Counter::Connected, Counter::NoRoute])
}

fn no_backend(scene: &Scene) -> Script {
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

fn stray(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (service, flags) in [(REMOTE, RST), (REMOTE, RST | ACK), (EMPTY, RST)] {
        let frame = scene.asks(service, flags).bytes();
        script = script.then("RST", frame.clone(), DROP, frame, &[Counter::Stray]);
    }
    script
}

fn down(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let data = Segment { payload: b"are you there?".to_vec(), ..scene.asks(REMOTE, ACK | PSH) };
    let late = scene.answers(REMOTE, ACK);
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(), &[Counter::Connected])
        .then("data", data.bytes(), TRANSMIT, scene.reset(&data), &[Counter::BackendDown])
        .after([REMOTE.backend(scene.family, Backend::DOWN), settings(scene.generation + 1)])
        .then("the backend after all", late.bytes(), PASS, late.bytes(), &[Counter::NoService])
}

fn gone(scene: &Scene) -> Script {
    let syn = scene.asks(REMOTE, SYN);
    let reply = scene.answers(REMOTE, SYN | ACK);
    let ack = scene.asks(REMOTE, ACK);
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, scene.sent_on(REMOTE, &syn, NEAR_MAC).bytes(), &[Counter::Connected])
        .then("the reply", reply.bytes(), REDIRECT, scene.sent_back(REMOTE, &reply).bytes(), &[])
        .after([Change::Backend(REMOTE.id(scene.family), Backend::absent()), settings(scene.generation + 1)])
        .then("more", ack.bytes(), REDIRECT, scene.sent_on(REMOTE, &ack, NEAR_MAC).bytes(), &[])
}

fn local(scene: &Scene) -> Script {
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

fn expired(scene: &Scene) -> Script {
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

fn fragment(scene: &Scene) -> Script {
    let frame = Segment { extra: Extra::Fragment, payload: vec![1; 64], ..scene.asks(REMOTE, ACK) }.bytes();
    Script::default().then("the first", frame.clone(), PASS, frame, &[Counter::Fragment])
}

fn malformed(scene: &Scene) -> Script {
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

fn no_service(scene: &Scene) -> Script {
    let frame = Segment { to: scene.family.socket(VIP, 22), ..scene.asks(REMOTE, SYN) }.bytes();
    Script::default().then("SSH", frame.clone(), PASS, frame, &[Counter::NoService])
}

fn not_ours(scene: &Scene) -> Script {
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

fn leaves(scene: &Scene) -> Script {
    let reply = scene.answers(HERE, ACK);
    let stranger = Segment { from: scene.family.socket(HERE.backend + 1, BACKEND_PORT), ..reply.clone() }.bytes();
    let reply = Segment { to: scene.family.socket(CLIENT, scene.client_port), ..reply }.bytes();
    Script::default()
        .then("no connection", reply.clone(), OK, reply, &[])
        .leaving()
        .then("no backend", stranger.clone(), OK, stranger, &[])
        .leaving()
}

fn solicited(scene: &Scene) -> Script {
    let client = scene.family.address(CLIENT);
    let plain = Question { from: client, target: scene.family.address(VIP), tags: vec![], directed: false };
    let questions = [
        plain.clone(),
        Question { tags: vec![TRUNK_TAG], ..plain.clone() },
        Question { tags: vec![7, 8], ..plain.clone() },
        Question { directed: true, ..plain.clone() },
        // Is it taken? (RFC 5227 §1.1, RFC 4862 §5.4.2)
        Question { from: scene.family.nobody(), ..plain },
    ];
    let mut script = Script::default();
    for (tenure, action, counters) in [
        (Tenure::Unbounded, PASS, &[][..]),
        (Tenure::Running, PASS, &[]),
        (Tenure::Over, DROP, &[Counter::Fenced]),
        (Tenure::LongOver, DROP, &[Counter::Fenced]),
        (Tenure::Running, PASS, &[]),
    ] {
        for question in &questions {
            let frame = question.bytes();
            script = script.then("who has it?", frame.clone(), action, frame, counters).under(tenure);
        }
    }
    script
}

fn not_solicited(scene: &Scene) -> Script {
    let (client, vip) = (scene.family.address(CLIENT), scene.family.address(VIP));
    let question = |from, target| Question { from, target, tags: vec![], directed: false }.bytes();
    let announcement = if scene.family == Family::Ipv4 { question(vip, vip) } else { answer(vip, vip) };
    let asked = question(client, vip);
    // In the middle of the target: that is followed by nothing in ARP, by 8 bytes of option in IPv6.
    let cut = if scene.family == Family::Ipv4 { asked.len() - 2 } else { asked.len() - 10 };
    let mut script = Script::default();
    for (what, frame) in [
        ("another's", question(client, scene.family.address(VIP + 1))),
        ("the VIP asks", question(vip, client)),
        ("the VIP is announced", announcement),
        ("an answer", answer(client, vip)),
        ("the VIP answers", answer(vip, client)),
        ("cut", asked[..cut].to_vec()),
    ] {
        script = script.then(what, frame.clone(), PASS, frame, &[]).under(Tenure::LongOver);
    }
    script
}

fn outlived(scene: &Scene) -> Script {
    let (syn, reply) = (scene.asks(REMOTE, SYN), scene.answers(REMOTE, SYN | ACK));
    let (ack, other) = (scene.asks(REMOTE, ACK), scene.asks(EMPTY, SYN));
    let on = |segment: &Segment| scene.sent_on(REMOTE, segment, NEAR_MAC).bytes();
    let back = scene.sent_back(REMOTE, &reply).bytes();
    let elsewhere = Segment { to: scene.family.socket(VIP + 1, REMOTE.port), ..ack.clone() }.bytes();
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, on(&syn), &[Counter::Connected])
        .under(Tenure::Running)
        .then("the reply, the lease over", reply.bytes(), REDIRECT, back.clone(), &[])
        .under(Tenure::Over)
        .then("more", ack.bytes(), REDIRECT, on(&ack), &[])
        .then("too late", ack.bytes(), DROP, ack.bytes(), &[Counter::Overdue])
        .under(Tenure::LongOver)
        .then("too late for the backend", reply.bytes(), DROP, reply.bytes(), &[Counter::Overdue])
        .then("no reset either", other.bytes(), DROP, other.bytes(), &[Counter::Overdue])
        .then("what is not ours", elsewhere.clone(), PASS, elsewhere, &[])
        .then("master again", ack.bytes(), REDIRECT, on(&ack), &[])
        .under(Tenure::Running)
        .then("too late once more", ack.bytes(), DROP, ack.bytes(), &[Counter::Overdue])
        .under(Tenure::LongOver)
        .then("without a lease, behind the fence", reply.bytes(), REDIRECT, back, &[])
        .under(Tenure::Unbounded)
}
