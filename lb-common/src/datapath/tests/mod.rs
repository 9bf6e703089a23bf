//! The packet decision on the host: every path, for both families by the same code.

mod access;
mod connections;
mod endings;
mod expired;
mod fence;
mod icmp_errors;
mod inherited;
mod leaving;
mod passive;
mod random;
mod segments;
mod shapes;
mod virtual_mac;

use std::vec::Vec;

use segments::{Net, Segment};

use super::*;
use crate::{
    abi::Filter,
    flow::Role,
    host::{Memory, received},
    maglev::SLOTS,
    wire::Tags,
};

/// Runs tests that are generic over the family for each of the two.
macro_rules! both {
    ($($name:ident),* $(,)?) => {
        mod ipv4 { $(#[test] fn $name() { super::$name::<crate::address::V4>(); })* }
        mod ipv6 { $(#[test] fn $name() { super::$name::<crate::address::V6>(); })* }
    };
}
use both;

const VIP: u8 = 100;
const CLIENT: u8 = 50;
const OTHER_CLIENT: u8 = 51;
const BACKEND: u8 = 11;
const LOCAL: u8 = 10;

const SERVICE_PORT: u16 = 16443;
const BACKEND_PORT: u16 = 6443;
const CLIENT_PORT: u16 = 40000;

const INTERFACE: u32 = 2;
const OUTER: u32 = 3;

const fn mac(last: u8) -> [u8; 6] {
    [2, 0, 0, 0, 0, last]
}

/// Tables with one virtual server and one backend, which is where every slot leads, and a clock.
struct World<A> {
    memory: Memory,
    now: u64,
    family: core::marker::PhantomData<A>,
}

/// The backend of [`World`].
const ID: BackendId = BackendId(7);

impl<A: Net> World<A>
where
    Memory: Family<A>,
{
    /// A backend elsewhere.
    fn remote() -> Self {
        Self::with(Backend::new(A::host(BACKEND).mapped(), BACKEND_PORT.to_be_bytes(), 0))
    }

    /// A backend on this host.
    fn local() -> Self {
        Self::with(Backend::new(A::host(LOCAL).mapped(), BACKEND_PORT.to_be_bytes(), Backend::LOCAL))
    }

    fn with(backend: Backend) -> Self {
        let mut memory = Memory::default();
        memory.services.insert(ServiceKey::new(A::host(VIP).mapped(), SERVICE_PORT.to_be_bytes()), ServiceId(3));
        memory.services.insert(ServiceKey::vip(A::host(VIP).mapped()), ServiceId::VIP);
        memory.tables.insert(ServiceId(3), std::vec![ID; SLOTS as usize]);
        memory.backends.insert(ID, backend);
        let mut world = Self { memory, now: 1_000_000, family: core::marker::PhantomData };
        world.route(BACKEND, Route::Hop(hop(OUTER, BACKEND)));
        world.route(CLIENT, Route::Hop(hop(INTERFACE, CLIENT)));
        world.route(OTHER_CLIENT, Route::Hop(hop(INTERFACE, OTHER_CLIENT)));
        world.generation(1);
        world
    }

    fn route(&mut self, to: u8, route: Route) {
        self.memory.routes.insert(A::host(to).mapped(), route);
    }

    fn generation(&mut self, generation: u32) {
        let (mut vips, mut locals) = (Filter::empty(), Filter::empty());
        vips.insert(A::host(VIP));
        locals.insert(A::host(LOCAL));
        let mut macs = Filter::empty();
        [202, 203].map(mac).into_iter().for_each(|mac| macs.insert_mac(mac));
        self.memory.settings = Some(Settings::new(generation, vips, locals, macs));
    }

    /// Gives the backend another entry, as the daemon does: with a new generation.
    fn replace(&mut self, backend: Backend) {
        self.memory.backends.insert(ID, backend);
        let generation = self.memory.settings.map_or(0, |settings| settings.generation());
        self.generation(generation + 1);
    }

    fn down(&mut self) {
        self.replace(Backend::new(A::host(BACKEND).mapped(), BACKEND_PORT.to_be_bytes(), Backend::DOWN));
    }

    fn ingress(&self, frame: &[u8]) -> (Verdict, Vec<u8>) {
        let mut frame = frame.to_vec();
        let verdict = received(&mut frame, &self.memory, INTERFACE, self.now);
        if let Verdict::Answer(length) = verdict {
            frame.truncate(length);
        }
        (verdict, frame)
    }

    /// Sends a segment in and demands what becomes of it.
    fn expect(&self, segment: &Segment<A>, verdict: Verdict, becomes: &Segment<A>) {
        let (got, frame) = self.ingress(&segment.bytes());
        assert_eq!(got, verdict, "{segment:?}");
        assert_eq!(frame, becomes.bytes(), "{segment:?}");
    }

    /// Sends a segment in that is dropped, for a reason.
    fn dropped(&self, segment: &Segment<A>, counter: Counter) {
        let before = self.memory.counter(counter);
        assert_eq!(self.ingress(&segment.bytes()).0, Verdict::Drop, "{segment:?}");
        assert_eq!(self.memory.counter(counter), before + 1, "{counter:?}");
    }

    fn key(segment: &Segment<A>) -> Key<A> {
        Key {
            source: segment.source,
            destination: segment.destination,
            source_port: segment.ports[0].to_be_bytes(),
            destination_port: segment.ports[1].to_be_bytes(),
        }
    }

    /// Phase of both halves of the connection of a segment.
    fn phases(&self, segment: &Segment<A>) -> (Phase, Phase) {
        let one = self.memory.flow(&Self::key(segment)).expect("a known connection");
        let other = self.memory.flow(&one.other).expect("its other half");
        (one.phase(), other.phase())
    }

    fn knows(&self, segment: &Segment<A>) -> bool {
        self.memory.flow(&Self::key(segment)).is_some()
    }
}

fn hop(interface: u32, last: u8) -> Hop {
    Hop { interface, tags: Tags(0), destination: mac(last), source: mac(200 + interface as u8) }
}

/// What the client sends to the VIP.
fn asks<A: Net>(flags: Flags) -> Segment<A> {
    Segment {
        macs: [mac(202), mac(CLIENT)],
        tags: Vec::new(),
        source: A::host(CLIENT),
        destination: A::host(VIP),
        ports: [CLIENT_PORT, SERVICE_PORT],
        hops: 64,
        extra: Vec::new(),
        sequence: 0x1234_5678,
        acknowledgement: 0x9abc_def0,
        flags,
        window: 0xfaf0,
        options: Vec::new(),
        payload: Vec::new(),
    }
}

/// What becomes of it on the way to the backend.
fn sent_on<A: Net>(segment: &Segment<A>) -> Segment<A> {
    Segment {
        macs: [mac(BACKEND), mac(200 + OUTER as u8)],
        source: A::host(VIP),
        destination: A::host(BACKEND),
        ports: [segment.ports[0], BACKEND_PORT],
        hops: segment.hops - 1,
        ..segment.clone()
    }
}

/// What the backend answers, to the port under which it knows the client.
fn answers<A: Net>(port: u16, flags: Flags) -> Segment<A> {
    Segment {
        macs: [mac(203), mac(BACKEND)],
        source: A::host(BACKEND),
        destination: A::host(VIP),
        ports: [BACKEND_PORT, port],
        ..asks(flags)
    }
}

/// What becomes of that on the way to the client.
fn sent_back<A: Net>(segment: &Segment<A>) -> Segment<A> {
    Segment {
        macs: [mac(CLIENT), mac(200 + INTERFACE as u8)],
        source: A::host(VIP),
        destination: A::host(CLIENT),
        ports: [SERVICE_PORT, CLIENT_PORT],
        hops: segment.hops - 1,
        ..segment.clone()
    }
}

const SYN: Flags = Flags::SYN;
const ACK: Flags = Flags::ACK;
const SYN_ACK: Flags = Flags::SYN.with(Flags::ACK);
const FIN: Flags = Flags::FIN.with(Flags::ACK);
const RST: Flags = Flags::RST;
