//! How connections of this node are spread over the backends.

use super::*;

#[test]
fn weights_are_honoured_and_connections_counted() {
    const CONNECTIONS: u32 = 400;
    let cgroup = Cgroup::new("weights").unwrap();
    let site = Site::up_with(Topology::C, "weights", HOLDER, |text| {
        let weigh = |text: String, backend: &str, weight: u16| {
            let line = |weight: u16| format!("{backend}\"\nport = 6443\nweight = {weight}");
            assert!(text.contains(&line(1)));
            text.replace(&line(1), &line(weight))
        };
        weigh(weigh(on(&cgroup, &text), "192.168.2.11", 3), "192.168.2.13", 0)
    })
    .unwrap();
    let target = Topology::C.endpoint(false);
    let sockets: Vec<Socket> =
        inside(site.host(ELSEWHERE), &cgroup, || (0..CONNECTIONS).map(|_| connected(target)).collect());
    let open = |status: &Status, name: &str| {
        backends(status, name).iter().filter_map(|backend| backend.local_connections).sum::<u64>()
    };
    let all = |status: &Status| ["master-1", "master-2", "master-3"].iter().map(|name| open(status, name)).sum::<u64>();
    let status =
        site.xvip.wait_for("all to be counted", LIMIT, |status| all(status) == u64::from(CONNECTIONS)).unwrap();
    // 300 and 100 expected, with a standard deviation of 9.
    let shares = ["master-1", "master-2", "master-3"].map(|name| open(&status, name));
    assert!((265..=335).contains(&shares[0]) && shares[2] == 0, "{shares:?}");
    drop(sockets);
    site.xvip.wait_for("none to be left", LIMIT, |status| all(status) == 0).unwrap();
}

/// Where the sockets of a host lead, how many each.
fn spread(host: &Host, sockets: &[Socket]) -> BTreeMap<SocketAddr, usize> {
    let truth = truth(host);
    let mut shares = BTreeMap::new();
    for socket in sockets {
        *shares.entry(truth[&plain(shown(socket.local_addr()))]).or_default() += 1;
    }
    shares
}

#[test]
fn sockets_take_turns_and_go_where_the_fewest_are() {
    let cgroup = Cgroup::new("turns").unwrap();
    let site =
        Site::up_with(Topology::C, "turns", HOLDER, |text| serving(&on(&cgroup, &text), "balance = \"round-robin\""))
            .unwrap();
    let host = site.host(ELSEWHERE);
    for v6 in [false, true] {
        let target = Topology::C.endpoint(v6);
        let open = |count| -> Vec<Socket> { inside(host, &cgroup, || (0..count).map(|_| connected(target)).collect()) };
        let masters = masters(Topology::C, v6);
        let equal = |count| masters.iter().map(|master| (*master, count)).collect::<BTreeMap<_, _>>();
        let balance = |name: &str| {
            let text = quick(&site.deployment.xvip_config(HOLDER).unwrap());
            site.xvip.reload(&serving(&on(&cgroup, &text), &format!("balance = \"{name}\""))).unwrap();
        };
        balance("round-robin");
        let sockets = open(30);
        assert_eq!(spread(host, &sockets), equal(10), "IPv6 {v6}");

        balance("least-connections");
        let truth = truth(host);
        let (leave, mut stay): (Vec<_>, Vec<_>) =
            sockets.into_iter().partition(|socket| truth[&plain(shown(socket.local_addr()))] == masters[0]);
        assert_eq!(leave.len(), 10);
        drop(leave);
        stay.extend(open(10));
        assert_eq!(spread(host, &stay), equal(10), "IPv6 {v6}: all new ones where none are left");
        stay.extend(open(9));
        assert_eq!(spread(host, &stay), equal(13), "IPv6 {v6}");
    }
}

#[test]
fn a_masters_own_processes_use_its_own_backend_while_it_is_up() {
    const OWN: &str = "master-1";
    let cgroup = Cgroup::new("prefers").unwrap();
    let mut site =
        Site::up_with(Topology::D, "prefers", OWN, |text| serving(&on(&cgroup, &text), "prefer_local = \"processes\""))
            .unwrap();
    for v6 in [false, true] {
        let own = |site: &Site| {
            let report = requests(site, OWN, &cgroup, v6, Load::sequential(12));
            assert_eq!(report.good(), 12, "{report}");
            report.backends().keys().map(|name| (*name).to_owned()).collect::<Vec<_>>()
        };
        let remote = |site: &Site| {
            let report = site.map(v6, &site.sources(v6, 60).unwrap()).unwrap();
            assert_eq!(report.good(), 60, "{report}");
            report.backends().keys().map(|name| (*name).to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(own(&site), [OWN]);
        assert_eq!(remote(&site), [OWN, "master-2", "master-3"], "who comes from elsewhere does not care");
        site.apiserver(OWN).unwrap().kill();
        site.wait_for_state(OWN, State::Down).unwrap();
        assert!(!own(&site).contains(&OWN.to_owned()));
        site.restart(OWN).unwrap();
        site.wait_for_state(OWN, State::Up).unwrap();
        assert_eq!(own(&site), [OWN]);

        let text = |prefer: &str| {
            let text = quick(&site.deployment.xvip_config(OWN).unwrap());
            serving(&on(&cgroup, &text), &format!("prefer_local = \"{prefer}\""))
        };
        site.xvip.reload(&text("all")).unwrap();
        assert_eq!((own(&site), remote(&site)), (vec![OWN.to_owned()], vec![OWN.to_owned()]));
        site.xvip.reload(&text("processes")).unwrap();
    }
}
