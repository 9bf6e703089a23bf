//! The status as text for people: one line a backend, in columns.

use std::{
    io::{self, Write},
    time::{Duration, SystemTime},
};

use tabwriter::TabWriter;

use super::status::{Backend, Configuration, Configured, InUse, Mode, Reload, Status, VirtualServer, state_name};
use crate::health::State;

const HEADER: &str = "VIRTUAL SERVER\tVIP\tHELD\tBALANCE\tBACKEND\tADDRESS\tWEIGHT\tSTATE\tSINCE\tCHECK\tLATENCY\tACTIVE\tCOUNTED\tTOTAL\tBYTES";

/// The daemon in one line.
pub fn summary(status: &Status, now: SystemTime) -> String {
    let interfaces = status.interfaces.iter().map(|i| {
        let mode = match i.mode {
            Mode::Native => "native",
            Mode::Generic => "generic",
        };
        format!("{} ({mode})", i.name)
    });
    format!(
        "xvip {}, up {}, on {}; {} of {} connections tracked\n",
        status.version,
        age(now, status.started),
        if status.interfaces.is_empty() {
            "no interface".to_owned()
        } else {
            interfaces.collect::<Vec<_>>().join(", ")
        },
        status.connections.tracked,
        status.connections.capacity,
    )
}

/// Which configuration holds, and why not a newer one.
pub fn configuration(status: &Status, now: SystemTime) -> String {
    let Configuration { file, loaded, last_reload } = &status.configuration;
    let mut text = format!("configuration {}, loaded {} ago\n", file.display(), age(now, *loaded));
    if let Some(Reload { at, error: Some(error) }) = last_reload {
        text += &format!(
            "reload refused {} ago, and the configuration before goes on: {}\n",
            age(now, *at),
            one_cell(error)
        );
    }
    text
}

/// A header and one line for each backend that drains; nothing if none does.
pub fn removed(status: &Status, now: SystemTime) -> String {
    if status.removed.is_empty() {
        return String::new();
    }
    let name = |name: &Option<String>| name.as_deref().map_or("-".to_owned(), one_cell);
    columns(
        "REMOVED FROM\tVIP\tBACKEND\tADDRESS\tSINCE\tRESET IN\tNEW CONNECTIONS\tACTIVE",
        status.removed.iter().map(|removed| {
            [
                name(&removed.virtual_server),
                removed.vip.to_string(),
                name(&removed.name),
                removed.address.to_string(),
                age(now, removed.since),
                age(removed.until, now),
                (if removed.stands_in { "until another is up" } else { "no" }).to_owned(),
                removed.active_connections.to_string(),
            ]
            .join("\t")
        }),
    )
}

/// A header and one line for each virtual server whose packets do not simply go by nat; nothing if there is none.
pub fn modes(status: &Status) -> String {
    let all = &status.virtual_servers;
    let mut asked = all.iter().filter(|server| server.mode.configured != Configured::Nat).peekable();
    if asked.peek().is_none() {
        return String::new();
    }
    columns(
        "VIRTUAL SERVER\tMODE\tNEW CONNECTIONS BY\tBECAUSE",
        asked.map(|server| {
            let configured = match server.mode.configured {
                Configured::Nat => "nat",
                Configured::Dsr => "dsr",
                Configured::Auto => "auto",
            };
            let in_use = match server.mode.in_use {
                InUse::Nat => "nat",
                InUse::Dsr => "dsr",
                InUse::Both => "dsr and nat",
            };
            let because = server.mode.because.as_deref().map_or("-".to_owned(), one_cell);
            [&one_cell(&server.name), configured, in_use, &because].join("\t")
        }),
    )
}

/// A header and one line for each backend, in the order of the configuration.
pub fn backends(status: &Status, now: SystemTime) -> String {
    let of =
        |server: &VirtualServer| server.backends.iter().map(|backend| line(server, backend, now)).collect::<Vec<_>>();
    columns(HEADER, status.virtual_servers.iter().flat_map(of))
}

/// Lines of cells between tabs, aligned.
pub(super) fn columns(header: &str, lines: impl Iterator<Item = String>) -> String {
    let render = || -> io::Result<Vec<u8>> {
        let mut table = TabWriter::new(Vec::new()).padding(2);
        writeln!(table, "{header}")?;
        for line in lines {
            writeln!(table, "{line}")?;
        }
        table.into_inner().map_err(|e| io::Error::other(e.to_string()))
    };
    // Writing to memory cannot fail.
    String::from_utf8(render().unwrap_or_default()).unwrap_or_default()
}

