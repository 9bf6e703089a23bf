//! Another configuration for a daemon at work: followed without a lost connection, or refused and nothing changed. Needs root.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    process::Output,
    time::{Duration, SystemTime},
};

use lb_tests::{
    client::{EchoReport, Failure, Load},
    lab::Cgroup,
    site::{Site, quick},
    topology::Topology,
    wait,
    xvip::{Xvip, backends},
};
use lb_userspace::{
    admin::status::{Removed, Status},
    health::State,
};
use nix::sys::signal::Signal;

const NODE: &str = "ha-lb-a";
/// Two sweeps find out that nobody uses a backend any more; beside that, load on the machine.
const LIMIT: Duration = Duration::from_secs(30);

fn configuration(site: &Site) -> String {
    quick(&site.deployment.xvip_config(NODE).unwrap())
}

/// The configuration without some backends, in every virtual server.
fn without(text: &str, names: &[&str]) -> String {
    let is_one = |part: &&str| names.iter().any(|name| part.starts_with(&backend_of(name)));
    text.split("\n\n").filter(|part| !is_one(part)).collect::<Vec<_>>().join("\n\n") + "\n"
}

fn backend_of(name: &str) -> String {
    format!("[[virtual_server.backend]]\nname = \"{name}\"")
}

/// What was closed is forgotten soon.
fn forgetful(text: &str) -> String {
    text.replace("[dataplane]", "[dataplane]\ntimeouts.closing = \"1s\"")
}

