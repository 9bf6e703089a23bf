//! Orders for backends: followed at once, and written down where they are to last.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::Node;
use crate::{
    admin::socket::Judgement,
    config::model::Config,
    reconcile::{Orders, Request, Wish, Written},
};

/// Beside the control socket: what was ordered outlives the daemon, and not the node's next start.
fn file(config: &Config) -> PathBuf {
    config.admin.control_socket.with_extension("orders.json")
}

/// Orders of a former daemon that were to last.
pub(super) fn lasting(config: &Config) -> Orders {
    let file = file(config);
    let read = match fs::read(&file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Orders::default(),
        read => read.and_then(|bytes| Ok(serde_json::from_slice::<Vec<Written>>(&bytes)?)),
    };
    match read {
        Ok(written) => {
            let orders = Orders::read(written, &config.virtual_servers);
            log::warn!(
                "{} orders for backends hold from before (xvip status shows them, xvip backends enable ends them)",
                orders.written().len()
            );
            orders
        }
        Err(error) => {
            log::warn!("orders for backends are lost: {}: {error}", file.display());
            Orders::default()
        }
    }
}

impl Node {
    pub(super) fn order(&mut self, request: &Request, judgement: Judgement) -> anyhow::Result<()> {
        let mut orders = self.orders.clone();
        let names = match orders.follow(request, &self.config.virtual_servers) {
            Ok(names) => names,
            Err(unfit) => {
                judgement.refuse(&unfit.to_string());
                return Ok(());
            }
        };
        if let Err(error) = self.write(&orders) {
            let file = file(&self.config);
            judgement.refuse(&format!(
                "writing {}: {error}. Nothing was changed; without --persist nothing needs to be written.",
                file.display()
            ));
            return Ok(());
        }
        self.orders = orders;
        self.reconcile(false)?;
        self.follow()?;
        let what = match request.wish {
            Wish::Drain => "no new connections; those that are there go on".to_owned(),
            Wish::Enable => "as configured".to_owned(),
            Wish::Weight(weight) => format!("weight {weight}"),
        };
        judgement.done(names.iter().map(|name| format!("{name}: {what}\n")).collect());
        Ok(())
    }

    /// Forgets what was ordered for backends that are configured no more.
    pub(super) fn forget_orders(&mut self) {
        let mut orders = self.orders.clone();
        orders.retain(&self.config.virtual_servers);
        if let Err(error) = self.write(&orders) {
            log::warn!("orders for backends that are gone stay written down: {error}");
        }
        self.orders = orders;
    }

    fn write(&self, orders: &Orders) -> io::Result<()> {
        let written = orders.written();
        if written == self.orders.written() {
            return Ok(());
        }
        let file = file(&self.config);
        if written.is_empty() {
            return match fs::remove_file(&file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            };
        }
        replace(&file, &serde_json::to_vec_pretty(&written)?)
    }
}

/// Puts a whole new file in the place of one that may be there.
fn replace(file: &Path, content: &[u8]) -> io::Result<()> {
    let next = file.with_extension("next");
    fs::write(&next, content)?;
    fs::rename(&next, file)
}
