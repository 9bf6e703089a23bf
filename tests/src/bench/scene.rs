//! What is measured on: a data plane with one virtual server a family, 256 backends, and connections to them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Context as _;
use etherparse::{PacketBuilder, TcpHeader};
use lb_common::{
    abi::{Backend, BackendId, Filter, Port, ServiceId, ServiceKey, Settings, source_hash},
    address::{Address as _, V4, V6},
    maglev::{self, Member, WHOLE},
    wire::Tags,
};
use lb_tests_ebpf::{FRAME, Flow};
use lb_userspace::dataplane::{Change, Dataplane, Options};

use super::harness::Frame;
use crate::lab::{Host, HostSpec, Lab};

/// Interfaces eth1 to eth3, for [`super::harness`] to attach to.
const IDLE: [&str; 3] = ["one", "two", "three"];
const CLIENTS: u32 = 1024;
const BACKENDS: u32 = 256;
const VIP_PORT: u16 = 6443;
const BACKEND_PORT: u16 = 6443;
/// The data plane's own MAC address and those of the routers to the clients and to the backends.
const OWN_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const CLIENTS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
const BACKENDS_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];

/// The family of the packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Ipv4,
    Ipv6,
}

impl Family {
    pub(super) const ALL: [Self; 2] = [Self::Ipv4, Self::Ipv6];

    fn address(self, ipv4: u32, ipv6: u16) -> IpAddr {
        match self {
            Self::Ipv4 => Ipv4Addr::from(ipv4).into(),
            Self::Ipv6 => {
                let last = ipv4 & 0xffff;
                Ipv6Addr::new(0xfd00, 0, 0, ipv6, 0, 0, 0, last as u16).into()
            }
        }
    }

    fn vip(self) -> IpAddr {
        self.address(0xc0a8_0264, 0x100)
    }

    /// An address that is nobody's here.
    fn stranger(self) -> IpAddr {
        self.address(0x0ac8_0001, 0x200)
    }

    fn backend(self, number: u32) -> IpAddr {
        self.address(0x0a80_0000 | number, 0x128)
    }

    fn client(self, number: u32) -> IpAddr {
        self.address(0x0a40_0000 | number, 0x64)
    }

    /// The place of its backends in the table of both families.
    fn first_backend(self) -> u32 {
        self as u32 * BACKENDS
    }
}

/// The segments that are measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Segment {
    Syn,
    SynAck,
    /// A client's, with data.
    Request,
    /// A backend's, with data.
    Reply,
    /// To an address that is no VIP.
    Stranger,
}

impl Segment {
    /// The frame, whose source address and ports the harness replaces by each flow's.
    pub(super) fn frame(self, family: Family) -> anyhow::Result<Frame> {
        let (mac, source, destination) = match self {
            Self::SynAck | Self::Reply => (BACKENDS_MAC, family.backend(0), family.vip()),
            Self::Stranger => (CLIENTS_MAC, family.client(0), family.stranger()),
            Self::Syn | Self::Request => (CLIENTS_MAC, family.client(0), family.vip()),
        };
        let mut tcp = TcpHeader::new(1, VIP_PORT, 1, 65_535);
        (tcp.syn, tcp.ack) = (matches!(self, Self::Syn | Self::SynAck), self != Self::Syn);
        let link = PacketBuilder::ethernet2(mac, OWN_MAC);
        let ip = match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => link.ipv4(source.octets(), destination.octets(), 64),
            (IpAddr::V6(source), IpAddr::V6(destination)) => link.ipv6(source.octets(), destination.octets(), 64),
            _ => anyhow::bail!("two families in one packet"),
        };
        let builder = ip.tcp_header(tcp);
        let payload = vec![0; FRAME - builder.size(0)];
        let mut frame = Vec::with_capacity(FRAME);
        builder.write(&mut frame, &payload)?;
        frame.try_into().map_err(|_| anyhow::anyhow!("a frame is not {FRAME} bytes long"))
    }
}

/// The network around the data plane: one interface, a router to the clients and one to the backends, neither of which is
/// there.
pub(super) struct Network {
    pub(super) host: Host,
    _lab: Lab,
}

