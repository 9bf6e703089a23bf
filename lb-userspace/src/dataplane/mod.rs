//! The kernel side as the daemon sees it: loading, attaching, and keeping the maps. The only room that knows aya.

mod adopt;
mod attach;
mod detach;
mod ending;
mod fence;
mod flows;
mod links;
mod loads;
mod local;
mod maps;
mod mirror;
mod pins;
mod records;
mod run;
mod suspicions;
mod sweep;

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::{MapData, MapError, ProgramArray},
    programs::{Program, ProgramError, SchedClassifier, Xdp},
    util::KernelVersion,
};
use lb_common::{
    abi::{
        Access, BANKS, Backend, BackendId, Counter, Policy, Port, Range, ServiceId, ServiceKey, Settings, Traffic,
        names,
    },
    datapath::{LOOPBACK, Part},
    maglev::SLOTS,
    table::{self, Hashing, SECRET_WORDS},
};

use crate::host::namespace;

pub use adopt::{Loss, losses};
pub use attach::{AttachError, Mode};
pub use detach::Left;
pub use ending::{Ended, Ender};
pub use fence::Fence;
pub use local::{HookError, Locals};
pub use mirror::{Connection, Mirror, Taken};
pub use pins::PinError;
pub use records::Log;
pub use run::{Run, ticks_per_second};
pub use suspicions::Suspicions;
pub use sweep::{Sweeper, Swept, Timeouts};

/// The kernel side, as built by this package's build script.
pub static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/xvip-ebpf"));

/// How to load.
#[derive(Clone, Debug)]
pub struct Options {
    /// Connections tracked at once, per address family.
    pub max_connections: u32,
    /// Virtual servers at most, numbered from 0; each takes 128 KiB.
    pub virtual_servers: u32,
    /// Where in a BPF filesystem programs and maps are pinned; `None` pins nothing, and all ends with this process.
    pub bpffs: Option<PathBuf>,
}

/// The programs would not load.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(
        "the kernel refused the programs or their maps: {0}. xvip needs Linux 5.15 or newer with BTF (CONFIG_DEBUG_INFO_BTF), and CAP_BPF, \
         CAP_NET_ADMIN and CAP_PERFMON; with many connections configured, also enough memory for dataplane.max_connections."
    )]
    Object(#[from] aya::EbpfError),
    #[error(
        "the kernel refused program {name}: {source}. If the kernel is 5.15 or newer, this is a defect of xvip; please report it with the kernel's version."
    )]
    Program { name: &'static str, source: ProgramError },
    #[error("map {name}: {source}")]
    Map { name: &'static str, source: MapError },
    #[error("reading /dev/urandom: {0}")]
    Secret(io::Error),
    #[error("reading the kernel's clock: {0}")]
    Clock(ProgramError),
    #[error("asking for the number of this network namespace: {0}. xvip needs Linux 5.15 or newer.")]
    Home(io::Error),
    #[error(transparent)]
    Pins(#[from] PinError),
}

/// One change of the tables. A packet in flight sees a selection table and a virtual server before the change or after it; settings
/// and backends are copied word by word, which their readers bear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Settings(Box<Settings>),
    Backend(BackendId, Backend),
    /// How many connections a backend is to have, against the others of its virtual server.
    Weight(BackendId, u32),
    /// Puts a whole selection table in place of the one before.
    Table(ServiceId, Vec<BackendId>),
    /// Says how a slot of it is chosen.
    Policy(ServiceId, Policy),
    Serve(ServiceKey, ServiceId),
    Withdraw(ServiceKey),
    /// Says whether sources may use a virtual server.
    Rule(Range, Access),
    Unrule(Range),
    Port(Port, Port),
    Forget(Port),
}

/// The tables would not take a change.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {source}")]
pub struct ApplyError {
    what: String,
    source: MapError,
}

/// The loaded programs and their maps. Dropping it detaches everything and frees the maps, unless it was told to [`Dataplane::keep`]
/// them; what a former daemon has left stays as it is until [`Dataplane::take_over`].
pub struct Dataplane {
    ebpf: Ebpf,
    maps: maps::Maps,
    /// Kept, so that it is not emptied.
    _handed_on: ProgramArray<MapData>,
    pins: Option<pins::Pins>,
    former: adopt::Former,
    /// By the number of the interface.
    attached: BTreeMap<u32, attach::Attachment>,
    hooked: Option<local::Hooked>,
    stage: Stage,
    max_connections: u32,
    hashing: Hashing,
    tables: Option<flows::Tables>,
    /// Whether classifiers attach by links (Linux 6.6) and need no qdisc.
    has_tcx: bool,
}

/// How far this has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The maps are beside those of a former daemon, if there was one.
    Preparing,
    /// Packets are handled by these programs and no others.
    Carrying,
    /// Packets are handled on after this process has ended.
    Kept,
}

