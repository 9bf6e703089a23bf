//! The host room against a real kernel: every test in a network namespace of its own, with a veth pair in it. Needs root.

use std::{
    collections::BTreeSet,
    io::Write as _,
    net::{IpAddr, SocketAddr, UdpSocket},
    os::fd::AsRawFd as _,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use lb_userspace::host::{
    self, Announcer, Change, Changes, Forwarding, Handle, Interface, Vip, announce, forwarding::Families,
};
use nix::sys::socket::{LinkAddr, recvfrom};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::time::timeout;

/// Far more than anything here takes, so that a failure ends.
const DEADLINE: Duration = Duration::from_secs(10);

const VIPS: [&str; 2] = ["192.0.2.100", "2001:db8:2::100"];

/// Runs `test` on a thread whose network namespace is new and ends with it. It holds `near` (192.0.2.10/24, 2001:db8:2::10/64,
/// default routes by 192.0.2.1 and 2001:db8:2::1) and its veth peer `far`.
fn in_namespace<T>(test: impl AsyncFnOnce(Handle) -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T>
where
    T: Send + 'static,
{
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test makes network namespaces: run it as root, with `cargo xtask test`"
    );
    let thread = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).context("unshare")?;
        ip("link add near type veth peer name far")?;
        ip("link set near up")?;
        ip("link set far up")?;
        ip("address add 192.0.2.10/24 dev near")?;
        ip("address add 2001:db8:2::10/64 dev near nodad")?;
        ip("route add default via 192.0.2.1")?;
        ip("route add default via 2001:db8:2::1")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async { test(host::connect()?).await })
    });
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn ip(arguments: &str) -> anyhow::Result<String> {
    let output = Command::new("ip").args(arguments.split(' ')).output().context("ip (package iproute2)")?;
    ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

async fn near(handle: &Handle) -> anyhow::Result<Interface> {
    Ok(host::interfaces(handle).await?.named("near")?.clone())
}

async fn addresses(handle: &Handle) -> anyhow::Result<BTreeSet<IpAddr>> {
    Ok(host::interfaces(handle).await?.local_addresses())
}

/// The address that the kernel chooses for a socket that speaks to `destination`.
fn source_for(destination: &str) -> anyhow::Result<String> {
    let destination = SocketAddr::new(destination.parse()?, 6443);
    let any = if destination.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(destination).with_context(|| format!("no route to {destination}"))?;
    Ok(socket.local_addr()?.ip().to_string())
}

#[test]
fn interfaces_are_as_the_kernel_has_them() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        ip("link set near mtu 3506 address 02:00:00:aa:bb:01")?;
        ip("link add dotted.100 type veth peer name other")?;
        let all = host::interfaces(&handle).await?;
        let near = all.named("near")?;
        assert_eq!((near.mac, near.mtu, near.up), ([2, 0, 0, 0xaa, 0xbb, 1], 3506, true));
        for address in ["192.0.2.10/24", "2001:db8:2::10/64"] {
            assert!(near.addresses.contains(&address.parse()?), "{address} in {:?}", near.addresses);
        }
        assert_eq!(near.vlan, None);
        assert!(!all.named("dotted.100")?.up);
        assert_eq!(all.named("lo")?.mac, [0; 6]);
        for vip in VIPS {
            assert_eq!(all.carrier(vip.parse()?, &["lo", "near"])?, near);
        }
        assert_eq!(
            all.named("eth9").unwrap_err().to_string().split(". ").next(),
            Some("interface \"eth9\" does not exist; this host has lo, far, near, other, dotted.100")
        );
        Ok(())
    })
}

