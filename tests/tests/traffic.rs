//! Real HTTPS connections through the VIP, with real XDP in driver mode: how many, how spread, and what a backend's end does to
//! them. Needs root.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use aya::maps::{Array, Map, MapData};
use futures_util::future::join_all;
use lb_common::{
    abi::{LAYOUT, names},
    address::{V4, V6},
    table::{Set, WAYS},
};
use lb_tests::{
    bench,
    client::{Failure, Load, Report, Stage, run},
    lab::Host,
    site::{DETECTION, Site, quick, serving},
    topology::{APISERVER_PORT, Topology},
    wait,
};
use lb_userspace::{
    admin::{Status, status::Mode},
    health::State,
};
use socket2::{Domain, Type};

const HOLDER: &str = "ha-lb-a";
/// Clients enough for shares to mean something.
const SOURCES: u32 = 400;

fn site(name: &str) -> Site {
    Site::up(Topology::C, name, HOLDER).unwrap()
}

/// Sources by the backend that answered them.
fn shares(report: &Report) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for name in report.by_source().into_values() {
        *shares.entry(name).or_default() += 1;
    }
    shares
}

/// A few of the sources that a backend answers.
fn some_of(report: &Report, backend: &str, count: usize) -> Vec<IpAddr> {
    let all = report.by_source();
    let theirs = all.iter().filter(|(_, name)| **name == backend);
    theirs.map(|(source, _)| *source).take(count).collect()
}

#[test]
fn no_request_is_lost() {
    let site = site("volume");
    let status = site.xvip.status().unwrap();
    assert!(status.interfaces.iter().all(|interface| interface.mode == Mode::Native), "{status:#?}");
    for (v6, one_by_one, at_once) in [(false, 10_000, 2000), (true, 1000, 500)] {
        let sources = site.sources(v6, SOURCES).unwrap();
        let mut client = site.client(v6).unwrap();
        // All handshakes at once are seconds of work for two cores, and the last one is done when all are.
        client.timeout = Duration::from_secs(60);
        for load in [Load::sequential(one_by_one), Load::concurrent(at_once)] {
            let wanted = load.requests;
            let load = Load { sources: sources.clone(), ..load };
            let start = Instant::now();
            let report = site.deployment.client_host().run(|| run(&client, load)).unwrap();
            println!("IPv6 {v6}, in {:.1?}: {report}", start.elapsed());
            assert_eq!(report.good(), wanted, "{report}");
        }
    }
    site.deployment.lab.assert_checksums_clean();
}

/// For connections that were lost in part.
const PATIENCE: Duration = Duration::from_secs(20);
/// As long as a test may take; `cargo xtask bench flood` takes longer.
const FLOOD: Duration = Duration::from_secs(4);

#[test]
fn a_flood_of_syns_costs_nobody_a_connection() {
    let report = bench::flood::flood(&bench::flood::Options { duration: FLOOD }).unwrap();
    println!("{report}");
    for line in report.0 {
        assert_eq!((line.established, line.lost), (200, 0), "{line:?}");
        assert!(line.came >= 50 && line.share() >= 0.95, "{line:?}");
        assert!(line.sent > 10_000 && line.met > line.sent / 4, "{line:?}");
        // What is let through is what the rate allows, and what seems to come again.
        assert!(line.admitted as f64 <= 10_000.0 * (line.seconds + 3.0) + line.met as f64 / 20.0, "{line:?}");
        // The pressure is seen, and it falls on the half-open alone.
        assert!(line.half_open > 1_000 && line.evicted_half_open > 0 && line.evicted_others == 0, "{line:?}");
    }
}

/// The halves of connections in a pinned table, found as the data path lays them out (`lb_common::table::Set`): sixteen tags, then from byte 128 on
/// the slots, each a tag and the key of an entry. `N` is the size of a set.
struct Table<const N: usize> {
    sets: Array<MapData, [u8; N]>,
}

impl<const N: usize> Table<N> {
    fn of(host: &Host, name: &str) -> Self {
        let path = host.bpffs().unwrap().join(format!("v{LAYOUT}")).join(name);
        let map = Map::Array(MapData::from_pin(path).unwrap());
        Self { sets: map.try_into().unwrap() }
    }

