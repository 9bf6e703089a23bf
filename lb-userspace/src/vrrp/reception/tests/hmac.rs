//! Modes, keys, clocks and replay.

use super::*;
use crate::vrrp::packet::{hmac::Stamp, tests::key};

/// When the golden packet was sealed.
const SEALED: u32 = 0x6b01_4c8c;
const GOLDEN: &str = "31336401 0032044b c0a80264 01070000 6b014c8c f1da0000 71c253d26f47b0022b6fa9464fbab75f";

fn rules(mode: HmacMode) -> Rules {
    Rules { auth: Auth::Hmac { keys: vec![key(7)], mode }, ..v3() }
}

fn at(seconds: i64) -> Arrival {
    let wall = Duration::from_secs(u64::from(SEALED).saturating_add_signed(seconds));
    Arrival { wall, ..arrival(0) }
}

fn sealed(source: IpAddr, key: &Key, stamp: Stamp) -> Vec<u8> {
    let meaning = Advertisement {
        version: Version::V3,
        vrid: Vrid(51),
        priority: 100,
        interval: Duration::from_millis(500),
        addresses: vec![VIP],
    };
    let proof = Proof::Hmac(key, stamp);
    let mut bytes = Vec::new();
    let seal = Seal { source, destination: GROUP_V4.into(), checksum: ChecksumForm::PseudoHeader, proof };
    meaning.emit(&mut bytes, &seal).unwrap();
    bytes
}

#[test]
fn the_modes_are_steps_of_a_rollout() {
    let flipped = |at: usize, bit: u8| {
        let mut bytes = hex(GOLDEN);
        bytes[at] ^= bit;
        bytes
    };
    let padding = [hex(V3_PSEUDO), vec![0; 30]].concat();
    let garbage = [hex(V3_PSEUDO), vec![9; 28]].concat();
    let half_a_trailer = hex(GOLDEN)[..39].to_vec();
    for (name, bytes, lenient, strict) in [
        ("sealed", hex(GOLDEN), Ok(()), Ok(())),
        ("sealed and padded", [hex(GOLDEN), vec![0; 6]].concat(), Ok(()), Ok(())),
        ("not sealed", hex(V3_PSEUDO), Ok(()), Err(Discard::HmacMissing)),
        ("padding is no trailer", padding, Ok(()), Err(Discard::HmacMissing)),
        ("garbage is not padding", garbage, Err(Discard::HmacMalformed), Err(Discard::HmacMalformed)),
        ("half a trailer", half_a_trailer, Err(Discard::HmacMalformed), Err(Discard::HmacMalformed)),
        ("another type", flipped(12, 3), Err(Discard::HmacMalformed), Err(Discard::HmacMalformed)),
        ("reserved bytes", flipped(15, 1), Err(Discard::HmacMalformed), Err(Discard::HmacMalformed)),
        ("another key", flipped(13, 1), Err(Discard::HmacKey), Err(Discard::HmacKey)),
        ("another priority", flipped(2, 1), Err(Discard::HmacWrong), Err(Discard::HmacWrong)),
        ("another address", flipped(11, 1), Err(Discard::HmacWrong), Err(Discard::HmacWrong)),
        ("another time", flipped(19, 1), Err(Discard::HmacWrong), Err(Discard::HmacWrong)),
        ("another digest", flipped(39, 1), Err(Discard::HmacWrong), Err(Discard::HmacWrong)),
        ("the checksum is judged after the HMAC", flipped(7, 1), Err(Discard::Checksum), Err(Discard::Checksum)),
    ] {
        for mode in [HmacMode::ReceiveOnly, HmacMode::Permissive, HmacMode::Enforce] {
            let expected = if mode == HmacMode::Enforce { strict } else { lenient };
            let got = Reception::new(rules(mode)).judge(&bytes, &at(0)).map(|_| ());
            assert_eq!(got, expected, "{name}, {mode:?}");
        }
    }
    let elsewhere = Arrival { source: "192.168.2.11".parse().unwrap(), ..at(0) };
    let got = Reception::new(rules(HmacMode::Enforce)).judge(&hex(GOLDEN), &elsewhere);
    assert_eq!(got, Err(Discard::HmacWrong), "the source is part of what is sealed");
}

#[test]
fn who_has_no_key_hears_what_is_sealed_as_if_it_were_not() {
    assert!(Reception::new(v3()).judge(&hex(GOLDEN), &at(0)).is_ok());
}

#[test]
fn version_2_can_be_sealed_too() {
    let bytes = {
        let meaning = Advertisement {
            version: Version::V2,
            vrid: Vrid(51),
            priority: 100,
            interval: Duration::from_secs(1),
            addresses: vec![VIP],
        };
        let (key, mut bytes) = (key(7), Vec::new());
        let proof = Proof::Hmac(&key, Stamp::new(SEALED, 0, 0));
        let seal = Seal { source: THERE, destination: GROUP_V4.into(), checksum: ChecksumForm::default(), proof };
        meaning.emit(&mut bytes, &seal).unwrap();
        bytes
    };
    let mut reception = Reception::new(Rules { auth: rules(HmacMode::Enforce).auth, ..v2() });
    assert!(reception.judge(&bytes, &at(0)).is_ok());
    assert_eq!(reception.judge(&bytes, &at(0)), Err(Discard::HmacReplay));
}

