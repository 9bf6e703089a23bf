//! The programs and files that come from the distribution, each with its reason.

use crate::setup::Need;

/// One Debian or Ubuntu package, known to be there by a file that it brings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: &'static str,
    pub(crate) need: Need,
    pub(crate) why: &'static str,
    pub(crate) proof: Proof,
}

/// What shows that a package is there, by whatever way it came.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    Program(&'static str),
    File(&'static str),
}

/// Everything that any verb takes from the distribution.
pub(crate) const PACKAGES: &[Package] = &[
    Package {
        name: "gcc",
        need: Need::Compile,
        why: "rustc links with it, and ring compiles C",
        proof: Proof::Program("cc"),
    },
    Package {
        name: "libc6-dev",
        need: Need::Compile,
        why: "headers and start files for gcc",
        proof: Proof::File("/usr/include/stdio.h"),
    },
    Package {
        name: "iproute2",
        need: Need::Lab,
        why: "ip makes the lab's namespaces and links",
        proof: Proof::Program("ip"),
    },
    Package {
        name: "ethtool",
        need: Need::Lab,
        why: "turns off the checksum offload that hides wrong checksums on veth",
        proof: Proof::Program("ethtool"),
    },
    Package {
        name: "keepalived",
        need: Need::Peers,
        why: "the daemon that xvip shares VIPs with, and is measured against",
        proof: Proof::File("/usr/sbin/keepalived"),
    },
    Package {
        name: "frr",
        need: Need::Peers,
        why: "its vrrpd is the other VRRP daemon that xvip shares VIPs with",
        proof: Proof::File("/usr/lib/frr/vrrpd"),
    },
    Package {
        name: "haproxy",
        need: Need::Peers,
        why: "runs beside keepalived in the deployments that xvip takes over",
        proof: Proof::File("/usr/sbin/haproxy"),
    },
    Package {
        name: "libnginx-mod-stream",
        need: Need::Peers,
        why: "nginx and its TCP proxy, in one of those deployments",
        proof: Proof::File("/usr/lib/nginx/modules/ngx_stream_module.so"),
    },
    Package {
        name: "nginx",
        need: Need::Peers,
        why: "the same, and its command",
        proof: Proof::File("/usr/sbin/nginx"),
    },
    Package {
        name: "curl",
        need: Need::Peers,
        why: "keepalived's check scripts in those deployments ask with it",
        proof: Proof::Program("curl"),
    },
    Package {
        name: "tshark",
        need: Need::Peers,
        why: "an independent judge of every VRRP packet",
        proof: Proof::Program("tshark"),
    },
    Package { name: "g++", need: Need::Fuzz, why: "libFuzzer is C++", proof: Proof::Program("c++") },
    Package {
        name: "qemu-system-x86",
        need: Need::Vm,
        why: "boots other kernels",
        proof: Proof::Program("qemu-system-x86_64"),
    },
    Package {
        name: "binutils",
        need: Need::Vm,
        why: "strip makes the guest's program small",
        proof: Proof::Program("strip"),
    },
    Package { name: "xz-utils", need: Need::Vm, why: "unpacks the modules of kernel 6.1", proof: Proof::Program("xz") },
    Package { name: "zstd", need: Need::Vm, why: "unpacks modules of newer kernels", proof: Proof::Program("zstd") },
];

/// Packages that bring a service of the same name, which their installation starts: the lab runs the programs itself, and nothing
/// else is wanted on this machine.
pub(crate) const SERVICES: &[&str] = &["keepalived", "frr", "haproxy", "nginx"];

/// Debian's own compiler with the sources of `core`, for machines that rustup's server does not answer.
pub(crate) const DISTRIBUTION_TOOLCHAIN: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
