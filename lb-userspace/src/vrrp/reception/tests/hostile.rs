//! A million packets that an attacker or a broken machine might send, judged twice: by the rules, and by a plain
//! reading of the bytes that shares no code with them.

use std::collections::HashMap;

use fastrand::Rng;

use super::*;
use crate::vrrp::packet::{hmac::Stamp, tests::key};

const PACKETS: u64 = 1_000_000;
/// Between two packets: 10,000 a second.
const APART: Duration = Duration::from_micros(100);

/// What one virtual router is fed with.
struct Victim {
    rules: Rules,
    reception: Reception,
    /// Right packets, some of which were heard before.
    recorded: Vec<Vec<u8>>,
    /// Of sealed packets, the latest that each sender got through.
    marks: HashMap<IpAddr, u64>,
    lines: usize,
}

impl Victim {
    fn new(rules: Rules, recorded: &[&str]) -> Self {
        let reception = Reception::new(rules.clone());
        let recorded = recorded.iter().map(|golden| hex(golden)).collect();
        Self { rules, reception, recorded, marks: HashMap::new(), lines: 0 }
    }

    /// Whether it should be heard.
    fn plain_reading(&mut self, bytes: &[u8], arrival: &Arrival) -> bool {
        let rules = &self.rules;
        let (version, width) = (rules.version.number(), if rules.family == Family::V4 { 4 } else { 16 });
        let from_peer = match rules.peers.is_empty() {
            true => arrival.destination == rules.family.group() && arrival.ttl == 255,
            false => {
                arrival.destination == HERE && arrival.ttl >= rules.min_ttl && rules.peers.contains(&arrival.source)
            }
        };
        if bytes.len() < 8 || !from_peer || arrival.source == HERE || bytes[..2] != [version << 4 | 1, 51] {
            return false;
        }
        let addresses = 8 + usize::from(bytes[3]) * width;
        let end = if version == 2 { addresses + 8 } else { addresses };
        if bytes.len() < end {
            return false;
        }
        let timing = u16::from_be_bytes([bytes[4], bytes[5]]);
        let (timing_is_right, password_is_right) = match (&rules.auth, version) {
            (Auth::Password(_), _) => (timing == 0x0101, &bytes[addresses..end] == b"1111\0\0\0\0"),
            (_, 2) => (timing == 0x0001, true),
            (_, _) => (timing & 0x0fff > 0, true),
        };
        let alone = || adds_up(&bytes[..end]);
        let with_header = |end: usize| adds_up(&with_pseudo_header(&bytes[..end.min(bytes.len())], arrival));
        let checksum_is_right = || match (version, width) {
            (2, _) => alone(),
            (_, 4) => alone() || with_header(end),
            (_, _) => with_header(end) || with_header(end + 28),
        };
        let sealed = matches!(rules.auth, Auth::Hmac { .. });
        timing_is_right && password_is_right && checksum_is_right() && (!sealed || self.is_sealed(bytes, end, arrival))
    }

    /// As `enforce` with the key 7 demands, over IPv4; takes the mark with it.
    fn is_sealed(&mut self, bytes: &[u8], end: usize, arrival: &Arrival) -> bool {
        let IpAddr::V4(source) = arrival.source else { return false };
        if bytes.len() < end + 28 || bytes[end..end + 4] != [1, 7, 0, 0] {
            return false;
        }
        let mut sealed = vec![4, 3, 51, 0];
        sealed.extend(source.octets());
        sealed.extend([0; 12]);
        sealed.extend(&bytes[..6]);
        sealed.extend([0, 0]);
        sealed.extend(&bytes[8..end + 12]);
        sealed.extend([0; 16]);
        let secret: Vec<u8> = (0..32).collect();
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
        let stamp = u64::from_be_bytes(bytes[end + 4..end + 12].try_into().unwrap());
        let age = arrival.wall.as_secs().cast_signed() - (stamp >> 32).cast_signed();
        let right = ring::hmac::sign(&key, &sealed).as_ref()[..16] == bytes[end + 12..end + 28];
        if !right || age.abs() > 5 || self.marks.get(&arrival.source).is_some_and(|mark| *mark >= stamp) {
            return false;
        }
        self.marks.insert(arrival.source, stamp);
        true
    }
}

fn adds_up(bytes: &[u8]) -> bool {
    let words = bytes.chunks(2).map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)));
    let sum: u64 = words.sum();
    sum > 0 && sum.is_multiple_of(0xffff)
}

