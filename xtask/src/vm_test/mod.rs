//! `cargo xtask vm-test`: boots Debian's cloud kernels, loads every program there and runs the packet table inside.
//!
//! ```text
//! apt-get download --> kernel, modules --+
//! cargo build lab-guest --> /init -------+--> initramfs --> QEMU --> console --> Report --> table
//! ```

mod console;
mod initramfs;
mod kernel;
mod modules;
mod qemu;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};

use crate::exec::{command, exec, target_dir};
use kernel::Series;
use qemu::Accelerator;

/// Verified instructions a program may cost. Katran takes 108,000; the kernel itself stops at one million.
const VERIFIED_LIMIT: u32 = 50_000;

#[derive(Debug, clap::Args)]
pub(crate) struct VmTest {
    /// What runs the virtual machines
    #[arg(long, value_enum, default_value = "qemu")]
    provider: Provider,
    /// Kernel series to boot
    #[arg(long, value_enum, default_value = "all")]
    kernel: Choice,
    /// Seconds one machine may take from power-on to power-off
    #[arg(long, value_name = "SECONDS", default_value_t = 180)]
    timeout: u64,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Provider {
    Qemu,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Choice {
    #[value(name = "6.1")]
    V6_1,
    #[value(name = "6.12")]
    V6_12,
    All,
}

impl Choice {
    const fn series(self) -> &'static [Series] {
        match self {
            Self::V6_1 => &[Series::V6_1],
            Self::V6_12 => &[Series::V6_12],
            Self::All => &[Series::V6_1, Series::V6_12],
        }
    }
}

/// Boots every kernel asked for and prints a table of what each found.
///
/// # Errors
/// When a kernel cannot be had or booted, gave no result within its time, failed a case, or verified more instructions
/// than the limit. All kernels are tried before that is said.
pub(crate) fn run(args: &VmTest) -> anyhow::Result<()> {
    let Provider::Qemu = args.provider;
    if std::env::consts::ARCH != "x86_64" {
        bail!("vm-test boots Debian's amd64 kernels with a guest built for this machine, which is not x86-64");
    }
    // Said before the minutes that a first build may take.
    for program in [qemu::PROGRAM, "setpriv", "dpkg-deb", "xz"] {
        output(Command::new(program).arg("--version"))?;
    }
    let target = target_dir();
    let guest = build_guest(&target)?;
    let timeout = Duration::from_secs(args.timeout);
    let mut accelerator = Accelerator::detect();
    let mut failed = Vec::new();
    for &series in args.kernel.series() {
        let faults = test(series, &target.join("vm"), &guest, &mut accelerator, timeout)
            .unwrap_or_else(|error| vec![format!("{error:#}")]);
        for fault in &faults {
            println!("  FAIL {fault}");
        }
        if !faults.is_empty() {
            failed.push(series.to_string());
        }
    }
    if !failed.is_empty() {
        bail!("vm-test failed on {}", failed.join(" and "));
    }
    Ok(())
}

/// Boots one kernel and prints what it found; returns what was wrong with that.
fn test(
    series: Series,
    cache: &Path,
    guest: &Path,
    accelerator: &mut Accelerator,
    timeout: Duration,
) -> anyhow::Result<Vec<String>> {
    let kernel = kernel::fetch(series, cache)?;
    let archive = cache.join(format!("initramfs-{}.cpio", kernel.release));
    initramfs::build(&kernel, guest, &archive)?;
    println!("vm-test: booting {}", kernel.release);
    let run = qemu::boot(&kernel.image, &archive, accelerator, timeout)?;
    if run.report.result.is_none() {
        let why = if run.timed_out { "no result in time" } else { "the machine stopped without a result" };
        println!("{}  {why}; the end of its console:", run.complaints);
        for line in &run.tail {
            println!("  | {line}");
        }
    }
    print!("{}", run.report.table(&kernel.release, VERIFIED_LIMIT));
    let faults = run.report.faults(&kernel.release, VERIFIED_LIMIT);
    let verdict = if faults.is_empty() { "pass" } else { "fail" };
    println!("  {verdict}, {:.1} s from power-on, {accelerator}", run.took.as_secs_f64());
    Ok(faults)
}

/// Builds the guest's init and returns a copy without debug information, which would be nine tenths of the initramfs.
fn build_guest(target: &Path) -> anyhow::Result<PathBuf> {
    // Where cargo's progress belongs, whoever reads the table. As part of the whole, it has the dependencies that the tests have built.
    exec(command("cargo").args(["build", "--locked", "--workspace", "--bin", "lab-guest"]))?;
    let cache = target.join("vm");
    std::fs::create_dir_all(&cache).with_context(|| format!("creating {}", cache.display()))?;
    let stripped = cache.join("lab-guest");
    output(Command::new("strip").arg("-o").arg(&stripped).arg(target.join("debug/lab-guest")))?;
    Ok(stripped)
}

/// Runs a command to its end and returns what it wrote; the error shows the command and what it complained about.
fn output(command: &mut Command) -> anyhow::Result<Vec<u8>> {
    let shown = format!("{command:?}");
    let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => missing(command.get_program()),
        _ => anyhow::Error::new(error).context(format!("starting {shown}")),
    })?;
    if !output.status.success() {
        bail!("{shown} ended with {}\n{}", output.status, String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(output.stdout)
}

fn missing(program: &OsStr) -> anyhow::Error {
    anyhow::anyhow!("{} is not installed; `cargo xtask setup` installs what vm-test needs", program.display())
}
