//! A node with the VRRP thread on a segment of the lab, and what its neighbours see of it.

use std::{net::IpAddr, os::fd::AsRawFd as _, time::Duration};

use anyhow::Context as _;
use ipnet::IpNet;
use lb_tests::{
    lab::{Host, HostSpec, Lab},
    wait,
};
use lb_userspace::{
    host::announce,
    vrrp::{
        Condition, InstanceId, Moment, Settings, State, Version, Vrid,
        packet::ChecksumForm,
        reception::Auth,
        wire::{Instance, InstanceView, Options, Wire},
    },
};
use nix::{
    sys::socket::{MsgFlags, recv},
    time::{ClockId, clock_gettime},
};
use socket2::{Domain, Protocol, Socket, Type};

/// Far more than anything here takes, so that a failure ends.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);
pub(super) const INTERVAL: Duration = Duration::from_millis(100);
/// How long a backup of priority 100 waits once its master has resigned.
pub(super) const TURN: Duration = Duration::from_micros(20_000 * 156 / 256);
/// What the machine may be late by while it builds and runs other things.
pub(super) const LATE: Duration = Duration::from_millis(250);
pub(super) const VIP: &str = "192.168.2.100";
pub(super) const VIP6: &str = "fd00:2::100";
pub(super) const ME: InstanceId = InstanceId(0);

pub(super) fn instance(priority: u8, vips: &[&str]) -> Instance {
    Instance {
        name: "apiserver".into(),
        interface: "eth0".into(),
        vrid: Vrid(51),
        settings: Settings {
            version: Version::V3,
            priority,
            interval: Duration::from_millis(100),
            down_factor: 3,
            preempt: true,
            preempt_delay: Duration::ZERO,
            sync_group: None,
            source: None,
            condition: Condition::default(),
            lease: None,
        },
        addresses: vips.iter().map(|vip| IpNet::from(vip.parse::<IpAddr>().unwrap())).collect(),
        virtual_mac: false,
        peers: Vec::new(),
        source: None,
        auth: Auth::None,
        checksum: ChecksumForm::default(),
        min_ttl: 255,
        label: None,
    }
}

/// One node with the thread.
pub(super) struct Node {
    pub(super) host: Host,
    pub(super) wire: Wire,
}

impl Node {
    pub(super) fn start(host: &Host, instance: Instance) -> anyhow::Result<Self> {
        Self::start_with(host, instance, Options::default())
    }

    pub(super) fn start_with(host: &Host, instance: Instance, options: Options) -> anyhow::Result<Self> {
        let wire = host.enter(|| Wire::start(vec![instance], options))??;
        Ok(Self { host: host.clone(), wire })
    }

    pub(super) fn view(&self) -> InstanceView {
        self.wire.views().borrow()[0].clone()
    }

    pub(super) fn wait_for(&self, state: State) -> anyhow::Result<()> {
        self.wait_until(&format!("{state:?}"), |view| view.router.state == state)
    }

    pub(super) fn wait_until(&self, what: &str, is_so: impl Fn(&InstanceView) -> bool) -> anyhow::Result<()> {
        let what = format!("{} to be {what}: {:?}", self.host.name(), self.view());
        Ok(wait::until(&what, DEADLINE, || is_so(&self.view()).then_some(()))?)
    }
}

pub(super) fn now() -> Moment {
    Moment(clock_gettime(ClockId::CLOCK_BOOTTIME).unwrap().into())
}

/// Whether a host has an address now.
pub(super) fn has(host: &Host, address: &str) -> anyhow::Result<bool> {
    let text = host.exec(&["ip", "-json", "address", "show"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let mut all = links.as_array().into_iter().flatten().filter_map(|link| link["addr_info"].as_array()).flatten();
    Ok(all.any(|known| known["local"] == address))
}

pub(super) fn wait_for_address(host: &Host, address: &str) -> anyhow::Result<()> {
    let what = format!("{address} on {}", host.name());
    wait::until(&what, DEADLINE, || match has(host, address) {
        Ok(true) => Some(Ok(())),
        Ok(false) => None,
        Err(e) => Some(Err(e)),
    })?
}

pub(super) fn mac(host: &Host) -> anyhow::Result<[u8; 6]> {
    let text = host.exec(&["ip", "-json", "link", "show", "dev", "eth0"])?;
    let links: serde_json::Value = serde_json::from_str(&text)?;
    let text = links[0]["address"].as_str().context("a MAC")?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<u8>, _>>()?;
    Ok(bytes.as_slice().try_into()?)
}

/// Every frame that arrives at a host from now on.
pub(super) struct Tap(Socket);

impl Tap {
    pub(super) fn on(host: &Host) -> anyhow::Result<Self> {
        let every_protocol = Protocol::from(libc::ETH_P_ALL.to_be() >> 16);
        let socket = host.socket(Domain::PACKET, Type::RAW, Some(every_protocol))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(Self(socket))
    }

    pub(super) fn wait_for(&self, what: &str, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<Vec<u8>> {
        let (begun, mut buffer) = (now(), [0; 2048]);
        while now() - begun < DEADLINE {
            let received = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty());
            let frame = &buffer[..received.with_context(|| format!("{what} did not arrive"))?];
            if wanted(frame) {
                return Ok(frame.to_vec());
            }
        }
        anyhow::bail!("other frames arrived, but not {what}")
    }

    pub(super) fn wait_for_announcement(&self, by: [u8; 6], vip: &str) -> anyhow::Result<()> {
        let expected = announce::frame(by, vip.parse()?);
        self.wait_for(&format!("an announcement of {vip}"), |frame| frame == expected).map(drop)
    }
}

/// Two nodes and a client on one segment. The nodes' link-local addresses are good at once.
pub(super) fn lab() -> anyhow::Result<(Lab, [Host; 3])> {
    let mut lab = Lab::new("wire")?;
    let mut host = |name: &str, last: u8| -> anyhow::Result<Host> {
        let nets = [format!("192.168.2.{last}/24"), format!("fd00:2::{last:x}/64")];
        let nets = nets.iter().map(|net| net.parse()).collect::<Result<Vec<IpNet>, _>>()?;
        Ok(lab.add(HostSpec::new(name).on("lan", nets))?)
    };
    let hosts = [host("a", 10)?, host("b", 11)?, host("client", 9)?];
    Ok((lab, hosts))
}
