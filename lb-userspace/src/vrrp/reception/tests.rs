//! Every rule, in its order, with its counter; what is reported of whom, and how often it is logged.

mod hmac;
mod hostile;
mod reports;

use std::net::Ipv4Addr;

use super::*;
use crate::vrrp::packet::{Advertisement, ChecksumForm, GROUP_V4, GROUP_V6, Proof, Seal, tests::hex};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 100));
/// This node, and the one that sends.
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 9));
const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 10));

const V2_NO_AUTH: &str = "21336401 0001b7bd c0a80264 0000000000000000";
const V2_1111: &str = "21336401 0101545b c0a80264 3131313100000000";
const V3_PSEUDO: &str = "31336401 0032044b c0a80264";
const V3_MESSAGE: &str = "31336401 0032a78c c0a80264";
const CARP: &str = "21330007 00012e8f 2fe5c11b e947fb77 afee401b d2931335 7d76a446 f6391c59 afde2073";

fn rules(version: Version) -> Rules {
    Rules {
        version,
        vrid: Vrid(51),
        family: Family::V4,
        auth: Auth::None,
        peers: Vec::new(),
        min_ttl: 255,
        addresses: vec![VIP],
        interval: if version == Version::V2 { Duration::from_secs(1) } else { Duration::from_millis(500) },
        source: Some(HERE),
    }
}

fn arrival(seconds: u64) -> Arrival {
    Arrival {
        source: THERE,
        destination: GROUP_V4.into(),
        ttl: 255,
        received: Moment(Duration::from_secs(seconds)),
        wall: Duration::from_secs(1_700_000_000 + seconds),
    }
}

fn v2() -> Rules {
    rules(Version::V2)
}

fn v3() -> Rules {
    rules(Version::V3)
}

fn with_password(password: &str) -> Rules {
    Rules { auth: Auth::Password(Password::new(password)), ..v2() }
}

fn with_peers(peers: &[IpAddr]) -> Rules {
    Rules { peers: peers.to_vec(), min_ttl: 64, ..v3() }
}

/// The golden packet with some bytes changed and the checksum (of the message only) made right again.
fn changed(golden: &str, changes: &[(usize, u8)]) -> Vec<u8> {
    let mut bytes = hex(golden);
    for (at, byte) in changes {
        bytes[*at] = *byte;
    }
    repair(&mut bytes);
    bytes
}

fn repair(bytes: &mut [u8]) {
    bytes[6..8].fill(0);
    let checksum = !fold(sum(bytes));
    bytes[6..8].copy_from_slice(&checksum.to_ne_bytes());
}

/// As version 3 with these addresses.
fn listing(addresses: &[IpAddr]) -> Vec<u8> {
    let meaning = Advertisement {
        version: Version::V3,
        vrid: Vrid(51),
        priority: 100,
        interval: Duration::from_millis(500),
        addresses: addresses.to_vec(),
    };
    let seal =
        Seal { source: THERE, destination: GROUP_V4.into(), checksum: ChecksumForm::Message, proof: Proof::None };
    let mut bytes = Vec::new();
    meaning.emit(&mut bytes, &seal).unwrap();
    bytes
}

