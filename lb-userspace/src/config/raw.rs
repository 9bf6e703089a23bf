//! The file as its author sees it: every key of every section, declared once.

use std::num::NonZeroU32;

use toml::Spanned;

use super::{
    declaration::section,
    keys::{Any, Many, Maybe, One},
    leaf::{
        AbsolutePath, AddressLabel, Argument, CheckType, HostAddress, HostHeader, HostNet, InterfaceName, Listener,
        Name, NodeAddress, ProbeListener, RequestPath, RouterAddress, SocketPath, SourceRange, Statuses, Time, TlsName,
        VipAddress,
    },
    model::{
        AllDown, Balance, Cgroup, ChecksumForm, Excess, HmacMode, OnDown, OnStop, Password, PreferLocal, ServerMode,
        Version, XdpMode,
    },
};

section! {
    /// One node's whole configuration.
    struct File {
    } sections {
        dataplane: One<Dataplane>,
        admin: One<Admin>,
        virtual_server: Many<VirtualServer>,
        vrrp: Any<Vrrp>,
        sync: Maybe<Sync>,
    }
}

section! {
    /// How and where packets are handled.
    struct Dataplane {
        /// Interfaces that get the XDP program: those that clients and backends are reached through.
        /// A node whose virtual servers are all on loopback needs none.
        interfaces: Vec<Spanned<InterfaceName>> = conditional(["eth0"]),
        /// Which XDP hook to use. "auto" takes native where the driver has it, and generic with a warning where not.
        mode: XdpMode = default("auto"),
        /// What becomes of the traffic when the daemon ends: "detach" takes everything off the interfaces; "keep" leaves the VIPs and
        /// everything that carries them, for the next daemon to take over without a lost packet (`xvip detach` removes it).
        on_stop: OnStop = default("detach"),
        /// Connections tracked at once, for each address family. The kernel sets memory aside for all of them at the start.
        max_connections: NonZeroU32 = default(262144) from 256 to 16777216,
        /// A directory for this instance's maps; it must be in a BPF filesystem.
        bpffs: AbsolutePath = default("/sys/fs/bpf/xvip"),
        /// The processes whose own connections to a virtual server go straight to a backend, wherever the VIP is: those in this cgroup (v2)
        /// and below it. "auto" takes the root, which is every process and pod of the node; "off" takes none.
        cgroup: Cgroup = default("auto"),
        /// When the daemon ends: how long packets are still carried after the VIPs were given away, so that those on their way
        /// arrive, and after other nodes were told that they are no longer turned here. Without it, 2s where there is a [[vrrp]]
        /// or a [sync] section, and 0s where there is neither.
        drain: Time = optional("2s") from "0s" to "60s",
    } sections {
        timeouts: One<Timeouts>,
    }
}

section! {
    /// How long a connection without packets is remembered, by the phase it is in.
    struct Timeouts {
        /// After the first packet, while the handshake is not complete.
        syn: Time = default("60s") from "1s" to "10m",
        /// While it is open. A kube-apiserver pings an idle watch every 30 seconds; other protocols may be silent for hours.
        established: Time = default("24h") from "1m" to "30days",
        /// After a FIN or RST.
        closing: Time = default("30s") from "1s" to "10m",
    }
}

section! {
    /// What the daemon itself offers on this node.
    struct Admin {
        /// The socket that `xvip status` and the other commands talk to.
        control_socket: SocketPath = default("/run/xvip/xvip.sock"),
        /// Where /metrics is served, on loopback only; "off" serves none.
        metrics: Listener = default("127.0.0.1:9095"),
        /// Where /healthz is served for probes: 200 while each virtual server has a backend to send to, 503 with the reason when one has
        /// none. /livez beside it answers as long as the daemon does. It may be beyond loopback: it tells names and states of backends.
        healthz: ProbeListener = default("off"),
    }
}

