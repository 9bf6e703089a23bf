//! From the configuration to what the thread is started with.

use anyhow::Context as _;

use crate::{
    config::{self, model},
    vrrp::{
        Condition, Moment, Settings, Vrid,
        packet::{Password, hmac::Key},
        reception::Auth,
        wire::Instance,
    },
};

/// `lease`: until when the process before this one was granted the VIPs.
pub(super) fn instance(
    configured: &model::Vrrp,
    condition: Condition,
    lease: Option<Moment>,
) -> anyhow::Result<Instance> {
    let model::Vrrp { name, interface, vrid, version, priority, interval, .. } = configured;
    let settings = Settings {
        version: *version,
        priority: *priority,
        interval: *interval,
        down_factor: configured.down_factor,
        preempt: configured.preempt,
        preempt_delay: configured.preempt_delay,
        sync_group: configured.sync_group.clone(),
        // Found by the thread.
        source: None,
        condition,
        lease,
    };
    Ok(Instance {
        name: name.clone(),
        interface: interface.clone(),
        vrid: Vrid(*vrid),
        settings,
        addresses: configured.addresses.clone(),
        virtual_mac: configured.virtual_mac,
        peers: configured.peers.clone(),
        source: configured.source,
        auth: auth(&configured.authentication)?,
        checksum: configured.checksum,
        min_ttl: configured.min_ttl,
        label: configured.label.clone(),
    })
}

fn auth(configured: &model::Authentication) -> anyhow::Result<Auth> {
    Ok(match configured {
        model::Authentication::None => Auth::None,
        model::Authentication::Password(password) => Auth::Password(Password::new(password.text())),
        model::Authentication::Hmac(model::Hmac { key_id, key_file, mode }) => {
            // It was read when the configuration was checked, and may have changed since.
            let secret = config::shared_key(key_file).map_err(|why| anyhow::anyhow!("{} {why}", key_file.display()))?;
            let key = Key::new(*key_id, &secret).context("making the key")?;
            Auth::Hmac { keys: vec![key], mode: *mode }
        }
    })
}
