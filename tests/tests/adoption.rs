//! What a daemon leaves for the next one: connections go on without it, and the next takes over without a lost packet. Needs root.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
    thread,
    time::Duration,
};

use lb_common::abi::LAYOUT;
use lb_tests::{
    client::{EchoReport, Failure, Load},
    site::{Site, quick},
    topology::{Deployment, Topology},
    traces::Traces,
    wait,
    xvip::Xvip,
};
use lb_userspace::admin::Status;
use nix::{
    mount::{MsFlags, mount, umount},
    sys::signal::Signal,
};

const NODE: &str = "ha-lb-a";
const END_LIMIT: Duration = Duration::from_secs(10);
/// Restarts that every stream lives through.
const ROUNDS: usize = 4;
/// A retransmission after a lost packet comes no sooner than after 200 ms, and two lost in a row not before 600 ms. Beyond that, the
/// load on the machine cannot be told from a loss any more.
const LONGEST: Duration = Duration::from_secs(3);

fn configuration(deployment: &Deployment) -> String {
    quick(&deployment.xvip_config(NODE).unwrap())
}

fn keeping(configuration: &str) -> String {
    configuration.replace("[dataplane]", "[dataplane]\non_stop = \"keep\"")
}

fn traces(deployment: &Deployment) -> Traces {
    Traces::of(deployment.host(NODE).unwrap(), "eth0", &deployment.control_socket(NODE).unwrap()).unwrap()
}

/// Id of the XDP program on an interface.
fn program(deployment: &Deployment, interface: &str) -> Option<String> {
    let link = deployment.host(NODE).unwrap().exec(&["ip", "-d", "link", "show", "dev", interface]).unwrap();
    let id = link.split_once("prog/xdp id ")?.1;
    id.split_whitespace().next().map(str::to_owned)
}

/// Runs `xvip detach` on the node.
fn detach(deployment: &Deployment, words: &[&str]) -> Output {
    let mut command = Command::new(Xvip::program().unwrap());
    command.arg("detach").args(words);
    deployment.host(NODE).unwrap().enter(|| command.output()).unwrap().unwrap()
}

fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// That every stream began and came to its orderly end.
fn assert_whole(streams: &[Result<EchoReport, Failure>], xvip: &Xvip) {
    for stream in streams {
        let stream = stream.as_ref().unwrap();
        assert!(stream.failure.is_none() && stream.longest < LONGEST, "{stream:?}\n{}", xvip.log());
        assert!(stream.echoed > 20, "{stream:?}");
    }
}

/// Ends the daemon again and again under streams of both families, and demands that none is lost.
fn survive(name: &str, edit: fn(&str) -> String, end: impl Fn(&Xvip) + Sync) {
    let site = Site::up_with(Topology::C, name, NODE, |text| edit(&text)).unwrap();
    let deployment = &site.deployment;
    let text = edit(&configuration(deployment));
    let sources = |v6| site.sources(v6, 20).unwrap();
    let restarts = || {
        let mut last: Option<Xvip> = None;
        for round in 0..ROUNDS {
            let before = program(deployment, "eth0").expect("a program");
            end(last.as_ref().unwrap_or(&site.xvip));
            assert_eq!(program(deployment, "eth0").as_ref(), Some(&before), "round {round}: still the same");
            for v6 in [false, true] {
                let report = site.load(v6, Load::sequential(5))?;
                assert_eq!(report.good(), 5, "round {round}, without a daemon: {report}");
            }
            let next = Xvip::start_with(deployment, NODE, &text)?;
            assert_ne!(program(deployment, "eth0").expect("a program"), before, "round {round}: replaced");
            assert!(next.log().contains("the programs of a former xvip are replaced"), "{}", next.log());
            for v6 in [false, true] {
                let report = site.load(v6, Load::sequential(5))?;
                assert_eq!(report.good(), 5, "round {round}: {report}");
            }
            last = Some(next);
        }
        anyhow::Ok(last.expect("a round"))
    };
    let ((last, four), six) = thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let six =
            scope.spawn(|| site.echo_during(true, &sources(true), move || Ok(stopped.recv().is_err())).unwrap().1);
        let four = site.echo_during(false, &sources(false), restarts).unwrap();
        drop(stop);
        (four, six.join().unwrap())
    });
    assert_whole(&four, &last);
    assert_whole(&six, &last);
    // Counts go on, and no connection had to be guessed from its packets.
    let all = 40 + 20 * ROUNDS as u64;
    let counted = last.wait_for("all connections to be counted", END_LIMIT, |s| s.counters.events["connected"] >= all);
    let status = counted.unwrap();
    assert_eq!(status.counters.events["rebuilt"], 0, "{status:#?}");
    deployment.lab.assert_checksums_clean();
}

