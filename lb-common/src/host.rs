//! The tables in plain memory, for tests and fuzzing: what the maps are in the kernel.

use std::{
    cell::{Cell, RefCell, RefMut},
    collections::HashMap,
    vec,
    vec::Vec,
};

use crate::{
    abi::{
        Access, Backend, BackendId, Counter, Fence, Inflow, Lease, Load, Local, Policy, Port, Range, SUSPICION_REST,
        ServiceId, ServiceKey, Settings, Sieve, Source, Traffic,
    },
    address::{Address, V4, V6},
    checksum::{Delta, adjust},
    conntrack::Sender,
    datapath::{self, Draft, Family, Outgoing, Part, Route, Tables, Verdict, local::Locals},
    flow::{Flow, Hop, Key, News, mix},
    frame::Frame,
    shared::{Allowance, Tally},
    table::{Hashing, SECRET_WORDS, Set, Sets},
    wire::{Checksum, Segment, Tags, Tcp},
};

/// What becomes of a frame that arrives, by whichever of the programs decides.
pub fn received(frame: &mut Vec<u8>, tables: &Memory, interface: u32, now: u64) -> Verdict {
    match datapath::ingress(&mut frame[..], tables, interface, now) {
        Verdict::HandedOn(Part::Icmp) => datapath::icmp(&mut frame[..], tables, interface, now),
        Verdict::HandedOn(Part::Expired) => match datapath::expired(&frame[..], tables, interface, now) {
            Ok(room) => {
                frame.truncate(room.kept);
                frame.splice(0..0, core::iter::repeat_n(0, room.front));
                datapath::time_exceeded(&mut frame[..], &room, now)
            }
            Err(verdict) => verdict,
        },
        Verdict::HandedOn(Part::Settle4) => datapath::settle::<V4, _, _>(&mut frame[..], tables),
        Verdict::HandedOn(Part::Settle6) => datapath::settle::<V6, _, _>(&mut frame[..], tables),
        verdict => verdict,
    }
}

/// All tables of a data plane.
#[derive(Debug)]
pub struct Memory {
    pub settings: Option<Settings>,
    pub services: HashMap<ServiceKey, ServiceId>,
    pub ranges: HashMap<Range, Access>,
    pub tables: HashMap<ServiceId, Vec<BackendId>>,
    pub policies: HashMap<ServiceId, Policy>,
    pub backends: HashMap<BackendId, Backend>,
    /// Of the backends with the lowest numbers.
    pub loads: Vec<Load>,
    /// Routes by destination, IPv4 as `::ffff:a.b.c.d`, with the tags of the way out; every other destination has none.
    pub routes: HashMap<[u8; 16], Route>,
    /// VLAN interfaces, by what carries them.
    pub vlans: HashMap<Port, u32>,
    /// Leases by VIP, IPv4 as `::ffff:a.b.c.d`.
    pub leases: HashMap<[u8; 16], Lease>,
    pub fence: Fence,
    /// What leases are measured against.
    pub uptime: u64,
    hashing: Hashing,
    flows4: Vec<Set<V4>>,
    flows6: Vec<Set<V6>>,
    draft4: RefCell<Draft<V4>>,
    draft6: RefCell<Draft<V6>>,
    /// What the data path has told about connections.
    pub news4: RefCell<Vec<News<V4>>>,
    pub news6: RefCell<Vec<News<V6>>>,
    turns: Vec<Tally>,
    pub allowance: Allowance,
    inflows: Vec<Inflow>,
    sieve: Vec<Sieve>,
    /// Backends that the data path has told of, and when it did last.
    pub suspicions: RefCell<Vec<BackendId>>,
    suspected: RefCell<HashMap<BackendId, u32>>,
    locals: RefCell<HashMap<u64, Local>>,
    counters: RefCell<HashMap<Counter, u64>>,
    traffic: RefCell<HashMap<BackendId, Traffic>>,
    lookups: Cell<u64>,
}

impl Default for Memory {
    /// With room for some hundred connections.
    fn default() -> Self {
        let secret = core::array::from_fn::<u32, SECRET_WORDS, _>(|number| mix(number as u32 + 1));
        Self::with(Hashing::new(secret, 0x9e37_79b9_7f4a_7c15, 32))
    }
}

