//! Runs the packet table as the only process of a virtual machine: turns a bare kernel into one that takes BPF programs,
//! reports on the console in lines that `cargo xtask vm-test` reads, and powers the machine off.
//!
//! ```text
//! xvip-guest: kernel 6.1.0-56-cloud-amd64
//! xvip-guest: program xdp_ingress verified 1234
//! xvip-guest: failed <case>: <what was wrong>
//! xvip-guest: detail <a further line of the same failure>
//! xvip-guest: result 120 passed, 1 failed
//! ```

use std::convert::Infallible;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::panic::catch_unwind;
use std::path::Path;

use anyhow::Context as _;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket};
use nix::sys::termios::tcdrain;
use nix::sys::utsname::uname;

use crate::packets::{self, Summary};

/// Where the initramfs lists its kernel modules, one path a line, dependencies first.
const MODULES: &str = "/modules/order";

/// Mount points in the order they are made; the kernel creates the ones below /sys itself.
const MOUNTS: [(&str, &str); 5] =
    [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("bpf", "/sys/fs/bpf"), ("cgroup2", "/sys/fs/cgroup")];

/// Prepares the kernel, runs the packet table, reports, and powers off. What kept the table from being run to its end is
/// reported like a failed case.
///
/// # Errors
/// When the report cannot be written or the machine not be powered off.
pub fn boot() -> anyhow::Result<Infallible> {
    let summary = prepare().and_then(|()| table()).unwrap_or_else(|error| Summary {
        cases: 1,
        failed: vec![format!("guest: {error:#}")],
        programs: Vec::new(),
    });
    let release = uname().context("asking the kernel for its release")?;
    report(&release.release().to_string_lossy(), &summary)?;
    reboot(RebootMode::RB_POWER_OFF).context("powering off")
}

fn prepare() -> anyhow::Result<()> {
    for (kind, target) in MOUNTS {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>)
            .with_context(|| format!("mounting {kind} on {target}"))?;
    }
    // Only emergencies from here on: a kernel message in the middle of a line would spoil the report.
    fs::write("/proc/sys/kernel/printk", "1").context("quietening the kernel's console")?;
    load_modules(Path::new(MODULES))?;
    loopback_up().context("setting lo up")
}

/// A panic is caught because the end of init is a kernel panic, in which what this process has printed may be lost.
fn table() -> anyhow::Result<Summary> {
    catch_unwind(packets::run).map_err(|panic| {
        let message = panic.downcast_ref::<String>().map(String::as_str);
        let message = message.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        anyhow::anyhow!("the packet table panicked: {message}")
    })
}

fn load_modules(order: &Path) -> anyhow::Result<()> {
    let list = fs::read_to_string(order).with_context(|| format!("reading {}", order.display()))?;
    for path in list.lines() {
        let file = File::open(path).with_context(|| format!("opening {path}"))?;
        finit_module(&file, c"", ModuleInitFlags::empty()).with_context(|| format!("loading {path}"))?;
    }
    Ok(())
}

/// Sets interface 1, which is lo in every network namespace, up by one netlink request.
fn loopback_up() -> anyhow::Result<()> {
    const LOOPBACK: i32 = 1;
    let netlink = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)?;
    send(netlink.as_raw_fd(), &link_up_request(LOOPBACK), MsgFlags::empty())?;
    let mut answer = [0; 64];
    recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty())?;
    // struct nlmsgerr follows the 16-byte header and begins with the negated errno, 0 for an acknowledgement.
    let error = i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]);
    anyhow::ensure!(error == 0, std::io::Error::from_raw_os_error(-error));
    Ok(())
}

/// `RTM_NEWLINK` that sets `IFF_UP` and nothing else: struct nlmsghdr and struct ifinfomsg, in the machine's byte order.
fn link_up_request(index: i32) -> [u8; 32] {
    const LENGTH: u32 = 32;
    let up = libc::IFF_UP.cast_unsigned();
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK).cast_unsigned() as u16;
    let mut message = [0; LENGTH as usize];
    message[0..4].copy_from_slice(&LENGTH.to_ne_bytes());
    message[4..6].copy_from_slice(&libc::RTM_NEWLINK.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    message[20..24].copy_from_slice(&index.to_ne_bytes());
    message[24..28].copy_from_slice(&up.to_ne_bytes());
    message[28..32].copy_from_slice(&up.to_ne_bytes());
    message
}

/// Prints the report and waits until the last byte has left the serial port, which a power-off does not wait for.
fn report(release: &str, summary: &Summary) -> anyhow::Result<()> {
    let mut console = std::io::stdout().lock();
    for line in lines(release, summary) {
        writeln!(console, "{line}")?;
    }
    console.flush()?;
    tcdrain(&console).context("waiting for the console")
}

fn lines(release: &str, summary: &Summary) -> Vec<String> {
    let mut lines = vec![format!("xvip-guest: kernel {release}")];
    for (name, verified) in &summary.programs {
        lines.push(format!("xvip-guest: program {name} verified {verified}"));
    }
    for failure in &summary.failed {
        let mut words = "failed";
        for line in failure.lines() {
            lines.push(format!("xvip-guest: {words} {line}"));
            words = "detail";
        }
    }
    let failed = summary.failed.len();
    let passed = summary.cases.saturating_sub(failed);
    lines.push(format!("xvip-guest: result {passed} passed, {failed} failed"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_lines_that_the_host_reads() {
        let summary = Summary {
            cases: 3,
            failed: vec!["syn_v4: bytes differ\n  at 26".to_owned()],
            programs: vec![("xdp_ingress".to_owned(), 1234)],
        };
        let expected = [
            "xvip-guest: kernel 6.1.0-56-cloud-amd64",
            "xvip-guest: program xdp_ingress verified 1234",
            "xvip-guest: failed syn_v4: bytes differ",
            "xvip-guest: detail   at 26",
            "xvip-guest: result 2 passed, 1 failed",
        ];
        assert_eq!(lines("6.1.0-56-cloud-amd64", &summary), expected);
    }

    #[test]
    #[cfg(target_endian = "little")]
    fn link_up_request_sets_iff_up_and_asks_for_an_acknowledgement() {
        let expected = [
            32, 0, 0, 0, 16, 0, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, // nlmsghdr: length, RTM_NEWLINK, REQUEST | ACK
            0, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 0, 0, 0, // ifinfomsg: index 1, IFF_UP, mask IFF_UP
        ];
        assert_eq!(link_up_request(1), expected);
    }
}