#[test]
fn a_vip_comes_and_goes() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let interface = near(&handle).await?;
        for vip in VIPS {
            let vip: IpAddr = vip.parse()?;
            let held = Vip::hold(&handle, vip, &interface).await?;
            assert!(held.added());
            let now = near(&handle).await?.addresses;
            assert!(now.contains(&vip.into()), "{vip} as a host address among {now:?}");
            // Bindable at once: no duplicate detection keeps it tentative.
            UdpSocket::bind(SocketAddr::new(vip, 0)).with_context(|| format!("binding {vip}"))?;
            held.release().await?;
            assert!(!addresses(&handle).await?.contains(&vip), "{vip} is still there");
        }
        assert_eq!(near(&handle).await?, interface, "nothing else changed");
        Ok(())
    })
}

#[test]
fn a_vip_is_never_the_source_of_the_hosts_own_connections() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let interface = near(&handle).await?;
        for vip in VIPS {
            Vip::hold(&handle, vip.parse()?, &interface).await?;
        }
        // Routes without `src`, made while the VIP is there.
        ip("route add 198.51.100.0/24 dev near")?;
        ip("route add 2001:db8:99::/64 dev near")?;
        // In the subnet, behind the gateway, by such a route, and right beside the VIP, where the longest match would take it.
        for destination in ["192.0.2.11", "203.0.113.1", "198.51.100.1", "192.0.2.101"] {
            assert_eq!(source_for(destination)?, "192.0.2.10", "to {destination}");
        }
        for destination in ["2001:db8:2::11", "2001:db8:5::1", "2001:db8:99::1", "2001:db8:2::101"] {
            assert_eq!(source_for(destination)?, "2001:db8:2::10", "to {destination}");
        }
        Ok(())
    })
}

#[test]
fn a_vip_that_was_there_before_stays() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        ip("address add 192.0.2.100/24 dev near")?;
        ip("address add 2001:db8:2::100/64 dev near nodad")?;
        let interface = near(&handle).await?;
        for vip in VIPS {
            let held = Vip::hold(&handle, vip.parse()?, &interface).await?;
            assert!(!held.added());
            held.release().await?;
        }
        assert_eq!(near(&handle).await?, interface);
        Ok(())
    })
}

#[test]
fn a_vip_left_by_a_crash_is_adopted() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let interface = near(&handle).await?;
        for vip in VIPS {
            drop(Vip::hold(&handle, vip.parse()?, &interface).await?);
            assert!(addresses(&handle).await?.contains(&vip.parse()?));
            let adopted = Vip::hold(&handle, vip.parse()?, &interface).await?;
            assert!(adopted.added(), "{vip}");
            adopted.release().await?;
        }
        assert_eq!(near(&handle).await?, interface);
        Ok(())
    })
}

#[test]
fn a_vip_taken_away_is_put_back() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let interface = near(&handle).await?;
        for vip in VIPS {
            let mut held = Vip::hold(&handle, vip.parse()?, &interface).await?;
            assert!(!held.ensure().await?, "it is there");
            ip(&format!("address flush dev near to {vip}"))?;
            assert!(held.ensure().await?, "it was gone");
            assert!(addresses(&handle).await?.contains(&vip.parse()?));
            ip(&format!("address flush dev near to {vip}"))?;
            held.release().await.context("releasing what is gone")?;
        }
        Ok(())
    })
}

#[test]
fn a_vip_on_an_interface_that_is_gone() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let interface = near(&handle).await?;
        let held = Vip::hold(&handle, VIPS[0].parse()?, &interface).await?;
        ip("link delete near")?;
        held.release().await.context("releasing")?;
        let refused = Vip::hold(&handle, VIPS[0].parse()?, &interface).await.unwrap_err();
        assert!(refused.to_string().starts_with("looking for the interface of VIP 192.0.2.100 on near: "), "{refused}");
        Ok(())
    })
}

