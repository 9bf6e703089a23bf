//! Processes inside a host: they die with the handle, with the lab, and with the program that made the lab.

use std::{
    fs, io,
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError, mpsc},
    thread,
    time::Duration,
};

use nix::{
    errno::Errno,
    sched::{CloneFlags, setns},
    sys::{
        prctl::set_pdeathsig,
        signal::{SigSet, Signal, kill, killpg},
    },
    unistd::{Pid, getpid, getppid},
};

use super::{
    Error, io_error,
    netns::{Netns, shown},
};
use crate::wait;

/// A running program with its output in two files. Dropping it kills it and its process group.
#[derive(Debug)]
pub struct Process {
    command: String,
    pid: Pid,
    child: Mutex<Child>,
    out: PathBuf,
    err: PathBuf,
}

impl Process {
    /// Starts `command` in a namespace; `log` is the path of its output without the ending.
    pub(super) fn start(netns: &Netns, mut command: Command, log: &std::path::Path) -> Result<Self, Error> {
        let shown = shown(&command);
        let (out, err) = (log.with_extension("out"), log.with_extension("err"));
        let create = |path: &PathBuf| fs::File::create(path).map_err(io_error(format!("create {}", path.display())));
        command.stdin(Stdio::null()).stdout(create(&out)?).stderr(create(&err)?).process_group(0);

        let file = netns.open()?;
        let parent = getpid();
        let arrange = move || -> io::Result<()> {
            setns(&file, CloneFlags::CLONE_NEWNET)?;
            // What this program blocks for itself is not for a daemon to inherit: SIGTERM must reach it.
            SigSet::empty().thread_set_mask()?;
            set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the line above.
            if getppid() != parent {
                return Err(Errno::ESRCH.into());
            }
            Ok(())
        };
        // SAFETY: between fork and exec the closure makes four system calls and allocates nothing.
        unsafe { command.pre_exec(arrange) };

        let child = on_spawner(move || command.spawn()).map_err(io_error(format!("start `{shown}`")))?;
        Ok(Self { pid: Pid::from_raw(child.id().cast_signed()), command: shown, child: Mutex::new(child), out, err })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        // A pid that has been reaped may be somebody else's by now.
        if self.exited().is_some() {
            return Err(self.ended_early());
        }
        kill(self.pid, signal).map_err(|errno| io_error(format!("signal `{}`", self.command))(errno.into()))
    }

    /// Signals the program and every child that stayed in its process group, at once.
    pub fn signal_group(&self, signal: Signal) -> Result<(), Error> {
        if self.exited().is_some() {
            return Err(self.ended_early());
        }
        killpg(self.pid, signal).map_err(|errno| io_error(format!("signal `{}`", self.command))(errno.into()))
    }

    /// The status, if it has ended.
    pub fn exited(&self) -> Option<ExitStatus> {
        self.child().try_wait().ok().flatten()
    }

    pub fn wait(&self, limit: Duration) -> Result<ExitStatus, Error> {
        let what = format!("the end of `{}`", self.command);
        Ok(wait::until(&what, limit, || self.exited())?)
    }

    pub fn stdout(&self) -> String {
        fs::read(&self.out).map_or_else(|_| String::new(), |b| String::from_utf8_lossy(&b).into())
    }

    pub fn stderr(&self) -> String {
        fs::read(&self.err).map_or_else(|_| String::new(), |b| String::from_utf8_lossy(&b).into())
    }

    /// Waits until the program has printed `text`, and fails at once when it ends without.
    pub fn wait_for_output(&self, text: &str, limit: Duration) -> Result<(), Error> {
        let what = format!("{text:?} from `{}`", self.command);
        wait::until(&what, limit, || {
            // Asked first: what was printed before the end is in the files afterwards.
            let exited = self.exited().is_some();
            if self.stdout().contains(text) || self.stderr().contains(text) {
                return Some(Ok(()));
            }
            exited.then(|| Err(self.ended_early()))
        })?
    }

    /// Kills the process group and waits for the program's end. Killing twice is no error.
    pub fn kill(&self) {
        let mut child = self.child();
        if matches!(child.try_wait(), Ok(None)) {
            // ESRCH: it ended by itself in between.
            let _ = killpg(self.pid, Signal::SIGKILL);
            let _ = child.wait();
        }
    }

    pub(super) fn outcome(&self, status: ExitStatus) -> Result<String, Error> {
        if status.success() {
            return Ok(self.stdout());
        }
        Err(Error::Command { command: self.command.clone(), status, stderr: self.stderr().trim().to_owned() })
    }

    fn ended_early(&self) -> Error {
        Error::Ended { command: self.command.clone(), output: self.tail() }
    }

    fn tail(&self) -> String {
        const LINES: usize = 15;
        let text = self.stdout() + &self.stderr();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    fn child(&self) -> MutexGuard<'_, Child> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- last output of `{}`:\n{}", self.command, self.tail());
        }
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Runs `job` on the one thread that starts all processes and lives as long as this program: PR_SET_PDEATHSIG is sent
/// when the *thread* that forked ends (prctl(2)), and tests fork from threads that come and go.
fn on_spawner<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> T {
    static SPAWNER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (jobs, queue) = mpsc::channel::<Job>();
        thread::spawn(move || queue.into_iter().for_each(|job| job()));
        jobs
    });
    let (result, wait) = mpsc::sync_channel(1);
    spawner.send(Box::new(move || drop(result.send(job())))).expect("the spawner's thread never ends");
    wait.recv().expect("the spawner answers every job")
}
