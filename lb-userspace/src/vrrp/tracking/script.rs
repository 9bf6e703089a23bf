//! One task a script: it runs on schedule, counts, and publishes what follows.

use std::{convert::Infallible, sync::Arc, time::Duration};

use tokio::{
    sync::watch,
    task::{JoinError, JoinSet},
    time::{MissedTickBehavior, interval, timeout},
};

use super::tally::Tally;
use crate::{config::model, vrrp::program};

/// How long a start waits for scripts that have not ended once. One that takes longer counts as failed until then.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is known of a script.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `None` until a run has ended.
    pub good: Option<bool>,
    /// In words: how the latest run ended.
    pub text: String,
}

/// By instance and script, in the order of the configuration.
pub type Reports = Vec<Vec<Report>>;

/// The running scripts. They end, and what they run is killed, when this is dropped.
#[derive(Debug)]
pub struct Scripts {
    tasks: JoinSet<Infallible>,
    reports: watch::Receiver<Reports>,
    /// Kept so that the channel lives where there is no script.
    _sender: Arc<watch::Sender<Reports>>,
}

impl Scripts {
    /// Starts to run every script of these instances. Call it within a tokio runtime.
    pub fn spawn(instances: &[model::Vrrp]) -> Self {
        let unknown = Report { good: None, text: "not run yet".to_owned() };
        let all = instances.iter().map(|instance| vec![unknown.clone(); instance.scripts.len()]).collect();
        let (sender, reports) = watch::channel(all);
        let sender = Arc::new(sender);
        let mut tasks = JoinSet::new();
        for (position, instance) in instances.iter().enumerate() {
            for (index, script) in instance.scripts.iter().enumerate() {
                let of = format!("{}: script {}", instance.name, script.name);
                tasks.spawn(run(script.clone(), Board { of, place: (position, index), reports: sender.clone() }));
            }
        }
        Self { tasks, reports, _sender: sender }
    }

    /// What is known now.
    pub fn reports(&self) -> Reports {
        self.reports.borrow().clone()
    }

    /// Waits for another report.
    ///
    /// # Errors
    /// If a task has ended, which is a defect. Cancel-safe.
    pub async fn changed(&mut self) -> Result<(), JoinError> {
        tokio::select! {
            // The sender is kept above.
            _ = self.reports.changed() => Ok(()),
            Some(Err(error)) = self.tasks.join_next() => Err(error),
        }
    }

    /// Waits until each has ended once, for a limited time.
    pub async fn settle(&mut self) {
        let known = |reports: &Reports| reports.iter().flatten().all(|report| report.good.is_some());
        let _ = timeout(PATIENCE, self.reports.wait_for(known)).await;
    }
}

struct Board {
    of: String,
    place: (usize, usize),
    reports: Arc<watch::Sender<Reports>>,
}

async fn run(script: model::Script, board: Board) -> Infallible {
    let mut tally = Tally::new(script.rise, script.fall);
    let mut ticks = interval(script.interval);
    // One that was held up is not made up for by several at once.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let outcome = program::run(&script.command[0], &script.command[1..], script.timeout).await;
        let text = outcome.as_ref().map_or_else(ToString::to_string, |()| "exit code 0".to_owned());
        if tally.count(outcome.is_ok()) {
            let now = if tally.is_good() { "good" } else { "failed" };
            log::info!("{} is {now}: {text}", board.of);
        }
        board.write(Report { good: Some(tally.is_good()), text });
    }
}

impl Board {
    fn write(&self, report: Report) {
        let (instance, script) = self.place;
        self.reports.send_if_modified(|reports| {
            let place = &mut reports[instance][script];
            let is_new = *place != report;
            *place = report;
            is_new
        });
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, num::NonZeroU32, path::Path};

    use super::*;

    const LONG: Duration = Duration::from_secs(30);

