//! The kernel side as the daemon sees it: loading, attaching, and keeping the maps. The only room that knows aya.

mod attach;
mod flows;
mod maps;
mod records;
mod run;
mod shown;
mod sweep;

use std::{
    collections::BTreeMap,
    fmt,
    fs::File,
    io::{self, Read as _},
    path::PathBuf,
};

use aya::{
    Ebpf, EbpfLoader,
    maps::MapError,
    programs::{Program, ProgramError, SchedClassifier, Xdp},
    util::KernelVersion,
};
use lb_common::{
    abi::{BANKS, Backend, BackendId, Counter, Port, ServiceId, ServiceKey, Settings, Traffic, names},
    maglev::SLOTS,
    table::{self, Hashing, SECRET_WORDS},
};

pub use attach::{AttachError, Mode};
pub use records::Log;
pub use run::{Run, ticks_per_second};
pub use shown::ShowError;
use shown::Shown;
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
    /// Where in a BPF filesystem to show the maps, for `bpftool`; `None` shows them nowhere.
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
    #[error(transparent)]
    Show(#[from] ShowError),
}

/// One change of the tables. A packet in flight sees a selection table and a virtual server before the change or after it; settings
/// and backends are copied word by word, which their readers bear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    Settings(Box<Settings>),
    Backend(BackendId, Backend),
    /// Puts a whole selection table in place of the one before.
    Table(ServiceId, Vec<BackendId>),
    Serve(ServiceKey, ServiceId),
    Withdraw(ServiceKey),
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

/// The loaded programs and their maps. Dropping it detaches everything and frees the maps.
pub struct Dataplane {
    ebpf: Ebpf,
    maps: maps::Maps,
    /// Kept for its end, which takes the maps out of the BPF filesystem.
    _shown: Option<Shown>,
    max_connections: u32,
    hashing: Hashing,
    /// Whether classifiers attach by links (Linux 6.6) and need no qdisc.
    has_tcx: bool,
}

impl fmt::Debug for Dataplane {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dataplane").field("max_connections", &self.max_connections).finish_non_exhaustive()
    }
}

impl Dataplane {
    /// Loads the programs; nothing is attached yet.
    pub fn load(options: &Options) -> Result<Self, LoadError> {
        let sets = table::sets_for(options.max_connections);
        let mut ebpf = EbpfLoader::new()
            .map_max_entries(names::FLOWS4, sets)
            .map_max_entries(names::FLOWS6, sets)
            .map_max_entries(names::TABLES, options.virtual_servers.max(1).saturating_mul(BANKS * SLOTS))
            .override_global(aya_log::LEVEL, &records::level(), true)
            .load(OBJECT)?;
        xdp(&mut ebpf).load().map_err(|source| LoadError::Program { name: names::XDP_INGRESS, source })?;
        clock(&mut ebpf).load().map_err(|source| LoadError::Program { name: names::XDP_CLOCK, source })?;
        for name in [names::TC_INGRESS, names::TC_EGRESS] {
            classifier(&mut ebpf, name).load().map_err(|source| LoadError::Program { name, source })?;
        }
        let shown = options.bpffs.as_deref().map(|path| Shown::new(&ebpf, path)).transpose()?;
        let mut maps = maps::Maps::take(&mut ebpf)?;
        let hashing = maps.hash(secret(sets).map_err(LoadError::Secret)?)?;
        let has_tcx = KernelVersion::current().is_ok_and(|kernel| kernel >= KernelVersion::new(6, 6, 0));
        Ok(Self { ebpf, maps, _shown: shown, max_connections: options.max_connections, hashing, has_tcx })
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

    /// Connections that fit, of both families together.
    pub fn capacity(&self) -> u64 {
        u64::from(self.max_connections) * 2
    }

    /// Where in the tables of connections a key belongs.
    pub fn hashing(&self) -> Hashing {
        self.hashing
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
