//! The deployments that users run today, by the letters of their write-ups, with their real addresses.
//!
//! | | nodes | VIP | written up as |
//! |---|---|---|---|
//! | A | 3 masters | 172.16.92.250:8443 | keepalived and haproxy as static pods on the masters |
//! | B | 3 masters | 192.168.68.100:8443 | keepalived and haproxy as systemd units on the masters |
//! | C | 2 load balancers, 3 masters, 3 workers | 192.168.2.100:16443 | keepalived and nginx on hosts of their own |
//! | D | 3 masters | 192.168.100.190, 9443 and 6443 | keepalived and haproxy in containers; clients are told 6443 |
//! | E | 3 masters, 2 workers | none: 127.0.0.1:6443 | nginx on every worker |
//!
//! Where a write-up leaves an address out (the masters of A, B and D, the VIP of B, the workers of E) one is chosen.
//! Every address has an IPv6 twin with the same last number, and each deployment has a client on the same segment.

mod clients;
mod deployment;
mod written;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

pub use self::{deployment::Deployment, written::Failover};

/// Where every kube-apiserver listens.
pub const APISERVER_PORT: u16 = 6443;
/// Name of the client's host.
pub const CLIENT: &str = "client";
/// Last number of the client's address.
const CLIENT_NUMBER: u8 = 50;
const PREFIX_V4: u8 = 24;
const PREFIX_V6: u8 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Topology {
    A,
    B,
    C,
    D,
    E,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    LoadBalancer,
    Master,
    Worker,
    Client,
}

/// A host of a deployment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub name: String,
    pub role: Role,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
    /// It takes the place of the deployment's proxy.
    pub runs_xvip: bool,
    pub runs_apiserver: bool,
}

impl Node {
    pub fn addresses(&self) -> [IpAddr; 2] {
        [self.v4.into(), self.v6.into()]
    }

    pub fn networks(&self) -> [IpNet; 2] {
        [Ipv4Net::new_assert(self.v4, PREFIX_V4).into(), Ipv6Net::new_assert(self.v6, PREFIX_V6).into()]
    }
}

impl Topology {
    pub const ALL: [Self; 5] = [Self::A, Self::B, Self::C, Self::D, Self::E];

    /// All hosts, the client last.
    pub fn nodes(self) -> Vec<Node> {
        let numbered = |role, first: u8, count: u8| (1..=count).map(move |n| (role, Some(n), first + n - 1));
        let masters = |first| numbered(Role::Master, first, 3);
        let mut hosts: Vec<(Role, Option<u8>, u8)> = match self {
            Self::A | Self::B => masters(11).collect(),
            Self::C => [(Role::LoadBalancer, Some(1), 10), (Role::LoadBalancer, Some(2), 20)]
                .into_iter()
                .chain(masters(11))
                .chain(numbered(Role::Worker, 21, 3))
                .collect(),
            Self::D => masters(191).collect(),
            Self::E => masters(11).chain(numbered(Role::Worker, 21, 2)).collect(),
        };
        hosts.push((Role::Client, None, CLIENT_NUMBER));
        hosts.into_iter().map(|(role, index, number)| self.node(role, index, number)).collect()
    }

    /// What clients are told, or the port that the write-up's proxy has: IPv4 first, then IPv6.
    pub fn endpoints(self) -> Vec<SocketAddr> {
        let (vips, ports): ([IpAddr; 2], &[u16]) = match self {
            Self::A => (self.twins(250), &[8443]),
            Self::B => (self.twins(100), &[8443]),
            Self::C => (self.twins(100), &[16443]),
            Self::D => (self.twins(190), &[9443, 6443]),
            Self::E => ([Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()], &[6443]),
        };
        (vips.into_iter()).flat_map(|vip| ports.iter().map(move |&port| SocketAddr::new(vip, port))).collect()
    }

    /// The first endpoint of a family.
    pub fn endpoint(self, v6: bool) -> SocketAddr {
        let mut endpoints = self.endpoints().into_iter();
        endpoints.find(|endpoint| endpoint.is_ipv6() == v6).expect("every deployment has endpoints of both families")
    }