fn with_pseudo_header(bytes: &[u8], arrival: &Arrival) -> Vec<u8> {
    let octets = |address| match address {
        IpAddr::V4(address) => Ipv4Addr::octets(&address).to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = (bytes.len() as u16).to_be_bytes();
    [&octets(arrival.source)[..], &octets(arrival.destination), &[0, 112], &length, bytes].concat()
}

fn victims() -> Vec<Victim> {
    let (v6_here, v6_there) = ("fe80::9".parse().unwrap(), "fe80::10".parse().unwrap());
    let v6_vip: IpAddr = "2001:db8::100".parse().unwrap();
    let mut v6 = Victim::new(Rules { family: Family::V6, addresses: vec![v6_vip], source: Some(v6_here), ..v3() }, &[]);
    let meaning = Advertisement {
        version: Version::V3,
        vrid: Vrid(51),
        priority: 100,
        interval: Duration::from_millis(500),
        addresses: vec![v6_vip],
    };
    let seal = Seal {
        source: v6_there,
        destination: GROUP_V6.into(),
        checksum: ChecksumForm::PseudoHeader,
        proof: Proof::None,
    };
    let mut bytes = Vec::new();
    meaning.emit(&mut bytes, &seal).unwrap();
    v6.recorded.push(bytes);
    let enforced = Rules { auth: Auth::Hmac { keys: vec![key(7)], mode: HmacMode::Enforce }, ..v3() };
    vec![
        Victim::new(v2(), &[V2_NO_AUTH, CARP]),
        Victim::new(with_password("1111"), &[V2_1111, V2_NO_AUTH]),
        Victim::new(v3(), &[V3_PSEUDO, V3_MESSAGE, CARP]),
        Victim::new(with_peers(&[THERE]), &[V3_MESSAGE]),
        v6,
        Victim::new(enforced, &[V3_PSEUDO]),
    ]
}

/// A packet made worse in one of the ways that occur to an attacker.
fn worsen(rng: &mut Rng, bytes: &mut Vec<u8>) {
    let random = |rng: &mut Rng, most: usize| {
        let length = rng.usize(..=most);
        std::iter::repeat_with(|| rng.u8(..)).take(length).collect::<Vec<_>>()
    };
    match rng.u8(..8) {
        0 => *bytes = random(rng, 60),
        1 => bytes.truncate(rng.usize(..=bytes.len())),
        2 => bytes.extend(random(rng, 40)),
        3 => bytes.extend(vec![0; rng.usize(..40)]),
        4 => {
            for _ in 0..rng.u8(1..4) {
                let at = rng.usize(..bytes.len());
                bytes[at] = rng.u8(..);
            }
        }
        5 => {
            let at = rng.usize(..bytes.len());
            bytes[at] ^= 1 << rng.u8(..8);
            if bytes.len() >= 8 {
                repair(bytes);
            }
        }
        6 => {
            bytes[3] = *rng.choice(&[0, 1, 2, 255]).unwrap();
            let most = if rng.u8(..16) == 0 { 1_100 } else { 40 };
            bytes.extend(random(rng, most));
            repair(bytes);
        }
        _ => {}
    }
}

fn somewhere(rng: &mut Rng, rules: &Rules, now: Duration) -> Arrival {
    let v4 = rules.family == Family::V4;
    let (source, unicast) = if v4 { (THERE, HERE) } else { ("fe80::10".parse().unwrap(), "fe80::9".parse().unwrap()) };
    let usual = if rules.peers.is_empty() { rules.family.group() } else { unicast };
    let sources = [HERE, [192, 168, 2, 66].into(), [192, 168, 2, 67].into()];
    let source = if v4 && rng.u8(..8) == 0 { *rng.choice(&sources).unwrap() } else { source };
    let destination = if rng.u8(..32) == 0 { unicast } else { usual };
    let ttl = if rng.u8(..32) == 0 { rng.u8(..) } else { 255 };
    let wall = Duration::from_secs(1_700_000_000) + now;
    Arrival { source, destination, ttl, received: Moment(now), wall }
}

#[test]
fn a_million_hostile_packets_change_nothing_and_flood_nothing() {
    let seed = std::env::var("SEED").map_or(51, |seed| seed.parse().expect("a number"));
    let (mut rng, key, mut victims) = (Rng::with_seed(seed), key(7), victims());
    let mut now = Duration::ZERO;
    for number in 0..PACKETS {
        now += APART;
        let index = rng.usize(..victims.len());
        let victim = &mut victims[index];
        let arrival = somewhere(&mut rng, &victim.rules, now);
        // From time to time something genuine passes, which the attacker records.
        if matches!(victim.rules.auth, Auth::Hmac { .. }) && number % 100 == 0 {
            let sealed = sealed(&key, Stamp::at(arrival.wall));
            victim.recorded.truncate(8);
            victim.recorded.insert(0, sealed);
        }
        let mut bytes = rng.choice(&victim.recorded).unwrap().clone();
        worsen(&mut rng, &mut bytes);
        let expected = victim.plain_reading(&bytes, &arrival);
        let got = victim.reception.judge(&bytes, &arrival);
        assert_eq!(got.is_ok(), expected, "seed {seed}, packet {number}: {got:?} {arrival:?} {bytes:02x?}");
        victim.lines += std::iter::from_fn(|| victim.reception.next_line()).count();
    }

    let (mut judged, mut seen) = (0, Vec::new());
    for victim in &victims {
        let counters = victim.reception.counters();
        let heard = counters.accepted;
        let reasons = Discard::ALL.into_iter().filter(|reason| counters.discarded(*reason) > 0);
        judged += heard + Discard::ALL.map(|reason| counters.discarded(reason)).iter().sum::<u64>();
        seen.extend(reasons);
        // Eight at once, and then one in ten seconds.
        let most = 8 + now.as_secs() as usize / 10;
        assert!((1..=most).contains(&victim.lines), "{} lines", victim.lines);
        assert!(victim.reception.reports(Moment(now)).len() <= 32);
        assert!(heard > 100, "what is right is heard among all this: {heard}");
    }
    assert_eq!(judged, PACKETS);
    let never: Vec<_> = Discard::ALL.into_iter().filter(|reason| !seen.contains(reason)).collect();
    assert_eq!(never, [], "each rule was put to the test");
}

fn sealed(key: &Key, stamp: Stamp) -> Vec<u8> {
    let meaning = Advertisement {
        version: Version::V3,
        vrid: Vrid(51),
        priority: 100,
        interval: Duration::from_millis(500),
        addresses: vec![VIP],
    };
    let proof = Proof::Hmac(key, stamp);
    let seal = Seal { source: THERE, destination: GROUP_V4.into(), checksum: ChecksumForm::Message, proof };
    let mut bytes = Vec::new();
    meaning.emit(&mut bytes, &seal).unwrap();
    bytes
}
