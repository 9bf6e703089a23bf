//! Builds the benchmark's programs for the kernel and leaves their object in `OUT_DIR`, where `bench` embeds it.

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-changed=../Cargo.lock");
    // As for the product's object: `core` is built from source for the BPF target, and only warnings are passed on.
    // SAFETY: a build script's main thread, before anything else runs.
    unsafe {
        std::env::set_var("RUSTC_BOOTSTRAP", "1");
        std::env::set_var("CARGO_TERM_QUIET", "true");
    }
    let package = Package { name: "lb-tests-ebpf", root_dir: "ebpf", ..Package::default() };
    // The name under which `cargo xtask setup` links whichever toolchain of this machine can build for BPF.
    aya_build::build_ebpf([package], Toolchain::Custom("bpf"))
        .context("building the benchmark's eBPF object; `cargo xtask setup` installs what that needs")
}