impl Memory {
    /// With connection tables as large as that says.
    pub fn with(hashing: Hashing) -> Self {
        let sets = 0..hashing.sets();
        Self {
            settings: None,
            services: HashMap::new(),
            ranges: HashMap::new(),
            tables: HashMap::new(),
            policies: HashMap::new(),
            backends: HashMap::new(),
            loads: (0..COUNTED).map(|_| Load::default()).collect(),
            routes: HashMap::new(),
            vlans: HashMap::new(),
            leases: HashMap::new(),
            fence: Fence::default(),
            uptime: 0,
            news4: RefCell::default(),
            news6: RefCell::default(),
            allowance: Allowance::default(),
            turns: (0..COUNTED).map(|_| Tally::default()).collect(),
            inflows: vec![Inflow::default(); COUNTED],
            sieve: vec![Sieve::default(); SIEVE],
            suspicions: RefCell::default(),
            suspected: RefCell::default(),
            locals: RefCell::default(),
            hashing,
            flows4: sets.clone().map(|_| Set::default()).collect(),
            flows6: sets.map(|_| Set::default()).collect(),
            draft4: RefCell::default(),
            draft6: RefCell::default(),
            counters: RefCell::default(),
            traffic: RefCell::default(),
            lookups: Cell::default(),
        }
    }

    /// How often a thing was counted.
    pub fn counter(&self, counter: Counter) -> u64 {
        self.counters.borrow().get(&counter).copied().unwrap_or(0)
    }

    /// All counters that are not zero.
    pub fn counters(&self) -> HashMap<Counter, u64> {
        self.counters.borrow().clone()
    }

    /// Forgets what was counted for a backend, as the daemon does when it goes.
    pub fn forget_counts(&mut self, id: BackendId) {
        self.traffic.get_mut().remove(&id);
        if let Some(load) = self.loads.get_mut(id.0 as usize) {
            *load = Load::default();
        }
    }

    pub fn traffic_of(&self, id: BackendId) -> Traffic {
        self.traffic.borrow().get(&id).copied().unwrap_or_default()
    }

    /// Route lookups so far.
    pub fn lookups(&self) -> u64 {
        self.lookups.get()
    }

    /// As the kernel side does it where no VLAN interface stands for the tags of the arrival: those are carried along on the same
    /// interface, and lost nowhere.
    fn find(&self, from: Port, destination: [u8; 16]) -> Route {
        self.lookups.set(self.lookups.get() + 1);
        match self.routes.get(&destination).copied().unwrap_or(Route::None) {
            Route::Hop(hop) if hop.tags == from.tags => Route::Hop(hop),
            Route::Hop(hop) if hop.tags == Tags(0) && hop.interface == from.interface => {
                Route::Hop(Hop { tags: from.tags, ..hop })
            }
            Route::Hop(hop) => {
                let out = Port { interface: hop.interface, tags: hop.tags };
                Route::Kernel(self.vlans.get(&out).copied().unwrap_or(hop.interface))
            }
            Route::Kernel(_) if from.tags != Tags(0) => Route::None,
            other => other,
        }
    }
}

/// Virtual servers and backends, counted from 0, whose turns and connections are counted.
const COUNTED: usize = 32;
/// Lines of the sieve.
const SIEVE: usize = 64;
/// Ticks in a second.
const SECOND: u32 = 250;

impl Tables for Memory {
    fn settings(&self) -> Option<&Settings> {
        self.settings.as_ref()
    }

    fn service(&self, key: &ServiceKey) -> Option<ServiceId> {
        self.services.get(key).copied()
    }

    fn denies(&self, service: ServiceId, source: &[u8; 16]) -> bool {
        let source = Source::new(service, *source);
        let longest =
            self.ranges.iter().filter(|(range, _)| range.holds(&source)).max_by_key(|(range, _)| range.bits());
        longest.is_some_and(|(_, access)| access.is_denied())
    }

    fn slot(&self, service: ServiceId, slot: u32) -> Option<BackendId> {
        self.tables.get(&service)?.get(slot as usize).copied()
    }

    fn backend(&self, id: BackendId) -> Option<&Backend> {
        self.backends.get(&id)
    }

    fn policy(&self, service: ServiceId) -> Option<Policy> {
        self.policies.get(&service).copied()
    }

    fn turn(&self, service: ServiceId) -> Option<&Tally> {
        self.turns.get(service.0 as usize)
    }

    fn allowance(&self) -> Option<&Allowance> {
        Some(&self.allowance)
    }