impl fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataplane").field("max_connections", &self.max_connections).finish_non_exhaustive()
    }
}

impl Options {
    /// Entries of the maps whose sizes depend on these.
    fn sizes(&self) -> [(&'static str, u32); 3] {
        let sets = table::sets_for(self.max_connections);
        let tables = self.virtual_servers.max(1).saturating_mul(BANKS * SLOTS);
        [(names::FLOWS4, sets), (names::FLOWS6, sets), (names::TABLES, tables)]
    }
}

impl Dataplane {
    /// Loads the programs, with the connections of a former daemon if it has left any; nothing is attached yet.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        let sizes = options.sizes();
        let pins = options.bpffs.as_deref().map(pins::Pins::claim).transpose()?;
        let former = pins.as_ref().map(|pins| adopt::Former::find(pins, &sizes)).transpose()?.unwrap_or_default();
        let home = namespace::cookie().map_err(LoadError::Home)?;
        let (level, chooses_errors) = (records::level(), u32::from(local::chooses_errors()));
        let second = ticks_per_second() as u32;
        let mut loader = EbpfLoader::new();
        loader
            .override_global(aya_log::LEVEL, &level, true)
            .override_global(names::HOME, &home, true)
            .override_global(names::CHOOSES_ERRORS, &chooses_errors, true)
            .override_global(names::TICKS_PER_SECOND, &second, true);
        for (name, entries) in sizes {
            loader.map_max_entries(name, entries);
        }
        for (name, pins) in former.kept.iter().zip(pins.iter().cycle()) {
            loader.map_pin_path(name, pins.map(name));
        }
        let mut ebpf = loader.load(OBJECT)?;
        xdp(&mut ebpf).load().map_err(|source| LoadError::Program { name: names::XDP_INGRESS, source })?;
        for name in [names::XDP_ICMP, names::XDP_EXPIRED, names::XDP_SETTLE4, names::XDP_SETTLE6, names::XDP_CLOCK] {
            program::<Xdp>(&mut ebpf, name).load().map_err(|source| LoadError::Program { name, source })?;
        }
        for name in [names::TC_INGRESS, names::TC_EGRESS, names::TC_LOOPBACK] {
            classifier(&mut ebpf, name).load().map_err(|source| LoadError::Program { name, source })?;
        }
        local::load(&mut ebpf)?;
        if let Some(pins) = &pins {
            pins.stage(&ebpf, &former.kept)?;
        }
        let mut maps = maps::Maps::take(&mut ebpf)?;
        let hashing = maps.hash(secret(sizes[0].1).map_err(LoadError::Secret)?)?;
        let handed_on = hand_on(&mut ebpf)?;
        let has_tcx = KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0));
        Ok(Self {
            ebpf,
            maps,
            _handed_on: handed_on,
            pins,
            former,
            attached: BTreeMap::new(),
            hooked: None,
            stage: Stage::Preparing,
            max_connections: options.max_connections,
            hashing,
            tables: None,
            has_tcx,
        })
    }

    /// Whether these programs handle packets, and not a former daemon's or none.
    pub fn is_carrying(&self) -> bool {
        self.stage != Stage::Preparing
    }

    /// Whether connections that other nodes have carried to a backend on this host can go on here.
    pub fn inherits(&self) -> bool {
        self.attached.contains_key(&LOOPBACK)
    }

    /// Whether connections of this host's own processes are seen.
    pub fn is_hooked(&self) -> bool {
        self.hooked.is_some()
    }

    /// Interfaces, by number, that have a clsact qdisc for the programs' sake (before Linux 6.6). It stays when they go.
    pub fn qdiscs(&self) -> BTreeSet<u32> {
        self.pins.as_ref().map(|pins| pins.links().qdiscs()).unwrap_or_default()
    }

    /// The generation of the settings of a former daemon; 0 if there was none. Connections that were kept may be of that one.
    pub fn former_generation(&self) -> u32 {
        self.former.generation
    }

    /// The backends of a former daemon with their numbers, which connections that were kept carry.
    pub fn former_backends(&self) -> &[(BackendId, Backend)] {
        &self.former.backends
    }

    /// Applies changes in order; the first that fails ends it.
    pub fn apply(&mut self, changes: &[Change]) -> Result<(), ApplyError> {
        changes.iter().try_for_each(|change| self.maps.apply(change))
    }

    /// Every counter, summed over the CPUs.
    pub fn counters(&self) -> Result<BTreeMap<Counter, u64>, ApplyError> {
        self.maps.counters()
    }

    /// What has passed to and from a backend since the maps were made.
    pub fn traffic(&self, id: BackendId) -> Result<Traffic, ApplyError> {
        self.maps.traffic(id)
    }

    /// Connections that the programs count for a backend at this moment: those that packets are carried for, and those of this host's own sockets.
    pub fn open(&self, id: BackendId) -> [u64; 2] {
        self.maps.loads.open(id)
    }

    /// Connections that fit, of both families together.
    pub fn capacity(&self) -> u64 {
        u64::from(self.max_connections) * 2
    }

    /// Where in the tables of connections a key belongs.
    pub fn hashing(&self) -> Hashing {
        self.hashing
    }

    /// The id of `xdp_ingress`, by which an interface tells what is on it.
    pub fn ingress_id(&self) -> Result<u32, ProgramError> {
        let program = self.ebpf.program(names::XDP_INGRESS).expect("the object has the programs it was built with");
        program.info().map(|info| info.id())
    }

    /// Name and verified instructions of each program; `None` where the kernel (before 5.16) does not tell.
    pub fn programs(&self) -> Result<Vec<(String, Option<u32>)>, ProgramError> {
        let told = self.ebpf.programs().map(|(name, program)| {
            let info = program.info()?;
            Ok((name.to_owned(), info.verified_instruction_count()))
        });
        told.collect()
    }
}

