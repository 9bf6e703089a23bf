//! A namespace's protocol counters, of which the lab watches the checksum errors.

use std::{collections::BTreeMap, fs, io};

/// Counters by the names that `nstat` prints, such as `TcpInCsumErrors`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Netstat(BTreeMap<String, u64>);

impl Netstat {
    /// Of the namespace of the calling thread: `/proc/net` would be that of the process's first thread.
    pub(super) fn read() -> io::Result<Self> {
        let mut counters = BTreeMap::new();
        for file in ["snmp", "netstat"] {
            let text = fs::read_to_string(format!("/proc/thread-self/net/{file}"))?;
            counters.extend(titled(&text));
        }
        counters.extend(listed(&fs::read_to_string("/proc/thread-self/net/snmp6")?));
        Ok(Self(counters))
    }

    /// A counter that the kernel does not have counts nothing.
    pub fn value(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Every checksum counter that is not zero.
    pub fn checksum_errors(&self) -> impl Iterator<Item = (&str, u64)> {
        self.0
            .iter()
            .filter(|&(name, &value)| name.ends_with("InCsumErrors") && value > 0)
            .map(|(name, &value)| (name.as_str(), value))
    }
}

/// `Tcp: A B` above `Tcp: 1 2`.
fn titled(text: &str) -> impl Iterator<Item = (String, u64)> {
    let lines: Vec<&str> = text.lines().collect();
    let pairs: Vec<(String, u64)> = lines
        .chunks_exact(2)
        .filter_map(|pair| {
            let (title, names) = pair[0].split_once(':')?;
            let (_, values) = pair[1].split_once(':')?;
            Some((title, names, values))
        })
        .flat_map(|(title, names, values)| {
            names.split_whitespace().zip(values.split_whitespace()).filter_map(move |(name, value)| {
                // Tcp: MaxConn is -1; no counter is.
                Some((format!("{title}{name}"), value.parse().ok()?))
            })
        })
        .collect();
    pairs.into_iter()
}

/// One `name value` a line.
fn listed(text: &str) -> impl Iterator<Item = (String, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(char::is_whitespace)?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_both_forms() {
        let snmp = "Tcp: RtoMin MaxConn InCsumErrors\nTcp: 200 -1 3\nUdp: InCsumErrors\nUdp: 0\n";
        let mut counters: BTreeMap<String, u64> = titled(snmp).collect();
        counters.extend(listed("Udp6InCsumErrors                \t7\n"));
        let netstat = Netstat(counters);

        assert_eq!(netstat.value("TcpRtoMin"), 200);
        assert_eq!(netstat.value("TcpMaxConn"), 0);
        assert_eq!(netstat.checksum_errors().collect::<Vec<_>>(), [("TcpInCsumErrors", 3), ("Udp6InCsumErrors", 7)]);
    }
}
