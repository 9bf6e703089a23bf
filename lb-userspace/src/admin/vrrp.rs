//! What the status tells of virtual routers, and its table for people.

use std::{collections::BTreeMap, net::IpAddr, time::SystemTime};

use serde::{Deserialize, Serialize};

use super::{
    Status,
    status::rfc3339,
    table::{age, columns, one_cell},
};

const HEADER: &str = "VRRP\tINTERFACE\tVRID\tSTATE\tSINCE\tPRIORITY\tMASTER\tCHANGES\tVIPS";

/// One virtual router as this node takes part in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    pub name: String,
    pub interface: String,
    pub vrid: u8,
    pub version: u8,
    pub state: State,
    /// When it entered this state.
    #[serde(with = "rfc3339")]
    pub since: SystemTime,
    /// The effective one, after weights.
    pub priority: u8,
    pub configured_priority: u8,
    /// `None` while nobody is known to be master.
    pub master: Option<Master>,
    /// Changes of state.
    pub transitions: u64,
    pub vips: Vec<IpAddr>,
    pub sync_group: Option<String>,
    /// Handed over on purpose: it does not take the VIPs back from its successor.
    pub released: bool,
    pub tracked: Vec<Tracked>,
    pub advertisements: Advertisements,
    /// What is wrong in the network or with peers, in words; the latest last.
    pub reports: Vec<Report>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    Fault,
    Backup,
    Master,
    Stopped,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Master {
    pub address: IpAddr,
    pub priority: u8,
}

/// Something that counts for the priority.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tracked {
    pub name: String,
    pub good: bool,
    pub weight: i16,
    pub text: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Advertisements {
    pub sent: u64,
    /// Heard and followed.
    pub received: u64,
    /// Heard and not followed, by reason.
    pub discarded: BTreeMap<String, u64>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// A whole sentence that names the sender.
    pub text: String,
    pub count: u64,
    #[serde(with = "rfc3339")]
    pub last: SystemTime,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Fault, Self::Backup, Self::Master, Self::Stopped];

    /// As JSON, metrics and tables have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fault => "fault",
            Self::Backup => "backup",
            Self::Master => "master",
            Self::Stopped => "stopped",
        }
    }
}

/// One line for each instance, and below the table what needs attention. Empty without VRRP.
pub fn table(status: &Status, now: SystemTime) -> String {
    if status.vrrp.is_empty() {
        return String::new();
    }
    let mut text = columns(HEADER, status.vrrp.iter().map(|instance| line(instance, now)));
    for instance in &status.vrrp {
        for note in notes(instance, now) {
            text += &format!("{}: {}\n", instance.name, one_cell(&note));
        }
    }
    text
}

fn line(instance: &Instance, now: SystemTime) -> String {
    let priority = match instance.priority {
        same if same == instance.configured_priority => same.to_string(),
        // In fault it takes no part.
        0 => format!("- (of {})", instance.configured_priority),
        other => format!("{other} (of {})", instance.configured_priority),
    };
    let master = match (instance.state, instance.master) {
        (State::Master, _) => "here".to_owned(),
        (_, Some(Master { address, priority })) => format!("{address} ({priority})"),
        (_, None) => "-".to_owned(),
    };
    let vips: Vec<String> = instance.vips.iter().map(ToString::to_string).collect();
    [
        one_cell(&instance.name),
        instance.interface.clone(),
        instance.vrid.to_string(),
        instance.state.name().to_owned(),
        age(now, instance.since),
        priority,
        master,
        instance.transitions.to_string(),
        vips.join(","),
    ]
    .join("\t")
}

/// What is not as it should be.
fn notes(instance: &Instance, now: SystemTime) -> Vec<String> {
    let bad = instance.tracked.iter().filter(|tracked| !tracked.good && tracked.weight <= 0);
    let mut notes: Vec<String> = bad
        .map(|Tracked { name, weight, text, .. }| match weight {
            0 => format!("{name}: {text}; this is a fault"),
            weight => format!("{name}: {text}; this counts {weight}"),
        })
        .collect();
    if instance.released {
        notes.push("released: the VIPs are not taken back from their new master".to_owned());
    }
    let reports = instance.reports.iter().map(|report| {
        let seen = if report.count == 1 { "once".to_owned() } else { format!("{} times", report.count) };
        format!("{} ({seen}, last {} ago)", report.text, age(now, report.last))
    });
    notes.extend(reports);
    notes
}

