//! `test`: every layer in turn, cheapest first, and one closing line that adds them all up.

use std::{
    path::{Path, PathBuf},
    process::{Command, ExitCode, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use clap::Args;

use crate::{
    demo::WHY,
    exec::{ask_root, capture, command, exec, root_command, root_dir, step, stream},
    fuzz,
    setup::{self, Need},
};

mod tally;

use tally::Tally;

/// Arguments of `test`.
#[derive(Args, Debug)]
pub(crate) struct Test {
    /// Only the tests that need neither root nor a lab
    #[arg(long)]
    quick: bool,
    /// Everything but the virtual machine
    #[arg(long)]
    no_vm: bool,
}

/// The oldest kernel that is tried has the strictest verifier.
const VM: &[&str] = &["vm-test", "--provider", "qemu", "--kernel", "6.1"];
/// For one test binary of the lab: a test that hangs must not hang the run.
const LAB_SECONDS: &str = "600";

/// One line of the closing table.
#[derive(Debug)]
struct Row {
    name: String,
    tally: Tally,
    took: Duration,
}

/// A test binary.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) file: PathBuf,
    /// Of its package: where cargo would start it.
    directory: PathBuf,
    /// Integration tests of the lab share the host's namespaces and BPF filesystem, so they go one at a time.
    alone: bool,
}

impl Binary {
    /// Those of the lab need root.
    fn is_lab(&self) -> bool {
        self.directory == root_dir().join("tests")
    }
}

pub(crate) fn run(arguments: &Test) -> Result<ExitCode> {
    let mut rows = Vec::new();
    layers(arguments, &mut rows);
    let sum = close(&rows);
    // Alone and last: continuous integration reads it.
    println!("{} passed, {} failed", sum.passed, sum.failed);
    Ok(if sum.failed == 0 && sum.passed > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs the layers; without a first one that works the others could only repeat its errors.
fn layers(arguments: &Test, rows: &mut Vec<Row>) {
    let all = !arguments.quick;
    let vm = all && !arguments.no_vm;
    let needs = [(true, Need::Compile), (all, Need::Lab), (all, Need::Peers), (all, Need::Fuzz), (vm, Need::Vm)];
    let needs: Vec<_> = needs.iter().filter(|(wanted, _)| *wanted).map(|(_, need)| *need).collect();
    let prepared = measure(rows, "setup", || {
        if all {
            ask_root(WHY)?;
        }
        setup::ensure(&needs)?;
        Ok(Tally::default())
    });
    if !prepared {
        return;
    }
    let mut binaries = Vec::new();
    let built = measure(rows, "build", || {
        binaries = build()?;
        Ok(Tally::default())
    });
    if !built {
        return;
    }
    let (lab, host): (Vec<_>, Vec<_>) = binaries.iter().partition(|binary| binary.is_lab());
    for binary in host {
        measure(rows, &format!("host: {}", binary.name), || {
            counted(Command::new(&binary.file).current_dir(&binary.directory))
        });
    }
    if all {
        for binary in lab {
            measure(rows, &format!("lab: {}", binary.name), || run_as_root(binary));
        }
        fuzz(rows);
    }
    if vm {
        measure(rows, "vm", vm_test);
    }
}

/// Adds a row; an error is printed and counts as one failure. Returns whether there was none.
fn measure(rows: &mut Vec<Row>, name: &str, layer: impl FnOnce() -> Result<Tally>) -> bool {
    step(format!("test: {name}"));
    let start = Instant::now();
    let result = layer();
    let fine = result.is_ok();
    let tally = result.unwrap_or_else(|error| {
        eprintln!("error: {name}: {error:#}");
        Tally::single(false)
    });
    rows.push(Row { name: name.to_owned(), tally, took: start.elapsed() });
    fine
}

/// Builds all fuzz targets and runs each for a while.
fn fuzz(rows: &mut Vec<Row>) {
    let mut built = None;
    measure(rows, "fuzz: build", || {
        built = Some((fuzz::build(fuzz::Profile::Dev)?, fuzz::targets()?));
        Ok(Tally::default())
    });
    if let Some((built, targets)) = built {
        for target in &targets {
            let run = || Ok(Tally::single(fuzz::smoke(&built, target, fuzz::SMOKE)?.success()));
            measure(rows, &format!("fuzz: {target}"), run);
        }
    }
}

fn vm_test() -> Result<Tally> {
    // Through cargo: building the tests may have replaced the file that this process was started from.
    counted(command("cargo").arg("xtask").args(VM))
}

/// Builds all tests, and the programs that they start: the daemon, and the lab's own. The whole workspace each time: a selection
/// would choose other features of the dependencies, and they would be compiled once for each.
fn build() -> Result<Vec<Binary>> {
    let whole = ["--locked", "--workspace"];
    exec(command("cargo").arg("build").args(whole).arg("--bins"))?;
    let binaries = binaries(&whole)?;
    if !binaries.iter().any(Binary::is_lab) {
        bail!("cargo built no test of lb-tests");
    }
    Ok(binaries)
}

/// Builds tests.
pub(crate) fn binaries(selection: &[&str]) -> Result<Vec<Binary>> {
    let arguments = ["test", "--no-run", "--message-format=json-render-diagnostics"];
    test_binaries(&capture(command("cargo").args(arguments).args(selection).stderr(Stdio::inherit()))?)
}

/// The executables among cargo's messages, one JSON object a line.
fn test_binaries(messages: &str) -> Result<Vec<Binary>> {
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: serde_json::Value =
            serde_json::from_str(line).with_context(|| format!("a message of cargo that is no JSON: {line}"))?;
        let (Some(file), Some(true)) = (message["executable"].as_str(), message["profile"]["test"].as_bool()) else {
            continue;
        };
        let target = &message["target"];
        let manifest = message["manifest_path"].as_str().map(Path::new);
        let directory = manifest.and_then(Path::parent).context("a test of no package")?;
        binaries.push(Binary {
            name: target["name"].as_str().context("a test without a name")?.to_owned(),
            file: file.into(),
            directory: directory.to_owned(),
            alone: target["kind"][0] == "test",
        });
    }
    Ok(binaries)
}

fn run_as_root(binary: &Binary) -> Result<Tally> {
    let mut command = root_command("timeout", WHY)?;
    // In the foreground, so that Ctrl-C reaches the test.
    command.args(["--foreground", "--kill-after=10", LAB_SECONDS]).arg(&binary.file);
    if binary.alone {
        command.arg("--test-threads=1");
    }
    counted(command.current_dir(&binary.directory))
}

/// Runs a runner and believes its lines, unless its status says otherwise.
fn counted(command: &mut Command) -> Result<Tally> {
    let mut reported: Option<Tally> = None;
    let status = stream(command, |line| {
        println!("{line}");
        if let Some(tally) = Tally::read(line) {
            *reported.get_or_insert_default() += tally;
        }
    })?;
    Ok(Tally::judge(reported, status))
}

/// Prints the table and returns the sum.
fn close(rows: &[Row]) -> Tally {
    println!("\n{:32} {:>7} {:>7} {:>8} {:>9}", "layer", "passed", "failed", "ignored", "seconds");
    for Row { name, tally, took } in rows {
        let Tally { passed, failed, ignored } = tally;
        println!("{name:32} {passed:>7} {failed:>7} {ignored:>8} {:>9.1}", took.as_secs_f64());
    }
    let took: Duration = rows.iter().map(|row| row.took).sum();
    println!("{:32} {:>7} {:>7} {:>8} {:>9.1}\n", "all", "", "", "", took.as_secs_f64());
    rows.iter().map(|row| row.tally).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_binaries_are_picked_out_of_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","target":{"kind":["lib"],"name":"anyhow"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","target":{"kind":["bin"],"name":"lab-demo"},"profile":{"test":false},"executable":"/t/lab-demo"}
{"reason":"compiler-artifact","manifest_path":"/w/common/Cargo.toml","target":{"kind":["lib"],"name":"lb_common"},"profile":{"test":true},"executable":"/t/lb_common-1"}
{"reason":"compiler-artifact","manifest_path":"/w/tests/Cargo.toml","target":{"kind":["test"],"name":"traffic"},"profile":{"test":true},"executable":"/t/traffic-2"}
{"reason":"build-finished","success":true}"#;
        let binary = |name: &str, file: &str, directory: &str, alone| Binary {
            name: name.into(),
            file: file.into(),
            directory: directory.into(),
            alone,
        };
        let expected = [
            binary("lb_common", "/t/lb_common-1", "/w/common", false),
            binary("traffic", "/t/traffic-2", "/w/tests", true),
        ];
        assert_eq!(test_binaries(messages).unwrap(), expected);
        assert!(test_binaries("warning: not JSON").is_err());
    }

    #[test]
    fn an_error_is_one_failure() {
        let mut rows = Vec::new();
        assert!(!measure(&mut rows, "broken", || bail!("no such layer")));
        assert_eq!(rows[0].tally, Tally::single(false));
    }
}