#[test]
fn announcements_arrive_at_the_other_end() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let interface = near(&handle).await?;
        let all = host::interfaces(&handle).await?;
        let far = Tap::on(all.named("far")?)?;
        for vip in VIPS {
            let vip = vip.parse()?;
            let announcer = Announcer::new(&interface, vip)?.context("near is Ethernet")?;
            let expected = announce::frame(interface.mac, vip);
            announcer.send()?;
            far.wait_for(&expected).await?;
            // The first three of a burst: 0, 10 and 50 ms.
            let burst = tokio::spawn(async move { announcer.burst().await });
            for _ in 0..3 {
                far.wait_for(&expected).await?;
            }
            burst.abort();
        }
        assert!(Announcer::new(all.named("lo")?, VIPS[0].parse()?)?.is_none(), "nobody to tell on lo");
        Ok(())
    })
}

/// Sees every frame that arrives at one interface.
struct Tap {
    socket: Arc<Socket>,
    index: usize,
}

impl Tap {
    fn on(interface: &Interface) -> anyhow::Result<Self> {
        let every_protocol = Protocol::from(libc::ETH_P_ALL.to_be() >> 16);
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(every_protocol))?;
        socket.set_read_timeout(Some(DEADLINE))?;
        Ok(Self { socket: Arc::new(socket), index: usize::try_from(interface.index)? })
    }

    async fn wait_for(&self, expected: &[u8]) -> anyhow::Result<()> {
        let (socket, index, expected) = (self.socket.clone(), self.index, expected.to_vec());
        let arrival = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
            let deadline = Instant::now() + DEADLINE;
            while Instant::now() < deadline {
                let mut buffer = [0; 2048];
                let received = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer);
                let (length, from) = received.context("the frame did not arrive")?;
                if from.is_some_and(|from| from.ifindex() == index) && buffer[..length] == expected {
                    return Ok(());
                }
            }
            anyhow::bail!("other frames arrived, but not this one")
        });
        arrival.await?
    }
}

/// Waits until `wanted` has been told, and returns everything told up to then.
async fn told(changes: &mut Changes, wanted: Change) -> anyhow::Result<BTreeSet<Change>> {
    let mut all = BTreeSet::new();
    while !all.contains(&wanted) {
        let batch = timeout(DEADLINE, changes.next()).await;
        let batch = batch.with_context(|| format!("{wanted:?} was not told, only {all:?}"))?;
        all.extend(batch.context("the stream ended")?);
    }
    Ok(all)
}

#[test]
fn changes_are_told() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let mut changes = Changes::subscribe(&handle).await?;
        ip("route add 198.51.100.0/24 dev near")?;
        told(&mut changes, Change::Route).await?;
        ip("route add 2001:db8:99::/64 dev near")?;
        told(&mut changes, Change::Route).await?;
        for address in ["192.0.2.12/24", "2001:db8:2::12/64"] {
            ip(&format!("address add {address} dev near"))?;
            told(&mut changes, Change::Address).await?;
        }
        ip("link set far down")?;
        told(&mut changes, Change::Link).await?;
        Ok(())
    })
}

#[test]
fn neighbours_are_told_without_the_noise() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let interface = near(&handle).await?.index;
        for [backend, other] in [["192.0.2.11", "192.0.2.12"], ["2001:db8:2::11", "2001:db8:2::12"]] {
            let neighbour = |address: &str, last: Option<u8>| -> anyhow::Result<Change> {
                let mac = last.map(|last| [2, 0, 0, 0, 0, last]);
                Ok(Change::Neighbour { interface, address: address.parse()?, mac })
            };
            // What was there at the subscription is no news.
            ip(&format!("neigh add {backend} lladdr 02:00:00:00:00:0a dev near nud reachable"))?;
            let mut changes = Changes::subscribe(&handle).await?;
            ip(&format!("neigh change {backend} lladdr 02:00:00:00:00:0a dev near nud stale"))?;
            ip(&format!("neigh change {backend} lladdr 02:00:00:00:00:0a dev near nud reachable"))?;
            ip(&format!("neigh add {other} lladdr 02:00:00:00:00:0c dev near nud reachable"))?;
            let mut seen = told(&mut changes, neighbour(other, Some(0xc))?).await?;
            seen.retain(|change| matches!(change, Change::Neighbour { .. }));
            assert_eq!(seen, BTreeSet::from([neighbour(other, Some(0xc))?]));

            ip(&format!("neigh change {backend} lladdr 02:00:00:00:00:0b dev near nud reachable"))?;
            told(&mut changes, neighbour(backend, Some(0xb))?).await?;
            ip(&format!("neigh change {backend} dev near nud failed"))?;
            told(&mut changes, neighbour(backend, None)?).await?;
            ip(&format!("neigh delete {other} dev near"))?;
            told(&mut changes, neighbour(other, None)?).await?;
        }
        Ok(())
    })
}

