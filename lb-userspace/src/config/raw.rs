//! The file as its author sees it: every key of every section, declared once.

use std::num::NonZeroU32;

use toml::Spanned;

use super::{
    declaration::section,
    keys::{Many, One},
    leaf::{
        AbsolutePath, CheckType, HostAddress, HostHeader, InterfaceName, Listener, Name, RequestPath, SocketPath,
        Statuses, Time, TlsName,
    },
    model::{OnStop, XdpMode},
};

section! {
    /// One node's whole configuration.
    struct File {
    } sections {
        dataplane: One<Dataplane>,
        admin: One<Admin>,
        virtual_server: Many<VirtualServer>,
    }
}

section! {
    /// How and where packets are handled.
    struct Dataplane {
        /// Interfaces that get the XDP program: those that clients and backends are reached through.
        interfaces: Vec<Spanned<InterfaceName>> = required(["eth0"]),
        /// Which XDP hook to use. "auto" takes native where the driver has it, and generic with a warning where not.
        mode: XdpMode = default("auto"),
        /// What becomes of the traffic when the daemon ends: "detach" takes everything off the interfaces; "keep" leaves the VIPs and
        /// everything that carries them, for the next daemon to take over without a lost packet (`xvip detach` removes it).
        on_stop: OnStop = default("detach"),
        /// Connections tracked at once, for each address family. The kernel sets memory aside for all of them at the start.
        max_connections: NonZeroU32 = default(262144) from 256 to 16777216,
        /// A directory for this instance's maps; it must be in a BPF filesystem.
        bpffs: AbsolutePath = default("/sys/fs/bpf/xvip"),
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
    }
}

section! {
    /// A virtual IP address (VIP) and port, and what is behind it. Repeat the section for each one.
    struct VirtualServer {
        /// Its name in status, metrics and logs.
        name: Name = required("kube-apiserver"),
        /// The VIP. Each address and port can be used by one virtual server only.
        address: HostAddress = required("192.168.2.100"),
        /// The TCP port that clients use. Nothing listens on it, so it may be one that is taken on this host.
        port: u16 = required(16443) from 1 to 65535,
        /// The interface that carries the VIP. Without it, the one whose subnet holds the VIP.
        interface: InterfaceName = optional("eth0"),
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
        name: Name = required("master-1" | "master-2" | "master-3"),
        /// Of the same family as the VIP.
        address: HostAddress = required("192.168.2.11" | "192.168.2.12" | "192.168.2.13"),
        /// Where it listens.
        port: u16 = default(6443) from 1 to 65535,
        /// Its share of new connections, against those of the other backends; 0 gives it none.
        weight: u16 = default(1) from 0 to 256,
    }
}