section! {
    /// A virtual IP address (VIP) and port, and what is behind it. Repeat the section for each one.
    struct VirtualServer {
        /// Its name in status, metrics and logs.
        name: Name = required("kube-apiserver"),
        /// The VIP. Each address and port can be used by one virtual server only. A loopback address serves the processes of this node,
        /// outside of pods, and needs no interface.
        address: VipAddress = required("192.168.2.100"),
        /// The TCP port that clients use. Nothing listens on it, so it may be one that is taken on this host.
        port: u16 = required(16443) from 1 to 65535,
        /// The interface that carries the VIP. Without it, the one whose subnet holds the VIP.
        interface: InterfaceName = optional("eth0"),
        /// What decides which backend a new connection gets. "source-hash": the client's address, so that a client keeps its backend.
        /// "flow-hash": its address and port, so that each of its connections is spread by itself. With these two, another node that takes
        /// the VIP over finds each connection's backend again. "round-robin": each backend in turn, as often as its weight says.
        /// "least-connections": the backend with the fewest open connections for its weight, as this node sees them. These two need [sync] for
        /// connections to survive a failover.
        balance: Balance = default("source-hash"),
        /// How long a backend that comes back is brought in gradually: its share of new connections grows from nearly nothing to all that
        /// its weight gives it. "0s" brings it in at once. All backends that are up when xvip starts have their whole share, and so has one
        /// that is alone.
        slow_start: Time = default("0s") from "0s" to "1h",
        /// Whether the backend on this node itself is preferred while it is up, its `slow_start` over: "processes" gives it to this node's own
        /// processes (`dataplane.cgroup`), as a kubelet that is to use the apiserver of its own master; "all" gives it also to whoever comes by the
        /// VIP to this node. Such connections end with this node: no other can carry them on.
        prefer_local: PreferLocal = default("off"),
        /// How packets come to a backend, see modes.md. "nat": by any way; the backend sees the VIP as its client, and needs nothing. "dsr": as they
        /// are, on one link; each backend's node runs xvip with this virtual server, and replies go to the client straight from there. "auto":
        /// "dsr" while every backend's node says through [sync] that it does its part, "nat" otherwise.
        mode: ServerMode = default("nat"),
        /// Whether the VIP is never this node's. For a node that only has a backend, or processes that use the virtual server.
        elsewhere: bool = default(false),
        /// What becomes of a backend's connections when it goes down, which is when TCP does not answer: "reset" ends them at once, so that
        /// clients find another one; "keep" carries them on. While only the check fails and TCP answers, it gets no new ones and keeps its own.
        on_down: OnDown = default("reset"),
        /// What becomes of new connections while every backend is down or fails its check: "reset" refuses them; "open" spreads them over all
        /// backends as though they were up, and leaves the connections alone that are there, for when the checks may be wrong rather than the
        /// backends.
        all_down: AllDown = default("reset"),
        /// How many new connections are taken in a second, and in one go; 0 sets no limit. More than that is taken for a flood of SYNs, see `over_rate`.
        /// Those of this node's own processes that go straight to a backend do not count.
        connection_rate: u32 = default(10000) from 0 to 1000000,
        /// What becomes of a SYN beyond `connection_rate`: "challenge" drops it, and lets it through when it comes again, which a client's does after a
        /// second and one of a flood with invented sources does not; "drop" drops it, and "reset" refuses it, however often it comes.
        over_rate: Excess = default("challenge"),
        /// Clients that may use it. The most specific range that a client is in counts, here and in `deny`, and of two equal ones that in `deny`.
        /// If there is any here, everybody else is denied. Processes of this node are not asked where they go straight to a backend.
        allow: Vec<Spanned<SourceRange>> = default([]),
        /// Clients that may not: their packets are dropped, and connections that they have end.
        deny: Vec<Spanned<SourceRange>> = default([]),
        /// When a backend is taken out of this file and xvip reloads it: how long its connections may go on. Those that have not ended by
        /// then are reset. New ones go to the other backends at once.
        drain: Time = default("10m") from "0s" to "7days",
    } sections {
        check: One<Check>,
        backend: Many<Backend>,
    }
}

