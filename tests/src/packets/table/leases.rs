//! VIPs that another node may hold by now.

use lb_common::abi::Counter;

use super::{CLIENT, DROP, PASS, REDIRECT, Scene, Script};
use crate::packets::{
    discovery::{Question, answer},
    frames::{ACK, SYN, Segment},
    stage::{EMPTY, Family, NEAR_MAC, REMOTE, TRUNK_TAG, Tenure, VIP},
};

pub(super) fn solicited(scene: &Scene) -> Script {
    let client = scene.family.address(CLIENT);
    let plain = Question { from: client, target: scene.family.address(VIP), tags: vec![], directed: false };
    let questions = [
        plain.clone(),
        Question { tags: vec![TRUNK_TAG], ..plain.clone() },
        Question { tags: vec![7, 8], ..plain.clone() },
        Question { directed: true, ..plain.clone() },
        // Is it taken? (RFC 5227 §1.1, RFC 4862 §5.4.2)
        Question { from: scene.family.nobody(), ..plain },
    ];
    let mut script = Script::default();
    for (tenure, action, counters) in [
        (Tenure::Unbounded, PASS, &[][..]),
        (Tenure::Running, PASS, &[]),
        (Tenure::Over, DROP, &[Counter::Fenced]),
        (Tenure::LongOver, DROP, &[Counter::Fenced]),
        (Tenure::Running, PASS, &[]),
    ] {
        for question in &questions {
            let frame = question.bytes();
            script = script.then("who has it?", frame.clone(), action, frame, counters).under(tenure);
        }
    }
    script
}

pub(super) fn not_solicited(scene: &Scene) -> Script {
    let (client, vip) = (scene.family.address(CLIENT), scene.family.address(VIP));
    let question = |from, target| Question { from, target, tags: vec![], directed: false }.bytes();
    let announcement = if scene.family == Family::Ipv4 { question(vip, vip) } else { answer(vip, vip) };
    let asked = question(client, vip);
    // In the middle of the target: that is followed by nothing in ARP, by 8 bytes of option in IPv6.
    let cut = if scene.family == Family::Ipv4 { asked.len() - 2 } else { asked.len() - 10 };
    let mut script = Script::default();
    for (what, frame) in [
        ("another's", question(client, scene.family.address(VIP + 1))),
        ("the VIP asks", question(vip, client)),
        ("the VIP is announced", announcement),
        ("an answer", answer(client, vip)),
        ("the VIP answers", answer(vip, client)),
        ("cut", asked[..cut].to_vec()),
    ] {
        script = script.then(what, frame.clone(), PASS, frame, &[]).under(Tenure::LongOver);
    }
    script
}

pub(super) fn outlived(scene: &Scene) -> Script {
    let (syn, reply) = (scene.asks(REMOTE, SYN), scene.answers(REMOTE, SYN | ACK));
    let (ack, other) = (scene.asks(REMOTE, ACK), scene.asks(EMPTY, SYN));
    let on = |segment: &Segment| scene.sent_on(REMOTE, segment, NEAR_MAC).bytes();
    let back = scene.sent_back(REMOTE, &reply).bytes();
    let elsewhere = Segment { to: scene.family.socket(VIP + 1, REMOTE.port), ..ack.clone() }.bytes();
    Script::default()
        .then("SYN", syn.bytes(), REDIRECT, on(&syn), &[Counter::Connected])
        .under(Tenure::Running)
        .then("the reply, the lease over", reply.bytes(), REDIRECT, back.clone(), &[])
        .under(Tenure::Over)
        .then("more", ack.bytes(), REDIRECT, on(&ack), &[])
        .then("too late", ack.bytes(), DROP, ack.bytes(), &[Counter::Overdue])
        .under(Tenure::LongOver)
        .then("too late for the backend", reply.bytes(), DROP, reply.bytes(), &[Counter::Overdue])
        .then("no reset either", other.bytes(), DROP, other.bytes(), &[Counter::Overdue])
        .then("what is not ours", elsewhere.clone(), PASS, elsewhere, &[])
        .then("master again", ack.bytes(), REDIRECT, on(&ack), &[])
        .under(Tenure::Running)
        .then("too late once more", ack.bytes(), DROP, ack.bytes(), &[Counter::Overdue])
        .under(Tenure::LongOver)
        .then("without a lease, behind the fence", reply.bytes(), REDIRECT, back, &[])
        .under(Tenure::Unbounded)
}
