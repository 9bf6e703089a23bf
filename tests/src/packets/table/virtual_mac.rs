//! A VIP at a virtual MAC: what the host says of it.

use lb_common::checksum::{Delta, adjust};

use super::{CLIENT, OK, Scene, Script};
use crate::packets::{
    discovery::{Question, answer},
    stage::{Family, HERE, Tenure, VIP, VIRTUAL_MAC},
};

pub(super) fn spoken(scene: &Scene) -> Script {
    let address = |host| scene.family.address(host);
    let question = |from, target, tags: &[u16]| Question { from, target, tags: tags.to_vec(), directed: false }.bytes();
    let mut script = Script::default();
    for (what, frame) in [
        ("the VIP answers", answer(address(VIP), address(CLIENT))),
        ("the VIP asks", question(address(VIP), address(CLIENT), &[])),
        ("the VIP asks on a VLAN", question(address(VIP), address(CLIENT), &[7])),
    ] {
        let out = renamed(scene.family, frame.clone());
        script = script.then(what, frame.clone(), OK, out, &[]).leaving().under(Tenure::AtVirtualMac);
        script = script.then("at its interface's own", frame.clone(), OK, frame, &[]).leaving().under(Tenure::Running);
    }
    let own = answer(address(HERE.backend), address(CLIENT));
    script.then("the node answers", own.clone(), OK, own, &[]).leaving().under(Tenure::AtVirtualMac)
}

/// With the virtual MAC in place of the sender's, in the Ethernet header and in the message.
fn renamed(family: Family, mut frame: Vec<u8>) -> Vec<u8> {
    let tags = if frame[12..14] == [0x81, 0x00] { 4 } else { 0 };
    let own: [u8; 6] = frame[6..12].try_into().expect("six bytes");
    let at = if family == Family::Ipv4 { 14 + tags + 8 } else { 14 + tags + 40 + 26 };
    frame[6..12].copy_from_slice(&VIRTUAL_MAC);
    frame[at..at + 6].copy_from_slice(&VIRTUAL_MAC);
    if family == Family::Ipv6 {
        let checksum = 14 + tags + 40 + 2;
        let words = |at: usize| [[own[at], own[at + 1]], [VIRTUAL_MAC[at], VIRTUAL_MAC[at + 1]]];
        let delta = [0, 2, 4].into_iter().map(words).fold(Delta::new(), |delta, [old, new]| delta.word(old, new));
        let right = adjust([frame[checksum], frame[checksum + 1]], delta.folded());
        frame[checksum..checksum + 2].copy_from_slice(&right);
    }
    frame
}