section! {
    /// How the health of each backend is found out. The section may be left out.
    struct Check {
        /// "https" and "http" make a request, "tcp" a connection.
        r#type: CheckType = default("https"),
        /// What to request.
        path: RequestPath = default("/readyz"),
        /// Answers that mean healthy: a code, a range such as "200-299", or a list such as ["200-299", "401", "403"].
        status: Statuses = default("200"),
        /// Time from one check to the next.
        interval: Time = default("2s") from "100ms" to "1h",
        /// Time for a whole check: connect, handshake, request and answer. An apiserver that has lost its etcd needs just
        /// over 2 seconds to say so.
        timeout: Time = default("3s") from "10ms" to "1m",
        /// Successes in a row that bring a backend in.
        rise: NonZeroU32 = default(2) from 1 to 100,
        /// Failures in a row that take it out.
        fall: NonZeroU32 = default(3) from 1 to 100,
        /// Each wait is shorter or longer than the interval by up to this many percent.
        jitter: u8 = default(10) from 0 to 50,
        /// The port to check, where it is not the backend's own.
        port: u16 = optional(6443) from 1 to 65535,
        /// The Host header. Without it, the backend's address.
        host: HostHeader = optional("kubernetes.default.svc"),
        /// A file with a bearer token, read again when it changes.
        token_file: AbsolutePath = optional("/etc/xvip/token"),
        /// Whether the backend's certificate must be good. Without that, anything that answers in its place is believed.
        verify: bool = default(true),
        /// The certificate authorities that backends' certificates come from (PEM).
        ca_file: AbsolutePath = default("/etc/kubernetes/pki/ca.crt"),
        /// The name asked for and verified. Without it, the backend's address.
        server_name: TlsName = optional("kubernetes"),
        /// A certificate to show to the backend, with what it needs up to the authority (PEM), and its key.
        client_certificate: AbsolutePath = optional("/etc/xvip/client.crt"),
        /// The key of that certificate (PEM).
        client_key: AbsolutePath = optional("/etc/xvip/client.key"),
    }
}

section! {
    /// One server behind the virtual server. Repeat the section for each one.
    struct Backend {
        /// Its name in status, metrics and logs.
        name: Name = required("master-1", "master-2", "master-3"),
        /// Of the same family as the VIP.
        address: HostAddress = required("192.168.2.11", "192.168.2.12", "192.168.2.13"),
        /// Where it listens.
        port: u16 = default(6443) from 1 to 65535,
        /// Its share of new connections, against those of the other backends; 0 gives it none.
        weight: u16 = default(1) from 0 to 256,
        /// Whether it gets new connections only while no other backend does: all others are down, drained or of weight 0. When one of them comes
        /// back, new connections go there, and those that are here stay.
        backup: bool = default(false),
    }
}

section! {
    /// Which node holds these VIPs, decided by VRRP among xvip, keepalived and others. VIPs of virtual servers that are in no such section are
    /// always held by this node. Repeat the section for each group of VIPs that moves as one: IPv4 and IPv6 need one each.
    struct Vrrp {
        /// Its name in status, metrics and logs, and for `notify`.
        name: Name = required("apiserver"),
        /// The interface that VRRP is spoken on and that carries the VIPs.
        interface: InterfaceName = required("eth0"),
        /// The virtual router's number: the same on each of its nodes, and used by nothing else on this network.
        vrid: u8 = required(51) from 1 to 255,
        /// What all nodes of this virtual router speak: 3, or 2 together with a keepalived whose `vrrp_version` is not set.
        version: Version = default(3),
        /// The node with the highest holds the VIPs. 255 is for a router whose own addresses these are: no weight changes it.
        priority: u8 = default(100) from 1 to 255,
        /// Time from one advertisement to the next: the same on all nodes. Without it, 100ms in version 3 and 1s in version 2. Version 2
        /// knows whole seconds only, version 3 steps of 10ms up to 40950ms.
        interval: Time = optional("100ms") from "10ms" to "255s",
        /// Advertisements to miss before another node takes over. Below an interval of 50ms, take 5 at least: a scheduler may be that late.
        down_factor: u8 = default(3) from 2 to 100,
        /// Whether to take the VIPs from a node of lower priority.
        preempt: bool = default(true),
        /// How long to wait with that after the start or a fault.
        preempt_delay: Time = default("0s") from "0s" to "1000s",
        /// The VIPs, of one family; /32 or /128 where no prefix length is given. Each node must name the same.
        addresses: Vec<Spanned<HostNet>> = required(["192.168.2.100"]),
        /// Whether the VIPs are at the virtual router's own MAC address, 00:00:5e:00:01 and the `vrid` (IPv6: 00:00:5e:00:02), as with keepalived's
        /// use_vmac: for hosts and switches that ignore gratuitous ARP. The same on all nodes. The interface needs the XDP program.
        virtual_mac: bool = default(false),
        /// The other nodes: advertisements are then sent to each of them, and taken from them only. Without any, multicast is used, which clouds
        /// do not carry.
        peers: Vec<Spanned<RouterAddress>> = default([]),
        /// The smallest TTL that an advertisement of a peer may arrive with: 255 if no router is in between. By multicast it is always 255.
        min_ttl: u8 = default(1) from 1 to 255,
        /// The address to send from. Without it, the first of the interface; in IPv6, the link-local one.
        source: RouterAddress = optional("192.168.2.10"),
        /// Version 2 only: keepalived's auth_pass, of which it uses the first 8 bytes. Everybody on this network can read it.
        password: Password = optional("1111"),
        /// Version 3 over IPv4 only: whether the checksum that is sent covers a pseudo-header, as with keepalived and FRR, or the message alone, as
        /// in RFC 9568. Both are accepted.
        checksum: ChecksumForm = default("pseudo-header"),
        /// What `ip address` shows IPv4 VIPs by; it begins with the interface's name.
        label: AddressLabel = optional("eth0:vip"),
        /// Sections with the same one are master together, and in fault together. What counts for the priority of one counts for all.
        sync_group: Name = optional("both-families"),
        /// A program that is told of every change, as by keepalived: INSTANCE or GROUP, its name, MASTER, BACKUP, FAULT or STOP, the priority.
        notify: AbsolutePath = optional("/etc/xvip/notify.sh"),
        /// What it does to the priority if no backend of these VIPs is healthy as seen from here. As keepalived counts: a negative weight is added
        /// on failure, a positive one on success, and 0 gives the VIPs up (fault), even if no other node is better off.
        backends_weight: i16 = default(-253) from -253 to 253,
        /// The same if packets are not carried here: the XDP program is gone from an interface.
        dataplane_weight: i16 = default(0) from -253 to 253,
    } sections {
        hmac: Maybe<Hmac>,
        script: Any<Script>,
    }
}

