//! What users are told of their peers, and how often.

use super::*;

fn text(rules: Rules, bytes: &[u8], arrival: &Arrival) -> Vec<String> {
    let mut reception = Reception::new(rules);
    let _ = reception.judge(bytes, arrival);
    let texts: Vec<_> = reception.reports(arrival.received).iter().map(ToString::to_string).collect();
    let lines: Vec<_> = std::iter::from_fn(|| reception.next_line()).map(|line| line.to_string()).collect();
    assert_eq!(texts, lines, "what is seen first is logged");
    texts
}

#[test]
fn reports_name_the_sender_the_trouble_and_the_way_out() {
    let any = arrival(0);
    let others = ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.5"].map(|vip| vip.parse().unwrap());
    let both = "; while this lasts it is not heard here, and both nodes may hold the VIP at once";
    for (rules, bytes, arrival, expected) in [
        (v3(), hex(V3_MESSAGE), any, vec![]),
        (v3(), changed(V3_MESSAGE, &[(1, 52)]), any, vec![]),
        (
            v2(),
            hex(CARP),
            any,
            vec![
                "192.168.2.10 speaks CARP (OpenBSD, pfSense, OPNsense) with the number 51, which is the VRID here: \
                 CARP and VRRP use the same MAC address for it, so give one of the two another number"
                    .into(),
            ],
        ),
        (
            v3(),
            hex(V2_NO_AUTH),
            any,
            vec![format!(
                "192.168.2.10 speaks VRRP version 2, this node version 3: set the same version on both{both}"
            )],
        ),
        (
            v2(),
            changed(V2_NO_AUTH, &[(5, 5)]),
            any,
            vec![format!(
                "192.168.2.10 advertises every 5s, this node every 1s: version 2 demands the same interval on \
                 both{both}"
            )],
        ),
        (
            with_password("other"),
            hex(V2_1111),
            any,
            vec![format!("192.168.2.10 sends another password than the one configured here{both}")],
        ),
        (
            with_password("1111"),
            changed(V2_NO_AUTH, &[(4, 2)]),
            any,
            vec![format!(
                "192.168.2.10 authenticates with IPsec AH, this node with a password: set the same on both (AH is not \
                 part of VRRP any more, and not spoken here){both}"
            )],
        ),
        (
            v3(),
            changed(V3_MESSAGE, &[(5, 100)]),
            any,
            vec![
                "192.168.2.10 advertises every 1s, this node every 500ms: how long a takeover takes depends on who is \
                 master"
                    .into(),
            ],
        ),
        (
            v3(),
            listing(&others),
            any,
            vec![
                "192.168.2.10 uses VRID 51 for 10.0.0.1, 10.0.0.2, 10.0.0.3, 10.0.0.4 and 1 more, which this node does \
                 not serve: two clusters share the number, give one of them another"
                    .into(),
            ],
        ),
        (
            v3(),
            listing(&[VIP, others[0]]),
            any,
            vec!["192.168.2.10 has another list of VIPs: 10.0.0.1 only there".into()],
        ),
        (
            Rules { addresses: vec![VIP, others[0]], ..v3() },
            listing(&[VIP, others[1]]),
            any,
            vec!["192.168.2.10 has another list of VIPs: 10.0.0.2 only there, 10.0.0.1 only here".into()],
        ),
        (v3(), listing(&[]), any, vec!["192.168.2.10 has another list of VIPs: 192.168.2.100 only here".into()]),
        (
            v3(),
            hex(V3_MESSAGE),
            Arrival { source: HERE, ..any },
            vec![
                "192.168.2.9 is this node's own address: another machine uses it too, or the network brings packets \
                 back (a loop)"
                    .into(),
            ],
        ),
        (
            with_peers(&[HERE]),
            hex(V3_MESSAGE),
            Arrival { destination: HERE, ..any },
            vec!["192.168.2.10 is not among the peers: add it there, or find out who it is".into()],
        ),
    ] {
        assert_eq!(text(rules, &bytes, &arrival), expected);
    }
}

/// The addresses tell a stranger's cluster from a peer with a typing mistake, also where nothing is heard.
#[test]
fn a_clash_is_seen_behind_a_wrong_password() {
    let clash = |report: &Report| matches!(report.finding, Finding::Clash { .. });
    for (last_byte, expected) in [(0x64, false), (0x65, true)] {
        let mut reception = Reception::new(with_password("other"));
        let bytes = changed(V2_1111, &[(11, last_byte)]);
        assert_eq!(reception.judge(&bytes, &arrival(0)), Err(Discard::Password));
        assert_eq!(reception.reports(arrival(0).received).iter().any(clash), expected);
    }
}

#[test]
fn reports_count_and_fade() {
    let mut reception = Reception::new(v3());
    for seconds in [1, 2, 5] {
        let _ = reception.judge(&hex(V2_NO_AUTH), &arrival(seconds));
    }
    let at = |seconds| Moment(Duration::from_secs(seconds));
    let report = &reception.reports(at(305))[0];
    assert_eq!((report.sender, report.first, report.last, report.times), (THERE, at(1), at(5), 3));
    assert_eq!(reception.reports(at(306)), []);
}

#[test]
fn a_remark_goes_when_its_reason_does() {
    let mut reception = Reception::new(v3());
    let mut remarks = |bytes: &[u8]| {
        reception.judge(bytes, &arrival(0)).unwrap();
        reception.reports(arrival(0).received).len()
    };
    assert_eq!(remarks(&changed(V3_MESSAGE, &[(5, 100), (11, 1)])), 2);
    assert_eq!(remarks(&changed(V3_MESSAGE, &[(11, 1)])), 1);
    assert_eq!(remarks(&hex(V3_MESSAGE)), 0);
    let counters = reception.counters();
    assert_eq!((counters.accepted, counters.other_interval, counters.other_addresses), (3, 1, 2));
}

#[test]
fn what_repeats_is_logged_once_a_minute_for_each_sender() {
    let mut reception = Reception::new(v3());
    let mut line = |host: u8, seconds| {
        let _ = reception.judge(&hex(V2_NO_AUTH), &Arrival { source: [10, 0, 0, host].into(), ..arrival(seconds) });
        reception.next_line().map(|line| (line.report.times, line.unsaid))
    };
    assert_eq!(line(1, 0), Some((1, 0)));
    assert_eq!(line(1, 1), None);
    assert_eq!(line(2, 2), Some((1, 1)), "another sender");
    assert_eq!(line(1, 59), None);
    assert_eq!(line(1, 60), Some((4, 1)));
}

#[test]
fn many_senders_get_few_lines() {
    let mut reception = Reception::new(v3());
    let mut lines = 0;
    for host in 0..1_000_u32 {
        let source = (0x0a00_0000 + host).to_be_bytes().into();
        let _ = reception.judge(&hex(V2_NO_AUTH), &Arrival { source, ..arrival(u64::from(host / 100)) });
        lines += std::iter::from_fn(|| reception.next_line()).count();
    }
    assert_eq!(lines, 8);
    assert_eq!(reception.reports(arrival(10).received).len(), 32);
    let _ = reception.judge(&hex(V2_NO_AUTH), &arrival(80));
    let line = reception.next_line().unwrap();
    assert_eq!((line.report.sender, line.unsaid), (THERE, 992));
    assert!(line.to_string().ends_with("(992 findings before this one went without a line)"));
}
