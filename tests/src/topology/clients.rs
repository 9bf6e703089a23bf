//! What clients do to a deployment's VIPs: requests, and streams that go on while something happens.

use std::{
    net::{IpAddr, SocketAddr},
    thread,
    time::Duration,
};

use anyhow::Result;
use tokio::sync::watch;

use super::{CLIENT, Deployment};
use crate::client::{self, Client, EchoPlan, EchoReport, Failure, Load, Report, Streams, addresses};

impl Deployment {
    /// A client of the first endpoint of a family.
    pub fn client_of(&self, v6: bool) -> Result<Client> {
        self.client(self.topology.endpoint(v6))
    }

    /// Requests to the VIP from the client's host.
    pub fn load(&self, v6: bool, load: Load) -> Result<Report> {
        let client = self.client_of(v6)?;
        let host = self.client_host();
        Ok(host.run(|| client::run(&client, load))?)
    }

    /// Who answers each source, by one request from each.
    pub fn map(&self, v6: bool, sources: &[IpAddr]) -> Result<Report> {
        self.load(v6, Load { concurrency: 20, sources: sources.to_vec(), ..Load::sequential(sources.len()) })
    }

    /// Makes requests for as long as `scene` plays.
    pub fn load_during<T>(&self, v6: bool, load: Load, scene: impl FnOnce() -> Result<T>) -> Result<(T, Report)> {
        let (stop, stopped) = watch::channel(false);
        let load = Load { stop: Some(stopped), ..load };
        during(|| self.load(v6, load), stop, scene)
    }

    /// Streams from each of these sources for as long as `scene` plays.
    pub fn echo_during<T>(
        &self,
        v6: bool,
        sources: &[IpAddr],
        scene: impl FnOnce() -> Result<T>,
    ) -> Result<(T, Vec<Result<EchoReport, Failure>>)> {
        let (stop, stopped) = watch::channel(false);
        let client = self.client_of(v6)?;
        let stream = |source: &IpAddr| {
            let plan = EchoPlan {
                lines: u64::MAX,
                pause: Duration::from_millis(50),
                patience: Duration::from_secs(15),
                source: Some(SocketAddr::new(*source, 0)),
                stop: Some(stopped.clone()),
            };
            client::echo(&client, plan)
        };
        let streams = || {
            let host = self.client_host();
            let all = || futures_util::future::join_all(sources.iter().map(stream));
            Ok(host.run(all)?)
        };
        during(streams, stop, scene)
    }

    /// Streams of both families in turn, from addresses of their own, that go on until they are told to end.
    pub fn streams(&self, count: u32, pace: Duration) -> Result<Streams> {
        let mut sources = Vec::new();
        for v6 in [false, true] {
            let client = self.client_of(v6)?;
            let addresses = self.sources(v6, (count + u32::from(!v6)) / 2)?;
            sources.extend(addresses.into_iter().map(|address| (client.clone(), address)));
        }
        Ok(Streams::start(self.client_host(), sources, pace))
    }

    /// Gives the client `count` addresses more, behind its own as behind a router's.
    pub fn sources(&self, v6: bool, count: u32) -> Result<Vec<IpAddr>> {
        self.sources_on(CLIENT, v6, count)
    }

    /// The same for another host than the client.
    pub fn sources_on(&self, node: &str, v6: bool, count: u32) -> Result<Vec<IpAddr>> {
        let node = self.node(node)?;
        // Unlike those of other nodes: the last number of this one's address is in them.
        let [.., number] = node.v4.octets();
        let (network, first) = match v6 {
            false => (format!("10.{number}.0.0/16"), IpAddr::from([10, number, 1, 0])),
            true => (format!("fd99:{number}::/64"), format!("fd99:{number}::100").parse()?),
        };
        let [v4_address, v6_address] = node.addresses();
        let router = if v6 { v6_address } else { v4_address };
        // IPv6 lets nobody bind to an address that is local by a route only.
        self.host(&node.name)?.sysctl("net/ipv6/ip_nonlocal_bind", "1")?;
        for host in self.lab.hosts() {
            let line = match host.name() == node.name {
                true => format!("route replace local {network} dev lo"),
                false => format!("route replace {network} via {router}"),
            };
            host.ip(&line)?;
        }
        Ok(addresses(first, count))
    }
}

/// Runs `work` on a thread of its own until `scene` has ended, and tells it to stop then.
fn during<T, W: Send>(
    work: impl FnOnce() -> Result<W> + Send,
    stop: watch::Sender<bool>,
    scene: impl FnOnce() -> Result<T>,
) -> Result<(T, W)> {
    thread::scope(|scope| {
        let work = scope.spawn(work);
        let stop = Stop(stop);
        let played = scene();
        drop(stop);
        let done = work.join().expect("the work does not panic")?;
        Ok((played?, done))
    })
}

/// Ends the work with the scene, also where that has panicked: its thread is waited for.
struct Stop(watch::Sender<bool>);

impl Drop for Stop {
    fn drop(&mut self) {
        // The work may have ended by itself.
        let _ = self.0.send(true);
    }
}
