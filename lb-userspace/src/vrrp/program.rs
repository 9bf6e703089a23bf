//! Runs a user's program for a bounded time, in a process group of its own so that nothing of it outlasts that.

use std::{ffi::OsStr, io, os::unix::process::ExitStatusExt as _, process::Stdio, time::Duration};

use nix::{
    sys::signal::{Signal, killpg},
    unistd::Pid,
};
use tokio::{process::Command, time::timeout};

/// Why a run is no success.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error("exit code {0}")]
    Exit(i32),
    #[error("ended by signal {0}")]
    Signal(i32),
    #[error("killed after {}", humantime::format_duration(*.0))]
    Slow(Duration),
    #[error("cannot be run: {0}")]
    NotRun(#[from] io::Error),
}

/// Runs it to its end, or for `limit`. What it prints is discarded. Dropping the future kills it.
pub(super) async fn run(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = impl AsRef<OsStr>>,
    limit: Duration,
) -> Result<(), Failure> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.process_group(0).kill_on_drop(true).spawn()?;
    // Declared after the child, and so dropped before it: as long as it is not reaped, its id is no other group's.
    let mut group = Group::of(child.id());
    match timeout(limit, child.wait()).await {
        Ok(status) => {
            group.0 = None;
            let status = status?;
            match (status.success(), status.code(), status.signal()) {
                (true, ..) => Ok(()),
                (_, Some(code), _) => Err(Failure::Exit(code)),
                (_, None, signal) => Err(Failure::Signal(signal.unwrap_or_default())),
            }
        }
        Err(_) => Err(Failure::Slow(limit)),
    }
}

/// Kills all that is in a process group when it is dropped.
struct Group(Option<Pid>);

impl Group {
    fn of(leader: Option<u32>) -> Self {
        Self(leader.and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // One that has ended by itself is no error.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path, time::Instant};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    async fn shell(script: &str, limit: Duration) -> Result<(), Failure> {
        run("/bin/sh", ["-c", script], limit).await
    }

    async fn is_gone(process: &str) -> bool {
        let deadline = Instant::now() + LONG;
        // A zombie has a directory and no command line.
        while fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty()) {
            if Instant::now() > deadline {
                return false;
            }
            tokio::task::yield_now().await;
        }
        true
    }

    async fn written(path: &Path) -> String {
        let deadline = Instant::now() + LONG;
        loop {
            match fs::read_to_string(path) {
                Ok(text) if text.ends_with('\n') => return text.trim().to_owned(),
                _ => assert!(Instant::now() < deadline, "{} was never written", path.display()),
            }
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn how_it_ended_is_told() {
        for (script, expected) in [
            ("exit 0", None),
            ("exit 3", Some("exit code 3")),
            ("kill -TERM $$", Some("ended by signal 15")),
            ("echo out; echo err >&2; cat", None),
        ] {
            let said = shell(script, LONG).await.err().map(|failure| failure.to_string());
            assert_eq!(said.as_deref(), expected, "{script}");
        }
        let failure = run("/nonexistent", [""; 0], LONG).await.unwrap_err().to_string();
        assert!(failure.starts_with("cannot be run: No such file"), "{failure}");
    }

    #[tokio::test]
    async fn nothing_of_it_outlasts_its_time() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let failure = shell(&script, Duration::from_millis(300)).await.unwrap_err().to_string();
        assert_eq!(failure, "killed after 300ms");
        assert!(is_gone(&written(&file).await).await);
    }

    #[tokio::test]
    async fn nothing_of_it_outlasts_its_future() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let running = tokio::spawn(async move { shell(&script, LONG * 10).await });
        let process = written(&file).await;
        running.abort();
        assert!(running.await.unwrap_err().is_cancelled());
        assert!(is_gone(&process).await);
    }
}
