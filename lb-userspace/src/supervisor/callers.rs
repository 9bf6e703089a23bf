//! Whom to tell one by one that a VIP has come: neighbours who spoke to one lately, then the others. Among those is the router by whom
//! everybody from elsewhere comes.

use std::{collections::HashMap, net::IpAddr};

use crate::host::Interface;

/// One that the kernel knows how to send to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Caller {
    pub(super) interface: u32,
    pub(super) address: IpAddr,
    pub(super) mac: [u8; 6],
}

/// Of one virtual router: as many as the kernel keeps at most by default (`gc_thresh3`).
const MOST: usize = 1024;

/// Puts who spoke last first, by the ticks since then, and leaves out what is no single host.
pub(super) fn ranked(
    neighbours: impl Iterator<Item = (u32, IpAddr, [u8; 6])>,
    idle: &HashMap<IpAddr, u32>,
) -> Vec<Caller> {
    let is_host = |mac: [u8; 6]| mac[0] & 1 == 0 && mac != [0; 6];
    let mut all: Vec<Caller> = neighbours
        .filter(|(_, _, mac)| is_host(*mac))
        .map(|(interface, address, mac)| Caller { interface, address, mac })
        .collect();
    all.sort_by_key(|caller| (idle.get(&caller.address).copied().unwrap_or(u32::MAX), caller.address));
    all
}

/// The first of those on one interface.
pub(super) fn on(interface: &Interface, callers: &[Caller]) -> Vec<(IpAddr, [u8; 6])> {
    let here = callers.iter().filter(|caller| caller.interface == interface.index);
    here.take(MOST).map(|caller| (caller.address, caller.mac)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ETH0: u32 = 2;

    fn neighbour(interface: u32, last: u8, mac: [u8; 6]) -> (u32, IpAddr, [u8; 6]) {
        (interface, [192, 168, 2, last].into(), mac)
    }

    fn of_host(last: u8) -> (u32, IpAddr, [u8; 6]) {
        neighbour(ETH0, last, [2, 0, 0, 0, 0, last])
    }

    #[test]
    fn who_spoke_last_is_told_first_and_what_is_no_host_never() {
        let neighbours = [
            of_host(1),
            of_host(9),
            of_host(8),
            of_host(7),
            neighbour(ETH0, 255, [0xff; 6]),
            neighbour(1, 3, [0; 6]),
            neighbour(3, 6, [2, 0, 0, 0, 0, 6]),
        ];
        let idle = [(7, 300), (8, 20), (6, 1)].map(|(last, ticks)| (IpAddr::from([192, 168, 2, last]), ticks));
        let ranked = ranked(neighbours.into_iter(), &idle.into());
        let order: Vec<IpAddr> = ranked.iter().map(|caller| caller.address).collect();
        assert_eq!(order, [6, 8, 7, 1, 9].map(|last| IpAddr::from([192, 168, 2, last])));

        let told = on(&interface(ETH0), &ranked);
        assert_eq!(told, [8, 7, 1, 9].map(|last| (IpAddr::from([192, 168, 2, last]), [2, 0, 0, 0, 0, last])));
        assert_eq!(on(&interface(4), &ranked), []);
    }

    #[test]
    fn there_is_an_end_to_it() {
        let all = (0..2000u32).map(|number| (ETH0, IpAddr::from((0x0a00_0000 + number).to_be_bytes()), [2; 6]));
        let last = IpAddr::from([10, 0, 7, 207]);
        let told = on(&interface(ETH0), &ranked(all, &[(last, 5)].into()));
        assert_eq!((told.len(), told[0].0), (MOST, last));
    }

    fn interface(index: u32) -> Interface {
        Interface {
            index,
            name: format!("eth{index}"),
            mac: [2, 0, 0, 0, 0, 1],
            mtu: 1500,
            addresses: Vec::new(),
            up: true,
            vlan: None,
            xdp: None,
        }
    }
}
