//! The toolchain named `bpf`: trying candidates until one has really built a BPF program.

use std::{fs, process::Command};

use anyhow::{Context as _, Result, bail};

use crate::{
    exec::{capture, command, exec, step},
    setup::{apt_install, own_dir, packages::DISTRIBUTION_TOOLCHAIN, plan::Candidate},
};

/// rustc 1.97 with LLVM 22, which bpf-linker 0.10 to 0.12 reads; later nightlies move on to LLVM 23.
const NIGHTLY: &str = "nightly-2026-05-20";

const TRIAL_MANIFEST: &str = r#"[package]
name = "trial"
edition = "2024"

[workspace]
"#;

const TRIAL_PROGRAM: &str = r#"#![no_std]
#![no_main]

#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn trial(_: *mut core::ffi::c_void) -> u32 {
    2
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
"#;

/// Links the first candidate that passes the trial as `bpf`.
pub(crate) fn settle(candidates: &[Candidate]) -> Result<()> {
    let mut refusals = String::new();
    for candidate in candidates {
        step(format!("BPF toolchain: trying {}", describe(candidate)));
        match provide(candidate).and_then(|()| prove()) {
            Ok(()) => return Ok(()),
            Err(error) => {
                step(format!("BPF toolchain: not {}: {error:#}", describe(candidate)));
                refusals.push_str(&format!("\n  {}: {error:#}", describe(candidate)));
            }
        }
    }
    bail!(
        "no compiler here can build for BPF; `rustup toolchain install {NIGHTLY} --component rust-src` gives one that can. Tried:{refusals}"
    )
}

/// Whether the toolchain named `bpf` has passed the trial with the linker that is installed now.
pub(crate) fn is_proven() -> Result<bool> {
    let stamp = own_dir()?.join("bpf-proof");
    let Ok(kept) = fs::read_to_string(stamp) else {
        return Ok(false);
    };
    Ok(identity().is_ok_and(|now| now == kept))
}

/// That toolchain's rustc.
pub(crate) fn rustc(toolchain: &str, arguments: &[&str]) -> Command {
    let mut command = command("rustup");
    command.args(["run", toolchain, "rustc"]).args(arguments);
    command
}

fn describe(candidate: &Candidate) -> String {
    match candidate {
        Candidate::Linked => "the one named bpf".to_owned(),
        Candidate::Installed(name) => name.clone(),
        Candidate::Nightly => format!("{NIGHTLY} from rustup's server"),
        Candidate::Distribution => format!("the distribution's packages {}", DISTRIBUTION_TOOLCHAIN.join(", ")),
    }
}

/// Makes `bpf` name the candidate.
fn provide(candidate: &Candidate) -> Result<()> {
    let name = match candidate {
        Candidate::Linked => return Ok(()),
        Candidate::Installed(name) => name,
        Candidate::Nightly => {
            let options = ["--profile", "minimal", "--component", "rust-src", "--no-self-update"];
            exec(command("rustup").args(["toolchain", "install", NIGHTLY]).args(options))?;
            NIGHTLY
        }
        Candidate::Distribution => {
            apt_install(DISTRIBUTION_TOOLCHAIN)?;
            return link("/usr");
        }
    };
    link(capture(&mut rustc(name, &["--print", "sysroot"]))?.trim())
}

fn link(sysroot: &str) -> Result<()> {
    exec(command("rustup").args(["toolchain", "link", "bpf", sysroot]))
}

/// Builds a whole program as lb-userspace's build script does, and remembers what did it.
fn prove() -> Result<()> {
    let directory = own_dir()?;
    let trial = directory.join("trial");
    let source = trial.join("src/main.rs");
    fs::create_dir_all(trial.join("src"))
        .and_then(|()| fs::write(trial.join("Cargo.toml"), TRIAL_MANIFEST))
        .and_then(|()| fs::write(&source, TRIAL_PROGRAM))
        .with_context(|| format!("writing {}", source.display()))?;
    let target = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    // A build left by another candidate proves nothing about this one.
    let output = trial.join("target");
    if output.exists() {
        fs::remove_dir_all(&output).with_context(|| format!("removing {}", output.display()))?;
    }
    let mut cargo = command("rustup");
    cargo.current_dir(&trial).args(["run", "bpf", "cargo", "build", "--release", "--target", target]);
    cargo.args(["-Z", "build-std=core", "--target-dir"]).arg(&output);
    cargo.env("RUSTC_BOOTSTRAP", "1").env("CARGO_ENCODED_RUSTFLAGS", "-Cdebuginfo=2\x1f-Clink-arg=--btf");
    capture(&mut cargo).context("building a first BPF program")?;
    let stamp = directory.join("bpf-proof");
    fs::write(&stamp, identity()?).with_context(|| format!("writing {}", stamp.display()))
}

/// The compiler and the linker, and the compiler that starts both: bpf-linker borrows LLVM from the toolchains around it.
fn identity() -> Result<String> {
    let bpf = capture(&mut rustc("bpf", &["-vV"]))?;
    let host = capture(command("rustc").arg("-vV"))?;
    let linker = capture(command("bpf-linker").arg("--version"))?;
    Ok(format!("{bpf}{host}{linker}"))
}