/// With a drain time in every virtual server.
fn draining(text: &str, time: &str) -> String {
    text.replace("port = 16443\n", &format!("port = 16443\ndrain = \"{time}\"\n"))
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn assert_whole(streams: &[Result<EchoReport, Failure>], xvip: &Xvip) {
    for stream in streams {
        let stream = stream.as_ref().unwrap();
        assert!(stream.failure.is_none() && stream.echoed > 3, "{stream:?}\n{}", xvip.log());
    }
}

/// Names of backends that drain, with their connections.
fn drained(status: &Status) -> BTreeMap<&str, u64> {
    let mut all = BTreeMap::new();
    for Removed { name, active_connections, .. } in &status.removed {
        *all.entry(name.as_deref().unwrap_or("-")).or_default() += active_connections;
    }
    all
}

/// Has the daemon follow its file by SIGHUP.
fn hang_up(xvip: &Xvip, text: &str) -> Status {
    let at = |status: &Status| status.configuration.last_reload.as_ref().map(|reload| reload.at);
    let before = at(&xvip.status().unwrap());
    xvip.rewrite(text).unwrap();
    xvip.process().signal(Signal::SIGHUP).unwrap();
    xvip.wait_for("SIGHUP to be followed", LIMIT, |status| at(status) != before).unwrap()
}

#[test]
fn twenty_reloads_lose_no_stream_and_no_request() {
    let site = Site::up(Topology::C, "reloads", NODE).unwrap();
    let base = configuration(&site);
    let named = base.replace("name = \"master-1\"", "name = \"first\"").replace("kube-apiserver-16443", "renamed");
    let slower =
        base.replace("interval = \"500ms\"", "interval = \"400ms\"").replace("type = \"https\"", "type = \"tcp\"");
    let slower = slower.lines().filter(|line| !line.starts_with("verify") && !line.starts_with("ca_file"));
    let weighted = base.replacen("weight = 1\n", "weight = 7\n", 2);
    let variants = [
        without(&base, &["master-3"]),
        weighted,
        without(&base, &["master-1", "master-2"]),
        named,
        slower.collect::<Vec<_>>().join("\n"),
        without(&base, &["master-1"]),
        base.clone(),
    ];
    let reloads = || {
        for (round, text) in variants.iter().cycle().take(20).enumerate() {
            match round % 2 {
                0 => site.xvip.reload(text)?,
                _ => assert_eq!(hang_up(&site.xvip, text).configuration.last_reload.unwrap().error, None),
            }
            // What it is good for: the next round begins with this one's backends at work.
            let report = site.load(true, Load::sequential(5))?;
            assert_eq!(report.good(), 5, "round {round}: {report}\n{}", site.xvip.log());
        }
        anyhow::Ok(())
    };
    let sources = site.sources(false, 50).unwrap();
    let load =
        Load { requests: 100_000, concurrency: 8, rate: Some(40.0), sources: sources.clone(), ..Load::default() };
    let requests = || site.load_during(false, load, reloads);
    let ((_, report), four) = site.echo_during(false, &sources, requests).unwrap();
    assert_whole(&four, &site.xvip);
    let served: BTreeSet<_> = four.iter().flatten().map(|stream| stream.backend.as_str()).collect();
    assert_eq!(served.len(), 3, "every backend had streams: {served:?}");
    assert!(report.good() > 40 && report.failures().is_empty(), "{report}\n{}", site.xvip.log());
    assert_eq!(report.backends().len(), 3, "{report}");
    assert_eq!(site.event("rebuilt").unwrap(), 0);
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn a_removed_backend_drains_and_one_that_is_added_gets_its_share() {
    let site = Site::up_with(Topology::C, "drains", NODE, |text| forgetful(&text)).unwrap();
    let base = forgetful(&configuration(&site));
    let (streaming, fresh) = (site.sources(false, 20).unwrap(), site.sources(false, 60).unwrap());
    let left = without(&base, &["master-1"]);
    let (_, streams) = site
        .echo_during(false, &streaming, || {
            let on = |status: &Status| {
                let all = backends(status, "master-1");
                all.iter().filter_map(|backend| backend.active_connections).sum::<u64>()
            };
            let before = site.xvip.wait_for("streams to be counted", LIMIT, |status| on(status) > 0)?;
            site.xvip.reload(&left)?;
            let report = site.map(false, &fresh[20..])?;
            assert_eq!(report.good(), 40, "{report}");
            assert!(!report.backends().contains_key("master-1"), "no new ones: {report}");
            let status = site.xvip.wait_for("them to be counted there", LIMIT, |status| {
                drained(status).get("master-1").is_some_and(|count| *count > 0)
            })?;
            assert!(on(&before) >= drained(&status)["master-1"], "{status:#?}");
            let shown = said(&site.xvip.command(&["status"])?);
            assert!(shown.contains("REMOVED FROM") && shown.contains("master-1"), "{shown}");
            Ok(())
        })
        .unwrap();
    assert_whole(&streams, &site.xvip);
    assert!(streams.iter().flatten().any(|stream| stream.backend == "master-1"), "{streams:?}");
    site.xvip.wait_for("nothing to drain", LIMIT, |status| status.removed.is_empty()).unwrap();

    site.xvip.reload(&base).unwrap();
    site.wait_for_states(State::Up).unwrap();
    let report = site.map(false, &fresh).unwrap();
    assert_eq!((report.good(), report.backends().len()), (60, 3), "{report}");
}

#[test]
fn a_backend_stands_in_for_its_successors_until_one_is_up() {
    let site = Site::up_with(Topology::C, "succeeds", NODE, |text| without(&text, &["master-2", "master-3"])).unwrap();
    let base = configuration(&site);
    let only = without(&base, &["master-1", "master-3"]);
    // Nobody answers the checks of master-2 until it is plugged in again.
    site.host("master-2").unplug().unwrap();
    let load = Load { requests: 100_000, concurrency: 4, rate: Some(20.0), ..Load::default() };
    let (_, report) = site
        .load_during(false, load, || {
            site.xvip.reload(&only)?;
            let failed =
                |status: &Status| backends(status, "master-2").iter().all(|backend| backend.check_failures > 1);
            let status = site.xvip.wait_for("checks of master-2 to fail", LIMIT, failed)?;
            assert!(status.removed.iter().all(|removed| removed.stands_in), "{status:#?}");
            let report = site.load(false, Load::sequential(5))?;
            assert_eq!(report.backends(), BTreeMap::from([("master-1", 5)]));
            site.host("master-2").plug()?;
            site.wait_for_state("master-2", State::Up)?;
            let report = site.load(false, Load::sequential(5))?;
            assert_eq!(report.backends(), BTreeMap::from([("master-2", 5)]));
            Ok(())
        })
        .unwrap();
    assert!(report.failures().is_empty(), "{report}\n{}", site.xvip.log());
}

#[test]
fn what_has_not_ended_when_the_drain_time_is_over_is_reset() {
    let site = Site::up_with(Topology::C, "resets", NODE, |text| forgetful(&text)).unwrap();
    let base = draining(&forgetful(&configuration(&site)), "2s");
    let (_, streams) = site
        .echo_during(false, &site.sources(false, 20).unwrap(), || {
            site.xvip.reload(&base)?;
            site.xvip.reload(&without(&base, &["master-1"]))?;
            let reset = |status: &Status| status.counters.events["backend_down"] > 0;
            let status = site.xvip.wait_for("a reset", LIMIT, reset)?;
            let late = status.removed.iter().all(|removed| removed.until < SystemTime::now());
            assert!(late, "not before its time: {status:#?}");
            site.xvip.wait_for("nothing to drain", LIMIT, |status| status.removed.is_empty())?;
            Ok(())
        })
        .unwrap();
    let (gone, others): (Vec<_>, Vec<_>) = streams.iter().flatten().partition(|stream| stream.backend == "master-1");
    assert!(
        !gone.is_empty() && gone.iter().all(|stream| matches!(stream.failure, Some(Failure::Reset(_)))),
        "{gone:?}"
    );
    assert!(!others.is_empty() && others.iter().all(|stream| stream.failure.is_none()), "{others:?}");
}

/// What can be seen of a daemon's configuration.
fn held(status: &Status) -> Vec<(String, Vec<(String, u16)>)> {
    let backends = |server: &lb_userspace::admin::status::VirtualServer| {
        server.backends.iter().map(|backend| (backend.name.clone(), backend.weight)).collect()
    };
    status.virtual_servers.iter().map(|server| (server.name.clone(), backends(server))).collect()
}

fn metric(site: &Site, name: &str) -> f64 {
    let text = site
        .host(NODE)
        .enter(|| {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 9095)).unwrap();
            stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
            let mut text = String::new();
            stream.read_to_string(&mut text).unwrap();
            text
        })
        .unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_else(|| panic!("{name}: {text}"));
    line.trim().parse().unwrap()
}

