//! The maps. Their layout is `lb_common::abi`'s, the sizes of the connection tables are the loader's.

use aya_ebpf::{
    bindings::{BPF_F_MMAPABLE, bpf_fib_lookup},
    btf_maps::{Array, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf},
    macros::btf_map,
};
use lb_common::{
    abi::{
        Access, Backend, BackendId, Counter, DEFAULT_CONNECTIONS, Fence, Inflow, LINES, Lease, Load, Local,
        MAX_BACKENDS, MAX_LEASES, MAX_LOCALS, MAX_PORTS, MAX_RANGES, MAX_SERVICES, NEWS_BYTES, Policy, Port,
        SUSPICION_BYTES, ServiceId, ServiceKey, Settings, Sieve, Source, Traffic,
    },
    address::{V4, V6},
    datapath::{Draft, Part},
    maglev::SLOTS,
    shared::{Allowance, Shared, Tally},
    table::{Hashing, Set, sets_for},
};

/// As compiled; the loader sets the configured number.
const SETS: usize = sets_for(DEFAULT_CONNECTIONS) as usize;
const MAPPABLE: usize = BPF_F_MMAPABLE as usize;

#[btf_map]
pub(crate) static SETTINGS: Array<Settings, 1> = Array::new();

/// Where in the tables of connections a key belongs.
#[btf_map]
pub(crate) static HASHING: Array<Hashing, 1> = Array::new();

/// The connections; the daemon reads them through its own memory.
#[btf_map]
pub(crate) static FLOWS4: Array<Set<V4>, SETS, MAPPABLE> = Array::new();

#[btf_map]
pub(crate) static FLOWS6: Array<Set<V6>, SETS, MAPPABLE> = Array::new();

/// Where new entries are made.
#[btf_map]
pub(crate) static DRAFT4: PerCpuArray<Draft<V4>, 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static DRAFT6: PerCpuArray<Draft<V6>, 1> = PerCpuArray::new();

/// Where route lookups are prepared: with this on the stack, the data path would not fit into a program's 512 bytes.
#[btf_map]
pub(crate) static QUESTION: PerCpuArray<[u64; size_of::<bpf_fib_lookup>() / 8], 1> = PerCpuArray::new();

#[btf_map]
pub(crate) static SERVICES: HashMap<ServiceKey, ServiceId, { 2 * (2 * MAX_SERVICES + MAX_BACKENDS) }> = HashMap::new();

/// Who may use which virtual server; who is in no range may.
/// Twice as many, since new ones come before former ones go.
#[btf_map]
pub(crate) static RANGES: LpmTrie<Source, Access, { 2 * MAX_RANGES }> = LpmTrie::new();

/// Selection tables one after another, numbered by [`ServiceId`]; the loader sets how many. A new one is filled in the bank that is
/// not in use and put in place by one update of `SERVICES`, so no packet sees half. (An array of maps would do the same, but
/// kernels before 6.2 refuse an inner map without BTF beside a template with it, and aya makes them so.)
#[btf_map]
pub(crate) static TABLES: Array<BackendId, { SLOTS as usize }> = Array::new();

/// How each virtual server chooses a slot, and turns that were taken, by the daemon's number of it.
#[btf_map]
pub(crate) static POLICIES: Array<Policy, MAX_SERVICES> = Array::new();

#[btf_map]
pub(crate) static TURNS: Array<Tally, MAX_SERVICES> = Array::new();

/// New connections of each virtual server, by the daemon's number of it, and the SYNs that came when there were too many.
#[btf_map]
pub(crate) static INFLOWS: Array<Inflow, MAX_SERVICES> = Array::new();

#[btf_map]
pub(crate) static SIEVE: Array<Sieve, { LINES as usize }> = Array::new();

/// Connections of each backend; the daemon corrects them in its own memory.
#[btf_map]
pub(crate) static LOADS: Array<Load, MAX_BACKENDS, MAPPABLE> = Array::new();

#[btf_map]
pub(crate) static BACKENDS: Array<Backend, MAX_BACKENDS> = Array::new();

#[btf_map]
pub(crate) static TRAFFIC: PerCpuArray<Traffic, MAX_BACKENDS> = PerCpuArray::new();

/// Interfaces that can be sent from, and how VLAN interfaces and tags stand for each other: (carrier, tag) leads to
/// (VLAN interface, none) and back. A carrier leads to itself.
#[btf_map]
pub(crate) static PORTS: HashMap<Port, Port, MAX_PORTS> = HashMap::new();

#[btf_map]
pub(crate) static COUNTERS: PerCpuArray<u64, { Counter::COUNT }> = PerCpuArray::new();

/// Programs that `xdp_ingress` hands packets on to, by [`Part`].
#[btf_map]
pub(crate) static PROGRAMS: ProgramArray<{ Part::ALL.len() }> = ProgramArray::new();

/// How long this node may speak for each VIP, and the tick until which that need not be looked up. The fence is not in `SETTINGS`, which
/// another thread writes.
#[btf_map]
pub(crate) static LEASES: HashMap<[u8; 16], Lease, MAX_LEASES> = HashMap::new();

#[btf_map]
pub(crate) static FENCE: Array<Fence, 1> = Array::new();

/// Connections of this host's own processes, by the cookie of the socket. Each goes when its socket is closed.
#[btf_map]
pub(crate) static LOCALS: LruHashMap<u64, Local, MAX_LOCALS> = LruHashMap::new();

/// Connections that have been established or have ended: [`News`](lb_common::flow::News) of either family, told apart by its size. The daemon
/// looks into it every now and then; nobody is woken.
#[btf_map]
pub(crate) static NEWS: RingBuf<u8, NEWS_BYTES> = RingBuf::new();

/// Backends that have left a SYN unanswered or refused it, by their numbers. It wakes the daemon.
#[btf_map]
pub(crate) static SUSPICIONS: RingBuf<u8, SUSPICION_BYTES> = RingBuf::new();

/// ICMP errors of this node's own that may be sent yet.
#[btf_map]
pub(crate) static ALLOWANCE: Array<Allowance, 1> = Array::new();

/// When each backend was last told there, in kernel ticks.
#[btf_map]
pub(crate) static SUSPECTED: Array<Shared<u32>, MAX_BACKENDS> = Array::new();
