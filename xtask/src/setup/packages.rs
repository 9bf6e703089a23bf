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

/// Debian's own compiler with the sources of `core`, for machines that rustup's server does not answer.
pub(crate) const DISTRIBUTION_TOOLCHAIN: &[&str] = &["rustc-web", "cargo-web", "rust-web-src"];
