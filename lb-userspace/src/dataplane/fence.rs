//! The daemon's hand on the fence: how long this node may claim a VIP, told to the kernel side again and again. What is not renewed ends
//! by itself, whatever has become of the daemon.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    os::fd::AsFd as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use aya::maps::{Array, HashMap, Map, MapData, MapError};
use lb_common::{
    abi::{self, Lease, names},
    address::{Address as _, V4, V6},
};
use nix::time::{ClockId, clock_gettime};

use super::{
    ApplyError, Dataplane, LoadError,
    maps::{ignore_missing, reading},
    ticks_per_second,
};

/// Grants and ends the leases of VIPs. A VIP without one is this node's for good.
///
/// Times are of `CLOCK_BOOTTIME`. Not for an async task: it makes system calls under a lock.
pub struct Fence {
    maps: Mutex<Maps>,
    /// How much longer than claimed a VIP is carried.
    grace: Duration,
    /// VIPs that are at a virtual MAC.
    macs: BTreeMap<IpAddr, [u8; 6]>,
    clock: Clock,
}

struct Maps {
    leases: HashMap<MapData, [u8; 16], Lease>,
    fence: Array<MapData, abi::Fence>,
}

impl fmt::Debug for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fence").field("grace", &self.grace).finish_non_exhaustive()
    }
}

impl Dataplane {
    /// A hand on the fence. After a lease has ended, its VIP is not claimed any more, and carried for `grace`. Those in `macs` are at a
    /// virtual MAC, as which the host is spoken to for as long as it carries any of them.
    pub fn fence(&mut self, grace: Duration, macs: BTreeMap<IpAddr, [u8; 6]>) -> Result<Fence, LoadError> {
        let clock =
            Clock { ticks: self.ticks().map_err(LoadError::Clock)?, at: Instant::now(), rate: ticks_per_second() };
        let maps = Maps { leases: self.another(names::LEASES)?, fence: self.another(names::FENCE)? };
        Ok(Fence { maps: Mutex::new(maps), grace, macs, clock })
    }

    /// The map once more, with a file descriptor of its own.
    pub(super) fn another<T>(&self, name: &'static str) -> Result<T, LoadError>
    where
        T: TryFrom<Map, Error = MapError>,
    {
        let map = match self.ebpf.map(name) {
            Some(Map::HashMap(data) | Map::Array(data)) => data.fd().as_fd().try_clone_to_owned(),
            _ => return Err(LoadError::Map { name, source: MapError::KeyNotFound }),
        };
        let data = map.map_err(MapError::from).and_then(MapData::from_fd);
        data.and_then(Map::from_map_data).and_then(T::try_from).map_err(|source| LoadError::Map { name, source })
    }
}

impl Fence {
    /// This node may claim the VIP until then, and carries it for the time of grace after that.
    pub fn renew(&self, vip: IpAddr, until: Duration) -> Result<(), ApplyError> {
        let end = until.saturating_add(self.grace);
        let mut maps = self.maps();
        let lease = Lease::new(nanoseconds(until), nanoseconds(end));
        maps.grant(&mapped(vip), self.at_home(vip, lease))?;
        if let Some(mac) = self.macs.get(&vip) {
            // Only ever prolonged: other VIPs may be at it too, and what comes to it when this one has left is no harm.
            maps.grant(&Lease::key_of(*mac), lease)?;
        }
        // The last word counts, whichever VIP it is about: what lies behind the fence is looked up, not dropped.
        maps.set_fence(abi::Fence::after(self.clock.tick_at(end)))
    }

    /// This node may not claim the VIP from now on. It is carried for the time of grace.
    pub fn revoke(&self, vip: IpAddr) -> Result<(), ApplyError> {
        let end = uptime().saturating_add(self.grace);
        let mut maps = self.maps();
        // A lease that was over already gets no longer by this.
        let carried = maps.lease(vip)?.map_or(u64::MAX, |lease| lease.carried_until());
        maps.grant(&mapped(vip), self.at_home(vip, Lease::new(0, carried.min(nanoseconds(end)))))?;
        if maps.fence.get(&0, 0).map_err(reading("the fence"))? == abi::Fence::NONE {
            maps.set_fence(abi::Fence::after(self.clock.tick_at(end)))?;
        }
        Ok(())
    }

    /// The VIP has no lease any more: it is this node's for good.
    pub fn forget(&self, vip: IpAddr) -> Result<(), ApplyError> {
        self.maps().forget(&mapped(vip))
    }

