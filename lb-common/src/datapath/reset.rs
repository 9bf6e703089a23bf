//! Answering a segment with a reset, made out of the segment itself (RFC 9293 §3.10.7.1).

use network_types::ip::IpProto;

use super::Verdict;
use crate::{
    address::Address,
    checksum::{fold, sum},
    frame::Frame,
    wire::{Ethernet, Flags, Segment, Tcp},
};

/// The shortest Ethernet frame, without its check sequence (IEEE 802.3 §3.2.8).
const MIN_FRAME: usize = 60;

/// Turns the frame into a reset to its sender. A reset itself is dropped: resets are never answered.
#[inline(always)]
pub(super) fn answer<A, F>(frame: &mut F, segment: &Segment<A>) -> Verdict
where
    A: Address,
    F: Frame + ?Sized,
{
    if segment.flags.any(Flags::RST) {
        return Verdict::Drop;
    }
    let length = Tcp::LEN as u16;
    let header_length = segment.transport.wrapping_sub(segment.network) as u16;
    let Ok(header) = frame.get_mut::<A::Header>(segment.network) else {
        return Verdict::Drop;
    };
    A::answer(header, header_length, length);
    let pseudo = A::pseudo_sum(header, IpProto::Tcp as u8, length);
    let Ok(tcp) = frame.get_mut::<Tcp>(segment.transport) else {
        return Verdict::Drop;
    };
    core::mem::swap(&mut tcp.source, &mut tcp.destination);
    if tcp.flags.any(Flags::ACK) {
        tcp.sequence = tcp.acknowledgement;
        tcp.acknowledgement = [0; 4];
        tcp.flags = Flags::RST;
    } else {
        let next = u32::from_be_bytes(tcp.sequence).wrapping_add(segment.length);
        tcp.sequence = [0; 4];
        tcp.acknowledgement = next.to_be_bytes();
        tcp.flags = Flags::RST.with(Flags::ACK);
    }
    tcp.offset = (Tcp::LEN as u8 / 4) << 4;
    tcp.window = [0; 2];
    tcp.urgent = [0; 2];
    tcp.checksum = [0; 2];
    let words = pseudo
        + sum(&tcp.source)
        + sum(&tcp.destination)
        + sum(&tcp.sequence)
        + sum(&tcp.acknowledgement)
        + sum(&[tcp.offset, tcp.flags.0]);
    tcp.checksum = (!fold(words)).to_ne_bytes();

    let Ok(ethernet) = frame.get_mut::<Ethernet>(0) else {
        return Verdict::Drop;
    };
    core::mem::swap(&mut ethernet.destination, &mut ethernet.source);
    let length = segment.transport + Tcp::LEN;
    Verdict::Answer(if length < MIN_FRAME { MIN_FRAME } else { length })
}
