//! The status as OpenMetrics text, made anew for each scrape.

mod sync;
mod vrrp;

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::UNIX_EPOCH};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeLabelSet, NoLabelSet, text},
    metrics::MetricType,
    registry::{Registry, Unit},
};

use super::status::{Backend, Connections, Status, VirtualServer, state_name};
use crate::health::State;

/// What a scraper must be told to read exponents, units and the end mark as OpenMetrics means them.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The whole exposition, up to `# EOF`.
pub fn render(status: &Status) -> String {
    let mut registry = Registry::with_prefix("xvip");
    registry.register_collector(Box::new(Snapshot(status.clone())));
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = text::encode(&mut out, &registry);
    out
}

#[derive(Debug)]
struct Snapshot(Status);

impl Collector for Snapshot {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let encoder = &mut Families(&mut encoder);
        let status = &self.0;
        encoder.info("build", "Version of the daemon", [("version", status.version.as_str())])?;
        let since_epoch = status.started.duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = since_epoch.as_secs_f64();
        encoder.gauge("start_time", "When the daemon started, since the epoch", Some(Unit::Seconds), started)?;

        configuration(status, encoder)?;
        let servers = || status.virtual_servers.iter();
        let held = servers().map(|s| {
            let vip = s.address.to_string();
            ([("virtual_server", s.name.clone()), ("vip", vip), ("interface", s.interface.clone())], u32::from(s.held))
        });
        encoder.gauges("vip_held", "Whether the VIP is on its interface", None, held)?;
        let balance = servers().map(|s| ([("virtual_server", s.name.clone()), ("balance", s.balance.clone())], 1_u32));
        encoder.gauges(
            "virtual_server_balance",
            "1 for what decides which backend a connection gets",
            None,
            balance,
        )?;
        let open = servers().map(|s| ([("virtual_server", s.name.clone())], u32::from(s.open)));
        let help = "Whether every backend is down and they get new connections all the same";
        encoder.gauges("virtual_server_open", help, None, open)?;
        backends(status, encoder)?;
        vrrp::families(&status.vrrp, encoder)?;
        if let Some(sync) = &status.sync {
            sync::families(sync, encoder)?;
        }

        let by = |label: &'static str, map: &BTreeMap<String, u64>| {
            map.iter().map(|(name, n)| ([(label, name.clone())], *n)).collect::<Vec<_>>()
        };
        let counters = &status.counters;
        encoder.counters("packets", "Packets seen by the data plane", None, by("verdict", &counters.verdicts))?;
        encoder.counters("drops", "Packets dropped by the data plane", None, by("reason", &counters.drops))?;
        encoder.counters("events", "Events counted by the data plane", None, by("event", &counters.events))?;
        let Connections { tracked, capacity, reset, table } = status.connections;
        encoder.gauge("tracked_connections", "Connections tracked now", None, tracked)?;
        encoder.gauge("tracked_connections_limit", "Connections that can be tracked at once", None, capacity)?;
        encoder.counter("resets", "Connections reset without waiting for a packet of the client", reset)?;
        encoder.gauge("table_entries", "Entries of connections; each has two", None, table.entries)?;
        encoder.gauge("table_entries_limit", "Entries that there are slots for", None, table.room)?;
        encoder.gauge(
            "table_half_open",
            "Entries of connections whose handshake is not complete",
            None,
            table.half_open,
        )?;
        encoder.gauge("table_full_sets", "Sets of slots in which none is free", None, table.full_sets)
    }
}

/// Under the names that Prometheus and Alertmanager have for theirs.
fn configuration(status: &Status, encoder: &mut Families<'_, '_>) -> fmt::Result {
    let configuration = &status.configuration;
    let failed = configuration.last_reload.as_ref().is_some_and(|reload| reload.error.is_some());
    let help = "Whether the latest reload of the configuration was successful; 1 where there was none";
    encoder.gauge("config_last_reload_successful", help, None, u32::from(!failed))?;
    let loaded = configuration.loaded.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    let help = "When the configuration that holds was loaded, since the epoch";
    encoder.gauge("config_last_reload_success_timestamp", help, Some(Unit::Seconds), loaded)?;
    let removed = status.removed.iter().map(|removed| {
        let name = |name: &Option<String>, address: SocketAddr| name.clone().unwrap_or_else(|| address.to_string());
        let (server, backend) = (name(&removed.virtual_server, removed.vip), name(&removed.name, removed.address));
        ([("virtual_server", server), ("backend", backend)], removed.active_connections)
    });
    let help = "Connections that a backend still has which is in the configuration no more";
    encoder.gauges("removed_backend_connections", help, None, removed)
}