/// A new secret for tables of that many sets.
fn secret(sets: u32) -> io::Result<Hashing> {
    let mut urandom = File::open("/dev/urandom")?;
    let mut words = [0; SECRET_WORDS];
    for word in &mut words {
        let mut bytes = [0; 4];
        urandom.read_exact(&mut bytes)?;
        *word = u32::from_ne_bytes(bytes);
    }
    let mut factor = [0; 8];
    urandom.read_exact(&mut factor)?;
    Ok(Hashing::new(words, u64::from_ne_bytes(factor), sets))
}

/// Puts the programs that `xdp_ingress` hands packets on to in their places. The kernel empties the map when nobody holds it.
fn hand_on(ebpf: &mut Ebpf) -> Result<ProgramArray<MapData>, LoadError> {
    let failed = |source| LoadError::Map { name: names::PROGRAMS, source };
    let map = ebpf.take_map(names::PROGRAMS).expect("the object has the maps it was built with");
    let mut places = ProgramArray::try_from(map).map_err(failed)?;
    for part in Part::ALL {
        let name = match part {
            Part::Icmp => names::XDP_ICMP,
            Part::Settle4 => names::XDP_SETTLE4,
            Part::Settle6 => names::XDP_SETTLE6,
            Part::Expired => names::XDP_EXPIRED,
        };
        let program = program::<Xdp>(ebpf, name);
        let program = program.fd().map_err(|source| LoadError::Program { name, source })?;
        places.set(part as u32, program, 0).map_err(failed)?;
    }
    Ok(places)
}

/// The program that handles received frames.
fn xdp(ebpf: &mut Ebpf) -> &mut Xdp {
    program(ebpf, names::XDP_INGRESS)
}

/// The program that tells the time.
fn clock(ebpf: &mut Ebpf) -> &mut Xdp {
    program(ebpf, names::XDP_CLOCK)
}

/// One of the traffic control programs.
fn classifier<'a>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut SchedClassifier {
    program(ebpf, name)
}

/// A program of the object, which was built together with this code.
fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> &'a mut P
where
    &'a mut P: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name).expect("the object has the programs it was built with");
    program.try_into().expect("of the types they were built as")
}
