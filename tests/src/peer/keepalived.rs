//! Debian's keepalived.

use std::{collections::BTreeMap, fs, path::PathBuf, process::Command, sync::Arc, time::Duration};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::{PATIENCE, directory, write};
use crate::{
    lab::{Host, Process},
    wait,
};

/// A running keepalived with its VRRP process. It is killed with this.
#[derive(Debug)]
pub struct Keepalived {
    process: Arc<Process>,
    directory: PathBuf,
}

/// What keepalived has counted for one VRRP instance.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub received: u64,
    pub sent: u64,
    pub became_master: u64,
    /// Everything it found wrong with what it received, by its own words, and only what is not zero.
    pub errors: BTreeMap<String, u64>,
}

impl Keepalived {
    /// Starts it with this configuration, and waits until its instances have begun.
    pub fn start(host: &Host, configuration: &str) -> Result<Self> {
        let keepalived = Self::launch(host, configuration)?;
        keepalived.process.wait_for_output("Startup complete", PATIENCE)?;
        Ok(keepalived)
    }

    /// The same without waiting.
    fn launch(host: &Host, configuration: &str) -> Result<Self> {
        let directory = directory(host, "keepalived")?;
        let file = |name: &str| directory.join(name);
        write(&file("keepalived.conf"), configuration)?;
        let mut command = Command::new("keepalived");
        // -n foreground, -l -D -G everything to stderr and nothing to syslog, -P VRRP only.
        command.args(["-n", "-l", "-D", "-G", "-P"]);
        for (option, name) in [("-f", "keepalived.conf"), ("-p", "parent.pid"), ("-r", "vrrp.pid")] {
            command.arg(option).arg(file(name));
        }
        // Where it writes its statistics.
        command.env("TMPDIR", &directory);
        Ok(Self { process: host.spawn(command)?, directory })
    }

    pub fn process(&self) -> &Process {
        &self.process
    }

    pub fn log(&self) -> String {
        self.process.stdout() + &self.process.stderr()
    }

    pub fn wait_for_log(&self, text: &str, limit: Duration) -> Result<()> {
        Ok(self.process.wait_for_output(text, limit)?)
    }

    /// What it has counted, by the names of its instances.
    pub fn tallies(&self) -> Result<BTreeMap<String, Tally>> {
        let path = self.directory.join("keepalived.stats");
        if path.exists() {
            fs::remove_file(&path)?;
        }
        self.process.signal(Signal::SIGUSR2)?;
        let mut text = String::new();
        // Each instance's part ends with the sent advertisements of priority 0.
        let whole = |text: &str| {
            let instances = text.matches("VRRP Instance:").count();
            instances > 0
                && text.split("Priority Zero:").skip(1).filter(|part| part.contains("Sent:")).count() == instances
        };
        let read = wait::until("keepalived's statistics", PATIENCE, || {
            text = fs::read_to_string(&path).unwrap_or_default();
            whole(&text).then_some(())
        });
        read.with_context(|| format!("all there is: {text:?}"))?;
        Ok(tallies(&text))
    }

    /// Ends it in order: priority 0 goes out.
    pub fn stop(self) -> Result<()> {
        self.process.signal(Signal::SIGTERM)?;
        let status = self.process.wait(PATIENCE)?;
        if !status.success() {
            bail!("keepalived ended with {status}:\n{}", self.log());
        }
        Ok(())
    }
}

/// Reads `keepalived.stats`.
fn tallies(text: &str) -> BTreeMap<String, Tally> {
    let mut all: BTreeMap<String, Tally> = BTreeMap::new();
    let (mut name, mut section) = (String::new(), String::new());
    for line in text.lines() {
        let Some((key, value)) = line.split_once(':') else { continue };
        let (key, value) = (key.trim(), value.trim());
        if key == "VRRP Instance" {
            name = value.to_owned();
        }
        let Ok(count) = value.parse::<u64>() else {
            section = key.to_owned();
            continue;
        };
        let tally = all.entry(name.clone()).or_default();
        match (section.as_str(), key) {
            ("Advertisements", "Received") => tally.received = count,
            ("Advertisements", "Sent") => tally.sent = count,
            (_, "Became master") => tally.became_master = count,
            ("Packet Errors" | "Authentication Errors", _) if count > 0 => {
                tally.errors.insert(format!("{section}: {key}"), count);
            }
            _ => {}
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics_are_read() {
        let text = "VRRP Instance: VI_1
  Advertisements:
    Received: 7
    Sent: 2
  Became master: 1
  Released master: 0
  Packet Errors:
    Length: 0
    TTL: 3
    Invalid Type: 0
    Advertisement Interval: 0
    Address List: 0
  Authentication Errors:
    Invalid Type: 0
    Type Mismatch: 0
    Failure: 4
  Priority Zero:
    Received: 5
    Sent: 0
VRRP Instance: VI_2
  Advertisements:
    Received: 9
";
        let all = tallies(text);
        let errors = BTreeMap::from([("Packet Errors: TTL".into(), 3), ("Authentication Errors: Failure".into(), 4)]);
        assert_eq!(all["VI_1"], Tally { received: 7, sent: 2, became_master: 1, errors });
        assert_eq!(all["VI_2"], Tally { received: 9, ..Tally::default() });
    }
}