#[test]
fn every_rule_refuses_with_its_own_reason() {
    let from = |source| Arrival { source, ..arrival(0) };
    let ttl = |ttl| Arrival { ttl, ..arrival(0) };
    let unicast = Arrival { destination: HERE, ttl: 64, ..arrival(0) };
    let stranger = Arrival { source: "192.168.2.66".parse().unwrap(), ..unicast };
    let peer = || with_peers(&[THERE]);
    let padded = |golden: &str, with: u8| [hex(golden), vec![with; 14]].concat();
    let any = arrival(0);

    let table = [
        ("v2 without a password", v2(), hex(V2_NO_AUTH), any, Ok(100)),
        ("v2 with its password", with_password("1111"), hex(V2_1111), any, Ok(100)),
        ("v3 with a pseudo-header", v3(), hex(V3_PSEUDO), any, Ok(100)),
        ("v3 without", v3(), hex(V3_MESSAGE), any, Ok(100)),
        ("padded with zeros", v3(), padded(V3_PSEUDO, 0), any, Ok(100)),
        ("padded with anything", v2(), padded(V2_NO_AUTH, 0xa5), any, Ok(100)),
        ("priority 0", v3(), changed(V3_MESSAGE, &[(2, 0)]), any, Ok(0)),
        ("priority 255", v3(), changed(V3_MESSAGE, &[(2, 255)]), any, Ok(255)),
        ("reserved bits of v3 are ignored", v3(), changed(V3_MESSAGE, &[(4, 0xf0)]), any, Ok(100)),
        ("no address at all", v3(), listing(&[]), any, Ok(100)),
        ("255 addresses", v3(), listing(&[VIP; 255]), any, Ok(100)),
        ("a peer", peer(), hex(V3_MESSAGE), unicast, Ok(100)),
        (
            "a peer behind routers",
            Rules { min_ttl: 60, ..peer() },
            hex(V3_MESSAGE),
            Arrival { ttl: 60, ..unicast },
            Ok(100),
        ),
        ("other VRID", v3(), changed(V3_MESSAGE, &[(1, 52)]), any, Err(Discard::OtherVrid)),
        ("VRID 0", v3(), changed(V3_MESSAGE, &[(1, 0)]), any, Err(Discard::OtherVrid)),
        ("nothing", v3(), vec![], any, Err(Discard::OtherVrid)),
        ("one byte", v3(), vec![0x31], any, Err(Discard::OtherVrid)),
        ("other family", v3(), hex(V3_MESSAGE), from("fe80::1".parse().unwrap()), Err(Discard::OtherVrid)),
        ("a header cut off", v3(), hex(V3_MESSAGE)[..7].to_vec(), any, Err(Discard::Truncated)),
        ("an address cut off", v3(), hex(V3_MESSAGE)[..11].to_vec(), any, Err(Discard::Truncated)),
        ("the password cut off", with_password("1111"), hex(V2_1111)[..19].to_vec(), any, Err(Discard::Truncated)),
        ("255 addresses that are not there", v3(), changed(V3_MESSAGE, &[(3, 255)]), any, Err(Discard::Truncated)),
        ("CARP next door to v2", v2(), hex(CARP), any, Err(Discard::Carp)),
        ("CARP next door to v3", v3(), hex(CARP), any, Err(Discard::Carp)),
        ("CARP of another number", v3(), changed(CARP, &[(1, 9)]), any, Err(Discard::OtherVrid)),
        ("nearly CARP", v2(), hex(&CARP.replace("73", "72")), any, Err(Discard::Truncated)),
        ("TTL 254", v3(), hex(V3_MESSAGE), ttl(254), Err(Discard::Ttl)),
        ("a low TTL of a peer", peer(), hex(V3_MESSAGE), Arrival { ttl: 63, ..unicast }, Err(Discard::Ttl)),
        ("v3 where v2 is spoken", v2(), hex(V3_MESSAGE), any, Err(Discard::Version)),
        ("v2 where v3 is spoken", v3(), hex(V2_NO_AUTH), any, Err(Discard::Version)),
        ("version 4", v3(), changed(V3_MESSAGE, &[(0, 0x41)]), any, Err(Discard::Version)),
        ("a password where there is none", v2(), hex(V2_1111), any, Err(Discard::AuthType)),
        ("no password where there is one", with_password("1111"), hex(V2_NO_AUTH), any, Err(Discard::AuthType)),
        ("AH", v2(), changed(V2_NO_AUTH, &[(4, 2)]), any, Err(Discard::AuthType)),
        ("AH to a password", with_password("1111"), changed(V2_1111, &[(4, 2)]), any, Err(Discard::AuthType)),
        ("authentication type 3", v2(), changed(V2_NO_AUTH, &[(4, 3)]), any, Err(Discard::AuthType)),
        ("wrong password", with_password("1112"), hex(V2_1111), any, Err(Discard::Password)),
        ("short password", with_password("111"), hex(V2_1111), any, Err(Discard::Password)),
        ("long password", with_password("11111"), hex(V2_1111), any, Err(Discard::Password)),
        (
            "a password in v3 is never fulfilled",
            Rules { auth: Auth::Password(Password::new("")), ..v3() },
            hex(V3_MESSAGE),
            any,
            Err(Discard::Password),
        ),
        ("v2 every 2 s", v2(), changed(V2_NO_AUTH, &[(5, 2)]), any, Err(Discard::Interval)),
        ("v3 every 0 s", v3(), changed(V3_MESSAGE, &[(5, 0)]), any, Err(Discard::Interval)),
        ("type 2", v3(), changed(V3_MESSAGE, &[(0, 0x32)]), any, Err(Discard::Type)),
        ("a wrong checksum", v3(), hex("31336401 0032a78d c0a80264"), any, Err(Discard::Checksum)),
        (
            "a wrong checksum in v2",
            v2(),
            hex("21336401 0001b7be c0a80264 0000000000000000"),
            any,
            Err(Discard::Checksum),
        ),
        (
            "v2 knows no pseudo-header",
            v2(),
            hex("21336401 00011474 c0a80264 0000000000000000"),
            any,
            Err(Discard::Checksum),
        ),
        (
            "another's pseudo-header",
            v3(),
            hex(V3_PSEUDO),
            from("192.168.2.12".parse().unwrap()),
            Err(Discard::Checksum),
        ),
        (
            "unicast where there are no peers",
            v3(),
            hex(V3_MESSAGE),
            Arrival { destination: HERE, ..any },
            Err(Discard::Cast),
        ),
        ("multicast where there are peers", peer(), hex(V3_MESSAGE), any, Err(Discard::Cast)),
        ("from this node itself", v3(), hex(V3_MESSAGE), from(HERE), Err(Discard::OwnSource)),
        ("from no peer", peer(), hex(V3_MESSAGE), stranger, Err(Discard::NotPeer)),
    ];
    for (name, rules, bytes, arrival, expected) in table {
        let mut reception = Reception::new(rules);
        let got = reception.judge(&bytes, &arrival);
        assert_eq!(got.map(|heard| heard.priority), expected, "{name}");
        let counters = reception.counters();
        assert_eq!(counters.accepted, u64::from(expected.is_ok()), "{name}");
        assert_eq!(counters.resigned, u64::from(expected == Ok(0)), "{name}");
        for reason in Discard::ALL {
            assert_eq!(counters.discarded(reason), u64::from(expected == Err(reason)), "{name}: {reason:?}");
        }
    }
}

