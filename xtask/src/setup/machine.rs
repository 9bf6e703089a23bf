//! Looks at this machine: which programs are there, and what rustup has.

use std::path::Path;

use anyhow::Result;

use crate::{
    exec::{capture, command, find},
    setup::{
        Need, bpffs_is_mounted,
        packages::{PACKAGES, Proof},
        plan::{Bpf, Machine, Toolchain, Version},
        toolchain,
    },
};

/// The facts that `needs` ask for; the others stay at their defaults and are not looked at.
pub(crate) fn look(needs: &[Need]) -> Result<Machine> {
    let compile = needs.contains(&Need::Compile);
    let rustup = find("rustup").is_some();
    let linker = find("bpf-linker").filter(|_| compile).and_then(|_| {
        let version = capture(command("bpf-linker").arg("--version")).ok()?;
        Version::parse(&version)
    });
    let absent = PACKAGES.iter().filter(|package| needs.contains(&package.need) && !is_there(&package.proof));
    let bpf = if !compile || !rustup || toolchain::is_proven()? { Bpf::Proven } else { Bpf::Unproven(installed()?) };
    Ok(Machine {
        apt: find("apt-get").is_some(),
        rustup,
        absent: absent.collect(),
        linker,
        bpffs: bpffs_is_mounted()?,
        bpf,
    })
}

fn is_there(proof: &Proof) -> bool {
    match proof {
        Proof::Program(name) => find(name).is_some(),
        Proof::File(path) => Path::new(path).exists(),
    }
}

/// Every toolchain of rustup that answers; one that does not is no candidate.
fn installed() -> Result<Vec<Toolchain>> {
    let list = capture(command("rustup").args(["toolchain", "list"]))?;
    // `stable-x86_64-unknown-linux-gnu (active, default)`
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter_map(inspect).collect())
}

fn inspect(name: &str) -> Option<Toolchain> {
    let version = capture(&mut toolchain::rustc(name, &["-vV"])).ok()?;
    let field = |key: &str| version.lines().find_map(|line| line.strip_prefix(key)).map(str::trim);
    let sysroot = capture(&mut toolchain::rustc(name, &["--print", "sysroot"])).ok()?;
    Some(Toolchain {
        name: name.to_owned(),
        release: Version::parse(field("release:")?)?,
        llvm: Version::parse(field("LLVM version:")?)?.0,
        sources: Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core").is_dir(),
    })
}
