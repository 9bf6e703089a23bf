//! Any packets, one after the other to virtual routers of each kind: what is heard says what its bytes say, what the
//! bytes mean can be sent again, and the log and the reports stay bounded.
//!
//! The input is a sequence of: one byte of control, the length in one byte, that many bytes of payload.

#![no_main]

use std::{net::IpAddr, time::Duration};

use lb_userspace::vrrp::{
    Moment, Version, Vrid,
    packet::{
        Advertisement, Family, Packet, Password, Proof, Seal,
        hmac::{Key, Trailer},
    },
    reception::{Arrival, Auth, HmacMode, Reception, Rules},
};
use libfuzzer_sys::fuzz_target;

/// Bits of the byte of control: the virtual router, then what is unusual about the packet.
const ROUTER: u8 = 7;
const LOW_TTL: u8 = 8;
const OTHER_SOURCE: u8 = 16;
const UNICAST: u8 = 32;
const LATER: u8 = 64;

/// When the seed with an HMAC was sealed.
const SEALED: Duration = Duration::from_secs(0x6b01_4c8c);

fuzz_target!(|data: &[u8]| {
    let mut routers: Vec<_> = rules().into_iter().map(|rules| (Reception::new(rules.clone()), rules)).collect();
    let (mut rest, mut now, mut lines) = (data, Duration::ZERO, 0);
    while let [control, length, more @ ..] = rest {
        let (payload, after) = more.split_at(usize::from(*length).min(more.len()));
        rest = after;
        now += Duration::from_millis(if control & LATER != 0 { 1_000 } else { 1 });
        let count = routers.len();
        let (reception, rules) = &mut routers[usize::from(control & ROUTER) % count];
        let arrival = arrival(*control, rules, now);
        if let Ok(heard) = reception.judge(payload, &arrival) {
            assert_eq!(payload[..2], [rules.version.number() << 4 | 1, rules.vrid.0]);
            assert_eq!((heard.source, heard.priority), (arrival.source, payload[2]));
            assert!(!heard.interval.is_zero() && arrival.ttl >= rules.min_ttl);
            can_be_sent_again(payload, rules, &arrival);
        }
        while let Some(line) = reception.next_line() {
            assert!(line.to_string().starts_with(&arrival.source.to_string()));
            lines += 1;
        }
        assert!(reception.reports(Moment(now)).len() <= 32);
    }
    assert!(lines <= routers.len() * (8 + now.as_secs() as usize / 10));
});

/// From what the packet means come its bytes, but for what is reserved, padding, and the other form of checksum.
fn can_be_sent_again(payload: &[u8], rules: &Rules, arrival: &Arrival) {
    let packet = Packet::new(payload, rules.family).expect("what is heard is a packet");
    let trailer = Trailer::find(packet.rest()).ok().flatten();
    let proof = match (&rules.auth, trailer) {
        (Auth::Password(password), _) => Proof::Password(password),
        (Auth::Hmac { keys, .. }, Some(trailer)) => Proof::Hmac(&keys[0], trailer.stamp()),
        _ => Proof::None,
    };
    let (source, destination) = (arrival.source, arrival.destination);
    let checksum = packet.checksum(source, destination).expect("what is heard is intact");
    let mut out = Vec::new();
    let meaning = Advertisement::parse(&packet);
    meaning.emit(&mut out, &Seal { source, destination, checksum, proof }).expect("what was sent can be sent");
    let again = Packet::new(&out, rules.family).expect("a packet");
    assert_eq!(Advertisement::parse(&again), meaning);
    assert!(again.checksum(source, destination).is_some());
    let reserved_is_zero = rules.version == Version::V2 || payload[4] & 0xf0 == 0;
    // Over IPv6 the checksum may cover the message or what follows too.
    let one_form = rules.family == Family::V4;
    // Of 0x0000 and 0xffff, which mean the same, only the first is sent.
    let one_zero = payload[6..8] != [0xff, 0xff];
    let password_is_zero = rules.version == Version::V3 || !matches!(proof, Proof::None) || {
        packet.password() == Some([0; Password::LEN])
    };
    if reserved_is_zero && one_form && one_zero && password_is_zero {
        assert_eq!(out, payload[..out.len()]);
    }
}

fn rules() -> Vec<Rules> {
    let secret: Vec<u8> = (0..32).collect();
    let key = Key::new(7, &secret).expect("a key");
    let vip = |v6| if v6 { address("2001:db8::100") } else { address("192.168.2.100") };
    let rules = |version, family, auth| Rules {
        version,
        vrid: Vrid(51),
        family,
        auth,
        peers: Vec::new(),
        min_ttl: 255,
        addresses: vec![vip(family == Family::V6)],
        interval: if version == Version::V2 { Duration::from_secs(1) } else { Duration::from_millis(500) },
        source: Some(if family == Family::V6 { address("fe80::9") } else { address("192.168.2.9") }),
    };
    let hmac = |mode| Auth::Hmac { keys: vec![key.clone()], mode };
    vec![
        rules(Version::V2, Family::V4, Auth::None),
        rules(Version::V2, Family::V4, Auth::Password(Password::new("1111"))),
        rules(Version::V3, Family::V4, Auth::None),
        rules(Version::V3, Family::V6, Auth::None),
        rules(Version::V3, Family::V4, hmac(HmacMode::Enforce)),
        rules(Version::V3, Family::V6, hmac(HmacMode::Permissive)),
        Rules {
            peers: vec![address("192.168.2.10"), address("192.168.2.11")],
            min_ttl: 64,
            ..rules(Version::V3, Family::V4, Auth::None)
        },
    ]
}

fn arrival(control: u8, rules: &Rules, now: Duration) -> Arrival {
    let v6 = rules.family == Family::V6;
    let source = match (v6, control & OTHER_SOURCE != 0) {
        (false, false) => address("192.168.2.10"),
        (false, true) => address("192.168.2.12"),
        (true, false) => address("fe80::10"),
        (true, true) => address("fe80::12"),
    };
    let destination = if control & UNICAST == 0 { rules.family.group() } else { rules.source.expect("it is given") };
    let ttl = if control & LOW_TTL == 0 { 255 } else { 63 };
    Arrival { source, destination, ttl, received: Moment(now), wall: SEALED + now }
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
