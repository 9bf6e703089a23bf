//! Names of programs and maps, spelled once. The kernel keeps 15 characters of them.

pub const XDP_INGRESS: &str = "xdp_ingress";
pub const XDP_ICMP: &str = "xdp_icmp";
pub const XDP_EXPIRED: &str = "xdp_expired";
pub const XDP_SETTLE4: &str = "xdp_settle4";
pub const XDP_SETTLE6: &str = "xdp_settle6";
pub const XDP_CLOCK: &str = "xdp_clock";
pub const TC_INGRESS: &str = "tc_ingress";
pub const TC_EGRESS: &str = "tc_egress";
pub const TC_LOOPBACK: &str = "tc_loopback";
pub const CONNECT4: &str = "connect4";
pub const CONNECT6: &str = "connect6";
pub const GETPEERNAME4: &str = "getpeername4";
pub const GETPEERNAME6: &str = "getpeername6";
pub const SOCK_RELEASE: &str = "sock_release";
/// Constants that the loader sets: the daemon's network namespace, whether the kernel lets a hook choose its error, and its ticks in a second.
pub const HOME: &str = "HOME";
pub const CHOOSES_ERRORS: &str = "CHOOSES_ERRORS";
pub const TICKS_PER_SECOND: &str = "TICKS_PER_SECOND";
pub const SETTINGS: &str = "SETTINGS";
pub const FLOWS4: &str = "FLOWS4";
pub const FLOWS6: &str = "FLOWS6";
pub const SERVICES: &str = "SERVICES";
pub const TABLES: &str = "TABLES";
pub const BACKENDS: &str = "BACKENDS";
pub const POLICIES: &str = "POLICIES";
pub const TURNS: &str = "TURNS";
pub const LOADS: &str = "LOADS";
pub const TRAFFIC: &str = "TRAFFIC";
pub const PORTS: &str = "PORTS";
pub const COUNTERS: &str = "COUNTERS";
pub const PROGRAMS: &str = "PROGRAMS";
pub const LEASES: &str = "LEASES";
pub const FENCE: &str = "FENCE";
pub const LOCALS: &str = "LOCALS";
pub const HASHING: &str = "HASHING";
/// Nobody's but the daemon's: packets do without it.
pub const NEWS: &str = "NEWS";
pub const RANGES: &str = "RANGES";
/// As `NEWS`.
pub const SUSPICIONS: &str = "SUSPICIONS";
pub const MAPS: [&str; 18] = [
    SETTINGS, HASHING, FLOWS4, FLOWS6, SERVICES, RANGES, TABLES, POLICIES, TURNS, BACKENDS, LOADS, TRAFFIC, PORTS,
    COUNTERS, PROGRAMS, LEASES, FENCE, LOCALS,
];
/// The tables of connections, which mean something only together.
pub const FLOWS: &[&str] = &[HASHING, FLOWS4, FLOWS6];
/// What a new daemon takes over from the one before it, each group as a whole or not at all.
pub const KEPT: [&[&str]; 6] = [FLOWS, &[TRAFFIC], &[COUNTERS], &[LEASES], &[FENCE], &[LOCALS]];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_names_are_short_enough() {
        for name in MAPS.iter().chain(&[XDP_INGRESS, TC_INGRESS, TC_EGRESS, TC_LOOPBACK, GETPEERNAME4, SOCK_RELEASE]) {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