    /// Whether the VIP moves between hosts, rather than being every node's own loopback.
    pub fn has_vip(self) -> bool {
        self != Self::E
    }

    fn node(self, role: Role, index: Option<u8>, number: u8) -> Node {
        let name = match (role, index) {
            (Role::LoadBalancer, Some(1)) => "ha-lb-a".to_owned(),
            (Role::LoadBalancer, _) => "ha-lb-b".to_owned(),
            (Role::Master, n) => format!("master-{}", n.unwrap_or(1)),
            (Role::Worker, n) => format!("worker-{}", n.unwrap_or(1)),
            (Role::Client, _) => CLIENT.to_owned(),
        };
        let runs_xvip = match self {
            Self::A | Self::B | Self::D => role == Role::Master,
            Self::C => role == Role::LoadBalancer,
            Self::E => role == Role::Worker,
        };
        Node { name, role, v4: self.v4(number), v6: self.v6(number), runs_xvip, runs_apiserver: role == Role::Master }
    }

    fn twins(self, number: u8) -> [IpAddr; 2] {
        [self.v4(number).into(), self.v6(number).into()]
    }

    fn v4(self, number: u8) -> Ipv4Addr {
        let [a, b, c] = match self {
            Self::A => [172, 16, 92],
            Self::B => [192, 168, 68],
            Self::C => [192, 168, 2],
            Self::D => [192, 168, 100],
            Self::E => [192, 168, 17],
        };
        Ipv4Addr::new(a, b, c, number)
    }

    /// Unique local addresses (RFC 4193) that read like the IPv4 ones: 192.168.2.10 is fd00:2::10.
    fn v6(self, number: u8) -> Ipv6Addr {
        let digits = |decimal: u8| {
            let (hundreds, rest) = (u16::from(decimal / 100), u16::from(decimal % 100));
            hundreds << 8 | (rest / 10) << 4 | (rest % 10)
        };
        let [_, _, net, _] = self.v4(0).octets();
        Ipv6Addr::new(0xfd00, digits(net), 0, 0, 0, 0, 0, digits(number))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn c_is_as_it_was_written_up() {
        let nodes = Topology::C.nodes();
        let shown: Vec<String> = (nodes.iter()).map(|node| format!("{} {} {}", node.name, node.v4, node.v6)).collect();
        assert_eq!(
            shown,
            [
                "ha-lb-a 192.168.2.10 fd00:2::10",
                "ha-lb-b 192.168.2.20 fd00:2::20",
                "master-1 192.168.2.11 fd00:2::11",
                "master-2 192.168.2.12 fd00:2::12",
                "master-3 192.168.2.13 fd00:2::13",
                "worker-1 192.168.2.21 fd00:2::21",
                "worker-2 192.168.2.22 fd00:2::22",
                "worker-3 192.168.2.23 fd00:2::23",
                "client 192.168.2.50 fd00:2::50",
            ]
        );
        let endpoints: Vec<SocketAddr> =
            ["192.168.2.100:16443", "[fd00:2::100]:16443"].map(|endpoint| endpoint.parse().unwrap()).to_vec();
        assert_eq!(Topology::C.endpoints(), endpoints);
    }

    #[test]
    fn no_address_is_used_twice() {
        for topology in Topology::ALL {
            let nodes = topology.nodes();
            let mut used: Vec<IpAddr> = nodes.iter().flat_map(Node::addresses).collect();
            if topology.has_vip() {
                used.extend(topology.endpoints().iter().map(SocketAddr::ip).collect::<BTreeSet<_>>());
            }
            let distinct: BTreeSet<IpAddr> = used.iter().copied().collect();
            assert_eq!(distinct.len(), used.len(), "{topology:?}");
            assert_eq!(nodes.iter().filter(|node| node.runs_apiserver).count(), 3);
            assert!(nodes.iter().any(|node| node.runs_xvip), "{topology:?}");
        }
    }
}