fn backends(status: &Status, encoder: &mut Families<'_, '_>) -> fmt::Result {
    let all: Vec<(&VirtualServer, &Backend)> =
        status.virtual_servers.iter().flat_map(|s| s.backends.iter().map(move |b| (s, b))).collect();
    let labels = |s: &VirtualServer, b: &Backend| [("virtual_server", s.name.clone()), ("backend", b.name.clone())];

    let up = all.iter().map(|(s, b)| (labels(s, b), u32::from(b.state == State::Up)));
    encoder.gauges("backend_up", "Whether the backend takes new connections", None, up)?;
    let states = all.iter().flat_map(|(s, b)| {
        [State::Up, State::Draining, State::Down].map(|state| {
            let [server, backend] = labels(s, b);
            ([server, backend, ("state", state_name(state).to_owned())], u32::from(b.state == state))
        })
    });
    encoder.gauges("backend_state", "1 for the state the backend is in, 0 for the others", None, states)?;
    let weight = all.iter().map(|(s, b)| (labels(s, b), u32::from(b.weight)));
    encoder.gauges("backend_weight", "Weight by which connections are shared out", None, weight)?;
    let duration = all.iter().filter_map(|(s, b)| Some((labels(s, b), b.last_check.as_ref()?.latency.as_secs_f64())));
    encoder.gauges("backend_check_duration", "How long the last check took", Some(Unit::Seconds), duration)?;
    let active = all.iter().filter_map(|(s, b)| Some((labels(s, b), b.active_connections?)));
    encoder.gauges("backend_active_connections", "Connections open now", None, active)?;
    let own = all.iter().filter_map(|(s, b)| Some((labels(s, b), b.local_connections?)));
    encoder.gauges("backend_local_connections", "Connections that this node's processes have open now", None, own)?;

    let counted = all.iter().filter_map(|(s, b)| Some((labels(s, b), b.counted_connections?)));
    let help = "Open connections as counted to find the backend with the fewest";
    encoder.gauges("backend_counted_connections", help, None, counted)?;
    let backup = all.iter().map(|(s, b)| (labels(s, b), u32::from(b.backup)));
    encoder.gauges("backend_backup", "Whether it gets connections only while no other backend does", None, backup)?;
    let share = all.iter().map(|(s, b)| (labels(s, b), f64::from(b.share.unwrap_or(100)) / 100.0));
    encoder.gauges(
        "backend_share",
        "How much of its share it has; below 1 while it comes back",
        Some(Unit::Other("ratio".to_owned())),
        share,
    )?;

    let mut count = |name, help, unit, value: fn(&Backend) -> u64| {
        encoder.counters(name, help, unit, all.iter().map(|(s, b)| (labels(s, b), value(b))))
    };
    count("backend_checks", "Checks made", None, |b| b.checks)?;
    count("backend_check_failures", "Checks failed", None, |b| b.check_failures)?;
    count("backend_connections", "Connections sent to the backend", None, |b| b.connections)?;
    count("backend_packets", "Packets of its connections", None, |b| b.packets)?;
    count("backend", "Bytes of its connections", Some(Unit::Bytes), |b| b.bytes)
}

/// Writes whole metric families: a descriptor and a sample for each set of labels; nothing for a family without samples.
struct Families<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Families<'_, '_> {
    fn info(&mut self, name: &str, help: &str, labels: impl EncodeLabelSet) -> fmt::Result {
        self.0.encode_descriptor(name, help, None, MetricType::Info)?.encode_info(&labels)
    }

