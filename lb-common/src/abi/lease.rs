//! How long this node may speak for VIPs.

/// How long this node may speak for a VIP, in nanoseconds of `CLOCK_BOOTTIME`. A VIP without a lease is this node's for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Lease {
    claimed_until: u64,
    carried_until: u64,
    /// All zero where the VIP is at the MAC of its interface.
    mac: [u8; 6],
    _reserved: [u8; 2],
}

impl Lease {
    /// Until when the node answers who asks for the VIP's MAC address, and until when it carries the VIP's traffic.
    pub const fn new(claimed_until: u64, carried_until: u64) -> Self {
        Self { claimed_until, carried_until, mac: [0; 6], _reserved: [0; 2] }
    }

    /// The VIP is at that virtual MAC, whatever the interface's own is.
    #[must_use]
    pub const fn at(self, mac: [u8; 6]) -> Self {
        Self { mac, ..self }
    }

    /// Where the lease of a virtual MAC itself stands: under a group address of no scope, which is nobody's VIP.
    #[inline(always)]
    pub const fn key_of(mac: [u8; 6]) -> [u8; 16] {
        let [a, b, c, d, e, f] = mac;
        [0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, a, b, c, d, e, f]
    }

    /// The virtual MAC whose lease stands under a key.
    pub fn mac_under(key: &[u8; 16]) -> Option<[u8; 6]> {
        let mac = *key.last_chunk()?;
        (Self::key_of(mac) == *key).then_some(mac)
    }

    /// The virtual MAC that the VIP is at.
    #[inline(always)]
    pub fn mac(&self) -> Option<[u8; 6]> {
        Some(self.mac).filter(|mac| *mac != [0; 6])
    }

    #[inline(always)]
    pub const fn claimed_until(&self) -> u64 {
        self.claimed_until
    }

    #[inline(always)]
    pub const fn carried_until(&self) -> u64 {
        self.carried_until
    }
}

/// The kernel tick until which this node carries VIPs without a look at their leases.
///
/// Kept as the distance to the end of all ticks. So an empty map says "for ever", and an addition and a shift tell which side a tick
/// is on: from a comparison the verifier would learn about the time, and follow all that comes after once for each outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct Fence(u64);

impl Fence {
    /// More than the clock ever shows.
    const END: u64 = 1 << 63;

    /// Where there are no leases.
    pub const NONE: Self = Self(0);

    /// After that tick, leases are looked at.
    pub const fn after(tick: u64) -> Self {
        Self((Self::END - 1).saturating_sub(tick))
    }

    #[inline(always)]
    pub const fn is_behind(self, now: u64) -> bool {
        self.0.wrapping_add(now) >= Self::END
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fence_is_behind_whoever_is_past_its_tick() {
        let fence = Fence::after(4_295_000_000);
        assert!(!fence.is_behind(4_295_000_000));
        assert!(fence.is_behind(4_295_000_001));
        assert!(Fence::after(0).is_behind(1));
        for never in [Fence::NONE, Fence::after(u64::MAX)] {
            assert!(!never.is_behind(1 << 62));
        }
    }
}
