//! The tables of the data path, kept in maps.

use aya_ebpf::{
    Global,
    bindings::{
        BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_FWD_DISABLED, BPF_FIB_LKUP_RET_NO_NEIGH,
        BPF_FIB_LKUP_RET_SUCCESS, BPF_FIB_LKUP_RET_UNSUPP_LWT, bpf_fib_lookup,
    },
    btf_maps::{PerCpuArray, lpm_trie as trie},
    cty::c_void,
    helpers,
};
use lb_common::{
    abi::{
        BANKS, Backend, BackendId, Counter, Fence, Inflow, LINES, Lease, Load, Local, Policy, Port, ServiceId,
        ServiceKey, Settings, Sieve, Source,
    },
    address::{Address, V4, V6},
    conntrack::Sender,
    datapath::{Draft, Family, Route, Tables, local::Locals, selection::Asker},
    flow::{Flow, Hop, Key},
    maglev::SLOTS,
    shared::{Allowance, Tally},
    table::{Existing, Hashing, Set, Sets},
    wire::Tags,
};

use crate::{functions, maps};

/// The kernel's ticks in a second; the loader sets it.
#[unsafe(no_mangle)]
static TICKS_PER_SECOND: Global<u32> = Global::new(0);

/// The maps, seen from one run of a program.
pub(crate) struct Maps {
    /// The program's context, which route lookups ask for.
    context: *mut c_void,
}

impl Maps {
    #[inline(always)]
    pub(crate) const fn new(context: *mut c_void) -> Self {
        Self { context }
    }
}

impl Tables for Maps {
    #[inline(always)]
    fn settings(&self) -> Option<&Settings> {
        maps::SETTINGS.get(0)
    }

    #[inline(always)]
    fn service(&self, key: &ServiceKey) -> Option<ServiceId> {
        // SAFETY: copied out at once; the daemon never changes an entry's value in place.
        unsafe { maps::SERVICES.get(key) }.copied()
    }

    #[inline(always)]
    fn denies(&self, service: ServiceId, source: &[u8; 16]) -> bool {
        // Both banks of a virtual server have its ranges.
        let source = Source::new(ServiceId(service.0 / BANKS), *source);
        let key = trie::Key::new(Source::BITS, source);
        maps::RANGES.get(&key).is_some_and(|access| access.is_denied())
    }

    #[inline(always)]
    fn slot(&self, service: ServiceId, slot: u32) -> Option<BackendId> {
        maps::TABLES.get(service.0.wrapping_mul(SLOTS).wrapping_add(slot)).copied()
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<&Backend> {
        maps::BACKENDS.get(id.0)
    }

    #[inline(always)]
    fn policy(&self, service: ServiceId) -> Option<Policy> {
        maps::POLICIES.get(service.0 / BANKS).copied()
    }

    #[inline(always)]
    fn turn(&self, service: ServiceId) -> Option<&Tally> {
        maps::TURNS.get(service.0 / BANKS)
    }

    #[inline(always)]
    fn allowance(&self) -> Option<&Allowance> {
        maps::ALLOWANCE.get(0)
    }

    #[inline(always)]
    fn inflow(&self, service: ServiceId) -> Option<&Inflow> {
        maps::INFLOWS.get(service.0 / BANKS)
    }

    #[inline(always)]
    fn sieve(&self, place: u32) -> Option<&Sieve> {
        maps::SIEVE.get(place % LINES)
    }

    #[inline(always)]
    fn ticks_per_second(&self) -> u32 {
        TICKS_PER_SECOND.load()
    }

    #[inline(always)]
    fn load(&self, id: BackendId) -> Option<&Load> {
        maps::LOADS.get(id.0)
    }

    #[inline(always)]
    fn select(&self, service: ServiceId, asker: &Asker) -> BackendId {
        let Asker { source, port, kind, former } = *asker;
        BackendId(functions::select(service.0, source, port, kind as u32, former.0) as u32)
    }

    #[inline(always)]
    fn count(&self, counter: Counter) {
        if let Some(count) = maps::COUNTERS.get_ptr_mut(counter as u32) {
            // SAFETY: this CPU's own element, and programs on it do not interrupt each other here.
            unsafe { *count += 1 }
        }
    }

    #[inline(always)]
    fn traffic(&self, id: BackendId, sender: Sender, bytes: usize) {
        if let Some(traffic) = maps::TRAFFIC.get_ptr_mut(id.0) {
            // SAFETY: as in `count`.
            unsafe { (*traffic).count(sender, bytes) }
        }
    }

    #[inline(always)]
    fn connected(&self, id: BackendId) {
        if let Some(traffic) = maps::TRAFFIC.get_ptr_mut(id.0) {
            // SAFETY: as in `count`.
            unsafe { (*traffic).connections += 1 }
        }
    }

    #[inline(always)]
    fn fence(&self) -> Fence {
        maps::FENCE.get(0).copied().unwrap_or(Fence::NONE)
    }

    #[inline(always)]
    fn lease(&self, vip: &[u8; 16]) -> Option<Lease> {
        // SAFETY: copied out at once; the daemon never changes an entry's value in place.
        unsafe { maps::LEASES.get(vip) }.copied()
    }

    #[inline(always)]
    fn suspect(&self, id: BackendId, now: u64) {
        functions::suspect(id.0, now as u32);
    }

    #[inline(always)]
    fn another(&self, service: ServiceId, than: BackendId, seed: u32, shunned: u8) -> BackendId {
        BackendId(functions::another(service.0, than.0, seed, shunned.into()) as u32)
    }

    #[inline(always)]
    fn uptime(&self) -> u64 {
        // SAFETY: a plain helper call.
        unsafe { helpers::bpf_ktime_get_boot_ns() }
    }
}

impl Locals for Maps {
    #[inline(always)]
    fn local(&self, cookie: u64) -> Option<Local> {
        // SAFETY: copied out at once. An entry that is given to another socket meanwhile does not name this one's peer.
        unsafe { maps::LOCALS.get(cookie) }.copied()
    }

