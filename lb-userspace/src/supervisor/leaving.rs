//! The end of the daemon: with everything taken away, or with everything left for the next one.

use std::{collections::BTreeSet, net::IpAddr};

use tokio::time::sleep;

use super::Node;
use crate::{
    config::model::{Config, OnStop, Vrrp},
    host::{Forwarding, qdisc, unicast, vip},
};

impl Node {
    /// Gives the VIPs that move to another node and, unless everything is kept, the others away too, and says that nothing is turned here any
    /// more; then carries what is still on its way for as long as configured, or until `enough`.
    pub(super) async fn resign(&mut self, enough: impl Future<Output = ()>) {
        let had_vips = self.vrrp.stop().await;
        let turned = self.sync.is_some() && !self.turns().is_empty();
        if !self.keeps() {
            self.leaves = true;
            if let Err(error) = self.publish() {
                log::warn!("{error:#}");
            }
        }
        if self.keeps() {
            return;
        }
        self.vips.release().await;
        if let Err(error) = self.publish() {
            log::warn!("{error:#}");
        }
        let drain = self.config.dataplane.drain;
        if !drain.is_zero() && (had_vips || turned || self.config.vrrp.is_empty()) {
            log::info!("carrying on for {}", humantime::format_duration(drain));
            tokio::select! {
                () = sleep(drain) => {}
                () = enough => {}
            }
        }
    }

    /// Whether the data plane is to go on without this daemon. A start that came to nothing has nothing to leave, and a former daemon's
    /// programs go on by themselves.
    fn keeps(&self) -> bool {
        self.dataplane.is_carrying() && (self.hands_over || self.config.dataplane.on_stop == OnStop::Keep)
    }

    /// Ends. What is kept goes on as it is; otherwise the VIPs are given back first, so that nobody is drawn to a node that no
    /// longer forwards.
    pub(super) async fn stop(mut self) {
        let keeps = self.keeps();
        self.vrrp.stop().await;
        if !keeps {
            self.vips.release().await;
        }
        self.servers.shutdown().await;
        self.checkers.stop().await;
        if keeps {
            let why = if self.hands_over { "for the next one" } else { "as dataplane.on_stop asks" };
            log::info!("the data plane goes on without a daemon, {why}; `xvip detach` ends it");
            self.forwarding.into_iter().for_each(Forwarding::keep);
            self.dataplane.keep();
            return;
        }
        if self.dataplane.is_carrying() {
            let left = vip::remove_left(&self.handle, &vips(&self.config)).await.map(drop);
            // After the time for which packets were still carried: they came to it.
            let heard = unicast::remove(&self.handle, &macs(&self.config)).await;
            for error in [left, heard].into_iter().filter_map(Result::err) {
                log::error!("{error}");
            }
        }
        let qdiscs = self.dataplane.qdiscs();
        drop(self.dataplane);
        for index in qdiscs {
            if let Err(error) = qdisc::remove_unused(&self.handle, index).await {
                log::warn!("{error}");
            }
        }
    }
}

/// Every VIP of the configuration.
pub(crate) fn vips(config: &Config) -> BTreeSet<IpAddr> {
    let moving = config.vrrp.iter().flat_map(|instance| instance.addresses.iter().map(|net| net.addr()));
    config.virtual_servers.iter().map(|server| server.address).chain(moving).collect()
}

/// Every virtual MAC of the configuration.
pub(crate) fn macs(config: &Config) -> BTreeSet<[u8; 6]> {
    config.vrrp.iter().filter_map(Vrrp::mac).collect()
}
