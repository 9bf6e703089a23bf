//! VIPs with a lease: until when they are claimed, and until when carried.

use super::*;

both!(claimed_until_the_lease_ends, carried_until_the_grace_ends, one_vips_end_is_not_anothers);

/// Nanoseconds of uptime at which the lease ends, and the grace.
const CLAIMED: u64 = 5_000;
const CARRIED: u64 = 9_000;

impl<A: Net> World<A>
where
    Memory: Family<A>,
{
    fn leased(uptime: u64) -> Self {
        let mut world = Self::remote();
        world.memory.leases.insert(A::host(VIP).mapped(), Lease::new(CLAIMED, CARRIED));
        world.memory.uptime = uptime;
        // Long ago: every packet looks its lease up.
        world.memory.fence = Fence::after(1);
        world
    }

    fn solicits(&self, target: u8, tags: &[u16]) -> Verdict {
        let frame = A::solicitation(CLIENT, target, tags);
        let (verdict, after) = self.ingress(&frame);
        assert_eq!(after, frame);
        verdict
    }
}

fn claimed_until_the_lease_ends<A: Net>()
where
    Memory: Family<A>,
{
    for (uptime, verdict) in [(0, Verdict::Pass), (CLAIMED, Verdict::Pass), (CLAIMED + 1, Verdict::Drop)] {
        for tags in [&[][..], &[7], &[7, 8]] {
            let world = World::<A>::leased(uptime);
            assert_eq!(world.solicits(VIP, tags), verdict, "{uptime} {tags:?}");
            assert_eq!(world.memory.counter(Counter::Fenced), u64::from(verdict == Verdict::Drop));
            assert_eq!(world.solicits(BACKEND, tags), Verdict::Pass);
        }
    }
    let mut world = World::<A>::leased(CLAIMED + 1);
    world.memory.leases.clear();
    assert_eq!(world.solicits(VIP, &[]), Verdict::Pass, "without a lease");
}

fn carried_until_the_grace_ends<A: Net>()
where
    Memory: Family<A>,
{
    let (syn, reply) = (asks::<A>(SYN), answers::<A>(CLIENT_PORT, SYN_ACK));
    let mut world = World::<A>::leased(CARRIED);
    world.expect(&syn, Verdict::Redirect(OUTER), &sent_on(&syn));
    world.memory.uptime = CARRIED + 1;
    world.dropped(&syn, Counter::Overdue);
    world.dropped(&reply, Counter::Overdue);
    // Leases are not looked at up to the fence.
    world.memory.fence = Fence::after(world.now);
    world.expect(&reply, Verdict::Transmit, &sent_back(&reply));
    world.now += 1;
    world.dropped(&reply, Counter::Overdue);
    world.memory.fence = Fence::NONE;
    world.expect(&reply, Verdict::Transmit, &sent_back(&reply));
}

fn one_vips_end_is_not_anothers<A: Net>()
where
    Memory: Family<A>,
{
    let mut world = World::<A>::leased(CARRIED + 1);
    let lease = world.memory.leases.remove(&A::host(VIP).mapped()).expect("a lease");
    world.memory.leases.insert(A::host(OTHER_CLIENT).mapped(), lease);
    let syn = asks::<A>(SYN);
    world.expect(&syn, Verdict::Redirect(OUTER), &sent_on(&syn));
}

#[test]
fn announcements_and_answers_are_let_through() {
    let world = World::<V4>::leased(CARRIED + 1);
    let arp = |operation: u8, sender: u8, target: u8| {
        let mut frame = V4::solicitation(sender, target, &[]);
        frame[21] = operation;
        world.ingress(&frame).0
    };
    assert_eq!(arp(1, CLIENT, VIP), Verdict::Drop);
    for (operation, sender, target) in [(1, VIP, VIP), (1, VIP, CLIENT), (2, CLIENT, VIP), (2, VIP, VIP)] {
        assert_eq!(arp(operation, sender, target), Verdict::Pass, "{operation} {sender} {target}");
    }
    let world = World::<V6>::leased(CARRIED + 1);
    for kind in 0..=255 {
        let mut frame = V6::solicitation(CLIENT, VIP, &[]);
        frame[54] = kind;
        assert_eq!(world.ingress(&frame).0 == Verdict::Drop, kind == 135, "{kind}");
    }
}

#[test]
fn what_is_cut_short_or_of_another_kind_is_let_through() {
    let (four, six) = (World::<V4>::leased(CLAIMED + 1), World::<V6>::leased(CLAIMED + 1));
    let (arp, solicitation) = (V4::solicitation(CLIENT, VIP, &[]), V6::solicitation(CLIENT, VIP, &[]));
    for length in 0..arp.len() {
        assert_eq!(four.ingress(&arp[..length]).0, Verdict::Pass, "{length}");
    }
    for length in 0..solicitation.len() {
        assert_eq!(six.ingress(&solicitation[..length]).0, Verdict::Pass, "{length}");
    }
    // Hardware, protocol and the lengths of their addresses.
    for at in 14..20 {
        let mut other = arp.clone();
        other[at] ^= 1;
        assert_eq!(four.ingress(&other).0, Verdict::Pass, "{at}");
    }
}
