//! The end of the daemon: with everything taken away, or with everything left for the next one.

use super::Node;
use crate::{
    config::model::{Config, OnStop},
    host::{qdisc, vip},
};

impl Node<'_> {
    /// Ends. What is kept goes on as it is; otherwise the VIPs are given back first, so that nobody is drawn to a node that no
    /// longer forwards.
    pub(super) async fn stop(mut self) {
        self.announcements.shutdown().await;
        // A start that came to nothing has nothing to leave, and a former daemon's programs go on by themselves.
        let keeps = self.dataplane.is_carrying() && self.config.dataplane.on_stop == OnStop::Keep;
        if !keeps {
            self.release().await;
        }
        self.servers.shutdown().await;
        self.checkers.stop().await;
        if keeps {
            log::info!("the data plane goes on without a daemon, as dataplane.on_stop asks; `xvip detach` ends it");
            self.forwarding.into_iter().for_each(crate::host::Forwarding::keep);
            self.dataplane.keep();
            return;
        }
        if self.dataplane.is_carrying()
            && let Err(error) = vip::remove_left(&self.handle, &vips(self.config)).await
        {
            log::error!("{error}");
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
pub(crate) fn vips(config: &Config) -> std::collections::BTreeSet<std::net::IpAddr> {
    config.virtual_servers.iter().map(|server| server.address).collect()
}