    /// How many entries have keys that look so: source and destination, addresses and then ports. They are forgotten if that is asked for.
    fn count(&mut self, forget: bool, wanted: impl Fn(&[u8]) -> bool) -> usize {
        let size = (N - 128) / WAYS;
        // Behind the tag; the families are told apart by the room there is.
        let key = if size == 80 { 4..16 } else { 4..40 };
        let mut found = 0;
        for number in 0..self.sets.len() {
            let mut set = self.sets.get(&number, 0).unwrap();
            let ours = |set: &[u8; N], way: usize| {
                let slot = &set[128 + way * size..][..size];
                set[4 * way..][..4] != [0; 4] && wanted(&slot[key.clone()])
            };
            let ways: Vec<usize> = (0..WAYS).filter(|way| ours(&set, *way)).collect();
            found += ways.len();
            if forget && !ways.is_empty() {
                for way in ways {
                    set[4 * way..][..4].fill(0);
                    set[128 + way * size..][..4].fill(0);
                }
                self.sets.set(number, set, 0).unwrap();
            }
        }
        found
    }
}

fn loses_halves<const N: usize>(site: &Site, v6: bool) {
    const STREAMS: usize = 20;
    let mut table = Table::<N>::of(site.host(HOLDER), if v6 { names::FLOWS6 } else { names::FLOWS4 });
    let sources = site.sources(v6, STREAMS as u32).unwrap();
    let ports = |key: &[u8]| [&key[key.len() - 4..][..2], &key[key.len() - 2..]].map(|port| [port[0], port[1]]);
    let (vip, backend) = (Topology::C.endpoint(v6).port().to_be_bytes(), APISERVER_PORT.to_be_bytes());
    let [of_client, of_backend] = [(1, vip), (0, backend)].map(|(at, port)| move |key: &[u8]| ports(key)[at] == port);
    let scene = || {
        let open = |table: &mut Table<N>, what: &str, wanted: &dyn Fn(&[u8]) -> bool| {
            wait::until(what, PATIENCE, || (table.count(false, wanted) >= STREAMS).then_some(()))
        };
        let begun =
            || site.apiservers.values().map(|apiserver| apiserver.log().matches("/echo").count()).sum::<usize>();
        let before = if v6 { STREAMS } else { 0 };
        wait::until("the streams to have begun", PATIENCE, || (begun() >= before + STREAMS).then_some(()))?;

        assert!(table.count(true, of_client) >= STREAMS);
        open(&mut table, "the client's halves to be there again", &of_client)?;
        // The client's half relies upon the other one until it looks up its way again.
        assert!(table.count(true, of_backend) >= STREAMS);
        let orphans = |status: &Status| status.counters.drops["orphan"] >= STREAMS as u64;
        site.xvip.wait_for("replies to be dropped", PATIENCE, orphans)?;
        assert!(table.count(false, of_backend) < STREAMS);
        site.host(HOLDER).ip(if v6 { "route add fd55::/64 dev eth0" } else { "route add 10.55.0.0/16 dev eth0" })?;
        open(&mut table, "the backend's halves to be there again", &of_backend)?;
        Ok(())
    };
    let ((), streams) = site.echo_during(v6, &sources, scene).unwrap();
    let streams: Vec<_> = streams.into_iter().map(Result::unwrap).collect();
    assert!(streams.iter().all(|stream| stream.failure.is_none() && stream.echoed > 1), "{streams:#?}");
}

#[test]
fn a_connection_survives_the_loss_of_either_half() {
    let small = |text: String| text.replace("[dataplane]\n", "[dataplane]\nmax_connections = 4096\n");
    let site = Site::up_with(Topology::C, "halves", HOLDER, small).unwrap();
    loses_halves::<{ size_of::<Set<V4>>() }>(&site, false);
    loses_halves::<{ size_of::<Set<V6>>() }>(&site, true);
    assert!(site.event("rebuilt").unwrap() >= 40);
}