    #[inline(always)]
    fn remember(&self, cookie: u64, local: &Local) {
        // A full table gives up its oldest entry; without its note a socket sees the backend's address, and works.
        let _ = maps::LOCALS.insert(cookie, local, 0);
    }

    #[inline(always)]
    fn forget(&self, cookie: u64) {
        let _ = maps::LOCALS.remove(cookie);
    }
}

/// What differs between the families inside the kernel: the map, and how an address stands in a route lookup.
pub(crate) trait Kernel: Address + 'static {
    fn set(number: u32) -> Option<&'static Set<Self>>;
    fn overdue(key: &Key<Self>) -> u64;
    fn turned(key: &Key<Self>, sender: u64) -> u64;
    fn locate(key: &Key<Self>) -> u64;
    fn insert(key: &Key<Self>, flow: &Flow<Self>, existing: u32) -> u64;
    fn remove(key: &Key<Self>, now: u32);
    fn advance(key: &Key<Self>, other: &Key<Self>, leader: &Flow<Self>);
    fn tell(key: &Key<Self>, flow: &Flow<Self>);
    fn drafts() -> &'static PerCpuArray<Draft<Self>, 1>;
    fn ask(parameters: &mut bpf_fib_lookup, source: &Self, destination: &Self);
}

/// Calls of the functions below.
macro_rules! functions {
    ($overdue:ident, $turned:ident, $locate:ident, $insert:ident, $remove:ident, $advance:ident, $tell:ident) => {
        #[inline(always)]
        fn overdue(key: &Key<Self>) -> u64 {
            functions::$overdue(key)
        }

        #[inline(always)]
        fn turned(key: &Key<Self>, sender: u64) -> u64 {
            functions::$turned(key, sender)
        }

        #[inline(always)]
        fn locate(key: &Key<Self>) -> u64 {
            functions::$locate(key)
        }

        #[inline(always)]
        fn insert(key: &Key<Self>, flow: &Flow<Self>, existing: u32) -> u64 {
            functions::$insert(key, flow, existing)
        }

        #[inline(always)]
        fn remove(key: &Key<Self>, now: u32) {
            functions::$remove(key, now);
        }

        #[inline(always)]
        fn advance(key: &Key<Self>, other: &Key<Self>, leader: &Flow<Self>) {
            functions::$advance(key, other, leader);
        }

        #[inline(always)]
        fn tell(key: &Key<Self>, flow: &Flow<Self>) {
            functions::$tell(key, flow);
        }
    };
}

/// Address families of `bpf_fib_lookup` (include/linux/socket.h).
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

impl Kernel for V4 {
    #[inline(always)]
    fn set(number: u32) -> Option<&'static Set<Self>> {
        maps::FLOWS4.get(number)
    }

    functions!(overdue4, turned4, locate4, insert4, remove4, advance4, tell4);

    #[inline(always)]
    fn drafts() -> &'static PerCpuArray<Draft<Self>, 1> {
        &maps::DRAFT4
    }

    #[inline(always)]
    fn ask(parameters: &mut bpf_fib_lookup, source: &Self, destination: &Self) {
        parameters.family = AF_INET;
        parameters.__bindgen_anon_3.ipv4_src = u32::from_ne_bytes(source.0);
        parameters.__bindgen_anon_4.ipv4_dst = u32::from_ne_bytes(destination.0);
    }
}

impl Kernel for V6 {
    #[inline(always)]
    fn set(number: u32) -> Option<&'static Set<Self>> {
        maps::FLOWS6.get(number)
    }

    functions!(overdue6, turned6, locate6, insert6, remove6, advance6, tell6);

    #[inline(always)]
    fn drafts() -> &'static PerCpuArray<Draft<Self>, 1> {
        &maps::DRAFT6
    }

    #[inline(always)]
    fn ask(parameters: &mut bpf_fib_lookup, source: &Self, destination: &Self) {
        parameters.family = AF_INET6;
        parameters.__bindgen_anon_3.ipv6_src = source.words();
        parameters.__bindgen_anon_4.ipv6_dst = destination.words();
    }
}

