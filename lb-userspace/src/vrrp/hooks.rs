//! Tells users' programs of changes, with keepalived's arguments: `INSTANCE name STATE priority`, and `GROUP name STATE 0` once
//! all members of a sync group agree. For each instance and group one after the other; never in the way of anything else.

use std::{
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    sync::mpsc,
    task::{JoinHandle, JoinSet},
    time::timeout,
};

use super::{State, program, wire::Event};
use crate::config::model;

/// A program that takes longer is killed, so that later changes are told too.
const LIMIT: Duration = Duration::from_secs(30);
/// Changes that wait for a slow program; beyond that the oldest are not told, so that the latest state is always the last to be told.
const WAITING: usize = 16;

/// The task that runs the programs.
#[derive(Debug)]
pub struct Hooks(JoinHandle<()>);

impl Hooks {
    /// Tells of `changes` until there are no more. Call it within a tokio runtime.
    pub fn spawn(instances: &[model::Vrrp], changes: mpsc::Receiver<Event>) -> Self {
        Self(tokio::spawn(tell(Subjects::new(instances), changes)))
    }

    /// Waits until all is told, for a limited time, after those who send changes are gone. What still runs then is killed.
    pub async fn finish(self, limit: Duration) {
        let abort = self.0.abort_handle();
        if timeout(limit, self.0).await.is_err() {
            log::warn!("a notify program did not end within {}", humantime::format_duration(limit));
            abort.abort();
        }
    }
}

/// Runs one program for each subject at a time.
async fn tell(mut subjects: Subjects, mut changes: mpsc::Receiver<Event>) {
    let mut running: JoinSet<usize> = JoinSet::new();
    let mut open = true;
    while open || !running.is_empty() {
        tokio::select! {
            change = changes.recv(), if open => match change {
                Some(change) => subjects.take(change),
                None => open = false,
            },
            Some(done) = running.join_next() => match done {
                Ok(index) => subjects.0[index].is_busy = false,
                Err(error) => log::error!("running a notify program: {error}"),
            },
        }
        for (index, subject) in subjects.0.iter_mut().enumerate().filter(|(_, subject)| !subject.is_busy) {
            if let Some(arguments) = subject.waiting.pop_front() {
                subject.is_busy = true;
                let programs = subject.programs.clone();
                running.spawn(async move {
                    for path in programs {
                        log::debug!("{} {}", path.display(), arguments.join(" "));
                        if let Err(failure) = program::run(&path, &arguments, LIMIT).await {
                            log::warn!("notify: {} {}: {failure}", path.display(), arguments.join(" "));
                        }
                    }
                    index
                });
            }
        }
    }
}

/// What programs are told of: the instances, and after them the groups.
struct Subjects(Vec<Subject>);

struct Subject {
    kind: &'static str,
    name: String,
    programs: Vec<PathBuf>,
    /// The states of its members.
    members: BTreeMap<usize, Option<State>>,
    told: Option<State>,
    waiting: VecDeque<[String; 4]>,
    is_busy: bool,
}

impl Subjects {
    fn new(instances: &[model::Vrrp]) -> Self {
        let mut groups: Vec<Subject> = Vec::new();
        for (position, instance) in instances.iter().enumerate() {
            let Some(name) = &instance.sync_group else {
                continue;
            };
            let index = groups.iter().position(|group| group.name == *name).unwrap_or_else(|| {
                groups.push(Subject::new("GROUP", name));
                groups.len() - 1
            });
            groups[index].admit(position, instance);
        }
        let alone = |(position, instance): (usize, &model::Vrrp)| {
            let mut subject = Subject::new("INSTANCE", &instance.name);
            subject.admit(position, instance);
            subject
        };
        let subjects = instances.iter().enumerate().map(alone).chain(groups);
        Self(subjects.filter(|subject| !subject.programs.is_empty()).collect())
    }

    fn take(&mut self, change: Event) {
        self.0.iter_mut().for_each(|subject| subject.take(change));
    }
}

impl Subject {
    fn new(kind: &'static str, name: &str) -> Self {
        let (members, waiting) = (BTreeMap::new(), VecDeque::new());
        Self { kind, name: name.to_owned(), programs: Vec::new(), members, told: None, waiting, is_busy: false }
    }

    fn admit(&mut self, position: usize, instance: &model::Vrrp) {
        self.members.insert(position, None);
        let is_new = |program: &&PathBuf| !self.programs.contains(program);
        if let Some(program) = instance.notify.as_ref().filter(is_new) {
            self.programs.push(program.clone());
        }
    }

    fn take(&mut self, change: Event) {
        let Some(member) = self.members.get_mut(&change.id.0) else {
            return;
        };
        *member = Some(change.state);
        let is_group = self.kind == "GROUP";
        let agreed = self.members.values().all(|member| *member == Some(change.state));
        // As keepalived: a stop is told of instances only, and a group has no priority.
        if !agreed || self.told == Some(change.state) || is_group && change.state == State::Stopped {
            return;
        }
        self.told = Some(change.state);
        if self.waiting.len() == WAITING {
            log::warn!("notify of {}: the program is too slow for the changes; one was not told", self.name);
            self.waiting.pop_front();
        }
        let priority = if is_group { 0 } else { change.priority };
        self.waiting.push_back([
            self.kind.to_owned(),
            self.name.clone(),
            word(change.state).to_owned(),
            priority.to_string(),
        ]);
    }
}

