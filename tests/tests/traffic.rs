//! Real HTTPS connections through the VIP, with real XDP in driver mode. Needs root.

use std::time::Duration;

use lb_tests::{
    client::{Load, run},
    topology::Topology,
    xvip::Xvip,
};

#[test]
fn requests_reach_every_backend_in_both_families() {
    let deployment = Topology::C.build("basic").unwrap();
    let _apiservers = deployment.start_apiservers().unwrap();
    let xvip = Xvip::start(&deployment, "ha-lb-a").unwrap();
    xvip.wait_for("backends up", Duration::from_secs(5), |status| {
        status.virtual_servers.iter().all(|s| s.held && s.backends.iter().all(|b| format!("{:?}", b.state) == "Up"))
    })
    .unwrap();
    for v6 in [false, true] {
        let client = deployment.client(Topology::C.endpoint(v6)).unwrap();
        let report = deployment.client_host().run(|| run(&client, Load::sequential(50))).unwrap();
        assert_eq!(report.good(), 50, "{report}\n{}\n{:#?}", xvip.log(), xvip.status());
    }
    println!("{}", String::from_utf8_lossy(&xvip.command(&["status"]).unwrap().stdout));
    deployment.lab.assert_checksums_clean();
    assert!(xvip.stop().unwrap().success());
}