#[test]
fn clocks_may_differ_by_five_seconds_or_three_intervals() {
    for (interval, window) in [(100, 5), (1_000, 5), (2_000, 6), (40_950, 122)] {
        let rules = || Rules { interval: Duration::from_millis(interval), ..rules(HmacMode::Enforce) };
        for (off, expected) in [
            (window, Ok(100)),
            (-window, Ok(100)),
            (window + 1, Err(Discard::HmacStale)),
            (-window - 1, Err(Discard::HmacStale)),
        ] {
            let got = Reception::new(rules()).judge(&hex(GOLDEN), &at(off)).map(|heard| heard.priority);
            assert_eq!(got, expected, "{interval} ms, {off} s");
        }
    }
}

#[test]
fn a_recording_is_not_heard_again() {
    let (key, mut reception) = (key(7), Reception::new(rules(HmacMode::Enforce)));
    let mut judge = |stamp, off| reception.judge(&sealed(THERE, &key, stamp), &at(off)).map(|_| ());
    assert_eq!(judge(Stamp::new(SEALED, 7, 0), 0), Ok(()));
    assert_eq!(judge(Stamp::new(SEALED, 7, 0), 1), Err(Discard::HmacReplay));
    assert_eq!(judge(Stamp::new(SEALED, 6, 9), 1), Err(Discard::HmacReplay));
    assert_eq!(judge(Stamp::new(SEALED, 7, 1), 1), Ok(()));
    assert_eq!(judge(Stamp::new(SEALED, 7, 0), 6), Err(Discard::HmacStale));
}

#[test]
fn a_damaged_copy_does_not_shut_the_packet_out() {
    let mut reception = Reception::new(rules(HmacMode::Enforce));
    let mut damaged = hex(GOLDEN);
    damaged[6] ^= 1;
    assert_eq!(reception.judge(&damaged, &at(0)), Err(Discard::Checksum));
    assert!(reception.judge(&hex(GOLDEN), &at(0)).is_ok());
}

#[test]
fn a_clock_put_back_far_is_followed() {
    let (key, mut reception) = (key(7), Reception::new(rules(HmacMode::Enforce)));
    let mut judge = |seconds: u32, off| reception.judge(&sealed(THERE, &key, Stamp::new(seconds, 0, 0)), &at(off));
    assert!(judge(SEALED + 3600, 3600).is_ok());
    // Both clocks are an hour back: the mark is beyond what could be heard, and no shield for the recordings of then.
    assert!(judge(SEALED, 0).is_ok());
    assert_eq!(judge(SEALED, 0), Err(Discard::HmacReplay));
}

#[test]
fn keys_change_without_a_gap() {
    let (old, new) = (key(7), Key::new(8, &[8; 40]).unwrap());
    let stamp = |counter| Stamp::new(SEALED, 0, counter);
    let with = |keys| Rules { auth: Auth::Hmac { keys, mode: HmacMode::Enforce }, ..v3() };
    let mut both = Reception::new(with(vec![old.clone(), new.clone()]));
    assert!(both.judge(&sealed(THERE, &old, stamp(1)), &at(0)).is_ok());
    assert!(both.judge(&sealed(THERE, &new, stamp(2)), &at(0)).is_ok());
    let mut only_new = Reception::new(with(vec![new]));
    assert_eq!(only_new.judge(&sealed(THERE, &old, stamp(3)), &at(0)), Err(Discard::HmacKey));
}

fn sender(index: u8) -> IpAddr {
    [192, 168, 2, index].into()
}

#[test]
fn four_senders_are_remembered_over_multicast() {
    let (key, mut reception) = (key(7), Reception::new(rules(HmacMode::Enforce)));
    let mut judge = |index, counter| {
        let (source, stamp) = (sender(index), Stamp::new(SEALED, 0, counter));
        reception.judge(&sealed(source, &key, stamp), &Arrival { source, ..at(0) }).is_ok()
    };
    for index in 20..24 {
        assert!(judge(index, 1));
    }
    assert!((20..24).all(|index| !judge(index, 1)));
    assert!(judge(20, 2), "heard again, 20 is no longer the oldest");
    assert!(judge(24, 1), "the fifth one takes the place of 21");
    assert!(!judge(20, 2));
    assert!(judge(21, 1));
}

#[test]
fn each_peer_is_remembered_and_nobody_else() {
    let peers: Vec<_> = (20..26).map(sender).collect();
    let rules = Rules { peers: peers.clone(), ..rules(HmacMode::Enforce) };
    let (key, mut reception) = (key(7), Reception::new(rules));
    let mut judge = |source| {
        let arrival = Arrival { source, destination: HERE, ..at(0) };
        let meaning = Advertisement {
            version: Version::V3,
            vrid: Vrid(51),
            priority: 100,
            interval: Duration::from_millis(500),
            addresses: vec![VIP],
        };
        let proof = Proof::Hmac(&key, Stamp::new(SEALED, 0, 0));
        let seal = Seal { source, destination: HERE, checksum: ChecksumForm::default(), proof };
        let mut bytes = Vec::new();
        meaning.emit(&mut bytes, &seal).unwrap();
        reception.judge(&bytes, &arrival).map(|_| ())
    };
    for peer in &peers {
        assert_eq!(judge(*peer), Ok(()));
    }
    for stranger in 30..40 {
        assert_eq!(judge(sender(stranger)), Err(Discard::NotPeer));
    }
    for peer in &peers {
        assert_eq!(judge(*peer), Err(Discard::HmacReplay));
    }
}