/// A packet that breaks all rules but the first few breaks the first of those that are left.
#[test]
fn the_rules_have_an_order() {
    let all_wrong = || {
        let mut bytes = changed(V2_NO_AUTH, &[(0, 0x32), (4, 2), (5, 0)]);
        bytes.truncate(11);
        bytes
    };
    let mut reception = Reception::new(Rules { peers: vec![THERE], ..with_password("1111") });
    let mut bytes = all_wrong();
    let mut arrival = Arrival { source: HERE, ttl: 3, ..arrival(0) };
    let mut expect = |bytes: &[u8], arrival: &Arrival, reason| {
        assert_eq!(reception.judge(bytes, arrival), Err(reason));
    };
    expect(&bytes, &arrival, Discard::Truncated);
    bytes.resize(20, 0);
    expect(&bytes, &arrival, Discard::Ttl);
    arrival.ttl = 255;
    expect(&bytes, &arrival, Discard::Version);
    bytes[0] = 0x22;
    expect(&bytes, &arrival, Discard::AuthType);
    bytes[4] = 1;
    expect(&bytes, &arrival, Discard::Password);
    bytes[12..].copy_from_slice(b"1111\0\0\0\0");
    expect(&bytes, &arrival, Discard::Interval);
    bytes[5] = 1;
    expect(&bytes, &arrival, Discard::Type);
    bytes[0] = 0x21;
    expect(&bytes, &arrival, Discard::Checksum);
    repair(&mut bytes);
    expect(&bytes, &arrival, Discard::Cast);
    arrival.destination = HERE;
    expect(&bytes, &arrival, Discard::OwnSource);
    arrival.source = "192.168.2.66".parse().unwrap();
    expect(&bytes, &arrival, Discard::NotPeer);
    arrival.source = THERE;
    assert!(reception.judge(&bytes, &arrival).is_ok());
}

#[test]
fn what_is_heard_says_who_how_often_and_when() {
    let mut reception = Reception::new(v3());
    let heard = reception.judge(&changed(V3_MESSAGE, &[(4, 0xff), (5, 0xff)]), &arrival(7)).unwrap();
    let interval = Duration::from_millis(40_950);
    assert_eq!(heard, Heard { source: THERE, priority: 100, interval, received: Moment(Duration::from_secs(7)) });
}

#[test]
fn ipv6_is_heard_like_ipv4() {
    let (here, there) = ("fe80::9".parse().unwrap(), "fe80::10".parse().unwrap());
    let vip = "2001:db8::100".parse().unwrap();
    let meaning = Advertisement {
        version: Version::V3,
        vrid: Vrid(51),
        priority: 90,
        interval: Duration::from_millis(500),
        addresses: vec![vip],
    };
    let seal =
        Seal { source: there, destination: GROUP_V6.into(), checksum: ChecksumForm::PseudoHeader, proof: Proof::None };
    let mut bytes = Vec::new();
    meaning.emit(&mut bytes, &seal).unwrap();
    let rules = Rules { family: Family::V6, addresses: vec![vip], source: Some(here), ..v3() };
    let mut reception = Reception::new(rules);
    let arrival = Arrival { source: there, destination: GROUP_V6.into(), ..arrival(0) };
    assert_eq!(reception.judge(&bytes, &arrival).map(|heard| heard.priority), Ok(90));
    assert!(reception.reports(arrival.received).is_empty());
    bytes[2] = 91;
    assert_eq!(reception.judge(&bytes, &arrival), Err(Discard::Checksum));
}

#[test]
fn the_own_source_may_become_known_later() {
    let mut reception = Reception::new(Rules { source: None, ..v3() });
    assert!(reception.judge(&hex(V3_MESSAGE), &arrival(0)).is_ok());
    reception.set_source(Some(THERE));
    assert_eq!(reception.judge(&hex(V3_MESSAGE), &arrival(0)), Err(Discard::OwnSource));
}

#[test]
fn counters_have_names_and_their_own_places() {
    for (index, reason) in Discard::ALL.into_iter().enumerate() {
        assert_eq!(reason as usize, index);
        assert!(Discard::ALL[..index].iter().all(|other| other.name() != reason.name()));
    }
}
