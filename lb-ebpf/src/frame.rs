//! Packets as the kernel hands them over.

use aya_ebpf::{
    EbpfContext as _,
    bindings::BPF_F_PSEUDO_HDR,
    helpers::{bpf_skb_pull_data, bpf_skb_store_bytes},
    programs::{TcContext, XdpContext},
};
use lb_common::{
    address::Address,
    datapath::Outgoing,
    flow::Flow,
    frame::{Frame, Header, Truncated},
    shared::opaque,
    wire::Segment,
};
use network_types::{
    ip::{Ipv4Hdr, Ipv6Hdr},
    tcp::TcpHdr,
};

/// The linear part of a packet.
pub(crate) struct Packet {
    /// Fields of the context that say where it starts and ends.
    bounds: [*const u32; 2],
    start: usize,
    end: usize,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn received(ctx: &XdpContext) -> Self {
        // SAFETY: addresses of fields.
        let bounds = unsafe { [&raw const (*ctx.ctx).data, &raw const (*ctx.ctx).data_end] };
        Self { bounds, start: ctx.data(), end: ctx.data_end() }
    }

    /// What of a socket buffer is in one piece; of a received one, the Ethernet header always.
    #[inline(always)]
    pub(crate) fn buffered(ctx: &TcContext) -> Self {
        // SAFETY: addresses of fields.
        let bounds = unsafe { [&raw const (*ctx.skb.skb).data, &raw const (*ctx.skb.skb).data_end] };
        Self { bounds, start: ctx.data(), end: ctx.data_end() }
    }

    #[inline(always)]
    fn at<T: Header>(&self, at: usize) -> Result<*mut T, Truncated> {
        let start = self.start + at;
        if start + size_of::<T>() > self.end {
            return Err(Truncated);
        }
        Ok(start as *mut T)
    }
}

impl Frame for Packet {
    #[inline(always)]
    fn get<T: Header>(&self, at: usize) -> Result<&T, Truncated> {
        // SAFETY: within the packet by the check in `at`, which the verifier demands; any bytes make a header.
        self.at(at).map(|header| unsafe { &*header })
    }

    #[inline(always)]
    fn get_mut<T: Header>(&mut self, at: usize) -> Result<&mut T, Truncated> {
        // SAFETY: as above, and the packet belongs to this program while it runs.
        self.at(at).map(|header| unsafe { &mut *header })
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    fn forget(&mut self) {
        // Opaque, or the compiler leaves out checks that others imply, which the verifier does not see.
        // SAFETY: fields of the context, which lives while the program runs.
        [self.start, self.end] = unsafe { self.bounds.map(|bound| opaque(u64::from(bound.read_volatile())) as usize) };
    }
}

/// Bytes that must be linear: Ethernet, two tags, IPv6 and TCP, or as much of an IPv4 packet with options.
const HEADERS: u32 = 14 + 8 + 60 + 20;

/// A packet that leaves by a socket buffer. Its checksums may be unfinished (`CHECKSUM_PARTIAL`), so they are changed by the
/// kernel's helpers, which know.
pub(crate) struct Buffer<'a> {
    ctx: &'a TcContext,
    packet: Packet,
}

impl<'a> Buffer<'a> {
    #[inline(always)]
    pub(crate) fn leaving(ctx: &'a TcContext) -> Self {
        let wanted = if ctx.len() < HEADERS { ctx.len() } else { HEADERS };
        // Pulling copies the head of a cloned buffer, so only where headers are really out of sight.
        if ((ctx.data_end() - ctx.data()) as u32) < wanted {
            // SAFETY: a plain helper call. If it fails the headers stay out of sight and the packet is left alone.
            let _ = unsafe { bpf_skb_pull_data(ctx.skb.skb, wanted) };
        }
        Self { ctx, packet: Packet::buffered(ctx) }
    }

    #[inline(always)]
    fn store<const N: usize>(&self, at: usize, bytes: &[u8; N]) -> bool {
        // SAFETY: `bytes` is N bytes long; the helper checks the offset.
        unsafe { bpf_skb_store_bytes(self.ctx.as_ptr().cast(), at as u32, bytes.as_ptr().cast(), N as u32, 0) == 0 }
    }