fn word(state: State) -> &'static str {
    match state {
        State::Fault => "FAULT",
        State::Backup => "BACKUP",
        State::Master => "MASTER",
        State::Stopped => "STOP",
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;
    use crate::vrrp::InstanceId;

    /// Three instances, of which the last two are a group.
    fn instances(notify: &Path) -> Vec<model::Vrrp> {
        let mut text = "[dataplane]\ninterfaces = [\"eth0\"]\n[[virtual_server]]\nname = \"v\"\naddress = \"10.0.0.1\"\nport = 1\n\
                        [[virtual_server.backend]]\nname = \"b\"\naddress = \"10.0.0.2\"\n"
            .to_owned();
        for (vrid, name, group) in
            [(1, "alone", ""), (2, "left", "sync_group = \"both\""), (3, "right", "sync_group = \"both\"")]
        {
            text += &format!(
                "[[vrrp]]\nname = \"{name}\"\ninterface = \"eth0\"\nvrid = {vrid}\naddresses = [\"10.0.1.{vrid}\"]\n\
                 notify = \"{}\"\n{group}\n",
                notify.display()
            );
        }
        crate::config::parse(&text, "test").unwrap_or_else(|report| panic!("{report}")).vrrp
    }

    /// A program that writes its arguments to the file `told` beside it. A shell makes it: a child that another test forks while
    /// this process has the file open for writing would keep it from being executed (ETXTBSY).
    fn program(directory: &Path, before: &str) -> PathBuf {
        let path = directory.join("notify.sh");
        let text = format!("#!/bin/sh\n{before}\necho \"$*\" >> {}/told\n", directory.display());
        let write = ["-c", "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\""];
        let status = std::process::Command::new("/bin/sh").args(write).arg(&path).arg(text).status().unwrap();
        assert!(status.success());
        path
    }

    fn change(instance: usize, state: State, priority: u8) -> Event {
        Event { id: InstanceId(instance), state, priority }
    }

    async fn told(before: &str, changes: &[Event]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        let instances = instances(&program(directory.path(), before));
        let (sender, receiver) = mpsc::channel(changes.len());
        changes.iter().for_each(|change| sender.try_send(*change).unwrap());
        drop(sender);
        Hooks::spawn(&instances, receiver).finish(LIMIT).await;
        let text = fs::read_to_string(directory.path().join("told")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    #[tokio::test]
    async fn an_instance_is_told_of_in_order() {
        let changes = [
            change(0, State::Backup, 100),
            change(0, State::Master, 100),
            change(0, State::Fault, 1),
            change(0, State::Stopped, 0),
        ];
        // The longer one takes, the sooner a later one would overtake it.
        let slow_at_first = "case $3 in BACKUP) sleep 0.3;; MASTER) sleep 0.1;; esac";
        let expected = [
            "INSTANCE alone BACKUP 100",
            "INSTANCE alone MASTER 100",
            "INSTANCE alone FAULT 1",
            "INSTANCE alone STOP 0",
        ];
        assert_eq!(told(slow_at_first, &changes).await, expected);
    }

    #[tokio::test]
    async fn a_group_is_told_of_when_all_its_members_agree() {
        let mut lines = told(
            "",
            &[
                change(1, State::Backup, 100),
                change(2, State::Backup, 100),
                change(1, State::Master, 100),
                change(2, State::Master, 90),
                change(1, State::Stopped, 0),
                change(2, State::Stopped, 0),
            ],
        )
        .await;
        let groups: Vec<String> = lines.extract_if(.., |line| line.starts_with("GROUP")).collect();
        assert_eq!(groups, ["GROUP both BACKUP 0", "GROUP both MASTER 0"]);
        assert_eq!(lines.len(), 6, "{lines:?}");
    }

    #[tokio::test]
    async fn a_program_that_fails_is_run_for_the_next_change_too() {
        let lines =
            told("test $3 = MASTER || exit 1", &[change(0, State::Backup, 1), change(0, State::Master, 1)]).await;
        assert_eq!(lines, ["INSTANCE alone MASTER 1"]);
    }

    #[tokio::test]
    async fn a_slow_program_is_told_the_latest_state_last() {
        let flapping = (0..40_u8).map(|count| {
            let state = if count % 2 == 0 { State::Backup } else { State::Master };
            change(0, state, count)
        });
        let flapping: Vec<_> = flapping.collect();
        let mut subjects = Subjects::new(&instances(Path::new("/bin/true")));
        flapping.iter().for_each(|change| subjects.take(*change));
        let waiting = &subjects.0[0].waiting;
        assert_eq!(waiting.len(), WAITING);
        assert_eq!(waiting.back().unwrap().join(" "), "INSTANCE alone MASTER 39");
        assert_eq!(waiting.front().unwrap().join(" "), "INSTANCE alone BACKUP 24");
    }

    #[tokio::test]
    async fn one_that_does_not_end_holds_up_neither_others_nor_the_end() {
        let directory = tempfile::tempdir().unwrap();
        let instances = instances(&program(directory.path(), "test $2 = alone && exec sleep 1000"));
        let (sender, receiver) = mpsc::channel(8);
        let hooks = Hooks::spawn(&instances, receiver);
        sender.send(change(0, State::Backup, 1)).await.unwrap();
        sender.send(change(1, State::Backup, 1)).await.unwrap();
        let deadline = tokio::time::Instant::now() + LIMIT;
        let file = directory.path().join("told");
        while fs::read_to_string(&file).unwrap_or_default() != "INSTANCE left BACKUP 1\n" {
            assert!(tokio::time::Instant::now() < deadline, "the other was not told");
            tokio::task::yield_now().await;
        }
        drop(sender);
        let started = std::time::Instant::now();
        hooks.finish(Duration::from_millis(50)).await;
        assert!(started.elapsed() < LIMIT);
    }
}