    fn inflow(&self, service: ServiceId) -> Option<&Inflow> {
        self.inflows.get(service.0 as usize)
    }

    fn sieve(&self, place: u32) -> Option<&Sieve> {
        self.sieve.get(place as usize % SIEVE)
    }

    fn ticks_per_second(&self) -> u32 {
        SECOND
    }

    fn load(&self, id: BackendId) -> Option<&Load> {
        self.loads.get(id.0 as usize)
    }

    fn count(&self, counter: Counter) {
        *self.counters.borrow_mut().entry(counter).or_default() += 1;
    }

    fn traffic(&self, id: BackendId, sender: Sender, bytes: usize) {
        let mut traffic = self.traffic.borrow_mut();
        traffic.entry(id).or_default().count(sender, bytes);
    }

    fn connected(&self, id: BackendId) {
        self.traffic.borrow_mut().entry(id).or_default().connections += 1;
    }

    fn fence(&self) -> Fence {
        self.fence
    }

    fn lease(&self, vip: &[u8; 16]) -> Option<Lease> {
        self.leases.get(vip).copied()
    }

    fn suspect(&self, id: BackendId, now: u64) {
        let last = self.suspected.borrow().get(&id).copied().unwrap_or(0);
        if (now as u32).wrapping_sub(last) >= SUSPICION_REST {
            self.suspected.borrow_mut().insert(id, now as u32);
            self.suspicions.borrow_mut().push(id);
        }
    }

    fn uptime(&self) -> u64 {
        self.uptime
    }
}

impl Locals for Memory {
    fn local(&self, cookie: u64) -> Option<Local> {
        self.locals.borrow().get(&cookie).copied()
    }

    fn remember(&self, cookie: u64, local: &Local) {
        self.locals.borrow_mut().insert(cookie, *local);
    }

    fn forget(&self, cookie: u64) {
        self.locals.borrow_mut().remove(&cookie);
    }
}

macro_rules! family {
    ($address:ty, $flows:ident, $news:ident, $draft:ident) => {
        impl Sets<$address> for Memory {
            fn hashing(&self) -> Option<&Hashing> {
                Some(&self.hashing)
            }

            fn set(&self, number: u32) -> Option<&Set<$address>> {
                self.$flows.get(number as usize)
            }
        }

        impl Family<$address> for Memory {
            type Sheet<'a> = RefMut<'a, Draft<$address>>;

            fn draft(&self) -> Option<RefMut<'_, Draft<$address>>> {
                Some(self.$draft.borrow_mut())
            }

            fn tell(&self, key: &Key<$address>, flow: &Flow<$address>) {
                let mut news = News::default();
                news.tell(key, flow);
                self.$news.borrow_mut().push(news);
            }

            fn route(&self, from: Port, _source: &$address, destination: &$address) -> Route {
                self.find(from, destination.mapped())
            }
        }
    };
}
family!(V4, flows4, news4, draft4);
family!(V6, flows6, news6, draft6);

impl Outgoing for [u8] {
    fn turn<A: Address>(&mut self, segment: &Segment<A>, flow: &Flow<A>, keeps_receiver: bool) -> bool {
        let Ok(header) = Frame::get_mut::<A::Header>(self, segment.network) else {
            return false;
        };
        let receiver = if keeps_receiver { segment.key.destination } else { *flow.new_destination() };
        A::readdress(header, *flow.new_source(), receiver);
        let Ok(tcp) = Frame::get_mut::<Tcp>(self, segment.transport) else {
            return false;
        };
        tcp.source = flow.new_source_port();
        tcp.destination = flow.new_destination_port();
        tcp.checksum = adjust(tcp.checksum, flow.segment_delta);
        true
    }

    fn replace_mac(&mut self, at: usize, old: [u8; 6], new: [u8; 6], checksum: Option<usize>) -> bool {
        if let Some(checksum) = checksum {
            let Ok(checksum) = Frame::get_mut::<Checksum>(self, checksum) else {
                return false;
            };
            let change = |delta: Delta, word: usize| delta.word([old[word], old[word + 1]], [new[word], new[word + 1]]);
            checksum.0 = adjust(checksum.0, [0, 2, 4].into_iter().fold(Delta::new(), change).folded());
        }
        self.get_mut(at..).and_then(|rest| rest.first_chunk_mut()).map(|mac| *mac = new).is_some()
    }
}