#[test]
fn streams_outlive_a_killed_daemon() {
    survive("outlive", str::to_owned, |xvip| xvip.process().kill());
}

#[test]
fn streams_outlive_a_daemon_that_keeps_its_data_plane() {
    survive("keep", keeping, |xvip| {
        xvip.process().signal(Signal::SIGTERM).unwrap();
        assert!(xvip.process().wait(END_LIMIT).unwrap().success(), "{}", xvip.log());
    });
}

#[test]
fn detach_removes_everything_and_is_refused_while_a_daemon_runs() {
    let deployment = Topology::C.build("detach").unwrap();
    let before = traces(&deployment);
    let pins = deployment.host(NODE).unwrap().bpffs().unwrap();
    let file = deployment.host(NODE).unwrap().directory().join("xvip.toml");
    let by_file = ["-c", file.to_str().unwrap()];
    let by_pins = ["--bpffs", pins.to_str().unwrap()];
    let vrrp = "\n[[vrrp]]\nname = \"moving\"\ninterface = \"eth0\"\nvrid = 51\naddresses = [\"192.168.2.100\"]\nvirtual_mac = true\n";
    for words in [by_file, by_pins] {
        let xvip = Xvip::start_with(&deployment, NODE, &(keeping(&configuration(&deployment)) + vrrp)).unwrap();
        let refused = detach(&deployment, &words);
        assert_eq!(refused.status.code(), Some(1), "{}", said(&refused));
        let holder = format!("process {} (", xvip.process().pid());
        assert!(said(&refused).contains(&holder), "{holder}: {}", said(&refused));
        let held = |status: &Status| status.virtual_servers.iter().all(|server| server.held);
        xvip.wait_for("the VIPs", END_LIMIT, held).unwrap();

        assert!(xvip.stop().unwrap().success());
        assert!(program(&deployment, "eth0").is_some());
        // What moves is given away in any case, but the virtual MAC that it was at is still listened to, as the VIP is still carried.
        let listened = traces(&deployment).since(&before).into_iter().find(|trace| trace.starts_with("bridge fdb"));
        assert!(listened.is_some_and(|trace| trace.contains("00:00:5e:00:01:33")));
        for expected in ["1 interfaces detached, 1 VIPs removed", "0 interfaces detached, 0 VIPs removed"] {
            let output = detach(&deployment, &words);
            assert!(output.status.success() && said(&output).contains(expected), "{expected}: {}", said(&output));
        }
        // Nobody can tell any more that forwarding was off before.
        let left: Vec<String> =
            traces(&deployment).since(&before).into_iter().filter(|trace| !trace.contains("/forwarding")).collect();
        assert_eq!(left, [""; 0]);
        assert!(!pins.exists());
    }
}

#[test]
fn what_does_not_fit_any_more_is_replaced_with_a_warning() {
    let site = Site::up(Topology::C, "misfit", NODE).unwrap();
    let deployment = &site.deployment;
    let text = configuration(deployment);
    let pins = deployment.host(NODE).unwrap().bpffs().unwrap();
    let smaller = text.replace("[dataplane]", "[dataplane]\nmax_connections = 4096");
    let restarts = || {
        site.xvip.process().kill();
        let second = Xvip::start_with(deployment, NODE, &smaller)?;
        assert!(second.log().contains("the table of connections does not fit any more"), "{}", second.log());
        assert!(second.log().contains("all connections are forgotten"), "{}", second.log());
        let found_again = |xvip: &Xvip| {
            xvip.wait_for("streams to be found again", END_LIMIT, |status| status.counters.events["rebuilt"] >= 10)
        };
        found_again(&second)?;
        second.process().kill();
        fs::rename(pins.join(format!("v{LAYOUT}")), pins.join("v0"))?;
        let third = Xvip::start_with(deployment, NODE, &smaller)?;
        assert!(third.log().contains("v0 was left by an xvip with another layout of maps"), "{}", third.log());
        assert!(!pins.join("v0").exists() && pins.join(format!("v{LAYOUT}")).exists());
        found_again(&third)?;
        anyhow::Ok(third)
    };
    // The same port and backend come out for each: they go on all the same.
    let (third, streams) = site.echo_during(false, &site.sources(false, 10).unwrap(), restarts).unwrap();
    assert!(streams.iter().all(|stream| stream.as_ref().is_ok_and(|stream| stream.failure.is_none())), "{streams:?}");
    assert!(third.stop().unwrap().success());
    assert!(!pins.exists());
}

