//! One host of the lab: a namespace with its interfaces, and what one does on a host.

use std::{
    net::IpAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ipnet::IpNet;
use nix::{errno::Errno, ifaddrs::getifaddrs, net::if_::if_nametoindex, sys::socket::SockaddrStorage};
use socket2::{Domain, Protocol, Socket, Type};

use super::{
    BPFFS, Capture, Error, Link, capture, io_error,
    netns::{self, Netns},
    netstat::Netstat,
    ping,
    process::Process,
    sweep::remove_directory,
    xdp_pass,
};

/// How long a command may take that is expected to end.
const EXEC_LIMIT: Duration = Duration::from_secs(60);
const PING_LIMIT: Duration = Duration::from_secs(2);

/// A host to be made: its name, the segments it is on (`eth0` is the first), and what runs there.
#[derive(Clone, Debug)]
pub struct HostSpec {
    pub(super) name: String,
    pub(super) joins: Vec<(String, Vec<IpNet>)>,
    pub(super) xdp: bool,
    pub(super) forwarding: bool,
}

impl HostSpec {
    pub fn new(name: &str) -> Self {
        Self { name: name.to_owned(), joins: Vec::new(), xdp: false, forwarding: false }
    }

    /// Adds an interface on `segment` with these addresses.
    pub fn on(mut self, segment: &str, addresses: impl IntoIterator<Item = IpNet>) -> Self {
        self.joins.push((segment.to_owned(), addresses.into_iter().collect()));
        self
    }

    /// An XDP program will send frames from this host: its switch ports get a pass-all program so that they arrive.
    pub fn with_xdp(mut self) -> Self {
        self.xdp = true;
        self
    }

    /// Routes between its interfaces, as a router; other hosts have forwarding off, whatever this machine has.
    pub fn with_forwarding(mut self) -> Self {
        self.forwarding = true;
        self
    }
}

/// A host that runs. Clones are the same host; none of them keeps it alive once the lab is gone.
#[derive(Clone, Debug)]
pub struct Host {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    name: String,
    netns: Netns,
    switch: Netns,
    ports: Vec<Port>,
    directory: PathBuf,
    processes: Mutex<Vec<Weak<Process>>>,
    started: AtomicUsize,
}

/// The switch's end of one interface of a host.
#[derive(Clone, Debug)]
pub(super) struct Port {
    pub(super) device: String,
    pub(super) segment: String,
}

impl Host {
    pub(super) fn new(name: &str, netns: Netns, switch: Netns, ports: Vec<Port>, directory: PathBuf) -> Self {
        Self {
            inner: Arc::new(Inner {
                name: name.to_owned(),
                netns,
                switch,
                ports,
                directory,
                processes: Mutex::default(),
                started: AtomicUsize::new(0),
            }),
        }
    }

    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The namespace's name, as `ip netns` lists it.
    pub fn netns(&self) -> &str {
        self.inner.netns.name()
    }

    /// A directory of this host's own, for sockets, configurations and logs; gone with the lab.
    pub fn directory(&self) -> &Path {
        &self.inner.directory
    }

    /// A directory of this host's own in the BPF filesystem, which must be there. The lab does not make the directory,
    /// but removes what is left of it.
    pub fn bpffs(&self) -> Result<PathBuf, Error> {
        Ok(super::bpffs()?.join(self.netns()))
    }

    /// Runs `f` inside the host, on a thread of its own.
    pub fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        self.inner.netns.enter(f)
    }

    /// Runs a future inside the host, on a thread and a current-thread runtime of its own.
    pub fn run<F: Future>(&self, f: impl FnOnce() -> F + Send) -> Result<F::Output, Error>
    where
        F::Output: Send,
    {
        self.enter(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(io_error("make a runtime"))?;
            Ok(runtime.block_on(f()))
        })?
    }

    /// Runs a program to its end and gives what it wrote to stdout; an exit code other than 0 is an error.
    pub fn exec<S: AsRef<std::ffi::OsStr>>(&self, words: &[S]) -> Result<String, Error> {
        let [program, arguments @ ..] = words else {
            return Ok(String::new());
        };
        let mut command = Command::new(program);
        command.args(arguments);
        let process = self.spawn(command)?;
        let status = process.wait(EXEC_LIMIT)?;
        process.outcome(status)
    }

    /// Starts a program that goes on until the handle or the lab is dropped.
    pub fn spawn(&self, command: Command) -> Result<Arc<Process>, Error> {
        let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let count = self.inner.started.fetch_add(1, Ordering::Relaxed);
        let log = self.directory().join(format!("{count}-{program}"));
        let process = Arc::new(Process::start(&self.inner.netns, command, &log)?);
        let mut processes = self.processes();
        processes.retain(|known| known.strong_count() > 0);
        processes.push(Arc::downgrade(&process));
        Ok(process)
    }

    /// A socket that belongs to this host, wherever it is used.
    pub fn socket(&self, domain: Domain, kind: Type, protocol: Option<Protocol>) -> Result<Socket, Error> {
        self.enter(|| Socket::new(domain, kind, protocol))?.map_err(io_error("make a socket"))
    }

    /// Frames of one protocol (an EtherType) on an interface of this host.
    pub fn link(&self, interface: &str, protocol: u16) -> Result<Link, Error> {
        self.enter(|| Link::open(interface, protocol))?
            .map_err(io_error(format!("open {interface} of {}", self.name())))
    }

    /// Records what passes the first switch port of this host, in both directions, to a file in its directory.
    pub fn capture(&self, name: &str, wanted: fn(&[u8]) -> bool) -> Result<Capture, Error> {
        let port = &self.inner.ports[0].device;
        let path = self.directory().join(name);
        let start = || Capture::start(Link::open(port, capture::ALL)?, &path, wanted);
        self.inner.switch.enter(start)?.map_err(io_error(format!("record {port}")))
    }

    /// One ICMP echo, and the time its answer took.
    pub fn ping(&self, to: IpAddr) -> Result<Duration, Error> {
        self.enter(|| ping::ping(to, PING_LIMIT))?.map_err(io_error(format!("ping {to} from {}", self.name())))
    }

    /// One line for `ip`, such as `route add default via 192.168.2.1`.
    pub fn ip(&self, line: &str) -> Result<(), Error> {
        self.inner.netns.ip(&[line.to_owned()])
    }

    pub fn add_address(&self, interface: &str, address: IpNet) -> Result<(), Error> {
        self.ip(&address_line(interface, address))
    }

    /// Every address on every interface, whatever put it there.
    pub fn addresses(&self) -> Result<Vec<IpAddr>, Error> {
        let all = || Ok(getifaddrs()?.filter_map(|known| ip(&known.address?)).collect());
        self.enter(all)?
            .map_err(|errno: Errno| io_error(format!("list the addresses of {}", self.name()))(errno.into()))
    }

    /// Writes a sysctl, named by its path below /proc/sys.
    pub fn sysctl(&self, path: &str, value: &str) -> Result<(), Error> {
        self.inner.netns.sysctl(path, value)
    }

    /// Puts a foreign XDP program, `lab_pass`, on an interface, for as long as the link is held.
    pub fn occupy_xdp(&self, interface: &str) -> Result<OwnedFd, Error> {
        self.enter(|| xdp_pass::attach(if_nametoindex(interface)?))?
            .map_err(io_error(format!("attach a program to {interface}")))
    }

    /// Takes a program off its interface behind its owner's back, by the pin of its link below the host's BPF filesystem.
    pub fn cut_program(&self, pin: &str) -> Result<(), Error> {
        let path = self.bpffs()?.join(pin);
        xdp_pass::cut(&path).map_err(io_error(format!("cut {}", path.display())))
    }

    pub fn netstat(&self) -> Result<Netstat, Error> {
        self.enter(Netstat::read)?.map_err(io_error(format!("read the counters of {}", self.name())))
    }

    /// The MAC addresses that the switch has learned to be here.
    pub fn learned(&self) -> Result<Vec<String>, Error> {
        let mut learned = Vec::new();
        for port in &self.inner.ports {
            let mut command = Command::new("bridge");
            command.args(["fdb", "show", "brport", &port.device, "dynamic"]);
            let text = self.inner.switch.enter(|| netns::run(&mut command))??;
            learned.extend(text.lines().filter_map(|line| line.split(' ').next()).map(str::to_owned));
        }
        Ok(learned)
    }

    /// Takes the host off the network without a word: carriers stay up at both ends, as at a power cut behind a switch.
    pub fn unplug(&self) -> Result<(), Error> {
        self.on_ports(|port| format!("link set {} nomaster", port.device))
    }

    /// Undoes [`Host::unplug`].
    pub fn plug(&self) -> Result<(), Error> {
        self.on_ports(|port| format!("link set {} master {}", port.device, port.segment))
    }

    /// Whether broadcasts of others reach this host: off, it misses gratuitous ARP while its own questions are answered.
    pub fn hear_broadcasts(&self, on: bool) -> Result<(), Error> {
        let flood = if on { "on" } else { "off" };
        self.on_ports(|port| format!("link set {} type bridge_slave bcast_flood {flood}", port.device))
    }

    /// Whether other hosts that are isolated hear this one, and it them; the rest hears everybody.
    pub fn isolate(&self, on: bool) -> Result<(), Error> {
        let isolated = if on { "on" } else { "off" };
        self.on_ports(|port| format!("link set {} type bridge_slave isolated {isolated}", port.device))
    }

    /// Pulls the cables: the host sees its carrier go.
    pub fn carrier_down(&self) -> Result<(), Error> {
        self.on_ports(|port| format!("link set {} down", port.device))
    }

    pub fn carrier_up(&self) -> Result<(), Error> {
        self.on_ports(|port| format!("link set {} up", port.device))
    }

    fn on_ports(&self, line: impl Fn(&Port) -> String) -> Result<(), Error> {
        let lines: Vec<String> = self.inner.ports.iter().map(line).collect();
        self.inner.switch.ip(&lines)
    }

    /// Kills what runs here and removes the namespace and what the host left in the BPF filesystem.
    pub(super) fn remove(&self) -> Result<(), Error> {
        for process in self.processes().drain(..).filter_map(|p| p.upgrade()) {
            process.kill();
        }
        remove_directory(&Path::new(BPFFS).join(self.netns())).and(self.inner.netns.remove())
    }

    fn processes(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Process>>> {
        self.inner.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn ip(address: &SockaddrStorage) -> Option<IpAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| v4.ip().into());
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| v6.ip().into()))
}

/// `nodad`: an IPv6 address is good at once.
pub(super) fn address_line(interface: &str, address: IpNet) -> String {
    let nodad = match address {
        IpNet::V4(_) => "",
        IpNet::V6(_) => " nodad",
    };
    format!("addr add {address} dev {interface}{nodad}")
}
