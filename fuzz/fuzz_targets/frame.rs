//! Any frames, one after the other through the packet decision: what is not ours leaves as it came, and what is sent on
//! has right checksums if it had them.
//!
//! The input is a sequence of: one byte of control, the length in two bytes, that many bytes of frame.

#![no_main]

use lb_common::{
    abi::{Backend, BackendId, Fence, Filter, Lease, ServiceId, ServiceKey, Settings},
    address::{Address, MAX_EXTENSIONS, V4, V6},
    checksum::{fold, sum},
    datapath::{self, Route, Verdict},
    flow::Hop,
    frame::Frame,
    host::{Memory, received},
    maglev::SLOTS,
    table::Hashing,
    wire::{self, Tags},
};
use libfuzzer_sys::fuzz_target;

/// Bits of the byte of control.
const EGRESS: u8 = 1;
/// Backends change: each in turn goes down or comes back.
const DISTURB: u8 = 2;
/// A long time passes first.
const LATER: u8 = 4;
/// The leases end, or run again: first as far as claims go, then altogether.
const LEASE: u8 = 8;

/// Uptime up to which the VIPs are claimed, and carried.
const CLAIMED: u64 = 0;
const CARRIED: u64 = 1;

const INTERFACE: u32 = 2;
const VIP: u8 = 100;
const LOCAL: u8 = 10;
/// Port of a virtual server, and the last byte of its backend's address.
const SERVICES: [(u16, u8); 4] = [(6443, 11), (6444, 12), (6445, 13), (6447, LOCAL)];

fuzz_target!(|data: &[u8]| {
    let mut memory = tables();
    let (mut rest, mut now, mut generation) = (data, 1_u64, 1_u32);
    while let [control, high, low, more @ ..] = rest {
        let length = usize::from(u16::from_be_bytes([*high, *low])).min(more.len());
        let (frame, after) = more.split_at(length);
        rest = after;
        if control & DISTURB != 0 {
            generation += 1;
            disturb(&mut memory, generation);
        }
        if control & LEASE != 0 {
            memory.uptime = (memory.uptime + 1) % 3;
        }
        now += if control & LATER != 0 { 1_000 } else { 1 };
        if control & EGRESS != 0 {
            leaves(&memory, frame, now);
        } else {
            arrives(&memory, frame, now);
        }
    }
});

fn arrives(memory: &Memory, frame: &[u8], now: u64) {
    let mut out = frame.to_vec();
    let verdict = received(&mut out, memory, INTERFACE, now);
    let Some((v4, segment)) = to_vip(frame) else {
        assert_eq!(&out[..], frame);
        assert!(verdict == Verdict::Pass || verdict == Verdict::Drop && memory.uptime > CLAIMED && asks(frame));
        return;
    };
    match verdict {
        Verdict::Pass if out == frame => {}
        Verdict::HandedOn(_) => panic!("an answer that asks on"),
        Verdict::Drop => {}
        Verdict::Answer(length) => {
            out.truncate(length);
            let at = wire::link(&out).expect("a frame").at;
            if out[at + if v4 { 9 } else { 6 }] == if v4 { V4::ICMP } else { V6::ICMP } {
                assert!(icmp_is_right(&out, v4), "the checksum of an error is made from nothing");
                assert!(out.len() <= at + if v4 { V4::LONGEST_ERROR } else { V6::LONGEST_ERROR });
                return;
            }
            assert!(out.len() <= frame.len());
            assert!(segment_is_right(&out, v4), "the answer's checksum is made from nothing");
        }
        Verdict::Pass | Verdict::Transmit | Verdict::Redirect(_) | Verdict::Kernel(_) | Verdict::Neighbour(_) => {
            let Some(transport) = segment else {
                assert!(icmp_is_right(&out, v4) || !icmp_is_right(frame, v4));
                assert_eq!(out.len(), frame.len());
                return;
            };
            assert!(right(&out, v4) || !right(frame, v4));
            assert_eq!(out[transport + 4..transport + 16], frame[transport + 4..transport + 16]);
            assert_eq!(out[transport + 18..], frame[transport + 18..]);
        }
    }
}

fn leaves(memory: &Memory, frame: &[u8], now: u64) {
    let mut out = frame.to_vec();
    if datapath::egress(&mut out[..], memory, now) == datapath::Leaving::Turned {
        let v4 = wire::link(frame).expect("a frame").ether_type == wire::IPV4;
        assert!(right(&out, v4) || !right(frame, v4));
        assert_eq!(out.len(), frame.len());
    } else {
        assert_eq!(out, frame);
    }
}

/// Whether the frame is an IP packet to the VIP: its family, and where its TCP header is if it has one.
fn to_vip(frame: &[u8]) -> Option<(bool, Option<usize>)> {
    let link = wire::link(frame).ok()?;
    let found = |destination, vip, segment: Option<usize>, v4| (destination == vip).then_some((v4, segment));
    match link.ether_type {
        wire::IPV4 => {
            let header = Frame::get::<<V4 as Address>::Header>(frame, link.at).ok()?;
            let segment = wire::segment::<V4, [u8]>(frame, link.at).ok();
            found(V4::destination(header).mapped(), mapped(true, VIP), segment.map(|segment| segment.transport), true)
        }
        wire::IPV6 => {
            let header = Frame::get::<<V6 as Address>::Header>(frame, link.at).ok()?;
            let segment = wire::segment::<V6, [u8]>(frame, link.at).ok();
            found(V6::destination(header).mapped(), mapped(false, VIP), segment.map(|segment| segment.transport), false)
        }
        _ => None,
    }
}

