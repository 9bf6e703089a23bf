//! Builds the kernel side and leaves its object in `OUT_DIR`, where `dataplane` embeds it.

use std::{env, fs, path::PathBuf};

use anyhow::Context as _;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    // aya-build watches the eBPF package only; the packet decision lives in lb-common.
    println!("cargo:rerun-if-changed=../lb-common/src");
    println!("cargo:rerun-if-changed=../Cargo.lock");
    // `core` is built from source for the BPF target, which a stable or distribution compiler does only when told so.
    // aya-build passes on each line of the inner cargo as a warning: without its progress, warnings are what remains.
    // SAFETY: a build script's main thread, before anything else runs.
    unsafe {
        env::set_var("RUSTC_BOOTSTRAP", "1");
        env::set_var("CARGO_TERM_QUIET", "true");
    }
    // Who only reads input (the fuzz targets) does without the kernel side. What is embedded then does not load.
    println!("cargo:rerun-if-env-changed=AYA_BUILD_SKIP");
    if env::var_os("AYA_BUILD_SKIP").is_some_and(|skip| skip == "1") {
        let object = PathBuf::from(env::var_os("OUT_DIR").context("cargo says where to build")?).join("xvip-ebpf");
        return fs::write(&object, []).with_context(|| format!("writing {}", object.display()));
    }
    let package = Package { name: "lb-ebpf", root_dir: "../lb-ebpf", ..Package::default() };
    // The name under which `cargo xtask setup` links whichever toolchain of this machine can build for BPF.
    aya_build::build_ebpf([package], Toolchain::Custom("bpf"))
        .context("building the eBPF object; `cargo xtask setup` installs what that needs")
}
