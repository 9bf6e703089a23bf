//! Hosts out of network namespaces, joined by veth pairs to the bridges of a switch namespace.
//!
//! ```text
//!   host  eth0 ---- host.0 +--------+ other.0 ---- eth0  other
//!                          | switch |
//!   router eth0 -- router.0|  lan   |          every port: checksum offload off at both ends, GRO on
//!         eth1 -- router.1 |  wan   |          ports of XDP hosts: a pass-all XDP program on the switch's end
//!                          +--------+
//! ```
//! With checksum offload on, XDP sees unfinished checksums and a program that never repairs them passes every TCP test.
//! Needs root, `ip` and `ethtool` (Debian: iproute2, ethtool); [`bpffs`] says whether a BPF filesystem is there.

mod capture;
mod cgroup;
mod host;
mod link;
mod netns;
mod netstat;
mod ping;
mod process;
mod sweep;
mod xdp_pass;

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use nix::{errno::Errno, net::if_::if_nametoindex, sys::statfs};

pub use self::{
    capture::Capture,
    cgroup::Cgroup,
    host::{Host, HostSpec},
    link::{Link, Mac, receive, stamp},
    netstat::Netstat,
    process::Process,
};
use self::{
    host::{Port, address_line},
    netns::Netns,
    sweep::remove_directory,
};
use crate::wait;

/// Where BPF objects are pinned.
pub const BPFFS: &str = "/sys/fs/bpf";
/// Where labs have their directories; root's own, unlike /tmp.
const RUN_DIR: &str = "/run";
/// Everything that the lab makes and that has a name starts with this and the pid of the program that made it.
const PREFIX: &str = "xv-";
/// An interface's name has 15 bytes, and a port's is `host.N`.
const MAX_NAME: usize = 13;
const LINK_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the lab makes network namespaces and must run as root (sudo, or `cargo xtask test`)")]
    NotRoot,
    #[error("`{tool}` is not installed: `apt-get install iproute2 ethtool`, or `cargo xtask setup`")]
    ToolMissing { tool: String },
    #[error("{binary} is not beside this program: `cargo build -p lb-tests --bins`")]
    NotBuilt { binary: &'static str },
    #[error("no BPF filesystem at {BPFFS}: `mount -t bpf bpf {BPFFS}`, or `cargo xtask setup`")]
    NoBpffs,
    #[error("`{0}` cannot name a host: 1 to {MAX_NAME} lower-case letters, digits and dashes, once")]
    HostName(String),
    #[error("the lab has no host named {0}")]
    UnknownHost(String),
    #[error("`{command}` failed, {status}: {stderr}")]
    Command { command: String, status: ExitStatus, stderr: String },
    #[error("`{command}` has ended:\n{output}")]
    Ended { command: String, output: String },
    #[error(transparent)]
    Late(#[from] wait::Late),
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
}

/// For `map_err`: says what was being done.
pub(crate) fn io_error(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |source| Error::Io { what, source }
}

/// A set of hosts and the switch between them. Dropping it removes all of it.
#[derive(Debug)]
pub struct Lab {
    name: String,
    switch: Netns,
    segments: Vec<String>,
    hosts: Vec<Host>,
    ports: Vec<String>,
    /// Held, so that the programs on the switch's ports stay attached.
    passes: Vec<OwnedFd>,
}

impl Lab {
    /// An empty lab. Leftovers of programs that died are swept away first.
    pub fn new(name: &str) -> Result<Self, Error> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        Self::sweep()?;
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{name}{count}", std::process::id());
        let switch = Netns::new(format!("{name}-switch"))?;
        let lab = Self { name, switch, segments: Vec::new(), hosts: Vec::new(), ports: Vec::new(), passes: Vec::new() };
        // The switch is a wire: it has no addresses and says nothing itself.
        for scope in ["all", "default"] {
            let path = format!("net/ipv6/conf/{scope}/disable_ipv6");
            lab.switch.sysctl(&path, "1")?;
        }
        Ok(lab)
    }

    /// Makes a host and waits until its links carry traffic.
    pub fn add(&mut self, spec: HostSpec) -> Result<Host, Error> {
        let known = self.hosts.iter().any(|host| host.name() == spec.name);
        if known || !is_name(&spec.name) {
            return Err(Error::HostName(spec.name));
        }
        let directory = Path::new(RUN_DIR).join(&self.name).join(&spec.name);
        fs::create_dir_all(&directory).map_err(io_error(format!("make {}", directory.display())))?;
        let netns = Netns::new(format!("{}-{}", self.name, spec.name))?;
        let ports: Vec<Port> = (spec.joins.iter().enumerate())
            .map(|(index, (segment, _))| Port { device: format!("{}.{index}", spec.name), segment: segment.clone() })
            .collect();
        // Known to the lab before it is complete, so that a failure below leaves nothing behind.
        let host = Host::new(&spec.name, netns.clone(), self.switch.clone(), ports.clone(), directory);
        self.hosts.push(host.clone());
        settle(&netns, spec.forwarding)?;

        for (index, (port, (_, addresses))) in ports.iter().zip(&spec.joins).enumerate() {
            let interface = format!("eth{index}");
            self.segment(&port.segment)?;
            self.cable(&netns, &interface, port)?;
            let lines: Vec<String> = (addresses.iter()).map(|&address| address_line(&interface, address)).collect();
            netns.ip(&lines)?;
            if spec.xdp {
                self.pass_all(&port.device)?;
            }
        }
        self.wait_for_links(&netns, &ports)?;
        Ok(host)
    }

    pub fn host(&self, name: &str) -> Result<&Host, Error> {
        (self.hosts.iter()).find(|host| host.name() == name).ok_or_else(|| Error::UnknownHost(name.to_owned()))
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// A directory for files of the whole lab; gone with it.
    pub fn directory(&self) -> PathBuf {
        Path::new(RUN_DIR).join(&self.name)
    }

    /// Every checksum error that any host has seen since it was made, as `host: counter = value`.
    pub fn checksum_errors(&self) -> Result<Vec<String>, Error> {
        let mut errors = Vec::new();
        for host in &self.hosts {
            let netstat = host.netstat()?;
            errors.extend(
                (netstat.checksum_errors()).map(|(counter, value)| format!("{}: {counter} = {value}", host.name())),
            );
        }
        Ok(errors)
    }

    /// Panics where a host has received a packet with a wrong checksum.
    pub fn assert_checksums_clean(&self) {
        let errors = self.checksum_errors().expect("counters can be read");
        assert!(errors.is_empty(), "wrong checksums arrived: {errors:#?}");
    }

    /// The bridge of a segment, made when first asked for.
    fn segment(&mut self, name: &str) -> Result<(), Error> {
        if self.segments.iter().any(|known| known == name) {
            return Ok(());
        }
        // Without snooping, multicast (VRRP, neighbour discovery) reaches every port at once.
        self.switch.ip(&[
            format!("link add {name} type bridge stp_state 0 forward_delay 0 mcast_snooping 0"),
            format!("link set {name} up"),
        ])?;
        self.segments.push(name.to_owned());
        Ok(())
    }

    fn cable(&mut self, netns: &Netns, interface: &str, port: &Port) -> Result<(), Error> {
        let (device, segment) = (&port.device, &port.segment);
        self.switch.ip(&[format!("link add {device} type veth peer name {interface} netns {}", netns.name())])?;
        self.ports.push(device.clone());
        self.switch.offload(device, "tx off gro on")?;
        netns.offload(interface, "tx off gro on")?;
        netns.ip(&[format!("link set {interface} up")])?;
        self.switch.ip(&[format!("link set {device} master {segment} up")])
    }

    fn pass_all(&mut self, device: &str) -> Result<(), Error> {
        let link = (self.switch)
            .enter(|| xdp_pass::attach(if_nametoindex(device)?))?
            .map_err(io_error(format!("attach the pass-all program to {device}")))?;
        self.passes.push(link);
        Ok(())
    }

    /// Both ends have a carrier and the bridge forwards.
    fn wait_for_links(&self, netns: &Netns, ports: &[Port]) -> Result<(), Error> {
        for (index, port) in ports.iter().enumerate() {
            let what = format!("{} to be up", port.device);
            wait::until(&what, LINK_LIMIT, || {
                let inside = netns.ip_json(&format!("link show dev eth{index}")).ok()?;
                let outside = (self.switch).ip_json(&format!("-details link show dev {}", port.device)).ok()?;
                let forwards = &outside[0]["linkinfo"]["info_slave_data"]["state"] == "forwarding";
                (inside[0]["operstate"] == "UP" && outside[0]["operstate"] == "UP" && forwards).then_some(())
            })?;
        }
        Ok(())
    }

    /// Every step is tried, whatever became of the others; the first error is given.
    fn remove(&mut self) -> Result<(), Error> {
        self.passes.clear();
        let mut outcome = Ok(());
        // A namespace ends some time after its name; its veth pairs are to be gone when this returns.
        for port in self.ports.drain(..) {
            outcome = outcome.and(self.switch.ip(&[format!("link del {port}")]));
        }
        for host in self.hosts.drain(..) {
            outcome = outcome.and(host.remove());
        }
        outcome.and(self.switch.remove()).and(remove_directory(&self.directory()))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.remove() {
            eprintln!("the lab {} is not all gone: {error}", self.name);
        }
    }
}

/// The BPF filesystem, or what to do where there is none.
pub fn bpffs() -> Result<&'static Path, Error> {
    let path = Path::new(BPFFS);
    if is_bpffs(path)? { Ok(path) } else { Err(Error::NoBpffs) }
}

