//! Boots a kernel in QEMU and reads its console until the machine powers off or its time is over.

use std::collections::VecDeque;
use std::fmt;
use std::fs::OpenOptions;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::console::Report;

pub(super) const PROGRAM: &str = "qemu-system-x86_64";

/// A kernel under KVM writes its first line within one second. Where KVM exists but runs no ordinary kernel, as inside some
/// virtual machines, it spins in silence.
const SILENCE: Duration = Duration::from_secs(5);
/// Console lines that are shown when a machine gave no result: a kernel panic with its registers and stack.
const TAIL: usize = 60;
/// How long a machine that has given its result may take to power off.
const POWER_OFF: Duration = Duration::from_secs(10);
/// Lines between the reader and the report; the reader waits beyond that, and with it the machine.
const LINES: usize = 256;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    /// KVM if this user may use it. Whether it runs a kernel is found out by the first boot.
    pub(super) fn detect() -> Self {
        match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
            Ok(_) => Self::Kvm,
            Err(_) => Self::Tcg,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Kvm => "accel=kvm",
            Self::Tcg => "accel=tcg",
        }
    }

    /// The processor with the least to emulate: paging with four levels, no vector units. Under KVM, the real one.
    const fn cpu(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "qemu64",
        }
    }
}

impl fmt::Display for Accelerator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Kvm => "KVM",
            Self::Tcg => "software emulation",
        })
    }
}

/// What one boot gave.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) report: Report,
    /// From power-on to the result, or to the end without one.
    pub(super) took: Duration,
    /// The last lines of the console.
    pub(super) tail: VecDeque<String>,
    pub(super) timed_out: bool,
    /// What QEMU itself had to say.
    pub(super) complaints: String,
}

/// Boots once; where KVM turns out not to run the kernel, `accelerator` becomes software emulation and it boots again.
///
/// # Errors
/// When QEMU cannot be started.
pub(super) fn boot(
    kernel: &Path,
    initramfs: &Path,
    accelerator: &mut Accelerator,
    timeout: Duration,
) -> anyhow::Result<Run> {
    if *accelerator == Accelerator::Kvm {
        let run = follow(start(kernel, initramfs, *accelerator)?, SILENCE.min(timeout), timeout);
        if !run.tail.is_empty() {
            return Ok(run);
        }
        println!("vm-test: /dev/kvm is there but runs no kernel; using software emulation");
        *accelerator = Accelerator::Tcg;
    }
    Ok(follow(start(kernel, initramfs, *accelerator)?, timeout, timeout))
}

fn start(kernel: &Path, initramfs: &Path, accelerator: Accelerator) -> anyhow::Result<Child> {
    let mut command = Command::new("setpriv");
    // The machine must not outlive this process, however that ends.
    command.args(["--pdeathsig", "KILL", "--", PROGRAM]);
    command.args(["-machine", accelerator.name(), "-cpu", accelerator.cpu(), "-smp", "1", "-m", "1G"]);
    // Not -nographic: it would put the firmware's greeting on the console, which is the sign of life that KVM is judged by.
    command.args(["-nodefaults", "-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"]);
    // With panic=-1 a panic reboots at once, which -no-reboot turns into the end of the machine.
    command.args(["-append", "console=ttyS0 panic=-1 rdinit=/init"]);
    command.arg("-kernel").arg(kernel).arg("-initrd").arg(initramfs);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().context("starting QEMU through setpriv")
}

/// Reads the console until the machine ends. It is killed when `timeout` has passed, or `first` without a first line.
fn follow(mut machine: Child, first: Duration, timeout: Duration) -> Run {
    let started = Instant::now();
    let lines = read_lines(machine.stdout.take().expect("stdout is piped"));
    let complaints = read_all(machine.stderr.take().expect("stderr is piped"));
    let mut run = Run {
        report: Report::default(),
        took: Duration::ZERO,
        tail: VecDeque::new(),
        timed_out: false,
        complaints: String::new(),
    };
    let mut deadline = started + first;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                if run.tail.is_empty() {
                    deadline = started + timeout;
                }
                run.report.line(&line);
                if run.report.result.is_some() && run.took.is_zero() {
                    run.took = started.elapsed();
                    deadline = Instant::now() + POWER_OFF;
                }
                run.tail.push_back(line);
                if run.tail.len() > TAIL {
                    run.tail.pop_front();
                }
            }
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {
                run.timed_out = true;
                break;
            }
        }
    }
    if run.took.is_zero() {
        run.took = started.elapsed();
    }
    // An error means that it has ended already; either way it is reaped.
    let _ = machine.kill();
    let _ = machine.wait();
    run.complaints = complaints.join().unwrap_or_default();
    run
}

/// Lines of a console, without their ends; the channel closes with the stream.
fn read_lines(console: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = sync_channel(LINES);
    thread::spawn(move || {
        let mut console = BufReader::new(console);
        let mut line = Vec::new();
        while console.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
            line.clear();
        }
    });
    receiver
}

fn read_all(mut stream: impl Read + Send + 'static) -> thread::JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        // What was read before an error is still worth showing.
        let _ = stream.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    /// A shell in place of QEMU.
    fn machine(script: &str) -> Child {
        let mut shell = Command::new("sh");
        shell.args(["-c", script]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        shell.spawn().unwrap()
    }

    #[test]
    fn a_result_is_read_and_the_rest_of_the_console_kept() {
        let script = "for n in $(seq 100); do echo $n; done; echo 'xvip-guest: result 2 passed, 0 failed'; echo bye; echo odd >&2";
        let run = follow(machine(script), HOUR, HOUR);
        assert!(run.report.result.is_some() && !run.timed_out);
        assert_eq!(run.tail.len(), TAIL);
        assert_eq!(run.tail.back().unwrap(), "bye");
        assert_eq!(run.complaints, "odd\n");
    }

    #[test]
    fn a_machine_that_hangs_is_killed_and_its_last_line_kept() {
        let run = follow(machine("echo last words; exec sleep 3600"), HOUR, Duration::from_millis(300));
        assert!(run.timed_out && run.report.result.is_none());
        assert_eq!(run.tail, ["last words"]);
    }

    #[test]
    fn a_machine_that_never_speaks_is_given_up_early() {
        let run = follow(machine("exec sleep 3600"), Duration::from_millis(50), HOUR);
        assert!(run.timed_out && run.tail.is_empty());
    }

    #[test]
    fn a_machine_that_ends_without_a_result_has_not_timed_out() {
        let run = follow(machine("echo Kernel panic"), HOUR, HOUR);
        assert!(!run.timed_out && run.report.result.is_none());
    }
}