#[test]
fn what_is_refused_changes_nothing_and_is_told() {
    let site = Site::up(Topology::C, "refused", NODE).unwrap();
    let base = configuration(&site);
    let before = held(&site.xvip.status().unwrap());
    assert!(metric(&site, "xvip_config_last_reload_successful ") > 0.5);
    let since = metric(&site, "xvip_config_last_reload_success_timestamp_seconds ");
    let broken = without(&base, &["master-1"]).replace("weight = 1", "weight = -1\nwait = 2");
    let fixed = without(&base, &["master-1"]).replace("[dataplane]", "[dataplane]\nmax_connections = 4096");
    let elsewhere = without(&base, &["master-1"]).replace("192.168.2.100", "10.99.0.1");
    let table: [(&str, &str, &[&str]); 3] = [
        (&broken, "weight", &["`weight`", "`wait`", "8 mistakes"]),
        (&fixed, "max_connections", &["dataplane.max_connections", "needs a restart", "systemctl restart xvip"]),
        (&elsewhere, "none of the subnets", &["VIP 10.99.0.1", "none of the subnets of eth0"]),
    ];
    for (text, reason, expected) in table {
        let file = site.xvip.rewrite(text).unwrap();
        let reload = site.xvip.command(&["reload"]).unwrap();
        assert_eq!(reload.status.code(), Some(2), "{}", said(&reload));
        for words in expected {
            assert!(said(&reload).contains(words), "{words}: {}", said(&reload));
        }
        let check = site.xvip.command(&["check", "--diff", "-c", file.to_str().unwrap()]).unwrap();
        assert_eq!(check.status.code(), Some(2), "{}", said(&check));
        let status = hang_up(&site.xvip, text);
        let told = status.configuration.last_reload.clone().unwrap().error.unwrap();
        assert!(told.contains(reason), "{told}");
        assert_eq!(held(&status), before);
        assert!(status.removed.is_empty());
        let shown = said(&site.xvip.command(&["status"]).unwrap());
        assert!(shown.contains("reload refused") && shown.contains(reason), "{shown}");
        assert!(site.xvip.log().contains(&told), "{}", site.xvip.log());
        assert!(metric(&site, "xvip_config_last_reload_successful ") < 0.5);
        assert!((metric(&site, "xvip_config_last_reload_success_timestamp_seconds ") - since).abs() < 1e-3);
        assert_eq!(site.load(false, Load::sequential(5)).unwrap().good(), 5);
    }
    site.xvip.reload(&base).unwrap();
    let status = site.xvip.wait_for("the end of the complaint", LIMIT, |status| {
        status.configuration.last_reload.as_ref().is_some_and(|reload| reload.error.is_none())
    });
    assert_eq!(held(&status.unwrap()), before);
    assert!(metric(&site, "xvip_config_last_reload_successful ") > 0.5);
    assert!(metric(&site, "xvip_config_last_reload_success_timestamp_seconds ") > since);
}

