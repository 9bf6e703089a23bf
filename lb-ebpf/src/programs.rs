//! The programs: each fetches the packet and the time, asks `lb-common`, and carries out the verdict.

use aya_ebpf::{
    EbpfContext as _,
    bindings::{TC_ACT_OK, TC_ACT_SHOT, bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1, xdp_action},
    helpers::{
        bpf_jiffies64, bpf_redirect, bpf_redirect_neigh, bpf_skb_change_type, bpf_skb_vlan_pop, bpf_xdp_adjust_head,
        bpf_xdp_adjust_meta, bpf_xdp_adjust_tail,
    },
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};
use aya_log_ebpf::debug;
use lb_common::{
    abi::Counter,
    address::{Address, V4, V6},
    datapath::{self, Family, Leaving, Part, Tables as _, Verdict},
    shared::opaque,
};

use crate::{
    frame::{Buffer, Packet},
    maps::PROGRAMS,
    tables::{self, Maps},
};

/// A note from `xdp_ingress` to `tc_ingress`, in the metadata in front of a packet.
#[repr(C)]
struct Note {
    magic: u32,
    interface: u32,
    /// The neighbour to send to, as `bpf_redir_neigh` has it, where that is not what the packet's destination leads to; family 0 otherwise.
    family: u32,
    neighbour: [u32; 4],
}

impl Note {
    const MAGIC: u32 = u32::from_ne_bytes(*b"xvip");
    const EMPTY: Self = Self { magic: Self::MAGIC, interface: 0, family: 0, neighbour: [0; 4] };
}

/// Frames as the driver receives them.
#[xdp]
#[inline(always)]
fn xdp_ingress(ctx: XdpContext) -> u32 {
    let tables = Maps::new(ctx.as_ptr());
    let interface = ctx.ingress_ifindex() as u32;
    // SAFETY: a plain helper call. Ticks cost half a nanosecond, nanoseconds cost 36.
    let now = unsafe { bpf_jiffies64() };
    let verdict = datapath::ingress(&mut Packet::received(&ctx), &tables, interface, now);
    match verdict {
        // With a constant each: the kernel makes a jump of such a call.
        Verdict::HandedOn(Part::Icmp) => hand_on(&ctx, Part::Icmp, xdp_action::XDP_PASS),
        Verdict::HandedOn(Part::Settle4) => hand_on(&ctx, Part::Settle4, xdp_action::XDP_DROP),
        Verdict::HandedOn(Part::Settle6) => hand_on(&ctx, Part::Settle6, xdp_action::XDP_DROP),
        Verdict::HandedOn(Part::Expired) => hand_on(&ctx, Part::Expired, xdp_action::XDP_DROP),
        decided => carry_out(&ctx, &tables, decided),
    }
}

/// Ends this program and begins another; `otherwise` is what becomes of the frame should there be none.
#[inline(always)]
fn hand_on(ctx: &XdpContext, part: Part, otherwise: u32) -> u32 {
    // SAFETY: a plain helper call, which returns only if there is no such program.
    let _ = unsafe { PROGRAMS.tail_call(ctx, part as u32) };
    otherwise
}

/// Segments that `xdp_ingress` hands on: new connections, their beginning and end, and what has become of date.
#[xdp]
#[inline(always)]
fn xdp_settle4(ctx: XdpContext) -> u32 {
    settle::<V4>(&ctx)
}

#[xdp]
#[inline(always)]
fn xdp_settle6(ctx: XdpContext) -> u32 {
    settle::<V6>(&ctx)
}

#[inline(always)]
fn settle<A: Address>(ctx: &XdpContext) -> u32
where
    Maps: Family<A>,
{
    let tables = Maps::new(ctx.as_ptr());
    let verdict = datapath::settle::<A, _, _>(&mut Packet::received(ctx), &tables);
    carry_out(ctx, &tables, verdict)
}

/// ICMP messages to a VIP, handed on by `xdp_ingress`.
#[xdp]
#[inline(always)]
fn xdp_icmp(ctx: XdpContext) -> u32 {
    let tables = Maps::new(ctx.as_ptr());
    let interface = ctx.ingress_ifindex() as u32;
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_jiffies64() };
    let verdict = datapath::icmp(&mut Packet::received(&ctx), &tables, interface, now);
    carry_out(&ctx, &tables, verdict)
}

/// Segments to a VIP that have no hop left, handed on by `xdp_ingress`.
#[xdp]
#[inline(always)]
fn xdp_expired(ctx: XdpContext) -> u32 {
    let tables = Maps::new(ctx.as_ptr());
    let interface = ctx.ingress_ifindex() as u32;
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_jiffies64() };
    let room = match datapath::expired(&Packet::received(&ctx), &tables, interface, now) {
        Ok(room) => room,
        Err(verdict) => return carry_out(&ctx, &tables, verdict),
    };
    cut(&ctx, room.kept);
    // SAFETY: a plain helper call; packet pointers are taken anew below.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, -(room.front as i32)) } != 0 {
        return xdp_action::XDP_DROP;
    }
    let verdict = datapath::time_exceeded(&mut Packet::received(&ctx), &room, now);
    carry_out(&ctx, &tables, verdict)
}