#[test]
fn a_start_that_comes_to_nothing_leaves_the_former_data_plane() {
    let site = Site::up(Topology::C, "nothing", NODE).unwrap();
    let deployment = &site.deployment;
    site.xvip.process().kill();
    let before = program(deployment, "eth0");
    let host = site.host(NODE);
    host.ip("link add taken0 type veth peer name taken1").unwrap();
    let _theirs = host.occupy_xdp("taken0").unwrap();
    let text = configuration(deployment).replace("\"eth0\"", "\"eth0\", \"taken0\"");
    let output = Xvip::refuse(host, "run", &text).unwrap();
    assert!(said(&output).contains("interface taken0 already has an XDP program"), "{}", said(&output));
    assert_eq!(program(deployment, "eth0"), before);
    assert_eq!(site.load(false, Load::sequential(5)).unwrap().good(), 5);
    let next = Xvip::start_with(deployment, NODE, &configuration(deployment)).unwrap();
    assert!(next.log().contains("the programs of a former xvip are replaced"), "{}", next.log());
}

#[test]
fn an_interface_that_is_made_again_gets_the_programs_again() {
    let deployment = Topology::C.build("remade").unwrap();
    let host = deployment.host(NODE).unwrap();
    let make = || {
        host.ip("link add extra0 type veth peer name extra1").unwrap();
        host.ip("link set extra1 up").unwrap();
        host.ip("link set extra0 up").unwrap();
    };
    make();
    let text = configuration(&deployment).replace("\"eth0\"", "\"eth0\", \"extra0\"");
    let xvip = Xvip::start_with(&deployment, NODE, &text).unwrap();
    let first = program(&deployment, "extra0").expect("a program");
    host.ip("link del extra0").unwrap();
    make();
    let again = wait::until("the programs to be back", END_LIMIT, || program(&deployment, "extra0"));
    assert_eq!(again.unwrap(), first, "{}", xvip.log());
    let links = fs::read_dir(host.bpffs().unwrap().join("links")).unwrap();
    let names = links.map(|link| link.unwrap().file_name().into_string().unwrap());
    let of_interfaces = names.filter(|name| name.starts_with(|first: char| first.is_ascii_digit()));
    assert_eq!(of_interfaces.count(), 6, "three of each interface, none of the one that is gone");
    assert!(xvip.stop().unwrap().success());
    assert_eq!(program(&deployment, "extra0"), None);
}

#[test]
fn a_bpf_filesystem_that_is_read_only_is_told() {
    struct Mounted(tempfile::TempDir);
    impl Drop for Mounted {
        fn drop(&mut self) {
            umount(self.0.path()).unwrap();
        }
    }
    let deployment = Topology::C.build("readonly").unwrap();
    let before = traces(&deployment);
    let place = Mounted(tempfile::tempdir().unwrap());
    mount(Some("bpf"), place.0.path(), Some("bpf"), MsFlags::MS_RDONLY, None::<&Path>).unwrap();
    let host = deployment.host(NODE).unwrap();
    let pins = host.bpffs().unwrap().display().to_string();
    let text = configuration(&deployment).replace(&pins, &place.0.path().join("xvip").display().to_string());
    let output = Xvip::refuse(host, "run", &text).unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert!(
        said(&output).contains("mounted read-only") && said(&output).contains("mount -o remount,rw"),
        "{}",
        said(&output)
    );
    assert_eq!(traces(&deployment).since(&before), [""; 0]);
}
