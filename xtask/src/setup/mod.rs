//! `setup`: finds out what a verb needs and installs what is missing; every other verb calls it first.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum};

use crate::exec::{self, capture, command, exec, root_command, step};

mod machine;
mod packages;
mod plan;
mod toolchain;

use packages::Package;
use plan::Step;

/// What a verb asks of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Need {
    /// Compile everything, the kernel side included
    Compile,
    /// Run network namespaces and XDP programs here
    Lab,
    /// Run keepalived, FRR, haproxy and nginx there
    Peers,
    /// Fuzz
    Fuzz,
    /// Boot other kernels
    Vm,
}

/// Arguments of `setup`.
#[derive(Args, Debug)]
pub(crate) struct Setup {
    /// Only what this asks for; may be given more than once [default: everything]
    #[arg(long = "for", value_name = "NEED", value_enum)]
    needs: Vec<Need>,
}

/// Where the BPF filesystem belongs.
pub(crate) const BPFFS: &str = "/sys/fs/bpf";
/// What is mounted in this process's namespace.
const MOUNTS: &str = "/proc/self/mounts";
/// Between the first release with usable BTF names and the first that wants another LLVM.
const LINKER: &str = "0.10.4";
const MOUNT_NOTE: &str = "bpffs-mounted-in-boot";

pub(crate) fn run(arguments: &Setup) -> Result<()> {
    let every = Need::value_variants();
    ensure(if arguments.needs.is_empty() { every } else { &arguments.needs })?;
    step("ready");
    Ok(())
}

/// Makes the machine ready for `needs`; says nothing where nothing is missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<()> {
    let machine = machine::look(needs)?;
    let steps = match plan::plan(&machine, needs) {
        Ok(steps) => steps,
        Err(blocked) => bail!("{blocked}"),
    };
    for todo in steps {
        match todo {
            Step::Packages(packages) => install(&packages)?,
            Step::Linker => cargo_install("bpf-linker", LINKER, "it links BPF programs; some minutes")?,
            Step::Toolchain(candidates) => toolchain::settle(&candidates)?,
            Step::BpfFs => mount_bpffs()?,
        }
    }
    Ok(())
}

fn install(packages: &[&Package]) -> Result<()> {
    step("packages to install:");
    packages.iter().for_each(|package| eprintln!("      {:16} {}", package.name, package.why));
    let names: Vec<_> = packages.iter().map(|package| package.name).collect();
    let services: Vec<_> = names.iter().filter(|name| packages::SERVICES.contains(name)).copied().collect();
    // A mask of this boot only, so that a broken installation leaves none for ever.
    systemctl(&["mask", "--runtime"], &services)?;
    let installed = apt_install(&names);
    systemctl(&["unmask", "--runtime"], &services)?;
    installed?;
    systemctl(&["disable"], &services)
}

/// Where systemd runs; elsewhere packages start nothing.
fn systemctl(verb: &[&str], services: &[&str]) -> Result<()> {
    if services.is_empty() || !Path::new("/run/systemd/system").exists() {
        return Ok(());
    }
    exec(root_command("systemctl", "to keep services from starting")?.arg("--quiet").args(verb).args(services))
}

/// Installs packages without a question, and without removing any.
fn apt_install(names: &[&str]) -> Result<()> {
    // Lists on a fresh machine are absent or name files that the mirror has since replaced.
    step("apt-get update");
    if let Err(error) = exec(apt()?.args(["--quiet", "update"])) {
        step(format!("{error:#}: going on with the lists that are here"));
    }
    step(format!("apt-get install {}", names.join(" ")));
    let options = ["--quiet", "--yes", "--no-install-recommends", "--no-remove", "install"];
    exec(apt()?.args(options).args(names))
}

fn apt() -> Result<Command> {
    let mut command = root_command("env", "to install packages")?;
    command.args(["DEBIAN_FRONTEND=noninteractive", "NEEDRESTART_SUSPEND=1", "apt-get"]);
    // Another apt may be at work, as on a machine that has just booted.
    command.args(["-o", "DPkg::Lock::Timeout=300"]);
    Ok(command)
}

fn cargo_install(name: &str, version: &str, why: &str) -> Result<()> {
    step(format!("cargo install {name} {version}: {why}"));
    exec(command("cargo").args(["install", "--locked", "--force", name, "--version", version]))
}

/// Mounts it, and remembers for `clean` that it was not there in this boot.
fn mount_bpffs() -> Result<()> {
    step(format!("mounting the BPF filesystem at {BPFFS}"));
    exec(root_command("mount", "to mount the BPF filesystem")?.args(["-t", "bpf", "bpf", BPFFS]))?;
    let note = own_dir()?.join(MOUNT_NOTE);
    fs::write(&note, boot()?).with_context(|| format!("writing {}", note.display()))
}

/// Unmounts the BPF filesystem if it was mounted here, in this boot, and nobody has put anything into it since.
pub(crate) fn unmount_own_bpffs() -> Result<()> {
    let note = own_dir()?.join(MOUNT_NOTE);
    let own = fs::read_to_string(&note).is_ok_and(|kept| boot().is_ok_and(|now| now == kept));
    if own && bpffs_is_mounted()? {
        let why = "to unmount the BPF filesystem";
        let names = capture(root_command("ls", why)?.args(["--almost-all", BPFFS]))?;
        // The kernel puts `maps.debug` and `progs.debug` there itself.
        if names.lines().all(|name| name.ends_with(".debug")) {
            step(format!("unmounting {BPFFS}"));
            exec(root_command("umount", why)?.arg(BPFFS))?;
            fs::remove_file(&note).with_context(|| format!("removing {}", note.display()))?;
        }
    }
    Ok(())
}

/// Another one after every boot.
fn boot() -> Result<String> {
    let path = "/proc/sys/kernel/random/boot_id";
    fs::read_to_string(path).with_context(|| format!("reading {path}"))
}

/// A directory for what xtask itself keeps between runs.
fn own_dir() -> Result<PathBuf> {
    let directory = exec::target_dir().join("xtask");
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    Ok(directory)
}

fn bpffs_is_mounted() -> Result<bool> {
    let mounts = fs::read_to_string(MOUNTS).with_context(|| format!("reading {MOUNTS}"))?;
    Ok(mounts.lines().any(|line| {
        let mut fields = line.split(' ').skip(1);
        fields.next() == Some(BPFFS) && fields.next() == Some("bpf")
    }))
}