impl Network {
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut lab = Lab::new("bench")?;
        let addresses = ["192.168.2.10/24".parse()?, "fd00:0:0:1::10/64".parse()?];
        let mut spec = HostSpec::new("lb").on("lan", addresses).with_forwarding();
        for segment in IDLE {
            spec = spec.on(segment, []);
        }
        let host = lab.add(spec)?;
        for line in [
            "neigh replace 192.168.2.1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent",
            "neigh replace 192.168.2.2 lladdr 02:00:00:00:00:03 dev eth0 nud permanent",
            "neigh replace fd00:0:0:1::1 lladdr 02:00:00:00:00:02 dev eth0 nud permanent",
            "neigh replace fd00:0:0:1::2 lladdr 02:00:00:00:00:03 dev eth0 nud permanent",
            "route add 10.64.0.0/16 via 192.168.2.1",
            "route add 10.128.0.0/16 via 192.168.2.2",
            "route add fd00:0:0:64::/64 via fd00:0:0:1::1",
            "route add fd00:0:0:128::/64 via fd00:0:0:1::2",
        ] {
            host.ip(line)?;
        }
        Ok(Self { host, _lab: lab })
    }
}

/// Loads a data plane that serves both VIPs.
pub(super) fn dataplane(interface: u32, max_connections: u32) -> anyhow::Result<Dataplane> {
    let mut dataplane = Dataplane::load(&Options { max_connections, virtual_servers: 16, bpffs: None })?;
    let mut vips = Filter::empty();
    let port = Port { interface, tags: Tags(0) };
    let mut changes = vec![Change::Port(port, port)];
    for family in Family::ALL {
        match family.vip() {
            IpAddr::V4(vip) => vips.insert(V4(vip.octets())),
            IpAddr::V6(vip) => vips.insert(V6(vip.octets())),
        }
        for (number, member) in (0..).zip(members(family)) {
            let backend = Backend::new(mapped(family.backend(number)), BACKEND_PORT.to_be_bytes(), 0);
            changes.push(Change::Backend(member.id, backend));
        }
        let service = ServiceId(family as u32);
        changes.push(Change::Table(service, maglev::build(&members(family))));
        changes.push(Change::Serve(ServiceKey::new(mapped(family.vip()), VIP_PORT.to_be_bytes()), service));
    }
    let mut macs = Filter::empty();
    macs.insert_mac(OWN_MAC);
    let settings = Settings::new(1, vips, Filter::empty(), macs);
    changes.push(Change::Settings(Box::new(settings)));
    dataplane.apply(&changes)?;
    Ok(dataplane)
}

/// A connection as its client sends it, and as its backend does.
#[derive(Clone, Copy, Debug)]
pub(super) struct Connection {
    pub(super) forward: Flow,
    pub(super) reply: Flow,
}

/// That many connections of a family. Each backend sees each client port once, so that the data plane keeps it.
pub(super) fn connections(family: Family, flows: u32) -> anyhow::Result<Vec<Connection>> {
    const FIRST_PORT: u16 = 1024;
    let table = maglev::build(&members(family));
    let mut ports = vec![FIRST_PORT; BACKENDS as usize];
    let mut connections = Vec::with_capacity(flows as usize);
    for flow in 0..flows {
        let client = family.client(flow % CLIENTS);
        let hash = match client {
            IpAddr::V4(client) => source_hash(&V4(client.octets())),
            IpAddr::V6(client) => source_hash(&V6(client.octets())),
        };
        let backend = table[maglev::slot(hash) as usize].0 - family.first_backend();
        let port = &mut ports[backend as usize];
        let flow = |source, from: u16, to: u16| {
            let ([a, b], [c, d]) = (from.to_be_bytes(), to.to_be_bytes());
            Flow { source: last_bytes(source), ports: [a, b, c, d] }
        };
        connections.push(Connection {
            forward: flow(client, *port, VIP_PORT),
            reply: flow(family.backend(backend), BACKEND_PORT, *port),
        });
        *port = port.checked_add(1).context("a backend has more connections than ports")?;
    }
    Ok(connections)
}

fn members(family: Family) -> Vec<Member> {
    (0..BACKENDS)
        .map(|number| Member {
            id: BackendId(family.first_backend() + number),
            address: mapped(family.backend(number)),
            port: BACKEND_PORT.to_be_bytes(),
            weight: 1,
            portion: WHOLE,
        })
        .collect()
}

/// The last four bytes of the address that a rewritten frame goes to.
pub(super) fn destination(frame: &Frame, family: Family) -> [u8; 4] {
    let at = match family {
        Family::Ipv4 => 30,
        Family::Ipv6 => 50,
    };
    [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]
}

fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(address) => V4(address.octets()).mapped(),
        IpAddr::V6(address) => address.octets(),
    }
}

fn last_bytes(address: IpAddr) -> [u8; 4] {
    let [.., a, b, c, d] = mapped(address);
    [a, b, c, d]
}