#[inline(always)]
fn carry_out(ctx: &XdpContext, tables: &Maps, verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Pass | Verdict::HandedOn(_) => xdp_action::XDP_PASS,
        Verdict::Drop => xdp_action::XDP_DROP,
        Verdict::Transmit => xdp_action::XDP_TX,
        // SAFETY: a plain helper call.
        Verdict::Redirect(interface) => unsafe { bpf_redirect(interface, 0) as u32 },
        Verdict::Answer(length) => {
            cut(ctx, length);
            xdp_action::XDP_TX
        }
        Verdict::Kernel(interface) => hand_over(ctx, tables, Note { interface, ..Note::EMPTY }),
        Verdict::Neighbour(interface) => {
            let (family, neighbour) = tables::asked();
            hand_over(ctx, tables, Note { interface, family, neighbour, ..Note::EMPTY })
        }
    }
}

/// Cuts the frame to `length`.
#[inline(always)]
fn cut(ctx: &XdpContext, length: usize) {
    // The compiler would take `length` off a packet pointer first, which the verifier refuses.
    let whole = opaque((ctx.data_end() - ctx.data()) as u64);
    let excess = whole as i32 - length as i32;
    if excess > 0 {
        // SAFETY: a plain helper call. If the driver cannot shrink the frame, the rest is padding after the IP packet.
        let _ = unsafe { bpf_xdp_adjust_tail(ctx.ctx, -excess) };
    }
}

/// Sends the packet up with a note for `tc_ingress`. Up the stack as it is, it would be dropped as a martian: its source
/// is an address of this host.
#[inline(always)]
fn hand_over(ctx: &XdpContext, tables: &Maps, what: Note) -> u32 {
    // SAFETY: a plain helper call; packet pointers are taken anew below.
    let made = unsafe { bpf_xdp_adjust_meta(ctx.ctx, -(size_of::<Note>() as i32)) } == 0;
    let note = ctx.metadata();
    if !made || note + size_of::<Note>() > ctx.data() {
        tables.count(Counter::NoMetadata);
        return xdp_action::XDP_DROP;
    }
    // SAFETY: within the metadata by the check above.
    unsafe { *(note as *mut Note) = what };
    xdp_action::XDP_PASS
}

/// Writes the kernel's ticks into a frame: attached nowhere, it tells the daemon the time in the data path's unit.
#[xdp]
#[inline(always)]
fn xdp_clock(ctx: XdpContext) -> u32 {
    let start = ctx.data();
    if start + size_of::<u64>() <= ctx.data_end() {
        // SAFETY: within the packet by the check above; packets may be written at any alignment.
        unsafe { (start as *mut u64).write_unaligned(bpf_jiffies64()) }
    }
    xdp_action::XDP_PASS
}

/// `PACKET_OTHERHOST` and `PACKET_HOST` of linux/if_packet.h.
const FOR_ANOTHER_MAC: u32 = 3;
const FOR_THIS_HOST: u32 = 0;

/// Sends what `xdp_ingress` has rewritten but could not send, resolving the neighbour. What goes up and came to a virtual MAC is the
/// host's, though the interface has another.
#[classifier]
fn tc_ingress(ctx: TcContext) -> i32 {
    // SAFETY: the context is valid while the program runs.
    if unsafe { (*ctx.skb.skb).pkt_type } == FOR_ANOTHER_MAC
        && datapath::accepts(&Packet::buffered(&ctx), &Maps::new(ctx.as_ptr()))
    {
        // SAFETY: a plain helper call. It fails for no type that is written here.
        let _ = unsafe { bpf_skb_change_type(ctx.skb.skb, FOR_THIS_HOST) };
    }
    // SAFETY: the context is valid while the program runs.
    let note = unsafe { (*ctx.skb.skb).data_meta } as usize;
    if note + size_of::<Note>() > ctx.data() {
        return TC_ACT_OK;
    }
    // SAFETY: within the metadata by the check above.
    let note = unsafe { &*(note as *const Note) };
    if note.magic != Note::MAGIC {
        return TC_ACT_OK;
    }
    let (interface, family) = (note.interface, note.family);
    let mut neighbour = bpf_redir_neigh {
        nh_family: family,
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: note.neighbour },
    };
    // Seldom enough for a log line; unless the daemon logs at this level, the verifier takes it out.
    debug!(&ctx, "the kernel sends by interface {}: no resolved neighbour that XDP could send to", interface);
    // SAFETY: plain helper calls. The tag, if any, is the arrival's; the way out has its own interface.
    unsafe {
        if (*ctx.skb.skb).vlan_present != 0 {
            let _ = bpf_skb_vlan_pop(ctx.skb.skb);
        }
        if family == 0 {
            return bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32;
        }
        bpf_redirect_neigh(interface, &raw mut neighbour, size_of::<bpf_redir_neigh>() as i32, 0) as i32
    }
}

/// What leaves the host: replies of backends on this host become the VIP's again.
#[classifier]
fn tc_egress(ctx: TcContext) -> i32 {
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_jiffies64() };
    match datapath::egress(&mut Buffer::leaving(&ctx), &Maps::new(ctx.as_ptr()), now) {
        Leaving::Withheld => TC_ACT_SHOT,
        Leaving::Goes | Leaving::Turned => TC_ACT_OK,
    }
}

/// What the host sends to itself: replies of backends here to clients that they know by the VIP leave for those.
#[classifier]
fn tc_loopback(ctx: TcContext) -> i32 {
    // SAFETY: a plain helper call.
    let now = unsafe { bpf_jiffies64() };
    match datapath::loopback(&mut Buffer::leaving(&ctx), &Maps::new(ctx.as_ptr()), now) {
        // SAFETY: a plain helper call.
        Verdict::Kernel(interface) => unsafe { bpf_redirect_neigh(interface, core::ptr::null_mut(), 0, 0) as i32 },
        Verdict::Drop => TC_ACT_SHOT,
        _ => TC_ACT_OK,
    }
}