#[test]
fn a_comparison_tells_what_a_reload_would_do_and_does_nothing() {
    let site = Site::up(Topology::C, "compare", NODE).unwrap();
    let base = configuration(&site);
    let before = held(&site.xvip.status().unwrap());
    let text = without(&base, &["master-1"]).replacen("weight = 1", "weight = 9", 1);
    let file = site.xvip.rewrite(&text).unwrap();
    let words = ["check", "--diff", "-c", file.to_str().unwrap()];
    let check = site.xvip.command(&words).unwrap();
    assert!(check.status.success(), "{}", said(&check));
    for expected in ["backend \"master-1\"", "no new connections", "weight", "a reload would apply this"] {
        assert!(said(&check).contains(expected), "{expected}: {}", said(&check));
    }
    let json = site.xvip.command(&[&words[..], &["--json"]].concat()).unwrap();
    let outcome: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(outcome["verdict"], "possible", "{outcome:#}");
    assert_eq!(outcome["differences"].as_array().unwrap().len(), 3, "{outcome:#}");
    let status = site.xvip.status().unwrap();
    assert_eq!((held(&status), status.configuration.last_reload), (before, None));

    let reload = site.xvip.command(&["reload"]).unwrap();
    assert!(reload.status.success() && said(&reload).ends_with("applied\n"), "{}", said(&reload));
    let again = site.xvip.command(&words).unwrap();
    assert!(said(&again).contains("nothing is different"), "{}", said(&again));
}

#[test]
fn a_virtual_server_comes_with_its_vip_and_goes_when_its_connections_have() {
    let site = Site::up_with(Topology::C, "servers", NODE, |text| forgetful(&text)).unwrap();
    let base = forgetful(&configuration(&site));
    let second = SocketAddr::from(([192, 168, 2, 101], 16443));
    let (_, server) = base.split_once("[[virtual_server]]").unwrap();
    let (server, _) = server.split_once("[[virtual_server]]").unwrap();
    let server = server.replace("192.168.2.100", "192.168.2.101").replace("kube-apiserver", "second");
    // In front of the others: what has a number keeps it.
    let more = base.replacen("[[virtual_server]]", &format!("[[virtual_server]]{server}[[virtual_server]]"), 1);
    let has_vip = || site.host(NODE).addresses().unwrap().contains(&second.ip());
    assert!(!has_vip());
    let (_, streams) = site
        .echo_during(false, &site.sources(false, 10).unwrap(), || {
            site.xvip.reload(&more)?;
            site.wait_for_states(State::Up)?;
            assert!(has_vip());
            let connect = || site.deployment.client_host().enter(|| TcpStream::connect(second));
            let stream = connect()??;
            site.xvip.reload(&base)?;
            assert!(has_vip(), "its connection goes on");
            assert!(connect()?.is_err(), "nobody answers there any more");
            let count = |status: &Status| drained(status).values().sum::<u64>();
            // The backends without a connection go sooner.
            site.xvip.wait_for("it to be counted", LIMIT, |status| status.removed.len() == 1 && count(status) == 1)?;
            assert!(has_vip());
            drop(stream);
            site.xvip.wait_for("it to be gone", LIMIT, |status| status.removed.is_empty())?;
            wait::until("the VIP to be gone", LIMIT, || (!has_vip()).then_some(()))?;
            Ok(())
        })
        .unwrap();
    assert_whole(&streams, &site.xvip);
}

