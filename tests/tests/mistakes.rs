//! Wrong files and wrong hosts: each is refused with one clear text that says how to mend it, and leaves nothing behind.
//! Needs root.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::{Command, Output},
    time::Duration,
};

use lb_common::abi::MAX_SERVICES;
use lb_tests::{
    client::{Load, run},
    site::quick,
    topology::{Deployment, Topology},
    traces::Traces,
    xvip::{Xvip, backends},
};
use lb_userspace::health::State;

const NODE: &str = "ha-lb-a";
const START_LIMIT: Duration = Duration::from_secs(10);

/// A deployment whose hosts do nothing yet, and how its load balancer was before anything was tried on it.
struct Bench {
    deployment: Deployment,
    before: Traces,
}

impl Bench {
    fn new(name: &str) -> Self {
        let deployment = Topology::C.build(name).unwrap();
        let before = Self::traces(&deployment);
        Self { deployment, before }
    }

    fn traces(deployment: &Deployment) -> Traces {
        let socket = deployment.control_socket(NODE).unwrap();
        Traces::of(deployment.host(NODE).unwrap(), "eth0", &socket).unwrap()
    }

    fn configuration(&self) -> String {
        quick(&self.deployment.xvip_config(NODE).unwrap())
    }

    /// The configuration with one thing in it changed.
    fn with(&self, from: &str, to: &str) -> String {
        let configuration = self.configuration();
        assert!(configuration.contains(from), "{from} is not in {configuration}");
        configuration.replacen(from, to, 1)
    }

    /// That `verb` ends with `code`, says each of `words`, and leaves the host as it was.
    fn refuse(&self, verb: &str, configuration: &str, code: i32, words: &[&str]) {
        let output = Xvip::refuse(self.deployment.host(NODE).unwrap(), verb, configuration).unwrap();
        self.judge(verb, &output, code, words);
    }

    fn judge(&self, verb: &str, output: &Output, code: i32, words: &[&str]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{verb}: {said}");
        for word in words {
            assert!(said.contains(word), "{verb} does not say {word:?}: {said}");
        }
        assert!(!said.contains("panicked") && !said.contains("Backtrace"), "{verb}: {said}");
        assert_eq!(Self::traces(&self.deployment).since(&self.before), [""; 0], "{verb}: {said}");
    }

    /// Runs a program of the host, such as a shell that runs xvip.
    fn host_output(&self, command: &mut Command) -> Output {
        self.deployment.host(NODE).unwrap().enter(|| command.output()).unwrap().unwrap()
    }

    fn write(&self, configuration: &str) -> std::path::PathBuf {
        let path = self.deployment.host(NODE).unwrap().directory().join("xvip.toml");
        fs::write(&path, configuration).unwrap();
        path
    }
}

#[test]
fn all_mistakes_of_a_file_are_told_at_once_with_their_places() {
    let bench = Bench::new("malformed");
    let file = r#"[dataplane]
interfaces = "eth0"
mode = "fast"
max_conections = 1000

[[virtual_server]]
name = "api"
address = "192.168.2.300"
port = 0
check = { type = "tcp", interval = "2 parsecs", timeout = "1s", fall = -1 }

[[virtual_server.backend]]
name = "master 1"
address = "fd00:2::11"
weight = 257
"#;
    let places = [":2:14: ", ":3:8: ", ":4:1: ", ":8:11: ", ":9:8: ", ":10:36: ", ":10:72: ", ":13:8: ", ":15:10: "];
    let places = places.map(|place| format!("xvip.toml{place}"));
    let mut words: Vec<&str> = places.iter().map(String::as_str).collect();
    words.extend(["did you mean `max_connections`?", "help: "]);
    for verb in ["check", "run"] {
        bench.refuse(verb, file, 2, &words);
        bench.refuse(verb, "[dataplane\n", 2, &["xvip.toml:1:"]);
    }
}

#[test]
fn a_vip_and_port_twice_is_told_with_both_names() {
    let bench = Bench::new("twice");
    let twice = bench.with("fd00:2::100", "192.168.2.100");
    for verb in ["check", "run"] {
        bench.refuse(
            verb,
            &twice,
            2,
            &["xvip.toml:45:8: 192.168.2.100:16443 is taken by the virtual server in line 13", "help: "],
        );
    }
}

#[test]
fn a_missing_file_is_named() {
    let bench = Bench::new("missing");
    for verb in ["check", "run"] {
        let output = bench.host_output(Command::new(Xvip::program().unwrap()).args([verb, "-c", "/no/such/xvip.toml"]));
        bench.judge(verb, &output, 2, &["/no/such/xvip.toml: cannot be read", "help: give the path"]);
    }
    let output =
        bench.host_output(Command::new(Xvip::program().unwrap()).args(["status", "--socket", "/no/such/xvip.sock"]));
    bench.judge("status", &output, 1, &["/no/such/xvip.sock"]);
    let output = bench.host_output(Command::new(Xvip::program().unwrap()).arg("fly"));
    bench.judge("fly", &output, 2, &["unrecognized subcommand 'fly'"]);
}

#[test]
fn what_the_host_does_not_have_is_told_with_what_it_has() {
    let bench = Bench::new("unfit");
    let unknown = bench.with("[\"eth0\"]", "[\"eth0\", \"eth9\"]");
    let outside = bench.with("192.168.2.100", "10.1.2.3");
    for (verb, code) in [("check", 2), ("run", 1)] {
        bench.refuse(verb, &unknown, code, &["eth9", "eth0"]);
        let words = [
            "VIP 10.1.2.3 is in none of the subnets of eth0 (192.168.2.10/24, fd00:2::10/64",
            "kube-apiserver-16443-ipv4",
            "Choose a VIP inside",
        ];
        bench.refuse(verb, &outside, code, &words);
    }
}