fn is_bpffs(path: &Path) -> Result<bool, Error> {
    match statfs::statfs(path) {
        Ok(stat) => Ok(stat.filesystem_type() == statfs::BPF_FS_MAGIC),
        Err(Errno::ENOENT) => Ok(false),
        Err(errno) => Err(io_error(format!("statfs {}", path.display()))(errno.into())),
    }
}

/// What a new host's network is like, whatever this machine's own is: IPv4 settings are inherited by new namespaces.
fn settle(netns: &Netns, forwarding: bool) -> Result<(), Error> {
    let forwarding = if forwarding { "1" } else { "0" };
    netns.sysctl("net/ipv4/ip_forward", forwarding)?;
    netns.sysctl("net/ipv6/conf/all/forwarding", forwarding)?;
    // Loose reverse-path filtering on every interface, as systemd's 50-default.conf has it.
    netns.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
    netns.sysctl("net/ipv4/conf/default/rp_filter", "2")?;
    for scope in ["all", "default"] {
        netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
        netns.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
    }
    Ok(())
}

fn is_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(letter)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_filesystems_are_no_bpffs() {
        for path in ["/proc", "/no/such/place"] {
            assert!(!is_bpffs(Path::new(path)).unwrap(), "{path}");
        }
    }

    #[test]
    fn a_port_name_fits_an_interface() {
        assert!(is_name("ha-lb-a"));
        for bad in ["", "fourteen-bytes", "Master", "a b", "a.b"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