#[test]
fn what_was_removed_while_no_daemon_ran_drains_as_well() {
    let site = Site::up(Topology::C, "adopts", NODE).unwrap();
    let base = configuration(&site);
    let counted =
        |status: &Status, name: &str| backends(status, name).iter().map(|backend| backend.connections).sum::<u64>();
    let (next, streams) = site
        .echo_during(false, &site.sources(false, 20).unwrap(), || {
            let all = |status: &Status| (1..=3).map(|n| counted(status, &format!("master-{n}"))).sum::<u64>() >= 20;
            let before = site.xvip.wait_for("streams", LIMIT, all)?;
            site.xvip.process().kill();
            let next = Xvip::start_with(&site.deployment, NODE, &without(&base, &["master-1"]))?;
            let status =
                next.wait_for("what is left of it to be counted", LIMIT, |status| drained(status).get("-") > Some(&0))?;
            for name in ["master-2", "master-3"] {
                assert_eq!(counted(&status, name), counted(&before, name), "{name} has kept its number");
            }
            next.reload(&base)?;
            next.wait_for("it to be back", LIMIT, |status| {
                status.removed.is_empty() && counted(status, "master-1") >= counted(&before, "master-1")
            })?;
            Ok(next)
        })
        .unwrap();
    assert_whole(&streams, &next);
    assert!(streams.iter().flatten().any(|stream| stream.backend == "master-1"));
}

#[test]
fn local_connections_to_a_removed_backend_stay_for_its_time() {
    let cgroup = Cgroup::new("stays").unwrap();
    let on = |text: &str| draining(&text.replace("cgroup = \"off\"", &format!("cgroup = {:?}", cgroup.path())), "4s");
    let site = Site::up_with(Topology::C, "stays", NODE, |text| on(&text)).unwrap();
    let open = || {
        cgroup.join().unwrap();
        let connect = |_| TcpStream::connect(Topology::C.endpoint(false)).unwrap();
        (0..24).map(connect).collect::<Vec<_>>()
    };
    let sockets = site.host(NODE).enter(open).unwrap();
    // Whether a connection is open still, asked without waiting.
    let open = || {
        let lives = |socket: &&TcpStream| {
            socket.set_nonblocking(true).unwrap();
            let mut byte = [0];
            (&**socket).read(&mut byte).is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
        };
        sockets.iter().filter(lives).count() as u64
    };
    site.xvip.reload(&without(&on(&configuration(&site)), &["master-1"])).unwrap();
    let count = |status: &Status| drained(status).get("master-1").copied().unwrap_or_default();
    let status = site.xvip.wait_for("them to be counted", LIMIT, |status| count(status) > 0).unwrap();
    let before = count(&status);
    assert_eq!(open(), 24, "before their time, and before the backends tire of waiting for a handshake");
    let until = status.removed.iter().map(|removed| removed.until).min().unwrap();
    wait::until("them to be closed", LIMIT, || (open() < 24).then_some(())).unwrap();
    assert!(SystemTime::now() >= until);
    wait::until("all of them to be closed", LIMIT, || (open() == 24 - before).then_some(())).unwrap();
}

#[test]
fn a_reload_moves_no_vip_of_vrrp() {
    let section = "\n[[vrrp]]\nname = \"one\"\ninterface = \"eth0\"\nvrid = 51\naddresses = [\"192.168.2.100\"]\n";
    let site = Site::up_with(Topology::C, "moves", NODE, |text| text + section).unwrap();
    let base = configuration(&site) + section;
    let held = |status: &Status| status.virtual_servers.iter().all(|server| server.held);
    let before = site.xvip.wait_for("the VIPs", LIMIT, held).unwrap().vrrp;
    let (first, rest) = base.split_once("[[virtual_server]]").unwrap();
    let (server, _) = rest.split_once("[[virtual_server]]").unwrap();
    // Another port of the same VIP.
    let second = server.replace("16443", "7443");
    let more = format!("{first}[[virtual_server]]{second}[[virtual_server]]{rest}");
    let target = SocketAddr::from(([192, 168, 2, 100], 7443));
    site.xvip.reload(&more).unwrap();
    site.wait_for_states(State::Up).unwrap();
    let connect = || site.deployment.client_host().enter(|| TcpStream::connect(target)).unwrap();
    assert!(connect().is_ok());
    site.xvip.reload(&base).unwrap();
    assert!(connect().is_err());

    let after = site.xvip.status().unwrap().vrrp;
    let told = |vrrp: &[lb_userspace::admin::vrrp::Instance]| (vrrp[0].state, vrrp[0].priority, vrrp[0].transitions);
    assert_eq!(told(&after), told(&before));
}
