//! Connections that are begun and never go on, from addresses that nobody can answer.

use std::{
    net::Ipv4Addr,
    thread,
    time::{Duration, Instant},
};

use anyhow::Result;
use etherparse::PacketBuilder;

use crate::{topology::Deployment, watch};

const ETHERTYPE_IPV4: u16 = 0x0800;
/// Frames in a row, and the pause after them: some thousands a second, which leave the machine to others.
const BURST: u32 = 50;
const PAUSE: Duration = Duration::from_millis(5);
/// For measurements between networks (RFC 2544): nobody has a route to it.
const SOURCES: u32 = u32::from_be_bytes([198, 18, 0, 0]);

/// Sends SYNs for the VIP to a node, from another host, for a time.
pub(super) fn flood(deployment: &Deployment, from: &str, to: &str, time: Duration) -> Result<()> {
    let link = deployment.host(from)?.link("eth0", ETHERTYPE_IPV4)?;
    let target = watch::mac(deployment.host(to)?)?;
    let endpoint = deployment.topology.endpoint(false);
    let begun = Instant::now();
    let mut number = 0u32;
    while begun.elapsed() < time {
        for _ in 0..BURST {
            number = number.wrapping_add(1);
            let source = Ipv4Addr::from(SOURCES | number & 0x1_ffff);
            let port = 1024 + (number >> 17) as u16;
            let builder = PacketBuilder::ethernet2(link.mac(), target)
                .ipv4(source.octets(), deployment.vip().octets(), 64)
                .tcp(port, endpoint.port(), number, 64_240)
                .syn();
            let mut frame = Vec::with_capacity(builder.size(0));
            builder.write(&mut frame, &[])?;
            // A queue that is full for a moment is what this is about.
            let _ = link.send(&frame);
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}
