//! From start to end: what a daemon adds to its host and takes away again, whom it refuses to disturb, and what it says of itself.
//! Needs root.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{self, SocketAddr},
    process::Command,
    thread,
    time::Duration,
};

use futures_util::future::join_all;
use lb_tests::{
    client::Load,
    site::{Site, quick},
    topology::{Deployment, Topology},
    traces::Traces,
    wait,
    xvip::Xvip,
};
use lb_userspace::{admin::status::Mode, health::State};
use nix::sys::signal::Signal;
use tokio::net::TcpStream;

const NODE: &str = "ha-lb-a";
const END_LIMIT: Duration = Duration::from_secs(10);

fn traces(deployment: &Deployment) -> Traces {
    Traces::of(deployment.host(NODE).unwrap(), "eth0", &deployment.control_socket(NODE).unwrap()).unwrap()
}

fn configuration(deployment: &Deployment) -> String {
    quick(&deployment.xvip_config(NODE).unwrap())
}

/// That requests of both families are carried.
fn assert_carries(site: &Site) {
    for v6 in [false, true] {
        let report = site.load(v6, Load::sequential(10)).unwrap();
        assert_eq!(report.good(), 10, "{report}\n{}", site.xvip.log());
    }
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn either_signal_ends_it_and_nothing_stays() {
    let deployment = Topology::C.build("signals").unwrap();
    let before = traces(&deployment);
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let xvip = Xvip::start_with(&deployment, NODE, &configuration(&deployment)).unwrap();
        let meanwhile = traces(&deployment).since(&before);
        // Two lists of addresses and links, two sysctls, two classifiers, the pins and the socket.
        assert!(meanwhile.len() >= 8, "{meanwhile:#?}");
        xvip.process().signal(signal).unwrap();
        assert!(xvip.process().wait(END_LIMIT).unwrap().success(), "{signal}: {}", xvip.log());
        assert_eq!(traces(&deployment).since(&before), [""; 0], "{signal}: {}", xvip.log());
    }
}

#[test]
fn what_a_killed_daemon_left_is_taken_over_and_removed_by_the_next() {
    let deployment = Topology::C.build("killed").unwrap();
    let before = traces(&deployment);
    let first = Xvip::start_with(&deployment, NODE, &configuration(&deployment)).unwrap();
    first.process().kill();
    let left = traces(&deployment).since(&before).join("\n");
    assert!(left.contains("192.168.2.100/32") && left.contains("pinned maps"), "{left}");

    let second = Xvip::start_with(&deployment, NODE, &configuration(&deployment)).unwrap();
    for vip in ["192.168.2.100", "fd00:2::100"] {
        assert!(
            second.log().contains(&format!("VIP {vip} on eth0 was left by a former xvip: adopted")),
            "{}",
            second.log()
        );
    }
    assert!(second.stop().unwrap().success());
    let still = traces(&deployment).since(&before);
    // Nobody can tell any more that forwarding was off before the one that was killed.
    let forgotten = |trace: &String| trace.contains("/forwarding");
    assert!(still.iter().all(forgotten), "{still:#?}");
}

#[test]
fn connections_opened_before_a_restart_are_found_again() {
    for v6 in [false, true] {
        let site = Site::up(Topology::C, "restart", NODE).unwrap();
        let sources = site.sources(v6, 20).unwrap();
        let map = site.map(v6, &sources).unwrap();
        let (answers, client) = (map.by_source(), site.client(v6).unwrap());
        let theirs = sources.iter().filter(|source| answers[*source] == "master-1");
        let open = || join_all(theirs.map(|source| client.connect(Some(SocketAddr::new(*source, 0)))));
        let host = site.deployment.client_host();
        let open: Vec<_> = host
            .run(|| async { open().await.into_iter().map(|stream| stream.unwrap().into_std().unwrap()).collect() })
            .unwrap();

        // The next start waits a whole timeout for its first check, and all the while clients send.
        site.apiserver("master-3").unwrap().freeze().unwrap();
        site.xvip.process().signal(Signal::SIGTERM).unwrap();
        assert!(site.xvip.process().wait(END_LIMIT).unwrap().success());
        let second = thread::scope(|scope| {
            let asking = scope.spawn(|| {
                let ask = |stream| client.request_over(TcpStream::from_std(stream).unwrap());
                host.run(|| async { join_all(open.into_iter().map(ask)).await })
            });
            let second = Xvip::start_with(&site.deployment, NODE, &configuration(&site.deployment)).unwrap();
            for answer in asking.join().unwrap().unwrap() {
                assert_eq!(answer.unwrap().backend, "master-1");
            }
            second
        });
        assert!(second.stop().unwrap().success());
        site.deployment.lab.assert_checksums_clean();
    }
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let site = Site::up(Topology::C, "second", NODE).unwrap();
    let deployment = &site.deployment;
    let (host, before) = (site.host(NODE), traces(deployment));
    let same = configuration(deployment);
    let socket = deployment.control_socket(NODE).unwrap().display().to_string();
    let elsewhere =
        same.replace(&socket, &format!("{socket}.2")).replace("metrics = \"127.0.0.1:9095\"", "metrics = \"off\"");
    let pins = host.bpffs().unwrap().display().to_string();
    let apart = elsewhere.replace(&pins, &format!("{pins}-second"));
    for (configuration, named) in [
        (same, format!("process {} (", site.xvip.process().pid())),
        (elsewhere, format!("keeps its maps in {pins}: process {} (", site.xvip.process().pid())),
        (apart, "\"xdp_ingress\"".to_owned()),
    ] {
        let output = Xvip::refuse(host, "run", &configuration).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(&named), "{named}: {said}");
        assert_eq!(traces(deployment).since(&before), [""; 0], "{said}");
    }
    assert_carries(&site);
}

