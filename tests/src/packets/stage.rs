//! A network namespace in which the programs' route lookups are answered, and the tables that go with it.
//!
//! ```text
//!   test runs --> lo --(forwarding)--> near  ---- clients, backends with permanent neighbours
//!                                      trunk ---- a backend; stands for lo with VLAN 10, so that it is sent from there
//! ```

use std::{
    collections::BTreeMap,
    fs,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use futures_util::TryStreamExt as _;
use lb_common::{
    abi::{Backend, BackendId, Filter, Policy, Port, Range, ServiceId, ServiceKey, Settings, source_hash},
    address::{Address as _, V4, V6},
    maglev::{self, SLOTS},
    wire::Tags,
};
use lb_userspace::{
    dataplane::{Change, Dataplane, Fence},
    host,
};
use nix::{
    sched::{CloneFlags, unshare},
    time::{ClockId, clock_gettime},
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

/// Test runs arrive by the loopback interface, which is number 1 in every namespace.
pub const LOOPBACK: u32 = 1;
/// The VLAN that a frame needs to be sent back out of [`LOOPBACK`].
pub const TRUNK_TAG: u16 = 10;

pub const NEAR_MAC: [u8; 6] = [2, 0, 0, 0, 1, 1];
pub const VIRTUAL_MAC: [u8; 6] = [0, 0, 0x5e, 0, 1, 51];
pub const TRUNK_MAC: [u8; 6] = [2, 0, 0, 0, 1, 2];

/// A host of the tests by the last byte of its address.
pub type Host = u8;
pub const VIP: Host = 100;
pub const CLIENTS: [Host; 4] = [50, 51, 52, 53];
/// A client whose neighbour entry is missing.
pub const STRANGER: Host = 54;

/// A virtual server and its backend.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    pub port: u16,
    pub backend: Host,
    flags: u8,
}

pub const REMOTE: Service = Service { port: 6443, backend: 11, flags: Backend::PRESENT };
pub const UNRESOLVED: Service = Service { port: 6444, backend: 12, flags: Backend::PRESENT };
pub const UNROUTED: Service = Service { port: 6445, backend: 13, flags: Backend::PRESENT };
pub const TRUNKED: Service = Service { port: 6446, backend: 14, flags: Backend::PRESENT };
pub const HERE: Service = Service { port: 6447, backend: 10, flags: Backend::LOCAL };
/// Its table has no backend in any slot.
pub const EMPTY: Service = Service { port: 6448, backend: 0, flags: 0 };
/// Its table is shared with [`SPARE`]'s backend; the slots of all clients are its own backend's.
pub const PAIR: Service = Service { port: 6449, backend: 15, flags: Backend::PRESENT };
pub const SPARE: Service = Service { port: 6450, backend: 16, flags: Backend::PRESENT };
pub const SERVICES: [Service; 8] = [REMOTE, UNRESOLVED, UNROUTED, TRUNKED, HERE, EMPTY, PAIR, SPARE];

/// The port of every backend, which is that of the first virtual server too.
pub const BACKEND_PORT: u16 = 6443;

/// An address family: what is generic here is so over a value, not a type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    pub fn address(self, host: Host) -> IpAddr {
        match self {
            Self::Ipv4 => Ipv4Addr::new(10, 1, 0, host).into(),
            Self::Ipv6 => Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host.into()).into(),
        }
    }

    /// The unspecified address.
    pub fn nobody(self) -> IpAddr {
        match self {
            Self::Ipv4 => Ipv4Addr::UNSPECIFIED.into(),
            Self::Ipv6 => Ipv6Addr::UNSPECIFIED.into(),
        }
    }

    pub fn socket(self, host: Host, port: u16) -> SocketAddr {
        SocketAddr::new(self.address(host), port)
    }

    /// The address as the maps have it.
    pub fn mapped(self, host: Host) -> [u8; 16] {
        match self.address(host) {
            IpAddr::V4(address) => V4(address.octets()).mapped(),
            IpAddr::V6(address) => V6(address.octets()).mapped(),
        }
    }

    fn insert(self, filter: &mut Filter, host: Host) {
        match self.address(host) {
            IpAddr::V4(address) => filter.insert(V4(address.octets())),
            IpAddr::V6(address) => filter.insert(V6(address.octets())),
        }
    }
}

impl Service {
    fn place(self, family: Family) -> u32 {
        let index = SERVICES.iter().position(|service| service.port == self.port).unwrap_or_default();
        index as u32 + if family == Family::Ipv4 { 0 } else { SERVICES.len() as u32 }
    }

    pub fn id(self, family: Family) -> BackendId {
        BackendId(self.place(family))
    }

    pub fn service(self, family: Family) -> ServiceId {
        ServiceId(self.place(family))
    }