/// Whether the checksums of an ICMP message are right, and that of the IPv4 header in front.
fn icmp_is_right(frame: &[u8], v4: bool) -> bool {
    let at = wire::link(frame).expect("a frame").at;
    let header = usize::from(frame[at] & 15) * 4;
    if v4 {
        fold(sum(&frame[at..at + header])) == 0xffff && icmp_sums_up::<V4>(frame, at)
    } else {
        icmp_sums_up::<V6>(frame, at)
    }
}

fn icmp_sums_up<A: Address>(frame: &[u8], at: usize) -> bool {
    let transport = A::transport::<_, MAX_EXTENSIONS>(frame, at).expect("a packet").expect("well formed");
    let message = &frame[transport.at..transport.end];
    let header = Frame::get::<A::Header>(frame, at).expect("a header");
    let covered = if size_of::<A>() == 4 {
        0
    } else {
        sum(&A::source(header).mapped())
            + sum(&A::destination(header).mapped())
            + sum(&(message.len() as u32).to_be_bytes())
            + sum(&[0, 58])
    };
    fold(covered + sum(message)) == 0xffff
}

/// Whether the frame asks for the VIP's MAC address.
fn asks(frame: &[u8]) -> bool {
    let link = wire::link(frame).expect("a frame");
    let vip = mapped(link.ether_type == wire::ARP, VIP);
    if link.ether_type == wire::ARP {
        frame[link.at + 7] == 1 && frame[link.at + 24..link.at + 28] == vip[12..]
    } else {
        link.ether_type == wire::IPV6 && frame[link.at + 40] == 135 && frame[link.at + 48..link.at + 64] == vip
    }
}

/// Whether all checksums are right.
fn right(frame: &[u8], v4: bool) -> bool {
    let at = wire::link(frame).expect("a frame").at;
    let header = usize::from(frame[at] & 15) * 4;
    (!v4 || fold(sum(&frame[at..at + header])) == 0xffff) && segment_is_right(frame, v4)
}

fn segment_is_right(frame: &[u8], v4: bool) -> bool {
    let at = wire::link(frame).expect("a frame").at;
    if v4 { sums_up::<V4>(frame, at) } else { sums_up::<V6>(frame, at) }
}

fn sums_up<A: Address>(frame: &[u8], at: usize) -> bool {
    let segment = wire::segment::<A, [u8]>(frame, at).expect("a segment");
    let end = A::transport::<_, MAX_EXTENSIONS>(frame, at).expect("a packet").expect("well formed").end;
    let tcp = &frame[segment.transport..end];
    // A mapped IPv4 address adds 0xffff, which is zero here.
    let pseudo = sum(&segment.key.source.mapped()) + sum(&segment.key.destination.mapped());
    fold(pseudo + sum(&(tcp.len() as u32).to_be_bytes()) + sum(&[0, 6]) + sum(tcp)) == 0xffff
}

fn mapped(v4: bool, host: u8) -> [u8; 16] {
    if v4 { V4([10, 1, 0, host]).mapped() } else { [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host] }
}

fn settings(generation: u32) -> Settings {
    let (mut vips, mut locals) = (Filter::empty(), Filter::empty());
    vips.insert(V4::from_mapped(&mapped(true, VIP)));
    vips.insert(V6::from_mapped(&mapped(false, VIP)));
    locals.insert(V4::from_mapped(&mapped(true, LOCAL)));
    locals.insert(V6::from_mapped(&mapped(false, LOCAL)));
    Settings::new(generation, vips, locals, Filter::full())
}

/// Number of a virtual server and of its backend.
fn id(v4: bool, index: usize) -> u32 {
    index as u32 * 2 + u32::from(v4)
}

fn backend(v4: bool, index: usize, flags: u8) -> Backend {
    let (_, host) = SERVICES[index];
    let local = if host == LOCAL { Backend::LOCAL } else { 0 };
    Backend::new(mapped(v4, host), 6443_u16.to_be_bytes(), flags | local)
}

fn tables() -> Memory {
    // So small that entries give way to each other.
    let mut memory = Memory::with(Hashing::new([7, 11, 13, 17, 19, 23, 29, 31, 37, 41], 0x9e37_79b9_7f4a_7c15, 1));
    memory.settings = Some(settings(1));
    memory.fence = Fence::after(0);
    for v4 in [false, true] {
        memory.leases.insert(mapped(v4, VIP), Lease::new(CLAIMED, CARRIED));
    }
    for v4 in [false, true] {
        for (index, (port, host)) in SERVICES.into_iter().enumerate() {
            let id = id(v4, index);
            memory.services.insert(ServiceKey::new(mapped(v4, VIP), port.to_be_bytes()), ServiceId(id));
            memory.tables.insert(ServiceId(id), vec![BackendId(id); SLOTS as usize]);
            memory.backends.insert(BackendId(id), backend(v4, index, 0));
            let hop = Hop {
                interface: INTERFACE + index as u32,
                tags: Tags(if index == 1 { 0x800a } else { 0 }),
                destination: [2, 0, 0, 0, 0, host],
                source: [2, 0, 0, 0, 1, 1],
            };
            memory.routes.insert(mapped(v4, host), if index == 2 { Route::Kernel(9) } else { Route::Hop(hop) });
        }
    }
    memory
}

fn disturb(memory: &mut Memory, generation: u32) {
    memory.settings = Some(settings(generation));
    let index = generation as usize / 2 % SERVICES.len();
    for v4 in [false, true] {
        let direct = if generation & 4 != 0 { Backend::DIRECT } else { 0 };
        let flags = if generation.is_multiple_of(2) { Backend::DOWN } else { direct };
        memory.backends.insert(BackendId(id(v4, index)), backend(v4, index, flags));
    }
}
