//! What holds for all frames.

use std::vec::Vec;

use proptest::prelude::*;
use segments::{sums_up, valid};

use super::*;

/// A segment between the hosts of the tests, right or wrong.
fn segment<A: Net>() -> impl Strategy<Value = Segment<A>> {
    let host = prop::sample::select(std::vec![VIP, VIP, VIP, CLIENT, OTHER_CLIENT, BACKEND, LOCAL, 99]);
    let port = prop::sample::select(std::vec![SERVICE_PORT, BACKEND_PORT, CLIENT_PORT, 40001, 1]);
    let tags = prop::collection::vec(any::<u16>(), 0..3);
    let extra = prop::sample::select(std::vec![&[][..], A::EXTRA]);
    let options = (0_usize..=10).prop_map(|words| std::vec![1; words * 4]);
    let payload = prop::collection::vec(any::<u8>(), 0..64);
    (
        (host.clone(), host, port.clone(), port),
        (any::<u8>(), any::<u8>(), any::<u32>(), any::<u32>()),
        (tags, extra, options, payload),
    )
        .prop_map(|((from, to, source, destination), (flags, hops, sequence, acknowledgement), shape)| {
            let (tags, extra, options, payload) = shape;
            Segment {
                tags,
                source: A::host(from),
                destination: A::host(to),
                ports: [source, destination],
                hops,
                extra: extra.to_vec(),
                sequence,
                acknowledgement,
                options,
                payload,
                ..asks(Flags(flags))
            }
        })
}

/// A frame with some of its bytes overwritten, possibly cut.
fn mangled<A: Net>() -> impl Strategy<Value = Vec<u8>> {
    let edits = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    (segment::<A>(), edits, prop::option::weighted(0.2, any::<prop::sample::Index>())).prop_map(
        |(segment, edits, cut)| {
            let mut frame = segment.bytes();
            for (at, byte) in edits {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len()));
            }
            frame
        },
    )
}

/// Whether the frame is an IP packet of this family for the VIP.
fn to_vip<A: Net>(frame: &[u8]) -> bool {
    let Ok(link) = wire::link(frame) else {
        return false;
    };
    let header = Frame::get::<A::Header>(frame, link.at);
    link.ether_type == A::ETHER_TYPE && header.is_ok_and(|header| A::destination(header) == A::host(VIP))
}

/// Sends many frames through one world and holds each outcome against what must be true of it.
fn hold<A: Net>(world: &World<A>, frames: &[Vec<u8>]) -> Result<(), TestCaseError>
where
    Memory: Family<A>,
{
    for frame in frames {
        let (verdict, after) = world.ingress(frame);
        if !to_vip::<A>(frame) {
            prop_assert_eq!((verdict, &after), (Verdict::Pass, frame));
            continue;
        }
        match verdict {
            Verdict::Pass if after == *frame => {}
            Verdict::Drop => {}
            Verdict::Answer(_) => prop_assert!(sums_up::<A>(&after) || valid::<A>(&after) || !valid::<A>(frame)),
            _ => {
                prop_assert_eq!(after.len(), frame.len());
                prop_assert_eq!(valid::<A>(&after), valid::<A>(frame));
                let at = wire::segment::<A, [u8]>(frame, wire::link(&frame[..]).unwrap().at).unwrap().transport;
                prop_assert_eq!(&after[at + 4..at + 16], &frame[at + 4..at + 16]);
                prop_assert_eq!(&after[at + 18..], &frame[at + 18..], "urgent pointer, options and payload");
            }
        }
        let mut leaving = frame.clone();
        let turned = egress(&mut leaving[..], &world.memory, world.now) == Leaving::Turned;
        prop_assert!(turned || leaving == *frame);
        prop_assert!(!turned || valid::<A>(&leaving) == valid::<A>(frame));
    }
    Ok(())
}

/// The client's view: what it hears back comes from where it sent to, with nothing else changed.
fn round_trip<A: Net>(world: &World<A>, client: u8, port: u16, payload: &[u8]) -> Result<(), TestCaseError>
where
    Memory: Family<A>,
{
    let ask = Segment { source: A::host(client), ports: [port, SERVICE_PORT], payload: payload.to_vec(), ..asks(SYN) };
    prop_assert_eq!(world.ingress(&ask.bytes()).0, Verdict::Redirect(OUTER));
    let flow = world.memory.flow(&World::key(&ask)).expect("a known connection");
    let seen = u16::from_be_bytes(flow.new_source_port());
    let reply = Segment { payload: payload.to_vec(), ..answers(seen, SYN_ACK) };
    let (_, heard) = world.ingress(&reply.bytes());
    let expected = Segment { destination: A::host(client), ports: [SERVICE_PORT, port], ..sent_back(&reply) };
    prop_assert_eq!(&heard[12..], &expected.bytes()[12..]);
    Ok(())
}

proptest! {
    #[test]
    fn any_bytes_are_survived(frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..8)) {
        hold(&World::<V4>::remote(), &frames)?;
        hold(&World::<V6>::local(), &frames)?;
    }

    #[test]
    fn ipv4_frames_keep_the_rules(frames in prop::collection::vec(mangled::<V4>(), 1..12), local: bool) {
        hold(&if local { World::<V4>::local() } else { World::remote() }, &frames)?;
    }

    #[test]
    fn ipv6_frames_keep_the_rules(frames in prop::collection::vec(mangled::<V6>(), 1..12), local: bool) {
        hold(&if local { World::<V6>::local() } else { World::remote() }, &frames)?;
    }

    #[test]
    fn clients_hear_from_the_vip(
        clients in prop::collection::vec((0_u8..10, prop::sample::select(std::vec![1_u16, 40000, 65535])), 1..30),
        payload in prop::collection::vec(any::<u8>(), 0..9),
    ) {
        let (mut four, mut six) = (World::<V4>::remote(), World::<V6>::remote());
        for client in 60..70 {
            four.route(client, Route::Hop(hop(INTERFACE, client)));
            six.route(client, Route::Hop(hop(INTERFACE, client)));
        }
        for (client, port) in clients {
            round_trip(&four, 60 + client, port, &payload)?;
            round_trip(&six, 60 + client, port, &payload)?;
        }
    }
}
