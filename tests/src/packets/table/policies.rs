//! Which of two backends a new connection gets.

use lb_common::{
    abi::{Backend, Balance, Counter, Excess, Policy, flow_hash, source_hash},
    address::{V4, V6},
    maglev,
};

use super::{CLIENT, DROP, REDIRECT, Scene, Script, TRANSMIT};
use crate::packets::{
    Change,
    frames::{ACK, FIN, PSH, RST, SYN, Segment},
    stage::{NEAR_MAC, PAIR, SPARE, Service},
};

/// The connection with that number, by a port of its own.
fn nth(scene: &Scene, number: u16, flags: u8) -> Segment {
    Segment { from: scene.family.socket(CLIENT, scene.client_port + number), ..scene.asks(PAIR, flags) }
}

fn goes(
    script: Script,
    scene: &Scene,
    what: &'static str,
    segment: &Segment,
    to: Service,
    counted: &[Counter],
) -> Script {
    script.then(what, segment.bytes(), REDIRECT, scene.sent_on(to, segment, NEAR_MAC).bytes(), counted)
}

fn chosen(scene: &Scene, balance: Balance) -> Change {
    Change::Policy(PAIR.service(scene.family), Policy::new(balance))
}

fn weighs(scene: &Scene, service: Service, weight: u32) -> Change {
    Change::Weight(service.id(scene.family), weight)
}

/// Turns are counted from 0 in this case, which is the first to use them. By its address alone, the client belongs to [`PAIR`]'s own backend.
pub(super) fn turns(scene: &Scene) -> Script {
    use Counter::{Connected, Rebuilt, Retried, Unanswered};
    let mut script = Script::default();
    for (what, number, flags, to, counters) in [
        ("the first turn", 0, SYN, PAIR, &[Connected][..]),
        ("the same again", 0, SYN, PAIR, &[Connected, Unanswered]),
        ("the second turn", 1, SYN, SPARE, &[Connected]),
        ("a connection that is lost takes no turn", 2, ACK, PAIR, &[Rebuilt]),
        ("the third turn", 3, SYN, PAIR, &[Connected]),
        ("again, when the first choice is down", 3, SYN, SPARE, &[Connected, Unanswered, Retried]),
    ] {
        script = goes(script, scene, what, &nth(scene, number, flags), to, counters);
        script = match what {
            "the first turn" => script.after([chosen(scene, Balance::RoundRobin)]),
            "again, when the first choice is down" => script.after([PAIR.backend(scene.family, Backend::DOWN)]),
            _ => script,
        };
    }
    script
}

/// After [`turns`] have left one or two connections open at each.
pub(super) fn fewest(scene: &Scene) -> Script {
    use Counter::Connected;
    let reply = |number: u16, flags| Segment {
        to: scene.family.socket(super::VIP, scene.client_port + number),
        ..scene.answers(SPARE, flags)
    };
    let back = |segment: &Segment| Segment {
        to: scene.family.socket(CLIENT, segment.to.port()),
        ..scene.sent_back(PAIR, segment)
    };
    let mut script = goes(Script::default(), scene, "who has none", &nth(scene, 0, SYN), SPARE, &[Connected]).after([
        chosen(scene, Balance::LeastConnections),
        weighs(scene, PAIR, 1),
        weighs(scene, SPARE, 8),
    ]);
    for number in 1..4 {
        script = goes(script, scene, "whose weight is high", &nth(scene, number, SYN), SPARE, &[Connected]);
    }
    script = goes(script, scene, "the same weight now", &nth(scene, 4, SYN), PAIR, &[Connected])
        .after([weighs(scene, SPARE, 1)]);
    for number in 5..7 {
        script = goes(script, scene, "still fewer", &nth(scene, number, SYN), PAIR, &[Connected]);
    }
    // By both ways that a connection ends, until the other one has fewer.
    script = goes(script, scene, "one is reset", &nth(scene, 1, RST), SPARE, &[]);
    for number in [0, 2, 3] {
        let [syn_ack, fin] = [SYN | ACK, FIN | ACK].map(|flags| reply(number, flags));
        script = script.then("answered", syn_ack.bytes(), REDIRECT, back(&syn_ack).bytes(), &[]);
        script = goes(script, scene, "established", &nth(scene, number, ACK | PSH), SPARE, &[]);
        script = script.then("one end", fin.bytes(), REDIRECT, back(&fin).bytes(), &[]);
        script = goes(script, scene, "the other", &nth(scene, number, FIN | ACK), SPARE, &[]);
    }
    goes(script, scene, "four have ended", &nth(scene, 7, SYN), SPARE, &[Connected])
}

/// One connection a second is taken, so the second SYN comes too early.
pub(super) fn rate(scene: &Scene) -> Script {
    use Counter::{Connected, OverRate, OverRateRefused, OverRateRepeated};
    let limited =
        |excess| Change::Policy(PAIR.service(scene.family), Policy::new(Balance::SourceHash).limited(1, excess));
    let dropped = |script: Script, number| {
        let syn = nth(scene, number, SYN).bytes();
        script.then("beyond it", syn.clone(), DROP, syn, &[OverRate])
    };
    let mut script = goes(Script::default(), scene, "within the rate", &nth(scene, 0, SYN), PAIR, &[Connected])
        .after([limited(Excess::Challenge)]);
    script = dropped(script, 1);
    script = goes(script, scene, "it comes again", &nth(scene, 1, SYN), PAIR, &[Connected, OverRateRepeated]);
    script = goes(script, scene, "what goes on is not counted", &nth(scene, 0, ACK), PAIR, &[]);
    script = dropped(script, 2).after([limited(Excess::Drop)]);
    script = dropped(script, 2);
    let refused = nth(scene, 3, SYN);
    script
        .then("refused", refused.bytes(), TRANSMIT, scene.reset(&refused), &[OverRateRefused])
        .after([limited(Excess::Reset)])
}

pub(super) fn flows(scene: &Scene) -> Script {
    let mut script = Script::default();
    for (number, flags, counter) in (0..8)
        .map(|number| (number, SYN, Counter::Connected))
        .chain((8..16).map(|number| (number, ACK, Counter::Rebuilt)))
    {
        let source = match scene.family.address(CLIENT) {
            std::net::IpAddr::V4(address) => source_hash(&V4(address.octets())),
            std::net::IpAddr::V6(address) => source_hash(&V6(address.octets())),
        };
        let hash = flow_hash(source, (scene.client_port + number).into());
        let to = at(scene, maglev::slot(hash));
        script = goes(script, scene, "by its port too", &nth(scene, number, flags), to, &[counter]);
        script = if number == 0 { script.after([chosen(scene, Balance::FlowHash)]) } else { script };
    }
    script
}

/// Who has a slot of [`PAIR`]'s table, which is shared.
fn at(scene: &Scene, slot: u32) -> Service {
    match PAIR.shared(scene.family) {
        Change::Table(_, slots) if slots[slot as usize] == SPARE.id(scene.family) => SPARE,
        _ => PAIR,
    }
}
