//! A deployment that runs: its lab, its authority, its stand-ins, and the file that each xvip gets.

use std::{
    fmt::Write,
    net::{Ipv6Addr, SocketAddr},
    path::PathBuf,
};

use anyhow::{Context, Result};

use super::{APISERVER_PORT, CLIENT, Node, Topology};
use crate::{
    apiserver::{self, Apiserver, Authority},
    client::Client,
    lab::{Host, HostSpec, Lab},
};

/// The segment that every host is on.
const SEGMENT: &str = "lan";
const TOKEN: &str = "lab-token";

/// The hosts of a topology. Nothing runs on them yet.
#[derive(Debug)]
pub struct Deployment {
    pub topology: Topology,
    pub lab: Lab,
    pub authority: Authority,
    nodes: Vec<Node>,
}

impl Topology {
    /// Builds every host, and a certificate authority.
    pub fn build(self, name: &str) -> Result<Deployment> {
        self.build_where(name, |node| node.runs_xvip)
    }

    /// The same with xvip on other nodes.
    pub fn build_where(self, name: &str, runs_xvip: impl Fn(&Node) -> bool) -> Result<Deployment> {
        let mut lab = Lab::new(name)?;
        let nodes = self.nodes();
        for node in &nodes {
            let spec = HostSpec::new(&node.name).on(SEGMENT, node.networks());
            lab.add(if runs_xvip(node) { spec.with_xdp() } else { spec })?;
        }
        let authority = Authority::new(&lab.directory().join("pki"))?;
        Ok(Deployment { topology: self, lab, authority, nodes })
    }
}

impl Deployment {
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    pub fn node(&self, name: &str) -> Result<&Node> {
        (self.nodes.iter()).find(|node| node.name == name).with_context(|| format!("no node named {name}"))
    }

    pub fn host(&self, name: &str) -> Result<&Host> {
        Ok(self.lab.host(name)?)
    }

    pub fn client_host(&self) -> &Host {
        self.lab.host(CLIENT).expect("every deployment has a client")
    }

    /// How a master's apiserver runs: on every address of its host, as kubeadm has it, so that it answers for a VIP that
    /// the host holds too; and with the VIPs among its certificate's names.
    pub fn apiserver_options(&self, node: &str) -> Result<apiserver::Options> {
        let node = self.node(node)?;
        let listen = vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, APISERVER_PORT))];
        let mut names: Vec<String> = node.addresses().map(|ip| ip.to_string()).to_vec();
        for endpoint in self.topology.endpoints() {
            let vip = endpoint.ip().to_string();
            if !names.contains(&vip) {
                names.push(vip);
            }
        }
        let files = self.authority.server(&node.name, &names)?;
        let certificate = self.authority.certificate();
        let mut options = apiserver::Options::new(&node.name, listen, files, certificate);
        options.token = Some(TOKEN.to_owned());
        Ok(options)
    }

    /// Starts a master's apiserver, for the first time or again.
    pub fn start_apiserver(&self, node: &str) -> Result<Apiserver> {
        let options = self.apiserver_options(node)?;
        Ok(Apiserver::start(self.lab.host(node)?, &options)?)
    }

    /// Starts them all, in the order of the nodes.
    pub fn start_apiservers(&self) -> Result<Vec<Apiserver>> {
        (self.nodes.iter()).filter(|node| node.runs_apiserver).map(|node| self.start_apiserver(&node.name)).collect()
    }

    /// A client of `target` that trusts the deployment's authority.
    pub fn client(&self, target: SocketAddr) -> Result<Client> {
        Client::new(target, &self.authority.certificate())
    }

    pub fn control_socket(&self, node: &str) -> Result<PathBuf> {
        Ok(self.lab.host(node)?.directory().join("xvip.sock"))
    }

    /// The configuration of one node's xvip: every endpoint of the deployment, in both families.
    pub fn xvip_config(&self, node: &str) -> Result<String> {
        self.xvip_config_for(node, |_| true)
    }

    /// The same with the endpoints of one family.
    pub fn xvip_config_of(&self, node: &str, v6: bool) -> Result<String> {
        self.xvip_config_for(node, |endpoint| endpoint.is_ipv6() == v6)
    }

    fn xvip_config_for(&self, node: &str, wanted: impl Fn(&SocketAddr) -> bool) -> Result<String> {
        let host = self.lab.host(node)?;
        let interfaces = if self.topology.has_vip() { "interfaces = [\"eth0\"]\n" } else { "" };
        // The root is every lab's, and this machine's: who wants local clients names a cgroup of its own.
        let cgroup = if self.topology.has_vip() { "cgroup = \"off\"\n" } else { "" };
        let mut toml = format!(
            "[dataplane]\n{interfaces}{cgroup}bpffs = {:?}\n\n[admin]\ncontrol_socket = {:?}\nmetrics = \"127.0.0.1:9095\"\n",
            host.bpffs()?,
            self.control_socket(node)?,
        );
        for endpoint in self.topology.endpoints().into_iter().filter(wanted) {
            self.virtual_server(&mut toml, endpoint)?;
        }
        Ok(toml)
    }

    fn virtual_server(&self, toml: &mut String, endpoint: SocketAddr) -> Result<()> {
        let family = if endpoint.is_ipv4() { "ipv4" } else { "ipv6" };
        write!(
            toml,
            r#"
[[virtual_server]]
name = "kube-apiserver-{port}-{family}"
address = "{ip}"
port = {port}

[virtual_server.check]
type = "https"
verify = true
ca_file = {ca:?}
interval = "2s"
timeout = "3s"
rise = 2
fall = 3
"#,
            port = endpoint.port(),
            ip = endpoint.ip(),
            ca = self.authority.certificate(),
        )?;
        for node in self.nodes.iter().filter(|node| node.runs_apiserver) {
            let address = (node.addresses().into_iter())
                .find(|ip| ip.is_ipv4() == endpoint.is_ipv4())
                .expect("every node has an address of each family");
            write!(
                toml,
                "\n[[virtual_server.backend]]\nname = \"{}\"\naddress = \"{address}\"\nport = {APISERVER_PORT}\nweight = 1\n",
                node.name,
            )?;
        }
        Ok(())
    }
}
