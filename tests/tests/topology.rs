//! Every deployment comes up with its addresses, and its xvip files are whole. Needs root.

use lb_tests::{
    client::{Load, run},
    topology::{APISERVER_PORT, Topology},
};

#[test]
fn every_deployment_comes_up() {
    for topology in Topology::ALL {
        let deployment = topology.build("topology").unwrap();
        let servers = deployment.start_apiservers().unwrap();
        assert_eq!(servers.len(), 3);
        for node in deployment.nodes().iter().filter(|node| node.runs_apiserver) {
            for address in node.addresses() {
                let target = (address, APISERVER_PORT).into();
                let client = deployment.client(target).unwrap();
                let report = (deployment.client_host()).run(|| run(&client, Load::default())).unwrap();
                assert_eq!(report.backends().get(node.name.as_str()), Some(&1), "{report}");
            }
        }
        deployment.lab.assert_checksums_clean();
    }
}

#[test]
fn each_xvip_gets_a_file_of_its_own() {
    let deployment = Topology::C.build("files").unwrap();
    let files = ["ha-lb-a", "ha-lb-b"].map(|node| deployment.xvip_config(node).unwrap());
    let [a, b] = files.map(|text| text.parse::<toml::Table>().unwrap());
    assert_ne!(a["dataplane"]["bpffs"], b["dataplane"]["bpffs"]);
    assert_ne!(a["admin"]["control_socket"], b["admin"]["control_socket"]);
    assert_eq!(a["virtual_server"], b["virtual_server"]);

    let servers = a["virtual_server"].as_array().unwrap();
    let addresses = |key: &str, table: &toml::Value| {
        let port = table["port"].as_integer().unwrap();
        format!("{} {port}", table[key].as_str().unwrap())
    };
    let shown: Vec<String> = (servers.iter()).map(|server| addresses("address", server)).collect();
    assert_eq!(shown, ["192.168.2.100 16443", "fd00:2::100 16443"]);
    let backends: Vec<String> =
        (servers[1]["backend"].as_array().unwrap().iter()).map(|backend| addresses("address", backend)).collect();
    assert_eq!(backends, ["fd00:2::11 6443", "fd00:2::12 6443", "fd00:2::13 6443"]);
}
