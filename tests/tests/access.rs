//! Lists of clients that may use a virtual server, and of those that may not. Needs root.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr, TcpStream},
    time::Duration,
};

use lb_tests::{
    client::{self, Failure, Load, Stage},
    lab::Cgroup,
    site::{Site, quick},
    topology::Topology,
    wait,
};

const HOLDER: &str = "ha-lb-a";
const SOURCES: u32 = 12;
/// The first eight sources without the second, by family, in the addresses that `Site::sources` gives.
const LISTS: [(&str, &str); 2] = [("10.50.1.0/29", "10.50.1.1"), ("fd99:50::100/125", "fd99:50::101/128")];
const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn only_those_on_the_list_are_served_and_the_others_are_counted() {
    let cgroup = Cgroup::new("access").unwrap();
    let site = Site::up_with(Topology::C, "access", HOLDER, |text| {
        let off = "cgroup = \"off\"\n";
        assert!(text.contains(off));
        let mut text = text.replace(off, &format!("cgroup = {:?}\n", cgroup.path()));
        for (v6, (allow, deny)) in [false, true].into_iter().zip(LISTS) {
            let address = format!("address = \"{}\"\n", Topology::C.endpoint(v6).ip());
            assert!(text.contains(&address));
            text = text.replace(&address, &format!("{address}allow = [{allow:?}]\ndeny = [{deny:?}]\n"));
        }
        text
    })
    .unwrap();
    let denied = || site.xvip.status().unwrap().counters.drops["denied"];
    for v6 in [false, true] {
        let sources = site.sources(v6, SOURCES).unwrap();
        let before = denied();
        let mut all = site.client(v6).unwrap();
        all.timeout = Duration::from_secs(2);
        let load = Load { sources: sources.clone(), ..Load::concurrent(sources.len()) };
        let report = site.deployment.client_host().run(|| client::run(&all, load)).unwrap();
        let served: BTreeSet<IpAddr> = report.by_source().into_keys().collect();
        let wanted = sources.iter().take(8).enumerate().filter(|(number, _)| *number != 1).map(|(_, source)| *source);
        assert_eq!(served, wanted.collect(), "{report}");
        let failures = report.failures();
        assert_eq!(failures.into_iter().collect::<Vec<_>>(), [(&Failure::Timeout(Stage::Connect), 5)], "{report}");
        site.xvip
            .wait_for("them to be counted", LIMIT, |status| status.counters.drops["denied"] >= before + 5)
            .unwrap();

        // The holder's own go straight to a backend, and are not asked.
        let vip: SocketAddr = Topology::C.endpoint(v6);
        let own = || {
            cgroup.join().unwrap();
            TcpStream::connect_timeout(&vip, LIMIT).unwrap()
        };
        site.host(HOLDER).enter(own).unwrap();
    }
    site.xvip.wait_for("both to be counted", LIMIT, |status| status.counters.events["local"] == 2).unwrap();
    site.deployment.lab.assert_checksums_clean();
}

#[test]
fn a_list_that_is_tightened_ends_what_it_forbids() {
    let site = Site::up(Topology::C, "tightened", HOLDER).unwrap();
    let sources = site.sources(false, 6).unwrap();
    let denied = sources[2];
    let base = quick(&site.deployment.xvip_config(HOLDER).unwrap());
    let address = format!("address = \"{}\"\n", Topology::C.endpoint(false).ip());
    let tightened = base.replace(&address, &format!("{address}deny = [\"{denied}\"]\n"));
    let tighten = || {
        let begun = || site.apiservers.values().map(|server| server.log().matches("/echo").count()).sum::<usize>();
        wait::until("the streams to have begun", LIMIT, || (begun() == sources.len()).then_some(()))?;
        site.xvip.reload(&tightened)?;
        site.xvip.wait_for("a packet to be denied", LIMIT, |status| status.counters.drops["denied"] > 0)?;
        site.event("rebuilt")
    };
    let (rebuilt, streams) = site.echo_during(false, &sources, tighten).unwrap();
    for (source, stream) in sources.iter().zip(streams) {
        let failure = stream.unwrap().failure;
        assert_eq!(failure, (*source == denied).then_some(Failure::Timeout(Stage::Answer)), "{source}");
    }
    assert_eq!(rebuilt, 0, "the others went on as they were");
}
