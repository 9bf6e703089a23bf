//! The cases. Frames out are written as the frames in with what must have changed, and put together from nothing.

mod access;
mod direct;
mod icmp;
mod leases;
mod nat;
mod others;
mod passive;
mod policies;
mod virtual_mac;

use std::ops::Range;

use lb_common::abi::Counter;

use super::{
    Change,
    frames::{ACK, Extra, FIN, RST, SYN, Segment},
    stage::{BACKEND_PORT, CLIENTS, Family, Host, NEAR_MAC, Service, Stage, Tenure, VIP, mac},
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
    ("a connection there and back", nat::connection),
    ("a segment without its SYN", nat::rebuilt),
    ("two clients with one port", nat::collision),
    ("payload of odd length, IP options and TCP options", nat::options),
    ("one tag, and the way out has it too", nat::transmitted),
    ("two tags, and the way out has none", nat::two_tags),
    ("an interface that XDP must not send from", nat::no_port),
    ("a neighbour that is not resolved", nat::unresolved),
    ("a client whose neighbour is not resolved", nat::stranger),
    ("a route that is not there", nat::unrouted),
    ("no backend takes new connections", nat::no_backend),
    ("a reset is not answered", nat::stray),
    ("the backend is down", nat::down),
    ("the backend is gone from the configuration", nat::gone),
    ("a backend on this host", nat::local),
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
    ("the last hop", nat::expired),
    ("a fragment", others::fragment),
    ("lengths that contradict each other", others::malformed),
    ("a port that nobody asks for", others::no_service),
    ("what is not ours", others::not_ours),
    ("what leaves and is not ours", others::leaves),
    ("who has the VIP, and its lease runs or is over", leases::solicited),
    ("neighbour discovery that asks for no VIP, its lease over", leases::not_solicited),
    ("a connection whose VIP's lease is over", leases::outlived),
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
