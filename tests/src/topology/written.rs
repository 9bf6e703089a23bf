//! Deployments A–D as they were written up: the files of each node's keepalived and proxy, and the xvip section that takes their
//! place. Where a write-up leaves something out (a password, a proxy's global section) the least is chosen.

use std::{
    fmt::Write as _,
    net::{IpAddr, Ipv4Addr},
    path::Path,
};

use anyhow::{Context as _, Result, bail};

use super::{APISERVER_PORT, Deployment, Node, Topology};
use crate::peer;

/// How a write-up's VIP moves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    pub vrid: u8,
    /// By the order of the nodes that hold the VIP.
    pub priorities: &'static [u8],
    /// Seconds between advertisements.
    pub interval: u8,
    pub password: Option<&'static str>,
    pub unicast: bool,
    pub preempt: bool,
    /// What keepalived's file calls the nodes at the start.
    states: &'static [&'static str],
    check: Check,
}

/// The script that a write-up's keepalived runs.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Check {
    interval: u8,
    fall: Option<u8>,
    rise: Option<u8>,
    weight: i16,
    /// A line more in the instance.
    more: &'static str,
}

impl Topology {
    /// The failover of a deployment that has a VIP.
    pub fn failover(self) -> Option<Failover> {
        let check = |interval, fall, rise, weight| Check { interval, fall, rise, weight, more: "" };
        Some(match self {
            Self::A => Failover {
                vrid: 250,
                priorities: &[100, 100, 100],
                interval: 1,
                password: Some("solarfs250"),
                unicast: true,
                preempt: true,
                states: &["BACKUP", "BACKUP", "BACKUP"],
                check: check(3, Some(10), Some(2), -2),
            },
            Self::B => Failover {
                vrid: 68,
                priorities: &[120, 110, 110],
                interval: 3,
                password: None,
                unicast: false,
                preempt: true,
                states: &["MASTER", "BACKUP", "BACKUP"],
                check: Check { more: "    dont_track_primary\n", ..check(5, None, None, -30) },
            },
            Self::C => Failover {
                vrid: 51,
                priorities: &[100, 98],
                interval: 1,
                password: Some("1111"),
                unicast: false,
                preempt: true,
                states: &["MASTER", "BACKUP"],
                check: check(3, Some(3), Some(2), -2),
            },
            Self::D => Failover {
                vrid: 51,
                priorities: &[100, 100, 100],
                interval: 1,
                password: Some("d0cker"),
                unicast: true,
                preempt: false,
                states: &["MASTER", "MASTER", "MASTER"],
                check: check(2, None, None, 11),
            },
            Self::E => return None,
        })
    }
}

impl Deployment {
    /// The nodes that hold the VIP in turn.
    pub fn holders(&self) -> Vec<&Node> {
        self.nodes().iter().filter(|node| node.runs_xvip).collect()
    }

    /// The IPv4 address that moves; the write-ups have no other.
    pub fn vip(&self) -> Ipv4Addr {
        match self.topology.endpoint(false).ip() {
            IpAddr::V4(vip) => vip,
            IpAddr::V6(_) => unreachable!("an IPv4 endpoint was asked for"),
        }
    }

    /// A node's keepalived.conf. Writes the scripts that it names, too.
    pub fn keepalived_config(&self, node: &str) -> Result<String> {
        let (failover, index) = self.place(node)?;
        let directory = self.host(node)?.directory();
        let check = directory.join("check_apiserver.sh");
        peer::script(&check, &self.check_script(directory)?)?;
        let Failover { vrid, interval, .. } = failover;
        let (state, priority) = (failover.states[index], failover.priorities[index]);
        let mut text = format!(
            "global_defs {{\n    router_id {node}\n    script_user root\n    enable_script_security\n}}\nvrrp_script check_apiserver {{\n    script \"{}\"\n    interval {}\n    weight {}\n",
            check.display(),
            failover.check.interval,
            failover.check.weight,
        );
        for (key, value) in [("fall", failover.check.fall), ("rise", failover.check.rise)] {
            if let Some(value) = value {
                writeln!(text, "    {key} {value}")?;
            }
        }
        write!(
            text,
            "}}\nvrrp_instance VI_1 {{\n    state {state}\n    interface eth0\n    virtual_router_id {vrid}\n    priority {priority}\n    advert_int {interval}\n{}",
            failover.check.more,
        )?;
        if !failover.preempt {
            text += "    nopreempt\n";
        }
        if let Some(password) = failover.password {
            write!(text, "    authentication {{\n        auth_type PASS\n        auth_pass {password}\n    }}\n")?;
        }
        if failover.unicast {
            let own = self.node(node)?.v4;
            write!(text, "    unicast_src_ip {own}\n    unicast_peer {{\n")?;
            for peer in self.peers(node) {
                writeln!(text, "        {peer}")?;
            }
            text += "    }\n";
        }
        write!(
            text,
            "    virtual_ipaddress {{\n        {}\n    }}\n    track_script {{\n        check_apiserver\n    }}\n",
            self.vip()
        )?;
        if self.topology == Topology::D {
            let notify = directory.join("notify.sh");
            peer::script(&notify, &notify_script(directory))?;
            writeln!(text, "    notify \"{}\"", notify.display())?;
        }
        text += "}\n";
        Ok(text)
    }