fn line(server: &VirtualServer, backend: &Backend, now: SystemTime) -> String {
    let check = backend.last_check.as_ref();
    let order = backend.order.unwrap_or_default();
    [
        one_cell(&server.name),
        server.vip().to_string(),
        (if server.held { "yes" } else { "no" }).to_owned(),
        one_cell(&server.balance),
        one_cell(&backend.name),
        backend.socket_address().to_string(),
        ordered(backend.weight.to_string(), order.weight.is_some()),
        state(server, backend),
        age(now, backend.since),
        check.map_or("-".to_owned(), |check| one_cell(&check.text)),
        check.map_or("-".to_owned(), |check| format!("{:.1}ms", check.latency.as_secs_f64() * 1e3)),
        backend.active_connections.map_or("-".to_owned(), |n| n.to_string()),
        backend.counted_connections.map_or("-".to_owned(), |n| n.to_string()),
        backend.connections.to_string(),
        bytes(backend.bytes),
    ]
    .join("\t")
}

/// The state, and why it gets other than its whole share of new connections.
fn state(server: &VirtualServer, backend: &Backend) -> String {
    let mut why = Vec::new();
    if backend.order.is_some_and(|order| order.drain) {
        why.push("ordered".to_owned());
    }
    if backend.backup {
        why.push("backup".to_owned());
    }
    why.extend(backend.share.map(|share| format!("slow start {share}%")));
    if server.open && backend.state != State::Up {
        why.push("all_down open".to_owned());
    }
    let name = state_name(backend.state);
    if why.is_empty() { name.to_owned() } else { format!("{name} ({})", why.join(", ")) }
}

/// Marks what is not as configured.
fn ordered(text: String, is_ordered: bool) -> String {
    if is_ordered { text + " (ordered)" } else { text }
}

/// The time since `then` as kubectl writes ages: two units at most, the coarser the older.
pub(super) fn age(now: SystemTime, then: SystemTime) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    // A clock set back meanwhile: nothing has an age yet.
    let seconds = now.duration_since(then).unwrap_or(Duration::ZERO).as_secs();
    let pair = |large: u64, large_unit: char, small: u64, small_unit: char| match seconds % large / small {
        0 => format!("{}{large_unit}", seconds / large),
        rest => format!("{}{large_unit}{rest}{small_unit}", seconds / large),
    };
    match seconds {
        0..120 => format!("{seconds}s"),
        // 2–10 minutes.
        120..600 => pair(MINUTE, 'm', 1, 's'),
        600..10_800 => format!("{}m", seconds / MINUTE),
        // 3–8 hours.
        10_800..28_800 => pair(HOUR, 'h', MINUTE, 'm'),
        28_800..172_800 => format!("{}h", seconds / HOUR),
        // 2–8 days.
        172_800..691_200 => pair(DAY, 'd', HOUR, 'h'),
        _ => format!("{}d", seconds / DAY),
    }
}

fn bytes(n: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    // Exact below 2^53 bytes, and one decimal is all that is shown.
    #[expect(clippy::cast_precision_loss, reason = "one decimal of a rounded figure")]
    let mut value = n as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    if unit == "B" { format!("{n}B") } else { format!("{value:.1}{unit}") }
}

/// A name or a check's text may hold anything; a tab would break the columns.
pub(super) fn one_cell(text: &str) -> String {
    text.replace(|c: char| c.is_control(), " ")
}

#[cfg(test)]
mod tests {
    use super::{
        super::status::{
            Removed,
            tests::{NOON, sample},
        },
        *,
    };
    use crate::reconcile::Order;

    fn noon() -> SystemTime {
        SystemTime::UNIX_EPOCH + NOON
    }

    #[test]
    fn the_table_has_a_line_for_each_backend() {
        assert_eq!(
            backends(&sample(), noon()),
            "\
VIRTUAL SERVER  VIP                  HELD  BALANCE            BACKEND   ADDRESS            WEIGHT  STATE                                         SINCE  CHECK                        LATENCY  ACTIVE  COUNTED  TOTAL  BYTES
apiserver       192.168.2.100:16443  yes   source-hash        master-1  192.168.2.11:6443  1       up                                            5m12s  200 OK                       3.2ms    12      -        1034   10.0MiB
apiserver       192.168.2.100:16443  yes   source-hash        master-2  192.168.2.12:6443  1       draining                                      60s    200 OK                       3.2ms    12      -        1034   10.0MiB
apiserver       192.168.2.100:16443  yes   source-hash        master-3  192.168.2.13:6443  1       down                                          4s     connect: connection refused  0.4ms    -       -        1034   10.0MiB
apiserver6      [fd00:2::100]:16443  no    least-connections  six       [fd00:2::b]:6443   1       down (backup, slow start 50%, all_down open)  1s     -                            -        12      7        0      0B
"
        );
    }