    fn instance(scripts: Vec<model::Script>) -> model::Vrrp {
        let text = "[dataplane]\ninterfaces = [\"eth0\"]\n[[virtual_server]]\nname = \"v\"\naddress = \"10.0.0.1\"\nport = 1\n\
                    [[virtual_server.backend]]\nname = \"b\"\naddress = \"10.0.0.2\"\n\
                    [[vrrp]]\nname = \"v\"\ninterface = \"eth0\"\nvrid = 1\naddresses = [\"10.0.0.1\"]\n";
        let mut config = crate::config::parse(text, "test").unwrap_or_else(|report| panic!("{report}"));
        model::Vrrp { scripts, ..config.vrrp.remove(0) }
    }

    fn script(shell: &str, fall: u32) -> model::Script {
        model::Script {
            name: "s".to_owned(),
            command: ["/bin/sh", "-c", shell].map(str::to_owned).to_vec(),
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(100),
            rise: NonZeroU32::MIN,
            fall: NonZeroU32::new(fall).unwrap(),
            weight: -2,
        }
    }

    async fn until(scripts: &mut Scripts, good: bool) -> Report {
        let wanted = async {
            loop {
                let report = scripts.reports()[0][0].clone();
                if report.good == Some(good) {
                    return report;
                }
                scripts.changed().await.unwrap();
            }
        };
        timeout(LONG, wanted).await.expect("a report")
    }

    #[tokio::test]
    async fn a_script_is_followed_as_it_fails_and_recovers() {
        let directory = tempfile::tempdir().unwrap();
        let flag = directory.path().join("flag");
        let test = format!("test -e {}", flag.display());
        let mut scripts = Scripts::spawn(&[instance(vec![model::Script { timeout: LONG, ..script(&test, 2) }])]);
        scripts.settle().await;
        assert_eq!(scripts.reports(), [[Report { good: Some(false), text: "exit code 1".to_owned() }]]);
        fs::write(&flag, "").unwrap();
        assert_eq!(until(&mut scripts, true).await.text, "exit code 0");
        fs::remove_file(&flag).unwrap();
        assert_eq!(until(&mut scripts, false).await.text, "exit code 1");
    }

    #[tokio::test]
    async fn one_that_hangs_has_failed_and_one_that_is_missing_too() {
        let mut scripts = Scripts::spawn(&[instance(vec![script("sleep 1000", 1)])]);
        assert_eq!(until(&mut scripts, false).await.text, "killed after 100ms");
        let missing = model::Script { command: vec!["/nonexistent".to_owned()], ..script("", 1) };
        let mut scripts = Scripts::spawn(&[instance(vec![missing])]);
        assert!(until(&mut scripts, false).await.text.starts_with("cannot be run: "));
    }

    #[tokio::test]
    async fn dropping_them_ends_what_they_run() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("pid");
        let shell = format!("echo $$ > {}; exec sleep 1000", file.display());
        let scripts = Scripts::spawn(&[instance(vec![model::Script { timeout: LONG, ..script(&shell, 1) }])]);
        let waited = |path: &Path| fs::read_to_string(path).ok().filter(|text| text.ends_with('\n'));
        let deadline = tokio::time::Instant::now() + LONG;
        let process = loop {
            if let Some(text) = waited(&file) {
                break text.trim().to_owned();
            }
            assert!(tokio::time::Instant::now() < deadline, "it never ran");
            tokio::task::yield_now().await;
        };
        drop(scripts);
        while fs::read(format!("/proc/{process}/cmdline")).is_ok_and(|line| !line.is_empty()) {
            assert!(tokio::time::Instant::now() < deadline, "it still runs");
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn without_scripts_there_is_nothing_to_wait_for() {
        let mut scripts = Scripts::spawn(&[instance(Vec::new())]);
        scripts.settle().await;
        assert_eq!(scripts.reports(), [Vec::new()]);
        let brief = Duration::from_millis(1);
        assert!(timeout(brief, scripts.changed()).await.is_err(), "nothing changes");
    }
}