    #[inline(always)]
    fn put<A: Address>(&self, at: usize, address: A) -> bool {
        let mapped = address.mapped();
        if size_of::<A>() == 4 {
            self.store(at, &[mapped[12], mapped[13], mapped[14], mapped[15]])
        } else {
            self.store(at, &mapped)
        }
    }

    /// Corrects the TCP checksum at `at` and, in IPv4, the header's at `header`, for an address that changes.
    #[inline(always)]
    fn readdress<A: Address>(&self, header: usize, at: usize, from: A, to: A) -> bool {
        let (from, to) = (from.mapped(), to.mapped());
        let ipv4 = size_of::<A>() == 4;
        let mut ok = true;
        for word in 0..4 {
            if ipv4 && word != 3 {
                continue;
            }
            let take = |bytes: &[u8; 16]| {
                u64::from(u32::from_ne_bytes([
                    bytes[word * 4],
                    bytes[word * 4 + 1],
                    bytes[word * 4 + 2],
                    bytes[word * 4 + 3],
                ]))
            };
            let (old, new) = (take(&from), take(&to));
            ok &= self.ctx.skb.l4_csum_replace(at, old, new, u64::from(BPF_F_PSEUDO_HDR) | 4).is_ok();
            if ipv4 {
                ok &= self.ctx.skb.l3_csum_replace(header, old, new, 4).is_ok();
            }
        }
        ok
    }
}

impl Frame for Buffer<'_> {
    #[inline(always)]
    fn get<T: Header>(&self, at: usize) -> Result<&T, Truncated> {
        self.packet.get(at)
    }

    #[inline(always)]
    fn get_mut<T: Header>(&mut self, at: usize) -> Result<&mut T, Truncated> {
        self.packet.get_mut(at)
    }

    #[inline(always)]
    fn len(&self) -> usize {
        self.ctx.len() as usize
    }
}

impl Outgoing for Buffer<'_> {
    #[inline(always)]
    fn turn<A: Address>(&mut self, segment: &Segment<A>, flow: &Flow<A>, keeps_receiver: bool) -> bool {
        let header = segment.network + core::mem::offset_of!(Ipv4Hdr, check);
        let checksum = segment.transport + core::mem::offset_of!(TcpHdr, check);
        let pair = |[a, b]: [u8; 2], [c, d]: [u8; 2]| [a, b, c, d];
        let old = pair(segment.key.source_port, segment.key.destination_port);
        let new = pair(flow.new_source_port(), flow.new_destination_port());
        // Ports are not in the pseudo-header.
        let mut ok = self.readdress(header, checksum, segment.key.source, *flow.new_source());
        if !keeps_receiver {
            ok &= self.readdress(header, checksum, segment.key.destination, *flow.new_destination());
        }
        let word = |bytes| u64::from(u32::from_ne_bytes(bytes));
        ok &= self.ctx.skb.l4_csum_replace(checksum, word(old), word(new), 4).is_ok();
        ok &= self.store(segment.transport, &new);
        let [source, destination] = if size_of::<A>() == 4 {
            [core::mem::offset_of!(Ipv4Hdr, src_addr), core::mem::offset_of!(Ipv4Hdr, dst_addr)]
        } else {
            [core::mem::offset_of!(Ipv6Hdr, src_addr), core::mem::offset_of!(Ipv6Hdr, dst_addr)]
        };
        ok &= self.put(segment.network + source, *flow.new_source());
        if !keeps_receiver {
            ok &= self.put(segment.network + destination, *flow.new_destination());
        }
        ok
    }

    #[inline(always)]
    fn replace_mac(&mut self, at: usize, old: [u8; 6], new: [u8; 6], checksum: Option<usize>) -> bool {
        let mut ok = true;
        if let Some(checksum) = checksum {
            let (old, new) = (words(old), words(new));
            ok &= self.ctx.skb.l4_csum_replace(checksum, old[0], new[0], 4).is_ok();
            ok &= self.ctx.skb.l4_csum_replace(checksum, old[1], new[1], 2).is_ok();
        }
        ok & self.store(at, &new)
    }
}

/// Four bytes and two, as the kernel's checksum helpers take them.
#[inline(always)]
fn words([a, b, c, d, e, f]: [u8; 6]) -> [u64; 2] {
    [u64::from(u32::from_ne_bytes([a, b, c, d])), u64::from(u16::from_ne_bytes([e, f]))]
}