    #[test]
    fn the_mode_has_a_line_where_it_is_not_nat() {
        use super::super::status::ServerMode;

        let mut status = sample();
        assert_eq!(modes(&status), "");
        let because = Some("not said to turn packets: master-2".to_owned());
        status.virtual_servers[0].mode = ServerMode { configured: Configured::Auto, in_use: InUse::Nat, because };
        assert_eq!(
            modes(&status),
            "\
VIRTUAL SERVER  MODE  NEW CONNECTIONS BY  BECAUSE
apiserver       auto  nat                 not said to turn packets: master-2
"
        );
    }

    #[test]
    fn what_is_ordered_is_marked() {
        let mut status = sample();
        let backend = &mut status.virtual_servers[0].backends[1];
        (backend.weight, backend.order) = (5, Some(Order { drain: true, weight: Some(5), persist: false }));
        let table = backends(&status, noon());
        let line = table.lines().find(|line| line.contains("master-2")).unwrap();
        assert!(line.contains(" 5 (ordered) ") && line.contains(" draining (ordered) "), "{line}");
        assert_eq!(table.matches("ordered").count(), 2, "{table}");
    }

    #[test]
    fn the_daemon_in_one_line() {
        assert_eq!(
            summary(&sample(), noon()),
            "xvip 0.1.0, up 5m12s, on eth0 (native), eth1 (generic); 24 of 131072 connections tracked\n"
        );
    }

    #[test]
    fn a_refused_reload_is_told() {
        let mut status = sample();
        let first = "configuration /etc/xvip/xvip.toml, loaded 5m12s ago\n";
        assert_eq!(configuration(&status, noon()), first);
        let at = noon() - Duration::from_secs(4);
        status.configuration.last_reload = Some(Reload { at, error: None });
        assert_eq!(configuration(&status, noon()), first);
        status.configuration.last_reload = Some(Reload { at, error: Some("x.toml:3:1: no".to_owned()) });
        let second = "reload refused 4s ago, and the configuration before goes on: x.toml:3:1: no\n";
        assert_eq!(configuration(&status, noon()), format!("{first}{second}"));
    }

    #[test]
    fn backends_that_drain_have_a_table_of_their_own() {
        let mut status = sample();
        assert_eq!(removed(&status, noon()), "");
        let vip = "192.168.2.100:16443".parse().unwrap();
        let one = Removed {
            virtual_server: Some("apiserver".to_owned()),
            name: Some("master-4".to_owned()),
            vip,
            address: "192.168.2.14:6443".parse().unwrap(),
            since: noon() - Duration::from_secs(60),
            until: noon() + Duration::from_secs(540),
            stands_in: false,
            active_connections: 3,
        };
        status.removed = vec![one.clone(), Removed { virtual_server: None, name: None, stands_in: true, ..one }];
        assert_eq!(
            removed(&status, noon()),
            "\
REMOVED FROM  VIP                  BACKEND   ADDRESS            SINCE  RESET IN  NEW CONNECTIONS      ACTIVE
apiserver     192.168.2.100:16443  master-4  192.168.2.14:6443  60s    9m        no                   3
-             192.168.2.100:16443  -         192.168.2.14:6443  60s    9m        until another is up  3
"
        );
    }

    #[test]
    fn a_tab_or_newline_breaks_nothing() {
        let mut status = sample();
        status.virtual_servers.truncate(1);
        status.virtual_servers[0].backends.truncate(1);
        status.virtual_servers[0].backends[0].last_check.as_mut().unwrap().text = "one\ttwo\nthree".into();
        let table = backends(&status, noon());
        assert_eq!(table.lines().count(), 2);
        assert!(table.contains("  one two three  "), "{table}");
    }

    #[test]
    fn ages_read_as_kubectls_do() {
        let table = [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (312, "5m12s"),
            (600, "10m"),
            (10_799, "179m"),
            (10_800, "3h"),
            (11_100, "3h5m"),
            (28_800, "8h"),
            (172_799, "47h"),
            (180_000, "2d2h"),
            (691_200, "8d"),
            (86_400 * 400, "400d"),
        ];
        for (seconds, expected) in table {
            assert_eq!(age(noon(), noon() - Duration::from_secs(seconds)), expected, "{seconds} s");
        }
        assert_eq!(age(noon(), noon() + Duration::from_secs(5)), "0s");
    }

    #[test]
    fn bytes_in_binary_units() {
        let table = [(0, "0B"), (1023, "1023B"), (1024, "1.0KiB"), (1_572_864, "1.5MiB"), (u64::MAX, "16.0EiB")];
        for (n, expected) in table {
            assert_eq!(bytes(n), expected);
        }
    }
}
