//! Packets of keepalived byte for byte, both ways, and round trips.

use std::net::Ipv4Addr;

use proptest::{collection::vec, prelude::*};

use super::{
    hmac::{Key, Sequence, Stamp, Trailer},
    *,
};

const SOURCE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 2, 10));

pub(crate) fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: &u8| char::from(*byte).to_digit(16).expect("hexadecimal") as u8;
    digits.chunks_exact(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect()
}

/// The secret of the vectors.
pub(crate) fn key(id: u8) -> Key {
    let secret: [u8; 32] = std::array::from_fn(|at| at as u8);
    Key::new(id, &secret).unwrap()
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn advertisement(version: Version, interval: Duration) -> Advertisement {
    Advertisement { version, vrid: Vrid(51), priority: 100, interval, addresses: vec![address("192.168.2.100")] }
}

fn seal(checksum: ChecksumForm, proof: Proof<'_>) -> Seal<'_> {
    Seal { source: SOURCE, destination: GROUP_V4.into(), checksum, proof }
}

/// Emits to the golden bytes, and finds in the golden bytes what was emitted.
fn assert_golden(meaning: &Advertisement, seal: &Seal<'_>, golden: &str) {
    let golden = hex(golden);
    let mut out = vec![0xff; 3];
    meaning.emit(&mut out, seal).unwrap();
    assert_eq!(out, golden, "emitted {out:02x?}");

    let packet = Packet::new(&golden, Family::of(seal.source)).unwrap();
    assert_eq!(&Advertisement::parse(&packet), meaning);
    assert_eq!(packet.packet_type(), 1);
    let form = if meaning.version == Version::V2 { ChecksumForm::Message } else { seal.checksum };
    assert_eq!(packet.checksum(seal.source, seal.destination), Some(form));
    match seal.proof {
        Proof::None => assert!(packet.rest().is_empty()),
        Proof::Password(password) => {
            assert_eq!(packet.auth_type(), Some(AuthType::Password));
            assert!(password.is(&packet.password().unwrap()));
        }
        Proof::Hmac(key, stamp) => {
            let trailer = Trailer::find(packet.rest()).unwrap().unwrap();
            assert_eq!((trailer.key_id(), trailer.stamp()), (key.id(), stamp));
            assert!(key.verifies(packet.message(), seal.source, &trailer));
        }
    }
}

#[test]
fn version_2_with_a_password() {
    let second = advertisement(Version::V2, Duration::from_secs(1));
    for (password, golden) in [
        ("solarfs250", "21336401 0101f153 c0a80264 736f6c6172667332"),
        ("1111", "21336401 0101545b c0a80264 3131313100000000"),
    ] {
        let password = Password::new(password);
        assert_golden(&second, &seal(ChecksumForm::PseudoHeader, Proof::Password(&password)), golden);
    }
}

#[test]
fn version_2_without_a_password() {
    let second = advertisement(Version::V2, Duration::from_secs(1));
    let golden = "21336401 0001b7bd c0a80264 0000000000000000";
    assert_golden(&second, &seal(ChecksumForm::PseudoHeader, Proof::None), golden);
}

#[test]
fn version_3_with_both_forms_of_checksum() {
    let half = advertisement(Version::V3, Duration::from_millis(500));
    assert_golden(&half, &seal(ChecksumForm::PseudoHeader, Proof::None), "31336401 0032044b c0a80264");
    assert_golden(&half, &seal(ChecksumForm::Message, Proof::None), "31336401 0032a78c c0a80264");
}

#[test]
fn version_3_with_hmac() {
    let half = advertisement(Version::V3, Duration::from_millis(500));
    let key = key(7);
    let proof = Proof::Hmac(&key, Stamp::new(0x6b01_4c8c, 0xf1da, 0));
    let golden = "31336401 0032044b c0a80264 01070000 6b014c8c f1da0000 71c253d26f47b0022b6fa9464fbab75f";
    assert_golden(&half, &seal(ChecksumForm::PseudoHeader, proof), golden);
}

/// The examples in the specification of `auth_hmac`; over IPv6 the checksum covers the trailer.
#[test]
fn hmac_over_both_families_as_specified() {
    let key = key(1);
    let proof = Proof::Hmac(&key, Stamp::new(0x6800_0000, 0x8000, 0));
    let meaning = |vip| Advertisement {
        version: Version::V3,
        vrid: Vrid(51),
        priority: 200,
        interval: Duration::from_secs(1),
        addresses: vec![address(vip)],
    };
    let (source, destination) = (address("198.51.100.10"), GROUP_V4.into());
    let golden = "3133c801 00644402 c0000264 01010000 68000000 80000000 1b84bc4e8e43892dc6d98448f8ee2265";
    let seal = Seal { source, destination, checksum: ChecksumForm::Message, proof };
    assert_golden(&meaning("192.0.2.100"), &seal, golden);

    let (source, destination) = (address("fe80::10"), address("fe80::20"));
    let golden = "3133c801 0064a2e9 fe800000000000000000000000000100 01010000 68000000 80000000 \
                  c8c56146ebfd66ee10ec4d8186461b78";
    let seal = Seal { source, destination, checksum: ChecksumForm::PseudoHeader, proof };
    assert_golden(&meaning("fe80::100"), &seal, golden);
}

/// An implementation may as well cover only the message over IPv6, as all do over IPv4.
#[test]
fn over_ipv6_the_checksum_need_not_cover_the_trailer() {
    let meaning = Advertisement { addresses: vec![], ..advertisement(Version::V3, Duration::from_secs(1)) };
    let (source, destination) = (address("fe80::10"), GROUP_V6.into());
    let mut bytes = Vec::new();
    let seal = Seal { source, destination, checksum: ChecksumForm::PseudoHeader, proof: Proof::None };
    meaning.emit(&mut bytes, &seal).unwrap();
    bytes.extend(key(1).seal(&bytes, source, Stamp::new(1, 2, 3)));
    let packet = Packet::new(&bytes, Family::V6).unwrap();
    assert_eq!(packet.checksum(source, destination), Some(ChecksumForm::PseudoHeader));
    assert_eq!(packet.checksum(source, source), None);
}

#[test]
fn a_packet_is_as_long_as_it_says() {
    let v2 = hex("21336401 0101545b c0a80264 3131313100000000");
    for length in 0..v2.len() {
        assert_eq!(Packet::new(&v2[..length], Family::V4).unwrap_err(), Malformed::Truncated(length));
    }
    let v3 = hex("31336401 0032044b c0a80264");
    for length in 0..v3.len() {
        assert_eq!(Packet::new(&v3[..length], Family::V4).unwrap_err(), Malformed::Truncated(length));
    }
    assert_eq!(Packet::new(&v3, Family::V6).unwrap_err(), Malformed::Truncated(12));
    let padded = [&v3[..], &[0; 14]].concat();
    assert_eq!(Packet::new(&padded, Family::V4).unwrap().rest().len(), 14);
}

#[test]
fn other_versions_do_not_exist() {
    for version in (0..16).filter(|version| ![2, 3].contains(version)) {
        let bytes = [version << 4 | 1, 51, 100, 0, 0, 100, 0, 0];
        assert_eq!(Packet::new(&bytes, Family::V4).unwrap_err(), Malformed::Version(version));
    }
}

#[test]
fn what_cannot_be_sent_is_refused() {
    let password = Password::new("1111");
    let half = advertisement(Version::V3, Duration::from_millis(500));
    let second = advertisement(Version::V2, Duration::from_secs(1));
    let v6 = || vec![address("2001:db8::100")];
    let plain = seal(ChecksumForm::PseudoHeader, Proof::None);
    let over_v6 = Seal { source: address("fe80::10"), destination: GROUP_V6.into(), ..plain };
    let with_password = seal(ChecksumForm::PseudoHeader, Proof::Password(&password));
    let interval = |version, millis| {
        let interval = Duration::from_millis(millis);
        (advertisement(version, interval), plain, Unsendable::Interval(version, interval))
    };
    for (meaning, seal, expected) in [
        (Advertisement { vrid: Vrid(0), ..half.clone() }, plain, Unsendable::Vrid),
        interval(Version::V2, 0),
        interval(Version::V2, 500),
        interval(Version::V2, 1_500),
        interval(Version::V2, 256_000),
        interval(Version::V3, 0),
        interval(Version::V3, 5),
        interval(Version::V3, 15),
        interval(Version::V3, 40_960),
        (
            Advertisement { addresses: vec![address("192.168.2.100"); 256], ..half.clone() },
            plain,
            Unsendable::Addresses(256),
        ),
        (Advertisement { addresses: v6(), ..half.clone() }, plain, Unsendable::Families),
        (half.clone(), over_v6, Unsendable::Families),
        (Advertisement { addresses: v6(), ..second }, over_v6, Unsendable::Ipv6InVersion2),
        (half, with_password, Unsendable::PasswordInVersion3),
    ] {
        assert_eq!(meaning.emit(&mut Vec::new(), &seal), Err(expected));
    }
}

#[test]
fn a_password_is_cut_at_eight_bytes_and_padded_with_zeros() {
    assert!(Password::new("solarfs250").is(b"solarfs2"));
    assert!(Password::new("1111").is(b"1111\0\0\0\0"));
    assert!(!Password::new("1111").is(b"11111111"));
    assert!(!Password::new("1111").is(b"111\0\0\0\0\0"));
}

#[test]
fn secrets_are_not_printed() {
    assert_eq!(format!("{:?} {:?}", Password::new("1111"), key(7)), "Password(…) Key(7, …)");
}

#[test]
fn keys_have_32_to_64_bytes() {
    for (length, taken) in [(0, false), (31, false), (32, true), (64, true), (65, false)] {
        assert_eq!(Key::new(1, &vec![7; length]).is_ok(), taken, "{length}");
    }
}

#[test]
fn stamps_are_in_65536ths_of_a_second_and_wrap() {
    assert_eq!(Stamp::at(Duration::new(5, 500_000_000)), Stamp::new(5, 0x8000, 0));
    assert_eq!(Stamp::at(Duration::new(5, 999_999_999)), Stamp::new(5, 0xffff, 0));
    assert!(Stamp::new(5, 0, 1).is_after(Stamp::new(5, 0, 0)));
    assert!(!Stamp::new(5, 0, 1).is_after(Stamp::new(5, 0, 1)));
    assert!(Stamp::new(0, 0, 0).is_after(Stamp::new(u32::MAX, 9, 9)));
    assert_eq!(Stamp::new(2, 0, 0).ahead_of(Duration::from_secs(u64::from(u32::MAX))), 3);
    assert_eq!(Stamp::new(u32::MAX, 0, 0).ahead_of(Duration::from_secs((1 << 32) + 2)), -3);
}

#[test]
fn a_sequence_grows_whatever_the_clock_does() {
    let window = Duration::from_secs(5);
    let mut sequence = Sequence::default();
    let mut next = |seconds| sequence.next(Duration::from_secs(seconds), window);
    assert_eq!(next(100), Stamp::new(100, 0, 0));
    assert_eq!(next(100), Stamp::new(100, 0, 1), "the clock stands still");
    assert_eq!(next(97), Stamp::new(100, 0, 2), "the clock steps back a little");
    assert_eq!(next(101), Stamp::new(101, 0, 0));
    assert_eq!(next(50), Stamp::new(50, 0, 0), "receivers would refuse 101 as too far in the future");
}

fn proofs() -> impl Strategy<Value = Option<(bool, u64)>> {
    proptest::option::of((any::<bool>(), any::<u64>()))
}

proptest! {
    #[test]
    fn what_is_emitted_is_what_is_parsed(
        v3 in any::<bool>(),
        v6 in any::<bool>(),
        vrid in 1..=255_u8,
        priority: u8,
        interval in 1..=0xfff_u16,
        hosts in vec(any::<u128>(), 0..=255),
        (source, destination) in any::<(u128, u128)>(),
        message_only: bool,
        proof in proofs(),
        padding in 0..20_usize,
    ) {
        let v6 = v6 && v3;
        let ip = |bits: u128| match v6 {
            true => IpAddr::from(bits.to_be_bytes()),
            false => IpAddr::from((bits as u32).to_be_bytes()),
        };
        let meaning = Advertisement {
            version: if v3 { Version::V3 } else { Version::V2 },
            vrid: Vrid(vrid),
            priority,
            interval: match v3 {
                true => Duration::from_millis(u64::from(interval) * 10),
                false => Duration::from_secs(u64::from(interval % 255) + 1),
            },
            addresses: hosts.into_iter().map(ip).collect(),
        };
        let (key, password) = (key(7), Password::new("secret"));
        let proof = match proof {
            Some((true, _)) if !v3 => Proof::Password(&password),
            Some((_, stamp)) => Proof::Hmac(&key, Stamp::new((stamp >> 32) as u32, (stamp >> 16) as u16, stamp as u16)),
            None => Proof::None,
        };
        let checksum = if message_only { ChecksumForm::Message } else { ChecksumForm::PseudoHeader };
        let seal = Seal { source: ip(source), destination: ip(destination), checksum, proof };
        let mut bytes = Vec::new();
        meaning.emit(&mut bytes, &seal).unwrap();
        bytes.extend(vec![0; padding]);

        let packet = Packet::new(&bytes, Family::of(seal.source)).unwrap();
        prop_assert_eq!(Advertisement::parse(&packet), meaning);
        prop_assert!(packet.checksum(seal.source, seal.destination).is_some());
        match (proof, Trailer::find(packet.rest()).unwrap()) {
            (Proof::Hmac(key, stamp), Some(trailer)) => {
                prop_assert_eq!(trailer.stamp(), stamp);
                prop_assert!(key.verifies(packet.message(), seal.source, &trailer));
            }
            (Proof::Hmac(..), None) | (_, Some(_)) => prop_assert!(false, "a trailer where an HMAC is"),
            (_, None) => {}
        }
    }

    /// The HMAC stands for every bit but the checksum's, and for the source.
    #[test]
    fn a_flipped_bit_breaks_the_hmac(bit in 0..320_usize) {
        let golden = hex("31336401 0032044b c0a80264 01070000 6b014c8c f1da0000 71c253d26f47b0022b6fa9464fbab75f");
        let mut bytes = golden;
        bytes[bit / 8] ^= 1 << (bit % 8);
        let holds = Packet::new(&bytes, Family::V4).is_ok_and(|packet| {
            Trailer::find(packet.rest()).is_ok_and(|trailer| {
                trailer.is_some_and(|trailer| key(trailer.key_id()).verifies(packet.message(), SOURCE, &trailer))
            })
        });
        prop_assert_eq!(holds, (48..64).contains(&bit));
    }

    #[test]
    fn any_bytes_are_a_packet_or_not(bytes in vec(any::<u8>(), 0..100), v6: bool) {
        let family = if v6 { Family::V6 } else { Family::V4 };
        if let Ok(packet) = Packet::new(&bytes, family) {
            prop_assert_eq!(packet.message().len() + packet.rest().len(), bytes.len());
            prop_assert_eq!(packet.addresses().len(), usize::from(bytes[3]));
        }
    }
}
