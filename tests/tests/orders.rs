//! Orders for backends at work: `xvip backends drain`, `enable` and `weight`. Needs root.

use std::{collections::BTreeMap, process::Output, time::Duration};

use lb_tests::{
    client::Report,
    site::{Site, quick, serving},
    topology::Topology,
    xvip::{Xvip, backends},
};
use lb_userspace::{admin::status::Status, health::State};

const NODE: &str = "ha-lb-a";
const LIMIT: Duration = Duration::from_secs(15);

fn configuration(site: &Site) -> String {
    quick(&site.deployment.xvip_config(NODE).unwrap())
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn order(xvip: &Xvip, words: &[&str]) -> String {
    let output = xvip.command(&[&["backends"], words].concat()).unwrap();
    assert!(output.status.success(), "{}", said(&output));
    said(&output)
}

/// How many of sixty sources each backend answers.
fn shares(site: &Site) -> BTreeMap<String, usize> {
    let report: Report = site.map(false, &site.sources(false, 60).unwrap()).unwrap();
    assert_eq!(report.good(), 60, "{report}\n{}", site.xvip.log());
    report.backends().into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

/// State and weight of a backend of the first virtual server, and of the second.
fn shown(status: &Status, name: &str) -> Vec<(State, u16)> {
    backends(status, name).iter().map(|backend| (backend.state, backend.weight)).collect()
}

#[test]
fn a_drained_backend_keeps_its_connections_and_gets_no_new_ones() {
    let site = Site::up(Topology::C, "orders", NODE).unwrap();
    let before = shares(&site);
    assert_eq!(before.len(), 3);
    let (_, streams) = site
        .echo_during(false, &site.sources(false, 20).unwrap(), || {
            // In one of the two virtual servers only.
            let text = order(&site.xvip, &["drain", "kube-apiserver-16443-ipv4/master-1"]);
            assert_eq!(text, "kube-apiserver-16443-ipv4/master-1: no new connections; those that are there go on\n");
            assert_eq!(shown(&site.xvip.status()?, "master-1"), [(State::Draining, 1), (State::Up, 1)]);
            let table = said(&site.xvip.command(&["status"])?);
            assert!(table.contains("draining (ordered)"), "{table}");
            let now = shares(&site);
            assert_eq!(now.keys().collect::<Vec<_>>(), ["master-2", "master-3"]);

            // What is loaded again does not take it back.
            site.xvip.reload(&configuration(&site).replace("interval = \"500ms\"", "interval = \"400ms\""))?;
            assert_eq!(shares(&site), now);
            assert_eq!(shown(&site.xvip.status()?, "master-1"), [(State::Draining, 1), (State::Up, 1)]);
            order(&site.xvip, &["enable", "master-1"]);
            assert_eq!(shares(&site), before);
            Ok(())
        })
        .unwrap();
    for stream in &streams {
        assert!(stream.as_ref().is_ok_and(|stream| stream.failure.is_none()), "{stream:?}\n{}", site.xvip.log());
    }
    assert!(streams.iter().flatten().any(|stream| stream.backend == "master-1"), "{streams:?}");
}

#[test]
fn a_weight_holds_until_it_is_taken_back() {
    let site = Site::up(Topology::C, "weighs", NODE).unwrap();
    let before = shares(&site);
    order(&site.xvip, &["weight", "0", "master-2", "master-3"]);
    assert_eq!(shares(&site), BTreeMap::from([("master-1".to_owned(), 60)]));
    order(&site.xvip, &["weight", "9", "master-3"]);
    let heavy = shares(&site);
    assert!(heavy["master-3"] > heavy["master-1"] && !heavy.contains_key("master-2"), "{heavy:?}");
    assert_eq!(shown(&site.xvip.status().unwrap(), "master-3"), [(State::Up, 9); 2]);
    order(&site.xvip, &["enable", "master-2", "master-3"]);
    assert_eq!(shares(&site), before);

    for (words, code, expected) in [
        (&["backends", "drain", "master-1", "nobody"][..], 1, "no backend \"nobody\""),
        (&["backends", "weight", "257", "master-1"], 2, "257"),
    ] {
        let output = site.xvip.command(words).unwrap();
        assert!(output.status.code() == Some(code) && said(&output).contains(expected), "{}", said(&output));
    }
    assert_eq!(shares(&site), before);
}

#[test]
fn an_order_outlives_the_daemon_where_that_is_asked_for() {
    let site = Site::up(Topology::C, "lasts", NODE).unwrap();
    order(&site.xvip, &["drain", "master-1", "--persist"]);
    order(&site.xvip, &["weight", "5", "master-2"]);
    site.xvip.process().kill();
    let start = || Xvip::start_with(&site.deployment, NODE, &configuration(&site)).unwrap();
    let second = start();
    let settled = |status: &Status| shown(status, "master-3") == [(State::Up, 1); 2];
    let status = second.wait_for("checks", LIMIT, settled).unwrap();
    assert_eq!(shown(&status, "master-1"), [(State::Draining, 1); 2]);
    assert_eq!(shown(&status, "master-2"), [(State::Up, 1); 2]);
    assert!(second.log().contains("orders for backends hold from before"), "{}", second.log());
    assert_eq!(shares(&site).keys().collect::<Vec<_>>(), ["master-2", "master-3"]);

    order(&second, &["enable", "master-1"]);
    second.process().kill();
    let third = start();
    let status = third.wait_for("checks", LIMIT, settled).unwrap();
    assert_eq!(shown(&status, "master-1"), [(State::Up, 1); 2]);
}

/// With backups, which are master-3 in each virtual server.
fn with_backup(site_text: &str, lines: &str) -> String {
    let backup = "192.168.2.13\"\nport = 6443\nweight = 1\n";
    assert!(site_text.contains(backup));
    serving(&site_text.replace(backup, &format!("{backup}backup = true\n")), lines)
}

#[test]
fn a_backup_serves_while_nobody_else_does_and_keeps_what_it_has() {
    let mut site = Site::up_with(Topology::C, "backup", NODE, |text| with_backup(&text, "")).unwrap();
    let before = shares(&site);
    assert_eq!(before.keys().collect::<Vec<_>>(), ["master-1", "master-2"]);
    order(&site.xvip, &["drain", "master-1", "master-2"]);
    let only = BTreeMap::from([("master-3".to_owned(), 60)]);
    assert_eq!(shares(&site), only);
    order(&site.xvip, &["enable", "master-1", "master-2"]);
    order(&site.xvip, &["weight", "0", "master-1", "master-2"]);
    assert_eq!(shares(&site), only);
    order(&site.xvip, &["enable", "master-1", "master-2"]);
    assert_eq!(shares(&site), before);

    for name in ["master-1", "master-2"] {
        site.apiserver(name).unwrap().kill();
    }
    for name in ["master-1", "master-2"] {
        site.wait_for_state(name, State::Down).unwrap();
    }
    let sources = site.sources(false, 10).unwrap();
    let (_back, streams) = site
        .echo_during(false, &sources, || {
            assert_eq!(shares(&site), only);
            let back = site.deployment.start_apiserver("master-1")?;
            site.wait_for_state("master-1", State::Up)?;
            assert_eq!(shares(&site), BTreeMap::from([("master-1".to_owned(), 60)]));
            Ok(back)
        })
        .unwrap();
    for stream in streams {
        let stream = stream.unwrap();
        assert_eq!((stream.failure.as_ref(), stream.backend.as_str()), (None, "master-3"), "{stream:?}");
    }
    site.apiservers.clear();
}

#[test]
fn with_all_down_everybody_serves_where_that_is_asked_for_and_who_comes_back_does_so_gradually() {
    let site =
        Site::up_with(Topology::C, "open", NODE, |text| serving(&text, "all_down = \"open\"\nslow_start = \"6s\""))
            .unwrap();
    let before = shares(&site);
    let open = |status: &Status| status.virtual_servers.iter().all(|server| server.open);
    let ready = |name: &str, ready| site.apiserver(name).unwrap().set_ready(ready).unwrap();
    let (_, streams) = site
        .echo_during(false, &site.sources(false, 20).unwrap(), || {
            for name in ["master-1", "master-2", "master-3"] {
                ready(name, false);
            }
            let status = site.xvip.wait_for("connections to go to all", LIMIT, open)?;
            assert_eq!(shown(&status, "master-1"), [(State::Draining, 1); 2]);
            assert_eq!(shares(&site), before, "as though they were up");
            let table = said(&site.xvip.command(&["status"])?);
            assert!(table.contains("draining (all_down open)"), "{table}");
            assert!(site.xvip.log().contains("new connections go to all of them"), "{}", site.xvip.log());

            // Whoever is alone has it all; whoever comes next has some of it.
            ready("master-1", true);
            site.wait_for_state("master-1", State::Up)?;
            assert_eq!(shares(&site), BTreeMap::from([("master-1".to_owned(), 60)]));
            assert!(!open(&site.xvip.status()?));
            ready("master-2", true);
            let share = |status: &Status| backends(status, "master-2").iter().filter_map(|b| b.share).min();
            let status = site.xvip.wait_for("master-2 to begin", LIMIT, |status| share(status).is_some())?;
            assert!(share(&status).is_some_and(|share| share < 70), "{status:#?}");
            let grown = |status: &Status| shown(status, "master-2") == [(State::Up, 1); 2] && share(status).is_none();
            site.xvip.wait_for("master-2 to have its share", LIMIT, grown)?;
            assert_eq!(shares(&site).keys().collect::<Vec<_>>(), ["master-1", "master-2"]);
            Ok(())
        })
        .unwrap();
    for stream in &streams {
        assert!(stream.as_ref().is_ok_and(|stream| stream.failure.is_none()), "{stream:?}\n{}", site.xvip.log());
    }
}