    /// Forgets every VIP but these: what a former daemon has left.
    pub fn retain(&self, vips: &BTreeSet<IpAddr>) -> Result<(), ApplyError> {
        let macs = self.macs.iter().filter(|(vip, _)| vips.contains(vip)).map(|(_, mac)| Lease::key_of(*mac));
        let keep: BTreeSet<[u8; 16]> = vips.iter().copied().map(mapped).chain(macs).collect();
        let mut maps = self.maps();
        let all: Result<Vec<[u8; 16]>, MapError> = maps.leases.keys().collect();
        for vip in all.map_err(reading("the leases"))?.iter().filter(|vip| !keep.contains(*vip)) {
            maps.forget(vip)?;
        }
        if keep.is_empty() { maps.set_fence(abi::Fence::NONE) } else { Ok(()) }
    }

    /// Until when this node may claim the VIP, if it has a lease: a new daemon finds here what the one before it was granted.
    pub fn claimed_until(&self, vip: IpAddr) -> Result<Option<Duration>, ApplyError> {
        Ok(self.maps().lease(vip)?.map(|lease| Duration::from_nanos(lease.claimed_until())))
    }

    fn at_home(&self, vip: IpAddr, lease: Lease) -> Lease {
        self.macs.get(&vip).map_or(lease, |mac| lease.at(*mac))
    }

    fn maps(&self) -> MutexGuard<'_, Maps> {
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maps {
    fn lease(&self, vip: IpAddr) -> Result<Option<Lease>, ApplyError> {
        match self.leases.get(&mapped(vip), 0) {
            Ok(lease) => Ok(Some(lease)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(error) => Err(reading("a lease")(error)),
        }
    }

    fn grant(&mut self, key: &[u8; 16], lease: Lease) -> Result<(), ApplyError> {
        self.leases.insert(key, lease, 0).map_err(|source| ApplyError { what: "writing a lease".into(), source })
    }

    fn forget(&mut self, vip: &[u8; 16]) -> Result<(), ApplyError> {
        let removed = ignore_missing(self.leases.remove(vip));
        removed.map_err(|source| ApplyError { what: "removing a lease".into(), source })
    }

    fn set_fence(&mut self, fence: abi::Fence) -> Result<(), ApplyError> {
        self.fence.set(0, fence, 0).map_err(|source| ApplyError { what: "writing the fence".into(), source })
    }
}

/// Ticks of the kernel at one moment; they go with the monotonic clock, which stands still while the machine sleeps.
#[derive(Debug)]
struct Clock {
    ticks: u64,
    at: Instant,
    rate: u64,
}

impl Clock {
    /// The tick at a point in time, as far as can be told now.
    fn tick_at(&self, time: Duration) -> u64 {
        let now = self.ticks + self.count(self.at.elapsed());
        let uptime = uptime();
        match time.checked_sub(uptime) {
            Some(ahead) => now.saturating_add(self.count(ahead)).saturating_add(1),
            None => now.saturating_sub(self.count(uptime - time)),
        }
    }

    fn count(&self, time: Duration) -> u64 {
        u64::try_from(time.as_millis()).unwrap_or(u64::MAX).saturating_mul(self.rate) / 1000
    }
}

/// What has passed on `CLOCK_BOOTTIME`.
fn uptime() -> Duration {
    // The clock is there since Linux 2.6.39, and it cannot fail in another way.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map(Duration::from).unwrap_or_default()
}

/// The same in a lease's unit.
pub(super) fn now() -> u64 {
    nanoseconds(uptime())
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(super) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => V4(v4.octets()).mapped(),
        IpAddr::V6(v6) => V6(v6.octets()).mapped(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_counted_from_now_in_both_directions() {
        let clock = Clock { ticks: 1_000_000, at: Instant::now(), rate: 250 };
        let uptime = uptime();
        let ahead = clock.tick_at(uptime + Duration::from_secs(40));
        // What passes between the two readings of the clock is in neither's favour.
        assert!((1_009_990..=1_010_010).contains(&ahead), "{ahead}");
        let behind = clock.tick_at(uptime.saturating_sub(Duration::from_secs(4)));
        assert!((998_990..=1_000_010).contains(&behind), "{behind}");
        assert!(clock.tick_at(Duration::MAX) > 1 << 52, "far away, not wrapped round");
    }
}