/// Family and address of the neighbour that the last route lookup of this run led to, or was to lead to.
#[inline(always)]
pub(crate) fn asked() -> (u32, [u32; 4]) {
    let Some(room) = maps::QUESTION.get_ptr_mut(0) else {
        return (0, [0; 4]);
    };
    // SAFETY: this CPU's own, written by `Family::route`; every bit pattern is an address.
    unsafe {
        let answer = &*room.cast::<bpf_fib_lookup>();
        (answer.family.into(), answer.__bindgen_anon_4.ipv6_dst)
    }
}

impl<A: Kernel> Sets<A> for Maps {
    #[inline(always)]
    fn hashing(&self) -> Option<&Hashing> {
        maps::HASHING.get(0)
    }

    #[inline(always)]
    fn set(&self, number: u32) -> Option<&Set<A>> {
        A::set(number)
    }

    #[inline(always)]
    fn locate(&self, key: &Key<A>) -> u64 {
        A::locate(key)
    }

    #[inline(always)]
    fn insert_as(&self, key: &Key<A>, flow: &Flow<A>, existing: Existing) -> u64 {
        A::insert(key, flow, existing as u32)
    }

    #[inline(always)]
    fn remove_at(&self, key: &Key<A>, now: u32) {
        A::remove(key, now);
    }

    #[inline(always)]
    fn advance(&self, key: &Key<A>, other: &Key<A>, leader: &Flow<A>) {
        A::advance(key, other, leader);
    }
}

impl<A: Kernel> Family<A> for Maps {
    type Sheet<'a> = &'a mut Draft<A>;

    #[inline(always)]
    fn tell(&self, key: &Key<A>, flow: &Flow<A>) {
        A::tell(key, flow);
    }

    #[inline(always)]
    fn overdue(&self, key: &Key<A>) -> bool {
        A::overdue(key) != 0
    }

    #[inline(always)]
    fn turned(&self, key: &Key<A>, sender: [u8; 6]) -> BackendId {
        let [a, b, c, d, e, f] = sender;
        BackendId(A::turned(key, u64::from_ne_bytes([a, b, c, d, e, f, 0, 0])) as u32)
    }

    #[inline(always)]
    fn draft(&self) -> Option<&mut Draft<A>> {
        // SAFETY: this CPU's own, and the data path asks once a packet.
        A::drafts().get_ptr_mut(0).map(|draft| unsafe { &mut *draft })
    }

    #[inline(always)]
    fn route(&self, from: Port, source: &A, destination: &A) -> Route {
        let Some(room) = maps::QUESTION.get_ptr_mut(0) else {
            return Route::None;
        };
        // The helper wants unused fields zero.
        // SAFETY: this CPU's own, as large as the parameters and aligned for them; zero is a valid value of each field.
        let parameters = unsafe {
            // Word by word: all at once would be a loop over its bytes.
            for word in 0..size_of::<bpf_fib_lookup>() / 8 {
                room.cast::<u64>().add(word).write_volatile(0);
            }
            &mut *room.cast::<bpf_fib_lookup>()
        };
        A::ask(parameters, source, destination);
        // A frame with the tag of a VLAN interface is routed as if it came in by that. Tags without an interface are
        // carried along.
        // SAFETY: copied out at once.
        let entered = if from.tags == Tags(0) { None } else { unsafe { maps::PORTS.get(from) }.copied() };
        parameters.ifindex = entered.map_or(from.interface, |port| port.interface);
        // SAFETY: the context is the program's own, the size is the structure's.
        let answer =
            unsafe { helpers::bpf_fib_lookup(self.context, parameters, size_of::<bpf_fib_lookup>() as i32, 0) };
        let leaves = parameters.ifindex;
        // Tags that no VLAN interface stands for are carried along or not at all: the kernel would lose them.
        if answer != i64::from(BPF_FIB_LKUP_RET_SUCCESS) && entered.is_none() && from.tags != Tags(0) {
            return Route::None;
        }
        match answer as u32 {
            BPF_FIB_LKUP_RET_SUCCESS => {}
            BPF_FIB_LKUP_RET_NO_NEIGH | BPF_FIB_LKUP_RET_UNSUPP_LWT | BPF_FIB_LKUP_RET_FRAG_NEEDED => {
                return Route::Kernel(leaves);
            }
            // Forwarding is off on the interface: the kernel's output path does not ask for it.
            BPF_FIB_LKUP_RET_FWD_DISABLED => return Route::Kernel(from.interface),
            _ => return Route::None,
        }
        // SAFETY: copied out at once.
        let Some(port) = unsafe { maps::PORTS.get(Port { interface: leaves, tags: Tags(0) }) }.copied() else {
            return Route::Kernel(leaves);
        };
        let transparent = entered.is_none() && port.interface == from.interface && port.tags == Tags(0);
        if port.tags != from.tags && !transparent {
            return Route::Kernel(leaves);
        }
        Route::Hop(Hop {
            interface: port.interface,
            tags: from.tags,
            destination: parameters.dmac,
            source: parameters.smac,
        })
    }
}
