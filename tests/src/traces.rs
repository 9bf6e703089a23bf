//! What a daemon adds to a host and must take away again.

use std::{collections::BTreeMap, fs, path::Path};

use anyhow::Result;
use aya::programs::{SchedClassifier, TcAttachType};

use crate::lab::Host;

/// Sysctls of an interface that the data plane depends on, below /proc/sys/net.
const SYSCTLS: [&str; 3] = ["ipv4/conf/@/forwarding", "ipv6/conf/@/forwarding", "ipv6/conf/@/accept_ra"];

/// A host's state at one moment: what is there, by the question that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Traces(BTreeMap<String, String>);

impl Traces {
    /// Addresses, links with their XDP programs, qdiscs, MAC addresses that are listened to, classifiers, sysctls, files in the BPF filesystem and `socket`.
    pub fn of(host: &Host, interface: &str, socket: &Path) -> Result<Self> {
        let mut traces = BTreeMap::new();
        for question in ["ip -oneline address", "ip -oneline link", "tc qdisc"] {
            let words: Vec<&str> = question.split_whitespace().collect();
            traces.insert(question.to_owned(), host.exec(&words)?);
        }
        // Groups are the kernel's business.
        let macs = host.exec(&["bridge", "fdb", "show", "dev", interface])?;
        let macs = macs.lines().filter(|line| !line.starts_with("33:33:") && !line.starts_with("01:00:5e:"));
        traces.insert("bridge fdb".to_owned(), macs.collect());
        for sysctl in SYSCTLS {
            let path = Path::new("/proc/sys/net").join(sysctl.replace('@', interface));
            traces.insert(sysctl.to_owned(), host.enter(|| fs::read_to_string(path))??);
        }
        for point in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = host.enter(|| SchedClassifier::query_tcx(interface, point))??;
            traces.insert(format!("{point:?} classifiers"), programs.len().to_string());
        }
        let pins = fs::read_dir(host.bpffs()?).map_or(0, Iterator::count);
        traces.insert("pinned maps".to_owned(), pins.to_string());
        traces.insert(socket.display().to_string(), socket.exists().to_string());
        Ok(Self(traces))
    }

    /// What differs from an earlier moment, both told.
    pub fn since(&self, before: &Self) -> Vec<String> {
        let changed = self.0.iter().filter(|(question, answer)| before.0.get(*question) != Some(answer));
        changed.map(|(question, answer)| format!("{question}: {:?}, now {answer:?}", before.0.get(question))).collect()
    }
}