#[test]
fn of_two_daemons_that_start_at_once_one_runs() {
    let deployment = Topology::C.build("atonce").unwrap();
    let host = deployment.host(NODE).unwrap();
    let before = traces(&deployment);
    let text = host.directory().join("xvip.toml");
    fs::write(&text, configuration(&deployment)).unwrap();
    for round in 0..3 {
        let start = |_| {
            let mut command = Command::new(Xvip::program().unwrap());
            command.arg("run").arg("-c").arg(&text);
            host.spawn(command).unwrap()
        };
        let both = [0, 1].map(start);
        let refused =
            wait::until("one to be refused", END_LIMIT, || both.iter().position(|one| one.exited().is_some())).unwrap();
        let (refused, running) = (&both[refused], &both[1 - refused]);
        let said = refused.stderr();
        assert_eq!(refused.exited().and_then(|status| status.code()), Some(1), "round {round}: {said}");
        assert!(said.contains("another xvip"), "round {round}: {said}");
        running.wait_for_output("carrying 2 virtual servers", END_LIMIT).unwrap();
        running.signal(Signal::SIGTERM).unwrap();
        assert!(running.wait(END_LIMIT).unwrap().success(), "round {round}: {}", running.stderr());
        assert_eq!(traces(&deployment).since(&before), [""; 0], "round {round}");
    }
}

#[test]
fn an_interface_with_an_xdp_program_of_somebody_else_is_left_alone() {
    let deployment = Topology::C.build("taken").unwrap();
    let host = deployment.host(NODE).unwrap();
    let theirs = host.occupy_xdp("eth0").unwrap();
    let before = traces(&deployment);
    let output = Xvip::refuse(host, "run", &configuration(&deployment)).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("interface eth0 already has an XDP program: \"lab_pass\", program id"), "{said}");
    assert!(said.contains("ip link set dev eth0 xdp off"), "{said}");
    assert_eq!(traces(&deployment).since(&before), [""; 0], "{said}");

    drop(theirs);
    assert!(Xvip::start_with(&deployment, NODE, &configuration(&deployment)).unwrap().stop().unwrap().success());
}

#[test]
fn generic_mode_carries_when_it_is_asked_for() {
    let site = Site::up_with(Topology::C, "generic", NODE, |configuration| {
        configuration.replace("[dataplane]", "[dataplane]\nmode = \"generic\"")
    })
    .unwrap();
    assert_eq!(site.xvip.status().unwrap().interfaces[0].mode, Mode::Generic);
    assert_carries(&site);
}

#[test]
fn an_interface_without_native_xdp_gets_generic_mode_and_a_warning() {
    let deployment = Topology::C.build("bridge").unwrap();
    let host = deployment.host(NODE).unwrap();
    for line in [
        "link add br0 type bridge stp_state 0 forward_delay 0",
        "link set eth0 master br0",
        "address flush dev eth0",
        "link set br0 up",
    ] {
        host.ip(line).unwrap();
    }
    for address in deployment.node(NODE).unwrap().networks() {
        host.add_address("br0", address).unwrap();
    }
    let configuration = configuration(&deployment).replace("\"eth0\"", "\"br0\"");
    let native = configuration.replace("[dataplane]", "[dataplane]\nmode = \"native\"");
    let refused = Xvip::refuse(host, "run", &native).unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("interface br0 does not take the XDP program in native mode"), "{said}");

    let site = Site::of(deployment, NODE, &configuration).unwrap();
    let status = site.xvip.status().unwrap();
    assert_eq!((status.interfaces[0].name.as_str(), status.interfaces[0].mode), ("br0", Mode::Generic));
    assert!(site.xvip.log().contains("interface br0 has no native XDP"), "{}", site.xvip.log());
    assert_carries(&site);
}

#[test]
fn status_and_metrics_tell_what_is() {
    let site = Site::up(Topology::C, "faces", NODE).unwrap();
    site.apiserver("master-3").unwrap().set_ready(false).unwrap();
    site.wait_for_state("master-3", State::Draining).unwrap();
    assert_carries(&site);
    site.xvip
        .wait_for("the requests to be counted", END_LIMIT, |status| status.counters.events["connected"] >= 20)
        .unwrap();

    let text = |words: &[&str]| {
        let output = site.xvip.command(words).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let table = text(&["status"]);
    assert!(table.contains("on eth0 (native)"), "{table}");
    for (backend, state) in [("192.168.2.11:6443", "up"), ("[fd00:2::13]:6443", "draining")] {
        assert!(table.lines().any(|line| line.contains(backend) && line.contains(state)), "{backend} {state}: {table}");
    }
    let status = site.xvip.status().unwrap();
    assert!(status.virtual_servers.iter().all(|server| server.held && server.interface == "eth0"));
    let connections: u64 =
        status.virtual_servers.iter().flat_map(|server| &server.backends).map(|b| b.connections).sum();
    assert_eq!(connections, 20);

    let sample =
        "xvip_backend_state{virtual_server=\"kube-apiserver-16443-ipv4\",backend=\"master-3\",state=\"draining\"} 1";
    let printed = text(&["metrics"]);
    assert!(printed.contains(sample) && printed.ends_with("# EOF\n"), "{printed}");
    let fetch = || {
        let mut stream = net::TcpStream::connect("127.0.0.1:9095")?;
        stream.set_read_timeout(Some(END_LIMIT))?;
        stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).map(|_| answer)
    };
    let scraped = site.host(NODE).enter(fetch).unwrap().unwrap();
    assert!(scraped.starts_with("HTTP/1.1 200") && scraped.contains(sample), "{scraped}");
}