    pub fn key(self, family: Family) -> ServiceKey {
        ServiceKey::new(family.mapped(VIP), self.port.to_be_bytes())
    }

    /// A host's address without its last `free` bits, eight at most, as those who ask for this.
    pub fn range(self, family: Family, host: Host, free: u32) -> Range {
        let first = (u32::from(host) >> free << free) as Host;
        match family.address(first) {
            IpAddr::V4(address) => Range::new(self.service(family), V4(address.octets()), 32 - free),
            IpAddr::V6(address) => Range::new(self.service(family), V6(address.octets()), 128 - free),
        }
    }

    /// Its selection table where its own backend has all of it.
    pub fn alone(self, family: Family) -> Change {
        let backend = if self.flags == 0 { BackendId::NONE } else { self.id(family) };
        Change::Table(self.service(family), vec![backend; SLOTS as usize])
    }

    /// Its selection table where [`SPARE`]'s backend has every other slot, but none that a client has.
    pub fn shared(self, family: Family) -> Change {
        let (own, spare) = (self.id(family), SPARE.id(family));
        let mut slots: Vec<BackendId> = [own, spare].into_iter().cycle().take(SLOTS as usize).collect();
        for client in CLIENTS.into_iter().chain([STRANGER]) {
            let hash = match family.address(client) {
                IpAddr::V4(address) => source_hash(&V4(address.octets())),
                IpAddr::V6(address) => source_hash(&V6(address.octets())),
            };
            slots[maglev::slot(hash) as usize] = own;
        }
        Change::Table(self.service(family), slots)
    }

    /// The backend with further flags.
    pub fn backend(self, family: Family, flags: u8) -> Change {
        let backend = match self.flags {
            0 => Backend::absent(),
            own => Backend::new(family.mapped(self.backend), BACKEND_PORT.to_be_bytes(), own | flags),
        };
        Change::Backend(self.id(family), backend)
    }
}

/// MAC address of a host on the link.
pub const fn mac(host: Host) -> [u8; 6] {
    [2, 0, 0, 0, 0, host]
}

/// What a generation's settings are.
pub fn settings(generation: u32) -> Change {
    Change::Settings(Box::new(plain(generation)))
}

/// The same on a node that turns what other nodes send on.
pub fn turning(generation: u32) -> Change {
    Change::Settings(Box::new(plain(generation).turning(true)))
}

fn plain(generation: u32) -> Settings {
    let (mut vips, mut locals) = (Filter::empty(), Filter::empty());
    for family in Family::ALL {
        family.insert(&mut vips, VIP);
        family.insert(&mut locals, HERE.backend);
    }
    let mut macs = Filter::empty();
    [1, 9].map(mac).into_iter().for_each(|mac| macs.insert_mac(mac));
    Settings::new(generation, vips, locals, macs)
}

/// How it stands with the lease of a VIP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tenure {
    /// There is none.
    Unbounded,
    Running,
    /// The same, with the VIP at [`VIRTUAL_MAC`].
    AtVirtualMac,
    /// Over, and the VIP is still carried.
    Over,
    /// Over for longer than the VIP is carried.
    LongOver,
}

/// Gives the VIP a lease in the kernel side's maps.
#[derive(Debug)]
pub struct Landlord {
    patient: Fence,
    strict: Fence,
    homely: Fence,
}

impl Landlord {
    pub fn new(dataplane: &mut Dataplane) -> anyhow::Result<Self> {
        let mut fence = |grace, macs| dataplane.fence(grace, macs);
        let (patient, strict) = (fence(LONG, BTreeMap::new())?, fence(Duration::ZERO, BTreeMap::new())?);
        let homely = fence(LONG, Family::ALL.map(|family| (family.address(VIP), VIRTUAL_MAC)).into())?;
        Ok(Self { patient, strict, homely })
    }

    pub fn grant(&self, family: Family, tenure: Tenure) -> anyhow::Result<()> {
        let vip = family.address(VIP);
        let now = Duration::from(clock_gettime(ClockId::CLOCK_BOOTTIME)?);
        match tenure {
            Tenure::Unbounded => self.patient.forget(vip)?,
            Tenure::Running => self.patient.renew(vip, now + LONG)?,
            Tenure::AtVirtualMac => self.homely.renew(vip, now + LONG)?,
            Tenure::Over => self.patient.renew(vip, now)?,
            Tenure::LongOver => self.strict.renew(vip, Duration::ZERO)?,
        }
        Ok(())
    }
}

/// Longer than any test.
const LONG: Duration = Duration::from_secs(3600);

/// The namespace of this thread.
#[derive(Clone, Copy, Debug)]
pub struct Stage {
    pub near: u32,
    pub trunk: u32,
}