    /// A node's proxy, as the write-up has it, on `port`.
    pub fn start_proxy(&self, node: &str) -> Result<peer::Proxy> {
        let host = self.host(node)?;
        let port = self.topology.endpoint(false).port();
        let text = self.proxy_config()?;
        match self.topology {
            Topology::C => peer::Proxy::nginx(host, &text, port),
            _ => peer::Proxy::haproxy(host, &text, port),
        }
    }

    /// A node's xvip.toml in place of both: the same virtual router, the same port, IPv4 only.
    pub fn xvip_failover_config(&self, node: &str) -> Result<String> {
        let (failover, index) = self.place(node)?;
        let mut toml = self.xvip_config_of(node, false)?;
        write!(
            toml,
            "\n[[vrrp]]\nname = \"VI_1\"\ninterface = \"eth0\"\nvrid = {}\nversion = 2\npriority = {}\ninterval = \"{}s\"\naddresses = [\"{}\"]\n",
            failover.vrid,
            failover.priorities[index],
            failover.interval,
            self.vip(),
        )?;
        if !failover.preempt {
            toml += "preempt = false\n";
        }
        if let Some(password) = failover.password {
            // keepalived uses eight characters of it, and says so in its log only.
            writeln!(toml, "password = \"{password:.8}\"")?;
        }
        if failover.unicast {
            let peers: Vec<String> = self.peers(node).map(|peer| format!("\"{peer}\"")).collect();
            writeln!(toml, "peers = [{}]", peers.join(", "))?;
        }
        Ok(toml)
    }

    fn place(&self, node: &str) -> Result<(Failover, usize)> {
        let failover = self.topology.failover().context("this deployment has no VIP")?;
        let index = self.holders().iter().position(|holder| holder.name == node);
        Ok((failover, index.with_context(|| format!("{node} never holds the VIP"))?))
    }

    fn peers(&self, node: &str) -> impl Iterator<Item = Ipv4Addr> {
        self.holders().into_iter().filter(move |holder| holder.name != node).map(|holder| holder.v4)
    }

    /// What the scripts of the write-ups ask. Hosts of the lab share their process numbers, so that a proxy is looked for by its
    /// own number and not by its name.
    fn check_script(&self, directory: &Path) -> Result<String> {
        let (vip, port) = (self.vip(), self.topology.endpoint(false).port());
        let get = |host: &str, path: &str| {
            format!("curl --silent --max-time 2 --insecure https://{host}:{port}{path} -o /dev/null || exit 1\n")
        };
        let body = match self.topology {
            Topology::A => {
                let held = format!("if ip addr | grep -q {vip}; then\n    {}fi\n", get(&vip.to_string(), "/"));
                get("localhost", "/") + &held
            }
            Topology::B => format!("kill -0 $(cat {}/haproxy/haproxy.pid)\n", directory.display()),
            Topology::C => get("localhost", "/healthz"),
            Topology::D => format!("ss --listening --tcp --numeric | grep -q ':{port} '\n"),
            Topology::E => bail!("E has no VIP and no script"),
        };
        Ok(format!("#!/bin/sh\n{body}"))
    }

    fn proxy_config(&self) -> Result<String> {
        let masters: Vec<&Node> = self.nodes().iter().filter(|node| node.runs_apiserver).collect();
        let port = self.topology.endpoint(false).port();
        let server = |more: &str| -> String {
            (masters.iter())
                .map(|node| format!("    server {} {}:{APISERVER_PORT} check{more}\n", node.name, node.v4))
                .collect()
        };
        let haproxy = |times: &str, backend: &str, servers: String| {
            format!(
                "defaults\n    mode tcp\n{times}\nfrontend apiserver\n    bind *:{port}\n    default_backend apiserver\n\nbackend apiserver\n{backend}{servers}"
            )
        };
        Ok(match self.topology {
            Topology::A => haproxy(
                "    timeout connect 5s\n    timeout client 20s\n    timeout server 20s\n",
                "    option httpchk GET /healthz\n    http-check expect status 200\n    option ssl-hello-chk\n    balance roundrobin\n",
                server(""),
            ),
            Topology::B => haproxy(
                "    timeout connect 5s\n    timeout client 10m\n    timeout server 10m\n",
                "    balance source\n",
                server(" inter 2000 fall 2 rise 2 weight 1"),
            ),
            Topology::D => haproxy(
                "    timeout connect 5s\n    timeout client 1m\n    timeout server 1m\n",
                "    balance roundrobin\n",
                server(""),
            ),
            Topology::C => {
                let servers: String =
                    masters.iter().map(|node| format!("        server {}:{APISERVER_PORT};\n", node.v4)).collect();
                format!(
                    "include /etc/nginx/modules-enabled/*stream*.conf;\nworker_processes 1;\nevents {{}}\nstream {{\n    upstream apiserver {{\n{servers}    }}\n    server {{\n        listen {port};\n        proxy_pass apiserver;\n    }}\n}}\n"
                )
            }
            Topology::E => bail!("E's proxies have no VIP in front of them"),
        })
    }
}

/// Writes down what keepalived says of itself.
fn notify_script(directory: &Path) -> String {
    format!("#!/bin/sh\necho \"$@\" >> {}/notified\n", directory.display())
}