#[test]
fn a_virtual_mac_where_no_program_is_is_refused() {
    let bench = Bench::new("deaf");
    let vrrp = "\n[[vrrp]]\nname = \"deaf\"\ninterface = \"lo\"\nvrid = 51\naddresses = [\"192.168.2.77\"]\nvirtual_mac = true\n";
    let words = [
        "[[vrrp]] \"deaf\": `virtual_mac` needs the XDP program on lo. Add lo (or, if it is a VLAN, the interface below it)",
    ];
    bench.refuse("check", &(bench.configuration() + vrrp), 2, &words);
    bench.refuse("run", &(bench.configuration() + vrrp), 1, &words);
}

#[test]
fn a_taken_metrics_port_is_told_and_nothing_is_half_done() {
    let bench = Bench::new("port");
    let host = bench.deployment.host(NODE).unwrap();
    let _theirs = host.enter(|| std::net::TcpListener::bind("127.0.0.1:9095")).unwrap().unwrap();
    bench.refuse(
        "run",
        &bench.configuration(),
        1,
        &["serving metrics on 127.0.0.1:9095", "Set admin.metrics to a free address"],
    );
}

#[test]
fn an_unreachable_backend_is_told_by_check_and_does_not_keep_run_from_the_others() {
    let bench = Bench::new("unreachable");
    let configuration = bench.configuration();
    let _apiservers = ["master-1", "master-3"].map(|node| bench.deployment.start_apiserver(node).unwrap());
    bench.refuse(
        "check",
        &configuration,
        1,
        &[
            "backend kube-apiserver-16443-ipv4/master-2 at 192.168.2.12:6443 is not reachable from this host: Connection refused",
            "backend kube-apiserver-16443-ipv6/master-2 at [fd00:2::12]:6443",
            "Start it, correct its address",
        ],
    );
    let xvip = Xvip::start_with(&bench.deployment, NODE, &configuration).unwrap();
    let status = xvip
        .wait_for("the others up", START_LIMIT, |status| {
            ["master-1", "master-3"]
                .iter()
                .all(|name| backends(status, name).iter().all(|backend| backend.state == State::Up))
        })
        .unwrap();
    for backend in backends(&status, "master-2") {
        let check = backend.last_check.as_ref().unwrap();
        assert_eq!(backend.state, State::Down);
        assert!(check.text.contains("refused"), "{}", check.text);
    }
    let client = bench.deployment.client(Topology::C.endpoint(false)).unwrap();
    let report = bench.deployment.client_host().run(|| run(&client, Load::sequential(5))).unwrap();
    assert_eq!(report.good(), 5, "{report}");
}

#[test]
fn without_root_it_says_what_is_missing() {
    let bench = Bench::new("nobody");
    let configuration = bench.write(&bench.configuration());
    // Where anybody may start it: a home directory may be closed.
    let public = tempfile::tempdir().unwrap();
    fs::set_permissions(public.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = public.path().join("xvip");
    fs::copy(Xvip::program().unwrap(), &program).unwrap();
    let mut command = Command::new("setpriv");
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(program)
        .arg("run")
        .arg("-c")
        .arg(configuration);
    let output = bench.host_output(&mut command);
    bench.judge(
        "run",
        &output,
        1,
        &["this process lacks CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON, CAP_BPF", "Start xvip as root"],
    );
}

#[test]
fn without_a_bpf_filesystem_it_says_how_to_mount_one() {
    let bench = Bench::new("nobpffs");
    let configuration = bench.write(&bench.configuration());
    let mut command = Command::new("unshare");
    let script = "umount /sys/fs/bpf && exec \"$0\" run -c \"$1\"";
    command.args(["--mount", "sh", "-c", script]).arg(Xvip::program().unwrap()).arg(configuration);
    let output = bench.host_output(&mut command);
    bench.judge("run", &output, 1, &["is on no BPF filesystem", "mount -t bpf bpf /sys/fs/bpf", "dataplane.bpffs"]);
}

#[test]
fn more_virtual_servers_than_fit_are_told_and_nothing_is_half_done() {
    let bench = Bench::new("many");
    let mut many = bench.configuration();
    for port in 0..=MAX_SERVICES {
        many += &format!(
            "\n[[virtual_server]]\nname = \"many-{port}\"\naddress = \"192.168.2.100\"\nport = {}\n\
             check = {{ type = \"tcp\" }}\n\
             [[virtual_server.backend]]\nname = \"one\"\naddress = \"192.168.2.11\"\nport = 6443\n",
            20_000 + port
        );
    }
    let words = ["259 virtual servers are configured, and 256 are the most", "several nodes"];
    bench.refuse("run", &many, 1, &words);
}

#[test]
fn a_file_in_the_place_of_the_control_socket_is_not_removed() {
    let bench = Bench::new("nosocket");
    let place = bench.deployment.host(NODE).unwrap().directory().join("precious");
    fs::write(&place, "precious").unwrap();
    let socket = bench.deployment.control_socket(NODE).unwrap().display().to_string();
    let configuration = bench.configuration().replace(&socket, &place.display().to_string());
    bench.refuse("run", &configuration, 1, &["is not a socket", "admin.control_socket"]);
    assert_eq!(fs::read_to_string(Path::new(&place)).unwrap(), "precious");
}