#[test]
fn backends_see_the_vip_and_every_source_keeps_its_backend() {
    let site = site("nat");
    for v6 in [false, true] {
        let sources = site.sources(v6, SOURCES).unwrap();
        let first = site.map(v6, &sources).unwrap();
        assert_eq!(first.good(), sources.len(), "{first}");
        assert_eq!(site.map(v6, &sources).unwrap().by_source(), first.by_source());
        for (name, share) in shares(&first) {
            assert!((100..=167).contains(&share), "{name} has {share} of {SOURCES}");
        }
        let client = site.client(v6).unwrap();
        let from = SocketAddr::new(sources[0], 0);
        let answer = site.deployment.client_host().run(|| client.request(Some(from))).unwrap().unwrap();
        let peer = format!("\"peer\":\"{}", SocketAddr::new(client.target.ip(), 0)).replace(":0", ":");
        assert!(answer.body.contains(&peer), "{}", answer.body);
    }
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn clients_that_use_the_same_port_are_kept_apart() {
    let site = site("ports");
    for v6 in [false, true] {
        let sources = site.sources(v6, 150).unwrap();
        let client = site.client(v6).unwrap();
        // All are open before the first is used: towards their backends, all but a few need other ports.
        let all = || async {
            let open = sources.iter().map(|source| client.connect(Some(SocketAddr::new(*source, 40_000))));
            let open = join_all(open).await.into_iter().collect::<Result<Vec<_>, _>>()?;
            let answers = join_all(open.into_iter().map(|stream| client.request_over(stream))).await;
            answers.into_iter().collect::<Result<Vec<_>, _>>()
        };
        let answers = site.deployment.client_host().run(all).unwrap().unwrap();
        let peers: BTreeSet<String> =
            answers.into_iter().map(|answer| format!("{} {}", answer.backend, answer.body)).collect();
        assert_eq!(peers.len(), sources.len());
        let own = peers.iter().filter(|peer| peer.contains(":40000\"")).count();
        assert_eq!(own, 3, "one of each backend keeps the client's port: {peers:#?}");
    }
    site.deployment.lab.assert_checksums_clean();
}

/// As `traceroute -T` asks: a SYN with a hop more each time.
#[test]
fn a_client_hears_where_its_hops_end() {
    let site = site("hops");
    for v6 in [false, true] {
        let target = Topology::C.endpoint(v6);
        let connect = |hops: u32| {
            let kind = (Domain::for_address(target), Type::STREAM);
            let socket = site.deployment.client_host().socket(kind.0, kind.1, None).unwrap();
            if v6 { socket.set_unicast_hops_v6(hops) } else { socket.set_ttl_v4(hops) }.unwrap();
            socket.connect_timeout(&target.into(), Duration::from_secs(10))
        };
        let told = connect(1).unwrap_err();
        assert_eq!(told.raw_os_error(), Some(libc::EHOSTUNREACH), "{told}");
        connect(2).unwrap();
    }
    // The daemon reads the counters every now and then.
    let is_counted = |status: &Status| status.counters.drops.get("expired") >= Some(&2);
    site.xvip.wait_for("both to be counted", Duration::from_secs(15), is_counted).unwrap();
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn weights_are_honoured() {
    let site = Site::up_with(Topology::C, "weights", HOLDER, |configuration| {
        let weigh = |text: String, backend: &str, weight: u16| {
            let (before, after) =
                (format!("{backend}\nport = 6443\nweight = 1"), format!("{backend}\nport = 6443\nweight = {weight}"));
            assert!(text.contains(&before));
            text.replace(&before, &after)
        };
        weigh(weigh(configuration, "192.168.2.11\"", 3), "192.168.2.13\"", 0)
    })
    .unwrap();
    let sources = site.sources(false, SOURCES).unwrap();
    let report = site.map(false, &sources).unwrap();
    let shares = shares(&report);
    // 300 and 100 expected, with a standard deviation of 9.
    assert!((265..=335).contains(&shares["master-1"]), "{shares:?}");
    assert_eq!(shares["master-1"] + shares["master-2"], SOURCES as usize, "{shares:?}");
}

/// Open connections that decide who gets the next one, by backend of the first virtual server.
fn counted(site: &Site) -> Vec<Option<u64>> {
    let status = site.xvip.status().unwrap();
    status.virtual_servers[0].backends.iter().map(|backend| backend.counted_connections).collect()
}

/// One client, which is one source: what spreads its connections is the policy.
#[test]
fn each_policy_spreads_as_it_says() {
    let text = |site: &Site, balance: &str| {
        let text = quick(&site.deployment.xvip_config(HOLDER).unwrap());
        serving(&text, &format!("balance = \"{balance}\""))
    };
    let site = site("policies");
    let many = |v6: bool| -> Vec<usize> {
        let report = site.load(v6, Load::sequential(60)).unwrap();
        assert_eq!(report.good(), 60, "{report}\n{}", site.xvip.log());
        report.backends().into_values().collect()
    };
    assert_eq!([many(false), many(true)], [[60], [60]], "by the address alone");
    site.xvip.reload(&text(&site, "round-robin")).unwrap();
    assert_eq!([many(false), many(true)], [[20; 3]; 2]);
    site.xvip.reload(&text(&site, "flow-hash")).unwrap();
    for shares in [many(false), many(true)] {
        // 20 each, with a standard deviation of 4.
        assert!(shares.len() == 3 && shares.iter().all(|share| (5..36).contains(share)), "{shares:?}");
    }
    assert_eq!(counted(&site), [None; 3]);

    site.xvip.reload(&text(&site, "least-connections")).unwrap();
    let own = site.deployment.node(lb_tests::topology::CLIENT).unwrap().addresses()[0];
    let all_are = |expected: [u64; 3]| {
        let what = format!("{expected:?} to be counted");
        wait::until(&what, Duration::from_secs(15), || (counted(&site) == expected.map(Some)).then_some(()))
            .unwrap_or_else(|late| panic!("{late}: {:?}", counted(&site)));
    };
    let ((), streams) = site
        .echo_during(false, &[own; 12], || {
            all_are([4; 3]);
            let ordered = site.xvip.command(&["backends", "weight", "2", "master-1"])?;
            assert!(ordered.status.success(), "{ordered:?}");
            let ((), more) = site.echo_during(false, &[own; 12], || {
                all_are([12, 6, 6]);
                Ok(())
            })?;
            assert!(more.iter().all(|stream| stream.as_ref().is_ok_and(|stream| stream.failure.is_none())), "{more:?}");
            all_are([4; 3]);
            let table = site.xvip.command(&["status"])?;
            let table = String::from_utf8_lossy(&table.stdout).into_owned();
            assert!(table.contains("least-connections") && table.contains("COUNTED"), "{table}");
            Ok(())
        })
        .unwrap();
    assert!(streams.iter().all(|stream| stream.as_ref().is_ok_and(|stream| stream.failure.is_none())), "{streams:?}");
    all_are([0; 3]);
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn a_killed_backend_takes_only_its_own_clients_with_it_and_gets_them_back() {
    for v6 in [false, true] {
        let site = site("killed");
        let sources = site.sources(v6, SOURCES).unwrap();
        let before = site.map(v6, &sources).unwrap();
        assert_eq!(before.good(), sources.len(), "{before}");
        let others = [some_of(&before, "master-1", 3), some_of(&before, "master-3", 3)].concat();

        let scene = || {
            let load =
                Load { rate: Some(150.0), sources: sources.clone(), concurrency: 50, ..Load::sequential(100_000) };
            let (killed, under_way) = site.load_during(v6, load, || {
                let killed = Instant::now();
                site.apiserver("master-2")?.kill();
                site.wait_for_state("master-2", State::Down)?;
                // Until after the moment from which nothing may fail any more.
                wait::until("requests after detection", DETECTION * 2, || {
                    (killed.elapsed() > DETECTION + Duration::from_secs(1)).then_some(())
                })?;
                Ok(killed)
            })?;
            let after = site.map(v6, &sources)?;
            let back = site.deployment.start_apiserver("master-2")?;
            site.wait_for_state("master-2", State::Up)?;
            Ok((killed, under_way, after, site.map(v6, &sources)?, back))
        };
        let ((killed, under_way, after, again, _back), streams) = site.echo_during(v6, &others, scene).unwrap();

        assert!(under_way.good() > 300, "{under_way}");
        let last = under_way.latest_failure().map(|last| last.duration_since(killed));
        println!("IPv6 {v6}: last failure {last:?} after the kill, at most {DETECTION:?} allowed; {under_way}");
        // Who was in the middle of something may fail; who is refused is taken to another backend.
        assert!(last.is_none_or(|last| last <= DETECTION), "{last:?}: {under_way}");
        assert_eq!(under_way.failures().get(&Failure::Refused(Stage::Connect)), None, "{under_way}");
        assert!(site.event("retried").unwrap() > 0);

        let (mapped, moved) = (before.by_source(), after.by_source());
        let changed = sources.iter().filter(|source| mapped[*source] != moved[*source]).count();
        let share = shares(&before)["master-2"];
        println!("{changed} sources moved, the dead backend had {share}");
        assert_eq!(after.good(), sources.len(), "{after}");
        assert!(changed >= share && changed * 10 <= share * 11, "{changed} moved, {share} were the dead backend's");
        assert_eq!(again.by_source(), mapped, "sources return");

        for (stream, source) in streams.iter().zip(&others) {
            let stream = stream.as_ref().unwrap();
            assert_eq!((stream.failure.as_ref(), stream.backend.as_str()), (None, mapped[source]), "{stream:?}");
            assert!(stream.echoed > 50 && stream.longest < Duration::from_secs(1), "{stream:?}");
        }
        site.deployment.lab.assert_checksums_clean();
    }
}

#[test]
fn a_draining_backend_keeps_its_streams_and_gets_no_new_ones() {
    let site = site("draining");
    let sources = site.sources(false, 60).unwrap();
    let before = site.map(false, &sources).unwrap();
    let theirs = some_of(&before, "master-2", 5);
    let (after, streams) = site
        .echo_during(false, &theirs, || {
            wait::until("streams on master-2", Duration::from_secs(5), || {
                (site.apiserver("master-2").ok()?.log().matches("/echo").count() >= theirs.len()).then_some(())
            })?;
            site.apiserver("master-2")?.set_ready(false)?;
            site.wait_for_state("master-2", State::Draining)?;
            site.map(false, &sources)
        })
        .unwrap();
    assert_eq!(after.good(), sources.len(), "{after}");
    assert!(!after.backends().contains_key("master-2"), "{after}");
    for stream in streams {
        let stream = stream.unwrap();
        assert_eq!((stream.failure.as_ref(), stream.backend.as_str()), (None, "master-2"), "{stream:?}");
    }
}

#[test]
fn a_connection_to_a_vanished_backend_is_reset_at_its_next_packet() {
    let site = site("vanished");
    for v6 in [false, true] {
        let sources = site.sources(v6, 30).unwrap();
        let before = site.map(v6, &sources).unwrap();
        let source = SocketAddr::new(some_of(&before, "master-2", 1)[0], 0);
        let target = Topology::C.endpoint(v6);
        let kind = (Domain::for_address(target), Type::STREAM);
        let mut socket = site.deployment.client_host().socket(kind.0, kind.1, None).unwrap();
        let limit = Duration::from_secs(3);
        socket.bind(&source.into()).unwrap();
        socket.connect_timeout(&target.into(), limit).unwrap();
        socket.set_read_timeout(Some(limit)).unwrap();

        // Nobody is left who could refuse: only the load balancer can tell the client, which may be told before it asks.
        site.host("master-2").unplug().unwrap();
        site.wait_for_state("master-2", State::Down).unwrap();
        let start = Instant::now();
        let error = socket.write_all(b"anybody there?").and_then(|()| socket.read(&mut [0; 1])).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
        site.host("master-2").plug().unwrap();
        site.wait_for_state("master-2", State::Up).unwrap();
    }
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn with_every_backend_down_clients_are_refused_at_once() {
    let site = site("refused");
    for apiserver in site.apiservers.values() {
        apiserver.kill();
    }
    site.wait_for_states(State::Down).unwrap();
    for v6 in [false, true] {
        let report = site.load(v6, Load::sequential(20)).unwrap();
        let failures = report.failures();
        assert_eq!(failures.get(&Failure::Refused(Stage::Connect)), Some(&20), "{report}");
        let slowest = report.outcomes.iter().map(|outcome| outcome.latency).max().unwrap();
        assert!(slowest < Duration::from_millis(200), "{slowest:?}");
    }
    // They refuse by themselves now, and no client waits for another one to be better.
    let open = serving(&quick(&site.deployment.xvip_config(HOLDER).unwrap()), "all_down = \"open\"");
    site.xvip.reload(&open).unwrap();
    assert!(site.xvip.status().unwrap().virtual_servers.iter().all(|server| server.open));
    for v6 in [false, true] {
        let report = site.load(v6, Load::sequential(10)).unwrap();
        assert_eq!(report.failures().get(&Failure::Refused(Stage::Connect)), Some(&10), "{report}");
        let quickest = report.outcomes.iter().map(|outcome| outcome.latency).min().unwrap();
        assert!(quickest < Duration::from_millis(200), "{quickest:?}, and a client repeats its SYN after a second");
    }
    let event = |status: &Status, name: &str| status.counters.events[name];
    let sent_on = |status: &Status| event(status, "connected") > 0;
    let status = site.xvip.wait_for("a connection to be sent on", Duration::from_secs(5), sent_on).unwrap();
    assert_eq!(event(&status, "no_backend"), 40, "before, of both families");
    site.deployment.lab.assert_checksums_clean();
}
