//! One named network namespace: entering it on a thread of its own, and running `ip` and `ethtool` for it.

use std::{
    fs, io,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use nix::{
    sched::{CloneFlags, setns},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{Error, io_error};

/// Where iproute2 keeps named namespaces.
pub(super) const NETNS_DIR: &str = "/run/netns";

/// A namespace under [`NETNS_DIR`]. It is removed by [`Netns::remove`], not on drop.
#[derive(Clone, Debug)]
pub(super) struct Netns {
    name: String,
}

impl Netns {
    /// Makes the namespace, with loopback up.
    pub(super) fn new(name: String) -> Result<Self, Error> {
        run(Command::new("ip").args(["netns", "add", &name]))?;
        let netns = Self { name };
        netns.ip(&["link set lo up".to_owned()])?;
        Ok(netns)
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Opened anew at each use, so that no forgotten handle keeps the namespace alive.
    pub(super) fn open(&self) -> Result<fs::File, Error> {
        let path = PathBuf::from(NETNS_DIR).join(&self.name);
        fs::File::open(&path).map_err(io_error(format!("open {}", path.display())))
    }

    /// Runs `f` inside, on a thread that ends with it. Only the network namespace changes: mounts, and so bpffs, stay.
    pub(super) fn enter<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T, Error> {
        let file = self.open()?;
        thread::scope(|scope| {
            let inside = move || {
                setns(file, CloneFlags::CLONE_NEWNET)
                    .map_err(|errno| io_error("enter a network namespace")(errno.into()))?;
                Ok(f())
            };
            match scope.spawn(inside).join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    /// Runs `ip` commands, each a line without the leading `ip`.
    pub(super) fn ip(&self, lines: &[String]) -> Result<(), Error> {
        for line in lines {
            run(Command::new("ip").args(["-n", &self.name]).args(line.split_whitespace()))?;
        }
        Ok(())
    }

    /// What `ip -json` prints, parsed.
    pub(super) fn ip_json(&self, line: &str) -> Result<serde_json::Value, Error> {
        let text = run(Command::new("ip").args(["-n", &self.name, "-json"]).args(line.split_whitespace()))?;
        serde_json::from_str(&text).map_err(|error| io_error(format!("ip {line}"))(error.into()))
    }

    /// Device features, by ethtool's names.
    pub(super) fn offload(&self, device: &str, settings: &str) -> Result<(), Error> {
        let mut command = Command::new("ethtool");
        command.args(["-K", device]).args(settings.split_whitespace());
        self.enter(|| run(&mut command))??;
        Ok(())
    }

    /// Writes a sysctl, named by its path below /proc/sys.
    pub(super) fn sysctl(&self, path: &str, value: &str) -> Result<(), Error> {
        let path = PathBuf::from("/proc/sys").join(path);
        let written = self.enter(|| fs::write(&path, value))?;
        written.map_err(io_error(format!("write {}", path.display())))
    }

    /// Ends what still runs inside, and the name.
    pub(super) fn remove(&self) -> Result<(), Error> {
        kill_inside(&self.name);
        run(Command::new("ip").args(["netns", "del", &self.name])).map(drop)
    }
}

/// Kills the processes in a namespace of the lab's making: nothing else can be inside. A thread that is in there does not
/// make its process one of them.
pub(super) fn kill_inside(name: &str) {
    let inside = run(Command::new("ip").args(["netns", "pids", name])).unwrap_or_default();
    for pid in inside.split_whitespace().filter_map(|pid| pid.parse().ok()) {
        // It may have ended since it was listed.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

/// Runs a command to its end and gives what it printed.
pub(super) fn run(command: &mut Command) -> Result<String, Error> {
    let shown = shown(command);
    let output = command.stdin(Stdio::null()).output().map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Error::ToolMissing { tool: command.get_program().to_string_lossy().into_owned() },
        _ => io_error(format!("run `{shown}`"))(error),
    })?;
    if !output.status.success() {
        return Err(Error::Command {
            command: shown,
            status: output.status,
            stderr: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        });
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A command as one would type it.
pub(super) fn shown(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(|word| word.to_string_lossy())
        .collect::<Vec<_>>()
        .join(" ")
}