section! {
    /// Connections shared with the nodes that may take the VIPs over, so that a failover does not cut them. UDP, signed and not encrypted.
    struct Sync {
        /// An address of this node, and the port that all of them use.
        listen: NodeAddress = required("192.168.2.10:9096"),
        /// The other nodes, as each has written in its own `listen`.
        peers: Vec<Spanned<NodeAddress>> = required(["192.168.2.20:9096"]),
        /// A file with the key that they share: 64 to 128 hexadecimal digits.
        key_file: AbsolutePath = required("/etc/xvip/sync.key"),
    }
}

section! {
    /// Version 3 only: advertisements with a signature, as by keepalived's auth_hmac (2.4.2 and newer).
    struct Hmac {
        /// The key's number: the same on all nodes.
        key_id: u8 = required(1) from 0 to 255,
        /// A file with the key: 64 to 128 hexadecimal digits.
        key_file: AbsolutePath = required("/etc/xvip/vrrp.key"),
        /// "receive-only" checks what comes signed and sends unsigned, "permissive" signs and still takes what is unsigned, "enforce" takes signed
        /// advertisements only. Go through them in this order on all nodes to bring a key in.
        mode: HmacMode = default("enforce"),
    }
}

section! {
    /// A program whose exit code changes the priority, as keepalived's vrrp_script. Not needed for the health of backends, nor for xvip itself.
    struct Script {
        /// Its name in status and logs.
        name: Name = required("uplink"),
        /// The program with its arguments. No shell is involved.
        command: Vec<Spanned<Argument>> = required(["/etc/xvip/check-uplink.sh", "--quick"]),
        /// Time from one start to the next.
        interval: Time = default("1s") from "100ms" to "1h",
        /// Time for one run, after which it is killed and has failed. Without it, the interval.
        timeout: Time = optional("1s") from "10ms" to "1h",
        /// Successes in a row that it takes to be good again.
        rise: NonZeroU32 = default(1) from 1 to 1000,
        /// Failures in a row that it takes to be bad.
        fall: NonZeroU32 = default(1) from 1 to 1000,
        /// Added to the priority on failure if negative, on success if positive; 0 gives the VIPs up on failure (fault).
        weight: i16 = default(0) from -253 to 253,
    }
}
