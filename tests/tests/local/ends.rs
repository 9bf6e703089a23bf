//! What becomes of sockets when their backend goes.

use super::*;

#[test]
fn with_every_backend_down_connects_are_refused_at_once() {
    let cgroup = Cgroup::new("refused").unwrap();
    let site = site("refused", &cgroup);
    for apiserver in site.apiservers.values() {
        apiserver.kill();
    }
    site.wait_for_states(State::Down).unwrap();
    for node in [HOLDER, ELSEWHERE] {
        for target in [Topology::C.endpoint(false), mapped(Topology::C.endpoint(false)), Topology::C.endpoint(true)] {
            let (error, took) = inside(site.host(node), &cgroup, || {
                let start = Instant::now();
                (tcp(target).connect(&target.into()).unwrap_err(), start.elapsed())
            });
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{target} from {node}: {error}");
            assert!(took < Duration::from_millis(50), "{took:?}");
        }
    }
    let refused = |status: &Status| status.counters.events["local_refused"] == 6;
    site.xvip.wait_for("the refused to be counted", LIMIT, refused).unwrap();
}

#[test]
fn sockets_of_a_dead_backend_are_closed_at_once_and_no_others() {
    const EACH: usize = 20;
    let cgroup = Cgroup::new("dead").unwrap();
    let site = site("dead", &cgroup);
    for v6 in [false, true] {
        let vip = Topology::C.endpoint(v6);
        let dead = master(Topology::C, "master-2", v6);
        let mut through = Vec::new();
        let mut direct = Vec::new();
        // The second is another network namespace than the daemon's, as a pod's.
        for node in [HOLDER, ELSEWHERE] {
            let host = site.host(node);
            let targets = if v6 { vec![vip] } else { vec![vip, mapped(vip)] };
            let sockets: Vec<Socket> = inside(host, &cgroup, || {
                targets.iter().flat_map(|target| (0..EACH).map(|_| connected(*target))).collect()
            });
            let truth = truth(host);
            through.extend(sockets.into_iter().map(|socket| {
                let leads = truth[&plain(shown(socket.local_addr()))];
                (socket, leads == dead)
            }));
            direct.push(inside(host, &cgroup, || connected(dead)));
        }
        let doomed = through.iter().filter(|(_, doomed)| *doomed).count();
        assert!(doomed >= 4, "only {doomed} of {} lead to {dead}", through.len());

        // Nobody is left who could end them from the other side.
        site.host("master-2").unplug().unwrap();
        site.wait_for_state("master-2", State::Down).unwrap();
        let start = Instant::now();
        let closed = || through.iter().filter(|(_, doomed)| *doomed).all(|(socket, _)| ended(socket)).then_some(());
        wait::until("the dead backend's sockets to be closed", LIMIT, closed).unwrap();
        println!("IPv6 {v6}: {doomed} sockets closed {:.1?} after the status said so", start.elapsed());
        assert!(start.elapsed() < Duration::from_millis(500), "{:?}", start.elapsed());
        for (socket, doomed) in &through {
            assert_eq!(ended(socket), *doomed, "{socket:?}");
        }
        assert!(direct.iter().all(|socket| !ended(socket)), "what was not asked of the VIP is not ours to close");
        assert!(site.xvip.log().contains(&format!("closed {doomed} local connections")), "{}", site.xvip.log());
        site.host("master-2").plug().unwrap();
        site.wait_for_state("master-2", State::Up).unwrap();
    }
}

#[test]
fn sockets_of_a_killed_daemon_are_closed_by_the_next() {
    let cgroup = Cgroup::new("former").unwrap();
    let Site { xvip, apiservers, deployment } = site("former", &cgroup);
    let target = Topology::C.endpoint(false);
    let dead = master(Topology::C, "master-2", false);
    let host = deployment.host(ELSEWHERE).unwrap();
    let sockets: Vec<Socket> = inside(host, &cgroup, || (0..30).map(|_| connected(target)).collect());
    let truth = truth(host);
    let doomed: Vec<bool> = sockets.iter().map(|socket| truth[&plain(shown(socket.local_addr()))] == dead).collect();
    assert!(doomed.iter().filter(|doomed| **doomed).count() >= 3, "{doomed:?}");
    xvip.process().kill();
    deployment.host("master-2").unwrap().unplug().unwrap();
    // It finds the backend dead at its first check.
    let site = Site { xvip: restart(&deployment, &cgroup), apiservers, deployment };
    site.wait_for_state("master-2", State::Down).unwrap();
    let closed = || sockets.iter().zip(&doomed).all(|(socket, doomed)| !doomed || ended(socket)).then_some(());
    wait::until("the dead backend's sockets to be closed", LIMIT, closed).unwrap();
    let all: Vec<bool> = sockets.iter().map(ended).collect();
    assert_eq!(all, doomed, "the others are left alone");
    assert!(sockets.iter().all(|socket| ended(socket) || shown(socket.peer_addr()) == target));
}

#[test]
fn a_draining_backend_keeps_its_sockets_and_gets_no_new_ones() {
    let cgroup = Cgroup::new("draining").unwrap();
    let site = site("draining", &cgroup);
    let host = site.host(ELSEWHERE);
    let target = Topology::C.endpoint(false);
    let draining = master(Topology::C, "master-2", false);
    let open = |count: usize| {
        let sockets: Vec<Socket> = inside(host, &cgroup, || (0..count).map(|_| connected(target)).collect());
        let truth = truth(host);
        let leads = |socket: &Socket| truth[&plain(shown(socket.local_addr()))] == draining;
        sockets.into_iter().partition::<Vec<_>, _>(leads)
    };
    let (theirs, _) = open(30);
    assert!(theirs.len() >= 3, "{}", theirs.len());
    site.apiserver("master-2").unwrap().set_ready(false).unwrap();
    site.wait_for_state("master-2", State::Draining).unwrap();
    assert_eq!(open(30).0.len(), 0);
    assert!(theirs.iter().all(|socket| !ended(socket)));
    // When it dies after all, they go, though new ones have long been elsewhere.
    site.host("master-2").unplug().unwrap();
    site.wait_for_state("master-2", State::Down).unwrap();
    let closed = || theirs.iter().all(ended).then_some(());
    wait::until("the sockets to end", LIMIT, closed).unwrap();
}
