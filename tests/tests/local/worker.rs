//! A node without a VIP, whose processes use its own loopback address.

use super::*;

/// Deployment E: a worker with nothing but its own loopback.
fn node_local(name: &str, cgroup: &Cgroup) -> (Site, Traces) {
    let deployment = Topology::E.build(name).unwrap();
    let configuration = quick(&deployment.xvip_config(WORKER).unwrap())
        .replace("[dataplane]\n", &format!("[dataplane]\ncgroup = {:?}\n", cgroup.path()))
        .replace("[admin]\n", "[admin]\nhealthz = \"127.0.0.1:8081\"\n");
    let before = traces(&deployment);
    (Site::of(deployment, WORKER, &configuration).unwrap(), before)
}

/// Status line and body.
fn probe(host: &Host, path: &str) -> (String, String) {
    let exchange = || {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, 8081)).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.lines().next().unwrap().to_owned(), body.to_owned())
    };
    host.enter(exchange).unwrap()
}

#[test]
fn a_worker_reaches_the_masters_by_its_own_loopback() {
    let cgroup = Cgroup::new("loopback").unwrap();
    let (site, before) = node_local("loopback", &cgroup);
    let added = traces(&site.deployment).since(&before);
    // The pins and the control socket, and nothing on any interface.
    assert_eq!(added.len(), 2, "{added:#?}");
    let host = site.host(WORKER);
    for v6 in [false, true] {
        let report = requests(&site, WORKER, &cgroup, v6, Load::sequential(100));
        assert_eq!((report.good(), report.backends().len()), (100, 3), "{report}");
        let target = Topology::E.endpoint(v6);
        let socket = inside(host, &cgroup, || connected(target));
        assert_eq!(shown(socket.peer_addr()), target);
        assert!(masters(Topology::E, v6).contains(&backend_of(host, &socket)));
        // In another namespace the same address is somebody else's, and nobody listens there.
        let error = inside(site.deployment.client_host(), &cgroup, || tcp(target).connect(&target.into()).unwrap_err());
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused);
    }
    assert_eq!(probe(host, "/healthz"), ("HTTP/1.1 200 OK".to_owned(), "ok\n".to_owned()));
    assert_eq!(probe(host, "/livez").0, "HTTP/1.1 200 OK");

    for apiserver in site.apiservers.values() {
        apiserver.kill();
    }
    site.wait_for_states(State::Down).unwrap();
    let (status, words) = probe(host, "/healthz");
    assert_eq!(status, "HTTP/1.1 503 Service Unavailable");
    let named = words.contains("127.0.0.1:6443") && words.contains("[::1]:6443") && words.contains("master-1 is down");
    assert!(named, "{words}");
    assert_eq!(probe(host, "/livez").0, "HTTP/1.1 200 OK");
    let Site { xvip, deployment, .. } = site;
    assert!(xvip.stop().unwrap().success());
    assert_eq!(traces(&deployment).since(&before), [""; 0]);
}

#[test]
fn a_worker_leaves_a_dead_master_in_time() {
    let cgroup = Cgroup::new("leaves").unwrap();
    let (site, _) = node_local("leaves", &cgroup);
    let host = site.host(WORKER);
    for v6 in [false, true] {
        let target = Topology::E.endpoint(v6);
        let dead = master(Topology::E, "master-2", v6);
        let sockets: Vec<Socket> = inside(host, &cgroup, || (0..30).map(|_| connected(target)).collect());
        let truth = truth(host);
        let doomed: Vec<bool> =
            sockets.iter().map(|socket| truth[&plain(shown(socket.local_addr()))] == dead).collect();
        let (report, killed) = thread::scope(|scope| {
            let load = Load { rate: Some(50.0), concurrency: 200, time: Some(LEFT * 2), ..Load::sequential(10_000) };
            let load = scope.spawn(|| requests(&site, WORKER, &cgroup, v6, load));
            let killed = Instant::now();
            site.host("master-2").unplug().unwrap();
            site.wait_for_state("master-2", State::Down).unwrap();
            let closed = || sockets.iter().zip(&doomed).all(|(socket, doomed)| ended(socket) == *doomed).then_some(());
            wait::until("the dead master's sockets to be closed, and no others", Duration::from_millis(500), closed)
                .unwrap();
            (load.join().unwrap(), killed)
        });
        let last = report.latest_failure().map(|last| last.duration_since(killed));
        println!("IPv6 {v6}: last failure {last:?} after the end of its host, at most {LEFT:?} allowed; {report}");
        assert!(report.good() > 100, "{report}");
        assert!(last.is_some_and(|last| last <= LEFT), "{last:?}: {report}");
        site.host("master-2").plug().unwrap();
        site.wait_for_state("master-2", State::Up).unwrap();
    }
}
