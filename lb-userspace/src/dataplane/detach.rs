//! Removing what an instance has left behind, when no daemon of it runs.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv6Addr},
    path::Path,
};

use aya::maps::{HashMap, Map, MapData, MapError};
use lb_common::abi::{Lease, ServiceId, ServiceKey, names};
use nix::net::if_::if_indextoname;

use super::{PinError, attach::remove_filters, pins::Pins};

/// What an instance has left; no daemon takes it over while this lives.
#[derive(Debug)]
pub struct Left {
    pins: Pins,
    /// Interfaces that have programs, by number.
    pub interfaces: BTreeSet<u32>,
    /// Those among them whose clsact qdisc was added for the programs.
    pub qdiscs: BTreeSet<u32>,
    pub vips: BTreeSet<IpAddr>,
    /// Virtual MACs that VIPs are at.
    pub macs: BTreeSet<[u8; 6]>,
}

impl Left {
    /// What the instance that pins in `root` has left, if anything.
    ///
    /// # Errors
    /// If its daemon runs.
    pub fn find(root: &Path) -> Result<Option<Self>, PinError> {
        let Some(pins) = Pins::claim_present(root)? else {
            return Ok(None);
        };
        let links = pins.links();
        let vips = vips(&pins.map(names::SERVICES)).unwrap_or_default();
        let macs = macs(&pins.map(names::LEASES)).unwrap_or_default();
        Ok(Some(Self { interfaces: links.interfaces(), qdiscs: links.qdiscs(), vips, macs, pins }))
    }

    /// Takes the programs off all interfaces and frees the maps.
    pub fn detach(self) -> Result<(), PinError> {
        for interface in &self.interfaces {
            if let Some(name) = if_indextoname(*interface).ok().and_then(|name| name.into_string().ok()) {
                remove_filters(&name);
            }
        }
        self.pins.links().remove_all()?;
        self.pins.remove()
    }
}

/// The addresses of virtual servers in a pinned map.
fn vips(path: &Path) -> Result<BTreeSet<IpAddr>, MapError> {
    let map = MapData::from_pin(path).and_then(Map::from_map_data)?;
    let services = HashMap::<_, ServiceKey, ServiceId>::try_from(map)?;
    let served = services
        .iter()
        .filter_map(Result::ok)
        .filter(|(key, service)| *service != ServiceId::BACKEND && key.has_table());
    Ok(served.map(|(key, _)| Ipv6Addr::from(key.address()).to_canonical()).collect())
}

/// The virtual MACs in a pinned map.
fn macs(path: &Path) -> Result<BTreeSet<[u8; 6]>, MapError> {
    let map = MapData::from_pin(path).and_then(Map::from_map_data)?;
    let leases = HashMap::<_, [u8; 16], Lease>::try_from(map)?;
    Ok(leases.keys().filter_map(Result::ok).filter_map(|key| Lease::mac_under(&key)).collect())
}