impl Stage {
    /// Runs `scene` on a thread of its own, in a namespace that ends with it.
    pub fn set<T: Send + 'static>(
        scene: impl FnOnce(Stage) -> anyhow::Result<T> + Send + 'static,
    ) -> anyhow::Result<T> {
        ensure!(nix::unistd::geteuid().is_root(), "test runs need root: use `cargo xtask test`");
        let thread = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).context("making a network namespace")?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let stage = runtime.block_on(build())?;
            scene(stage)
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// What leads where: the near interface is sent from directly, the trunk stands for loopback with a tag.
    pub fn ports(self) -> [Change; 2] {
        let port = |interface, tags| Port { interface, tags: Tags(tags) };
        [
            Change::Port(port(self.near, 0), port(self.near, 0)),
            Change::Port(port(self.trunk, 0), port(LOOPBACK, 0x8000 | u32::from(TRUNK_TAG))),
        ]
    }

    /// What a case may change, as it is at first.
    pub fn reset(self, generation: u32) -> Vec<Change> {
        let mut changes = vec![settings(generation)];
        changes.extend(self.ports());
        for family in Family::ALL {
            changes.extend(SERVICES.map(|service| service.backend(family, 0)));
            changes.push(Change::Policy(PAIR.service(family), Policy::default()));
        }
        changes
    }

    /// All tables.
    pub fn tables(self) -> Vec<Change> {
        let mut changes = self.reset(1);
        for family in Family::ALL {
            for service in SERVICES {
                changes.push(if service.port == PAIR.port { PAIR.shared(family) } else { service.alone(family) });
                changes.push(Change::Serve(service.key(family), service.service(family)));
                changes.push(Change::Serve(ServiceKey::vip(family.mapped(VIP)), ServiceId::VIP));
            }
        }
        changes
    }

    /// Which host is reached by which interface, and whether its neighbour entry is there.
    pub fn routes(self) -> impl Iterator<Item = (Host, u32, bool)> {
        let clients = CLIENTS.map(|client| (client, self.near, true));
        let backends = [
            (STRANGER, self.near, false),
            (REMOTE.backend, self.near, true),
            (UNRESOLVED.backend, self.near, false),
            (TRUNKED.backend, self.trunk, true),
            (PAIR.backend, self.near, true),
            (SPARE.backend, self.near, true),
        ];
        clients.into_iter().chain(backends)
    }
}

async fn build() -> anyhow::Result<Stage> {
    let handle = host::connect().context("opening netlink")?;
    let stage = Stage { near: veth(&handle, "near", NEAR_MAC).await?, trunk: veth(&handle, "trunk", TRUNK_MAC).await? };
    up(&handle, LOOPBACK).await?;
    for family in ["ipv4", "ipv6"] {
        let path = format!("/proc/sys/net/{family}/conf/lo/forwarding");
        fs::write(&path, "1").with_context(|| format!("writing {path}"))?;
    }
    for family in Family::ALL {
        for (host, interface, resolved) in stage.routes() {
            let (address, what) = (family.address(host), format!("host {host}"));
            route(&handle, address, interface).await.with_context(|| format!("the route to {what}"))?;
            if resolved {
                let entry = handle.neighbours().add(interface, address).link_layer_address(&mac(host));
                entry.execute().await.with_context(|| format!("the neighbour entry of {what}"))?;
            }
        }
    }
    Ok(stage)
}

/// Makes a veth pair, both ends up, and gives the number of the end with that name.
async fn veth(handle: &Handle, name: &str, mac: [u8; 6]) -> anyhow::Result<u32> {
    let peer = format!("{name}-peer");
    let pair = LinkVeth::new(name, &peer).address(mac.to_vec()).build();
    handle.link().add(pair).execute().await.with_context(|| format!("making {name}"))?;
    for end in [peer.as_str(), name] {
        up(handle, index(handle, end).await?).await?;
    }
    index(handle, name).await
}

async fn up(handle: &Handle, index: u32) -> anyhow::Result<()> {
    let link = LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build();
    handle.link().set(link).execute().await.context("setting a link up")
}

async fn index(handle: &Handle, name: &str) -> anyhow::Result<u32> {
    let mut links = handle.link().get().match_name(name.to_owned()).execute();
    let link = links.try_next().await?.with_context(|| format!("no {name}"))?;
    Ok(link.header.index)
}

/// A route to that host only, so that every other address has none.
async fn route(handle: &Handle, to: IpAddr, interface: u32) -> anyhow::Result<()> {
    let length = if to.is_ipv4() { 32 } else { 128 };
    let route = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(to, length)?
        .output_interface(interface)
        .scope(rtnetlink::packet_route::route::RouteScope::Link)
        .build();
    Ok(handle.route().add(route).execute().await?)
}