    fn gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: impl EncodeGaugeValue) -> fmt::Result {
        self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?.encode_gauge(&value)
    }

    fn gauges<L: EncodeLabelSet, V: EncodeGaugeValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Gauge)?;
        samples.try_for_each(|(labels, value)| family.encode_family(&labels)?.encode_gauge(&value))
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        family.encode_counter::<NoLabelSet, _, u64>(&value, None)
    }

    fn counters<L: EncodeLabelSet, V: EncodeCounterValue>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (L, V)>,
    ) -> fmt::Result {
        let mut samples = samples.into_iter().peekable();
        if samples.peek().is_none() {
            return Ok(());
        }
        let mut family = self.0.encode_descriptor(name, help, unit.as_ref(), MetricType::Counter)?;
        samples.try_for_each(|(labels, value)| {
            family.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::{super::status::tests::sample, *};

    const EXPOSITION: &str = r#"# HELP xvip_build Version of the daemon
# TYPE xvip_build info
xvip_build_info{version="0.1.0"} 1
# HELP xvip_start_time_seconds When the daemon started, since the epoch
# TYPE xvip_start_time_seconds gauge
# UNIT xvip_start_time_seconds seconds
xvip_start_time_seconds 1763726088.0
# HELP xvip_config_last_reload_successful Whether the latest reload of the configuration was successful; 1 where there was none
# TYPE xvip_config_last_reload_successful gauge
xvip_config_last_reload_successful 1
# HELP xvip_config_last_reload_success_timestamp_seconds When the configuration that holds was loaded, since the epoch
# TYPE xvip_config_last_reload_success_timestamp_seconds gauge
# UNIT xvip_config_last_reload_success_timestamp_seconds seconds
xvip_config_last_reload_success_timestamp_seconds 1763726088.0
# HELP xvip_vip_held Whether the VIP is on its interface
# TYPE xvip_vip_held gauge
xvip_vip_held{virtual_server="apiserver",vip="192.168.2.100",interface="eth0"} 1
# HELP xvip_virtual_server_balance 1 for what decides which backend a connection gets
# TYPE xvip_virtual_server_balance gauge
xvip_virtual_server_balance{virtual_server="apiserver",balance="source-hash"} 1
# HELP xvip_virtual_server_open Whether every backend is down and they get new connections all the same
# TYPE xvip_virtual_server_open gauge
xvip_virtual_server_open{virtual_server="apiserver"} 0
# HELP xvip_backend_up Whether the backend takes new connections
# TYPE xvip_backend_up gauge
xvip_backend_up{virtual_server="apiserver",backend="master-3"} 0
# HELP xvip_backend_state 1 for the state the backend is in, 0 for the others
# TYPE xvip_backend_state gauge
xvip_backend_state{virtual_server="apiserver",backend="master-3",state="up"} 0
xvip_backend_state{virtual_server="apiserver",backend="master-3",state="draining"} 0
xvip_backend_state{virtual_server="apiserver",backend="master-3",state="down"} 1
# HELP xvip_backend_weight Weight by which connections are shared out
# TYPE xvip_backend_weight gauge
xvip_backend_weight{virtual_server="apiserver",backend="master-3"} 1
# HELP xvip_backend_check_duration_seconds How long the last check took
# TYPE xvip_backend_check_duration_seconds gauge
# UNIT xvip_backend_check_duration_seconds seconds
xvip_backend_check_duration_seconds{virtual_server="apiserver",backend="master-3"} 0.000412
# HELP xvip_backend_active_connections Connections open now
# TYPE xvip_backend_active_connections gauge
xvip_backend_active_connections{virtual_server="apiserver",backend="master-3"} 0
# HELP xvip_backend_local_connections Connections that this node's processes have open now
# TYPE xvip_backend_local_connections gauge
xvip_backend_local_connections{virtual_server="apiserver",backend="master-3"} 2
# HELP xvip_backend_counted_connections Open connections as counted to find the backend with the fewest
# TYPE xvip_backend_counted_connections gauge
xvip_backend_counted_connections{virtual_server="apiserver",backend="master-3"} 3
# HELP xvip_backend_backup Whether it gets connections only while no other backend does
# TYPE xvip_backend_backup gauge
xvip_backend_backup{virtual_server="apiserver",backend="master-3"} 0
# HELP xvip_backend_share_ratio How much of its share it has; below 1 while it comes back
# TYPE xvip_backend_share_ratio gauge
# UNIT xvip_backend_share_ratio ratio
xvip_backend_share_ratio{virtual_server="apiserver",backend="master-3"} 0.5
# HELP xvip_backend_checks Checks made
# TYPE xvip_backend_checks counter
xvip_backend_checks_total{virtual_server="apiserver",backend="master-3"} 157
# HELP xvip_backend_check_failures Checks failed
# TYPE xvip_backend_check_failures counter
xvip_backend_check_failures_total{virtual_server="apiserver",backend="master-3"} 2
# HELP xvip_backend_connections Connections sent to the backend
# TYPE xvip_backend_connections counter
xvip_backend_connections_total{virtual_server="apiserver",backend="master-3"} 1034
# HELP xvip_backend_packets Packets of its connections
# TYPE xvip_backend_packets counter
xvip_backend_packets_total{virtual_server="apiserver",backend="master-3"} 20480
# HELP xvip_backend_bytes Bytes of its connections
# TYPE xvip_backend_bytes counter
# UNIT xvip_backend_bytes bytes
xvip_backend_bytes_total{virtual_server="apiserver",backend="master-3"} 10485760
# HELP xvip_packets Packets seen by the data plane
# TYPE xvip_packets counter
xvip_packets_total{verdict="pass"} 900
xvip_packets_total{verdict="redirect"} 7
xvip_packets_total{verdict="tx"} 41000
# HELP xvip_drops Packets dropped by the data plane
# TYPE xvip_drops counter
xvip_drops_total{reason="checksum"} 1
# HELP xvip_events Events counted by the data plane
# TYPE xvip_events counter
xvip_events_total{event="neighbour_unresolved"} 3
# HELP xvip_tracked_connections Connections tracked now
# TYPE xvip_tracked_connections gauge
xvip_tracked_connections 24
# HELP xvip_tracked_connections_limit Connections that can be tracked at once
# TYPE xvip_tracked_connections_limit gauge
xvip_tracked_connections_limit 131072
# HELP xvip_resets Connections reset without waiting for a packet of the client
# TYPE xvip_resets counter
xvip_resets_total 5
# HELP xvip_table_entries Entries of connections; each has two
# TYPE xvip_table_entries gauge
xvip_table_entries 50
# HELP xvip_table_entries_limit Entries that there are slots for
# TYPE xvip_table_entries_limit gauge
xvip_table_entries_limit 349536
# HELP xvip_table_half_open Entries of connections whose handshake is not complete
# TYPE xvip_table_half_open gauge
xvip_table_half_open 2
# HELP xvip_table_full_sets Sets of slots in which none is free
# TYPE xvip_table_full_sets gauge
xvip_table_full_sets 1
# EOF
"#;

    #[test]
    fn the_whole_exposition() {
        let mut status = sample();
        status.virtual_servers.truncate(1);
        status.virtual_servers[0].backends.drain(..2);
        let backend = &mut status.virtual_servers[0].backends[0];
        (backend.active_connections, backend.counted_connections, backend.share) = (Some(0), Some(3), Some(50));
        assert_eq!(render(&status), EXPOSITION);
    }

    /// What the OpenMetrics grammar asks of every line, for any status.
    pub(super) fn assert_strict(text: &str) {
        let body = text.strip_suffix("# EOF\n").expect("the end mark");
        let is_name = |name: &str| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
        };
        let (mut family, mut kind, mut seen) = (String::new(), String::new(), Vec::new());
        for line in body.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let [keyword, name, rest] = rest.splitn(3, ' ').collect::<Vec<_>>()[..] else { panic!("{line}") };
                match keyword {
                    "HELP" => {
                        family = name.to_owned();
                        assert!(is_name(name) && name.starts_with("xvip_"), "{line}");
                        assert!(!seen.contains(&family), "{family} twice");
                        seen.push(family.clone());
                    }
                    "TYPE" => kind = rest.to_owned(),
                    "UNIT" => assert!(family.ends_with(&format!("_{rest}")), "{line}"),
                    _ => panic!("{line}"),
                }
                assert_eq!(name, family, "{line}");
                continue;
            }
            let (series, value) = line.rsplit_once(' ').expect(line);
            value.parse::<f64>().expect(line);
            let name = series.split('{').next().unwrap();
            let suffix = match &*kind {
                "counter" => "_total",
                "info" => "_info",
                "gauge" => "",
                other => panic!("{other}"),
            };
            assert_eq!(name, format!("{family}{suffix}"), "{line}");
            if let Some(labels) = series.strip_prefix(name).filter(|labels| !labels.is_empty()) {
                // Quotes that are not escaped open and close values.
                let inner = labels.strip_prefix('{').and_then(|l| l.strip_suffix('}')).expect(line);
                let quotes = inner.replace("\\\\", "").replace("\\\"", "").matches('"').count();
                let pairs = inner.matches("=\"").count();
                assert!(pairs > 0 && quotes == 2 * pairs, "{line}");
            }
        }
        assert!(seen.len() > 10, "{seen:?}");
    }

    #[test]
    fn names_with_quotes_and_newlines_are_escaped() {
        let mut status = sample();
        assert_strict(&render(&status));
        status.virtual_servers[0].name = "a\"b\\c\nd".into();
        let text = render(&status);
        assert_strict(&text);
        assert!(text.contains(r#"{virtual_server="a\"b\\c\nd",backend="master-1"} 1"#), "{text}");
    }

    #[test]
    fn a_family_without_samples_is_left_out() {
        let mut status = sample();
        status.virtual_servers.clear();
        let text = render(&status);
        assert!(!text.contains("backend") && text.contains("xvip_build_info"), "{text}");
    }
}
