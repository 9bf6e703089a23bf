//! The client that counts: it sees who answers, and every way in which nobody does. Needs root.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use ipnet::IpNet;
use lb_tests::{
    apiserver::Apiserver,
    client::{EchoPlan, Failure, Load, Report, Stage, addresses, echo, run},
    topology::{APISERVER_PORT, Deployment, Topology},
};
use tokio::sync::{mpsc, watch};

const LIMIT: Duration = Duration::from_secs(10);

/// Deployment A with its first apiserver, whose address is the target.
fn first_master(name: &str) -> (Deployment, Apiserver, SocketAddr) {
    let deployment = Topology::A.build(name).unwrap();
    let server = deployment.start_apiserver("master-1").unwrap();
    let address = deployment.node("master-1").unwrap().v4;
    (deployment, server, (address, APISERVER_PORT).into())
}

fn requests(deployment: &Deployment, target: SocketAddr, load: Load) -> Report {
    let client = deployment.client(target).unwrap();
    (deployment.client_host()).run(|| run(&client, load)).unwrap()
}

#[test]
fn requests_are_counted_one_by_one_and_many_at_once() {
    let (deployment, server, target) = first_master("count");
    for load in [Load::sequential(50), Load::concurrent(200)] {
        let wanted = load.requests;
        let report = requests(&deployment, target, load);
        assert_eq!(report.good(), wanted, "{report}");
        assert_eq!(report.backends()["master-1"], wanted);
        assert_eq!(report.latest_failure(), None);
    }
    assert_eq!(server.log().matches("GET /whoami").count(), 250);
    // New connections all of them.
    let log = server.log();
    let peers: BTreeSet<&str> =
        (log.lines()).filter_map(|line| line.strip_prefix("access ")?.split(' ').next()).collect();
    assert_eq!(peers.len(), 250);
    deployment.lab.assert_checksums_clean();
}

#[test]
fn every_kind_of_failure_has_a_name() {
    let (deployment, server, target) = first_master("failures");
    let mut client = deployment.client(target).unwrap();
    client.timeout = Duration::from_millis(300);
    let failure = |client: &lb_tests::client::Client| {
        let report = (deployment.client_host()).run(|| run(client, Load::default())).unwrap();
        assert!(report.latest_failure().is_some(), "{report}");
        report.outcomes[0].result.clone().unwrap_err()
    };

    assert_eq!(failure(&client.at("/nothing")), Failure::Status(404));
    server.stop_etcd(true).unwrap();
    let slow = failure(&client.at("/readyz"));
    assert_eq!(slow, Failure::Timeout(Stage::Answer));
    server.freeze().unwrap();
    assert_eq!(failure(&client), Failure::Timeout(Stage::Handshake));
    server.thaw().unwrap();
    server.kill();
    assert_eq!(failure(&client), Failure::Refused(Stage::Connect));
    deployment.host("master-1").unwrap().unplug().unwrap();
    assert_eq!(failure(&client), Failure::Timeout(Stage::Connect));

    let mut stranger = target;
    stranger.set_port(1);
    let other = Failure::Refused(Stage::Connect);
    deployment.host("master-1").unwrap().plug().unwrap();
    assert_eq!(failure(&deployment.client(stranger).unwrap()), other);
}

#[test]
fn a_stranger_in_the_backends_place_is_not_believed() {
    let (deployment, _server, target) = first_master("stranger");
    let directory = deployment.lab.directory().join("stranger");
    let stranger = lb_tests::apiserver::Authority::new(&directory).unwrap();
    let client = lb_tests::client::Client::new(target, &stranger.certificate()).unwrap();
    let answer = (deployment.client_host()).run(|| client.request(None)).unwrap();
    assert!(matches!(&answer, Err(Failure::Other(what)) if what.contains("certificate")), "{answer:?}");
}

#[test]
fn one_host_is_many_clients() {
    let (deployment, server, target) = first_master("sources");
    let sources = addresses(IpAddr::from([172, 16, 92, 128]), 20);
    for &source in &sources {
        let network = IpNet::new(source, 24).unwrap();
        (deployment.client_host()).add_address("eth0", network).unwrap();
    }
    let load = Load { sources: sources.clone(), concurrency: 8, ..Load::sequential(60) };
    let report = requests(&deployment, target, load);
    assert_eq!(report.good(), 60, "{report}");
    assert_eq!(report.by_source().len(), 20);
    for source in sources {
        let seen = server.log().matches(&format!("access {source}:")).count();
        assert_eq!(seen, 3, "{source}");
    }
}

#[test]
fn rate_and_time_are_bounds() {
    let (deployment, _server, target) = first_master("bounds");
    let start = Instant::now();
    let load = Load { rate: Some(100.0), concurrency: 4, ..Load::sequential(41) };
    let report = requests(&deployment, target, load);
    assert_eq!(report.good(), 41, "{report}");
    assert!(start.elapsed() >= Duration::from_millis(400));

    let start = Instant::now();
    let load = Load { time: Some(Duration::from_millis(300)), ..Load::sequential(20_000) };
    let report = requests(&deployment, target, load);
    assert!(report.good() > 0 && start.elapsed() < LIMIT, "{report}");
}

#[test]
fn a_load_is_watched_and_stopped_while_it_runs() {
    let (deployment, _server, target) = first_master("live");
    let client = deployment.client(target).unwrap();
    let (stop, stopped) = watch::channel(false);
    let (live, mut outcomes) = mpsc::channel(64);
    let load = Load { stop: Some(stopped), live: Some(live), ..Load::sequential(20_000) };
    let watched = || async {
        let watcher = async {
            for _ in 0..5 {
                let outcome = outcomes.recv().await.unwrap();
                assert_eq!(outcome.result.as_deref(), Ok("master-1"));
            }
            stop.send_replace(true);
        };
        tokio::join!(run(&client, load), watcher).0
    };
    let report = deployment.client_host().run(watched).unwrap();
    assert!((5..1_000).contains(&report.good()), "{report}");
}

#[test]
fn an_echo_stream_goes_on_until_its_server_dies() {
    let (deployment, server, target) = first_master("echo");
    let client = deployment.client(target).unwrap();
    let plan = EchoPlan { lines: 201, pause: Duration::ZERO, patience: LIMIT, source: None, stop: None };
    let host = deployment.client_host();
    let report = host.run(|| echo(&client, plan.clone())).unwrap().unwrap();
    assert_eq!((report.echoed, report.failure), (201, None));
    assert_eq!(report.backend, "master-1");

    let endless = EchoPlan { lines: u64::MAX, ..plan };
    std::thread::scope(|scope| {
        let stream = scope.spawn(|| host.run(|| echo(&client, endless)).unwrap().unwrap());
        lb_tests::wait::until("the second stream", LIMIT, || {
            (server.log().matches("POST /echo").count() == 2).then_some(())
        })
        .unwrap();
        server.kill();
        let report = stream.join().unwrap();
        // Whichever of FIN and RST the kernel finds in order.
        assert!(
            matches!(report.failure, Some(Failure::Reset(Stage::Answer) | Failure::Closed(Stage::Answer))),
            "{report:?}"
        );
    });
}