#[test]
fn an_overrun_tells_that_everything_may_have_changed() -> anyhow::Result<()> {
    in_namespace(async |handle| {
        let mut changes = Changes::subscribe(&handle).await?;
        // The runtime's only thread waits for `ip`, so nobody reads while the kernel's queue (at most 2 MiB) fills.
        let mut batch = tempfile::NamedTempFile::new()?;
        for i in 0..20_000_u32 {
            writeln!(batch, "route add 10.{}.{}.{}/32 dev near", i >> 16, (i >> 8) & 0xff, i & 0xff)?;
        }
        let path = batch.path().to_str().context("a path in UTF-8")?;
        ip(&format!("-batch {path}"))?;
        told(&mut changes, Change::Everything).await?;
        // And it goes on, once the queue has been emptied: until then the kernel drops what happens.
        for host in 12..=254 {
            ip(&format!("address add 192.0.2.{host}/24 dev near"))?;
            let batch = timeout(DEADLINE, changes.next()).await.context("nothing was told")?;
            if batch.context("the stream ended")?.contains(&Change::Address) {
                return Ok(());
            }
        }
        anyhow::bail!("an address that was added was never told")
    })
}

#[test]
fn forwarding_is_turned_on_and_put_back() -> anyhow::Result<()> {
    in_namespace(async |_| {
        ip("link add dotted.100 type veth peer name other")?;
        let read = || -> anyhow::Result<Vec<String>> {
            let files = ["ipv4/conf/*/forwarding", "ipv6/conf/*/forwarding", "ipv6/conf/*/accept_ra"];
            let paths =
                ["near", "dotted.100", "far"].into_iter().flat_map(|name| files.map(|file| file.replace('*', name)));
            paths.map(|path| Ok(std::fs::read_to_string(format!("/proc/sys/net/{path}"))?.trim().to_owned())).collect()
        };
        assert_eq!(read()?, ["0", "0", "1", "0", "0", "1", "0", "0", "1"], "a new namespace does not forward");
        let forwarding = Forwarding::enable(["near", "dotted.100"], Families { ipv4: true, ipv6: true })?;
        assert_eq!(read()?, ["1", "1", "2", "1", "1", "2", "0", "0", "1"]);
        drop(forwarding);
        assert_eq!(read()?, ["0", "0", "1", "0", "0", "1", "0", "0", "1"]);
        Ok(())
    })
}

#[test]
fn root_with_a_bpf_filesystem_passes_the_preflight() -> anyhow::Result<()> {
    in_namespace(async |_| {
        use nix::{
            mount::{MsFlags, mount},
            sched::{CloneFlags, unshare},
        };
        let directory = tempfile::tempdir()?;
        // A mount of this thread alone, which goes with it.
        unshare(CloneFlags::CLONE_NEWNS)?;
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>)?;
        let pins = directory.path().join("xvip/maps");
        let refused = host::preflight::check(&pins).unwrap_err().to_string();
        assert!(refused.contains("is on no BPF filesystem"), "{refused}");
        mount(Some("bpf"), directory.path(), Some("bpf"), MsFlags::empty(), None::<&str>)?;
        host::preflight::check(&pins)?;
        nix::mount::umount(directory.path())?;
        Ok(())
    })
}