#[cfg(test)]
pub(super) mod tests {
    use std::time::Duration;

    use super::{
        super::status::tests::{NOON, sample},
        *,
    };

    /// A master with a complaint about a peer, and a backup that is not all it could be.
    pub(crate) fn sample_instances() -> Vec<Instance> {
        let noon = SystemTime::UNIX_EPOCH + NOON;
        let tracked = |name: &str, good, weight, text: &str| Tracked {
            name: name.to_owned(),
            good,
            weight,
            text: text.to_owned(),
        };
        let master = Instance {
            name: "apiserver".into(),
            interface: "eth0".into(),
            vrid: 51,
            version: 3,
            state: State::Master,
            since: noon - Duration::from_secs(312),
            priority: 100,
            configured_priority: 100,
            master: None,
            transitions: 2,
            vips: vec!["192.168.2.100".parse().unwrap(), "192.168.2.101".parse().unwrap()],
            sync_group: None,
            released: false,
            tracked: vec![
                tracked("data plane", true, 0, "attached"),
                tracked("backends", true, -253, "3 of 3 healthy"),
                tracked("script spare", false, 11, "exit code 1"),
            ],
            advertisements: Advertisements { sent: 3120, received: 4, discarded: [("password".to_owned(), 7)].into() },
            reports: vec![Report {
                text: "192.168.2.12 sends another password than the one configured here".into(),
                count: 7,
                last: noon - Duration::from_secs(1),
            }],
        };
        let backup = Instance {
            name: "apiserver6".into(),
            vrid: 52,
            state: State::Backup,
            since: noon - Duration::from_secs(60),
            priority: 1,
            master: Some(Master { address: "fe80::2".parse().unwrap(), priority: 90 }),
            vips: vec!["fd00:2::100".parse().unwrap()],
            sync_group: Some("both".into()),
            released: true,
            tracked: vec![
                tracked("backends", false, -253, "0 of 3 healthy"),
                tracked("data plane", false, 0, "eth0: no XDP program"),
            ],
            advertisements: Advertisements::default(),
            reports: Vec::new(),
            ..master.clone()
        };
        vec![master, backup]
    }

    #[test]
    fn the_table_and_what_needs_attention() {
        let status = Status { vrrp: sample_instances(), ..sample() };
        assert_eq!(
            table(&status, SystemTime::UNIX_EPOCH + NOON),
            "\
VRRP        INTERFACE  VRID  STATE   SINCE  PRIORITY    MASTER        CHANGES  VIPS
apiserver   eth0       51    master  5m12s  100         here          2        192.168.2.100,192.168.2.101
apiserver6  eth0       52    backup  60s    1 (of 100)  fe80::2 (90)  2        fd00:2::100
apiserver: 192.168.2.12 sends another password than the one configured here (7 times, last 1s ago)
apiserver6: backends: 0 of 3 healthy; this counts -253
apiserver6: data plane: eth0: no XDP program; this is a fault
apiserver6: released: the VIPs are not taken back from their new master
"
        );
    }

    #[test]
    fn one_in_fault_takes_no_part_and_knows_no_master() {
        let mut instances = sample_instances();
        let fault = Instance { state: State::Fault, priority: 0, master: None, ..instances.remove(1) };
        let status = Status { vrrp: vec![fault], ..sample() };
        let table = table(&status, SystemTime::UNIX_EPOCH + NOON);
        let line = table.lines().nth(1).unwrap();
        assert_eq!(line, "apiserver6  eth0       52    fault  60s    - (of 100)  -       2        fd00:2::100");
    }

    #[test]
    fn without_vrrp_there_is_no_table() {
        assert_eq!(table(&sample(), SystemTime::UNIX_EPOCH + NOON), "");
    }

    #[test]
    fn instances_survive_the_wire_and_states_have_the_names_they_serialize_to() {
        let status = Status { vrrp: sample_instances(), ..sample() };
        let json = serde_json::to_string(&status).unwrap();
        assert_eq!(serde_json::from_str::<Status>(&json).unwrap(), status);
        for state in State::ALL {
            assert_eq!(serde_json::to_value(state).unwrap(), state.name());
        }
    }
}
