//! Random operations on one router, and short stories of two or three that hear each other at once.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::vrrp::simulation::Kernel;

const INTERVAL: Duration = Duration::from_millis(100);

fn at(milliseconds: u64) -> Moment {
    Moment(Duration::from_millis(milliseconds))
}

fn address(node: usize) -> IpAddr {
    [192, 0, 2, u8::try_from(node).unwrap() + 1].into()
}

#[derive(Clone, Debug)]
enum Operation {
    Wait { milliseconds: u64 },
    Hear { instance: usize, source: usize, priority: u8, interval: u64, ago: u64 },
    Condition { instance: usize, adjustment: i16, fault: bool },
    Link { instance: usize, up: bool },
    Contest { instance: usize },
    Release,
    Shutdown,
}

fn operation() -> impl Strategy<Value = Operation> {
    let priority = prop_oneof![Just(0), Just(50), Just(100), Just(255), any::<u8>()];
    prop_oneof![
        8 => prop_oneof![0u64..120, 0u64..1500].prop_map(|milliseconds| Operation::Wait { milliseconds }),
        6 => (0usize..3, 0usize..4, priority, prop_oneof![Just(100), 0u64..500], prop_oneof![Just(0), 0u64..600])
            .prop_map(|(instance, source, priority, interval, ago)| {
                Operation::Hear { instance, source, priority, interval, ago }
            }),
        2 => (0usize..3, -300i16..300, any::<bool>()).prop_map(|(instance, adjustment, fault)| {
            Operation::Condition { instance, adjustment, fault: fault && adjustment % 4 == 0 }
        }),
        1 => (0usize..3, any::<bool>()).prop_map(|(instance, up)| Operation::Link { instance, up }),
        1 => (0usize..3).prop_map(|instance| Operation::Contest { instance }),
        1 => Just(Operation::Release),
    ]
}

/// Carries out what is waiting, and checks what holds at any time.
fn settle(router: &mut Router, kernels: &mut [Kernel], now: Moment) -> Result<(), TestCaseError> {
    while let Some((InstanceId(instance), action)) = router.next_action() {
        kernels[instance].carry_out(action, now).map_err(TestCaseError::fail)?;
    }
    for (instance, kernel) in kernels.iter().enumerate() {
        let view = router.view(InstanceId(instance));
        prop_assert_eq!(kernel.holds, view.state == State::Master);
        prop_assert_eq!(kernel.lease, view.lease);
    }
    prop_assert_eq!(kernels[0].holds, kernels[1].holds, "the group is of two minds");
    Ok(())
}

proptest! {
    #[test]
    fn random_operations(
        owner in any::<bool>(),
        preempt in any::<bool>(),
        operations in prop::collection::vec(operation(), 1..120),
    ) {
        let example = Settings { preempt, ..Settings::example(100, address(1)) };
        let instances = vec![
            Settings { sync_group: Some("both".to_owned()), ..example.clone() },
            Settings { sync_group: Some("both".to_owned()), ..example.clone() },
            Settings { priority: if owner { 255 } else { 100 }, ..example },
        ];
        let mut now = at(1000);
        let mut router = Router::new(instances, now);
        let mut kernels = vec![Kernel::default(); 3];
        settle(&mut router, &mut kernels, now)?;
        for operation in operations.into_iter().chain([Operation::Shutdown]) {
            match operation {
                Operation::Wait { milliseconds } => now = now + Duration::from_millis(milliseconds),
                Operation::Hear { instance, source, priority, interval, ago } => {
                    let interval = Duration::from_millis(interval);
                    let received = Moment(now.0 - Duration::from_millis(ago));
                    let heard = Heard { source: address(source), priority, interval, received };
                    router.on_advertisement(InstanceId(instance), &heard, now);
                }
                Operation::Condition { instance, adjustment, fault } => {
                    router.on_condition(InstanceId(instance), Condition { adjustment, fault }, now);
                }
                Operation::Link { instance, up } => {
                    router.on_link(InstanceId(instance), up.then_some(address(1)), now);
                }
                Operation::Contest { instance } => router.on_contest(InstanceId(instance), now),
                Operation::Release => router.on_release(now),
                Operation::Shutdown => router.on_shutdown(now),
            }
            settle(&mut router, &mut kernels, now)?;
            router.on_timeout(now);
            settle(&mut router, &mut kernels, now)?;
            if let Some(deadline) = router.next_deadline() {
                prop_assert!(deadline > now, "{deadline:?} is past at {now:?}");
            }
        }
        prop_assert!(kernels.iter().all(|kernel| !kernel.holds));
        prop_assert_eq!(router.next_deadline(), None);
    }
}

/// Routers on one segment without delay.
struct Segment {
    now: Moment,
    routers: Vec<Option<Router>>,
    settings: Vec<Vec<Settings>>,
    kernels: Vec<Vec<Kernel>>,
    is_cut: bool,
    log: Vec<(Duration, usize, InstanceId, Action)>,
}

impl Segment {
    fn new(settings: Vec<Vec<Settings>>) -> Self {
        let now = Moment::default();
        let routers = settings.iter().map(|node| Some(Router::new(node.clone(), now))).collect();
        let kernels = settings.iter().map(|node| vec![Kernel::default(); node.len()]).collect();
        let mut segment = Self { now, routers, settings, kernels, is_cut: false, log: Vec::new() };
        segment.exchange();
        segment
    }

    /// One instance, priorities by node.
    fn of(priorities: &[u8]) -> Self {
        let nodes = priorities.iter().enumerate();
        Self::new(nodes.map(|(node, priority)| vec![Settings::example(*priority, address(node))]).collect())
    }

    /// Carries out and delivers until nobody has anything to say.
    fn exchange(&mut self) {
        while let Some((node, (id, action))) =
            self.routers.iter_mut().enumerate().find_map(|(node, router)| Some((node, router.as_mut()?.next_action()?)))
        {
            self.log.push((self.now.0, node, id, action));
            self.kernels[node][id.0].carry_out(action, self.now).unwrap();
            let Action::Advertise { priority, .. } = action else { continue };
            let Settings { source, interval, .. } = self.settings[node][id.0];
            let heard = Heard { source: source.unwrap(), priority, interval, received: self.now };
            for (other, router) in self.routers.iter_mut().enumerate() {
                if let Some(router) = router.as_mut().filter(|_| other != node && !self.is_cut) {
                    router.on_advertisement(id, &heard, self.now);
                }
            }
        }
    }

    fn run_for(&mut self, duration: Duration) {
        let end = self.now + duration;
        while let Some(next) = self.routers.iter().flatten().filter_map(Router::next_deadline).min() {
            if next > end {
                break;
            }
            self.now = next;
            for router in self.routers.iter_mut().flatten() {
                router.on_timeout(next);
            }
            self.exchange();
        }
        self.now = end;
    }

    fn tell(&mut self, node: usize, order: impl FnOnce(&mut Router, Moment)) {
        order(self.routers[node].as_mut().expect("runs"), self.now);
        self.exchange();
    }

    fn owners(&self) -> Vec<usize> {
        (0..self.kernels.len())
            .filter(|node| self.kernels[*node].iter().any(|kernel| kernel.claims(self.now)))
            .collect()
    }

    /// When the latest such action was.
    fn last(&self, node: usize, wanted: Action) -> Duration {
        let found = self.log.iter().rev().find(|(_, by, _, action)| (*by, *action) == (node, wanted));
        found.unwrap_or_else(|| panic!("{node} never did {wanted:?}")).0
    }
}

/// The first node has had the VIP for long.
fn settled(priorities: &[u8]) -> Segment {
    let mut segment = Segment::of(priorities);
    segment.run_for(Duration::from_secs(20));
    assert_eq!(segment.owners(), [0]);
    segment
}

fn skew(priority: u32) -> Duration {
    INTERVAL * (256 - priority) / 256
}

fn turn(priority: u32) -> Duration {
    Duration::from_millis(20) * (256 - priority) / 256
}

#[test]
fn silence_costs_the_down_interval() {
    let mut segment = settled(&[150, 100, 50]);
    segment.routers[0] = None;
    let advertised = segment.kernels[0][0].lease.unwrap().0 - INTERVAL * 3;
    segment.run_for(Duration::from_secs(1));
    assert_eq!(segment.last(1, Action::Hold), advertised + INTERVAL * 3 + skew(100));
    assert_eq!(segment.owners(), [1]);
}

#[test]
fn an_orderly_stop_costs_a_turn() {
    let mut segment = settled(&[150, 100, 50]);
    let stopped = segment.now.0;
    segment.tell(0, Router::on_shutdown);
    assert!(segment.owners().is_empty());
    segment.run_for(Duration::from_secs(1));
    assert_eq!(segment.last(1, Action::Hold), stopped + turn(100));
    assert_eq!(segment.owners(), [1]);
    let lesser = segment.log.iter().any(|(_, node, _, action)| (*node, *action) == (2, Action::Hold));
    assert!(!lesser, "it has heard the better one before its own turn");
}

#[test]
fn what_is_read_later_arrived_later_whatever_the_stamps_say() {
    let settings = Settings { preempt: false, ..Settings::example(200, address(0)) };
    let mut router = Router::new(vec![settings], at(1000));
    let hear = |router: &mut Router, source: usize, priority: u8, received: u64, now: u64| {
        let heard = Heard { source: address(source), priority, interval: INTERVAL, received: at(received) };
        router.on_advertisement(InstanceId(0), &heard, at(now));
    };
    hear(&mut router, 1, 150, 1010, 1010);
    router.on_timeout(at(1010));
    // It resigns, another takes over, and in between the clock that stamps them is set back.
    hear(&mut router, 1, 0, 1080, 1060);
    hear(&mut router, 2, 100, 1055, 1061);
    router.on_timeout(at(1061));
    assert_eq!(router.view(InstanceId(0)).master, Some((address(2), 100)));
    router.on_timeout(at(1100));
    assert_eq!(router.view(InstanceId(0)).state, State::Backup);
}

const NO_BACKENDS: Condition = Condition { adjustment: -253, fault: false };

#[test]
fn a_lesser_master_is_replaced_before_it_leaves() {
    let mut segment = settled(&[150, 100]);
    let lost = segment.now.0;
    segment.tell(0, |router, now| router.on_condition(InstanceId(0), NO_BACKENDS, now));
    assert_eq!(segment.owners(), [0]);
    segment.run_for(Duration::from_secs(1));
    let taken = segment.last(1, Action::Hold);
    assert_eq!((taken, segment.last(0, Action::Yield)), (lost + skew(100), taken));
    assert_eq!(segment.owners(), [1]);
}

#[test]
fn the_vip_stays_where_all_have_lost_the_backends() {
    let mut segment = settled(&[150, 100, 50]);
    for node in [0, 2, 1] {
        segment.tell(node, |router, now| router.on_condition(InstanceId(0), NO_BACKENDS, now));
        segment.run_for(Duration::from_millis(17));
    }
    segment.run_for(Duration::from_secs(2));
    assert_eq!(segment.owners(), [0]);
    assert_eq!(segment.routers[0].as_ref().unwrap().view(InstanceId(0)).transitions, 2);
}

#[test]
fn a_released_vip_stays_away_until_its_new_owner_is_gone() {
    let mut segment = settled(&[150, 100]);
    let released = segment.now.0;
    segment.tell(0, Router::on_release);
    segment.run_for(Duration::from_secs(5));
    assert_eq!(segment.last(1, Action::Hold), released + turn(100));
    assert_eq!(segment.owners(), [1]);
    segment.routers[1] = None;
    segment.run_for(Duration::from_secs(1));
    assert_eq!(segment.owners(), [0]);
}

#[test]
fn one_instance_is_released_with_its_group_and_no_other() {
    let settings = |priority| {
        let of = |group: Option<&str>| Settings {
            sync_group: group.map(str::to_owned),
            ..Settings::example(priority, address(usize::from(priority)))
        };
        vec![of(Some("both")), of(None), of(Some("both"))]
    };
    for (which, moved) in [(0, [true, false, true]), (1, [false, true, false]), (2, [true, false, true])] {
        let mut segment = Segment::new(vec![settings(150), settings(100)]);
        segment.run_for(Duration::from_secs(2));
        segment.tell(0, |router, now| router.on_release_of(InstanceId(which), now));
        segment.run_for(Duration::from_secs(2));
        let holds = |node: usize| [0, 1, 2].map(|instance: usize| segment.kernels[node][instance].holds);
        assert_eq!((holds(1), holds(0)), (moved, moved.map(|moved| !moved)), "{which}");
    }
}

#[test]
fn a_released_vip_comes_back_if_nobody_takes_it() {
    let mut segment = settled(&[150]);
    let released = segment.now.0;
    segment.tell(0, Router::on_release);
    segment.run_for(Duration::from_secs(2));
    assert_eq!(segment.last(0, Action::Hold), released + (INTERVAL * 3 + skew(150)) * 2);
}

#[test]
fn after_a_partition_the_winner_speaks_last() {
    let mut segment = settled(&[150, 100]);
    segment.is_cut = true;
    segment.run_for(Duration::from_secs(8));
    assert_eq!(segment.owners(), [0, 1]);
    segment.is_cut = false;
    let healed = segment.now.0;
    segment.run_for(INTERVAL);
    assert_eq!(segment.owners(), [0]);
    let (left, told) = (segment.last(1, Action::Yield), segment.last(0, Action::Announce));
    assert!(left - healed <= INTERVAL && told >= left, "left at {left:?}, announced at {told:?}");
}

#[test]
fn a_new_process_goes_on_while_the_lease_of_the_old_one_runs() {
    let start = |lease: u64| {
        let settings = Settings { lease: Some(at(lease)), ..Settings::example(100, address(0)) };
        Router::new(vec![settings], at(1000)).view(InstanceId(0)).state
    };
    assert_eq!((start(1001), start(1000)), (State::Master, State::Backup));
}

#[test]
fn a_process_that_had_to_wait_for_its_link_has_no_claim() {
    let lease = Some(at(1300));
    let settings = Settings { lease, source: None, ..Settings::example(100, address(0)) };
    let mut router = Router::new(vec![settings], at(1000));
    router.on_link(InstanceId(0), Some(address(0)), at(1001));
    assert_eq!(router.view(InstanceId(0)).state, State::Backup);
}

/// Two instances in one group; the addresses may be in another order in the second.
fn grouped(crosswise: bool) -> Segment {
    let settings = |node: usize, source: usize| Settings {
        sync_group: Some("both".to_owned()),
        ..Settings::example(100, address(source + 10 * node))
    };
    let second = if crosswise { [15, 4] } else { [0, 1] };
    Segment::new((0..2).map(|node| vec![settings(node, 0), settings(node, second[node])]).collect())
}

#[test]
fn a_group_fails_as_one() {
    let mut segment = grouped(false);
    segment.run_for(Duration::from_secs(5));
    let [owner] = segment.owners()[..] else { panic!("{:?}", segment.owners()) };
    let fault = Condition { adjustment: 0, fault: true };
    let failed = segment.now.0;
    segment.tell(owner, |router, now| router.on_condition(InstanceId(1), fault, now));
    for instance in [0, 1] {
        let view = segment.routers[owner].as_ref().unwrap().view(InstanceId(instance));
        assert_eq!((view.state, view.priority), (State::Fault, 0));
    }
    segment.run_for(Duration::from_secs(1));
    assert_eq!(segment.owners(), [1 - owner]);
    assert_eq!(segment.last(1 - owner, Action::Hold), failed + turn(100));
    segment.tell(owner, |router, now| router.on_condition(InstanceId(1), Condition::default(), now));
    segment.run_for(Duration::from_secs(1));
    assert_eq!(segment.owners(), [1 - owner]);
}

#[test]
fn groups_that_beat_each_other_crosswise_come_to_terms() {
    let mut segment = grouped(true);
    segment.is_cut = true;
    segment.run_for(Duration::from_secs(1));
    assert_eq!(segment.owners(), [0, 1]);
    segment.is_cut = false;
    // They beat each other with the next advertisements; one is away for long, the other for its turn.
    segment.run_for(INTERVAL + turn(100));
    assert_eq!(segment.owners().len(), 1);
    let transitions = |segment: &Segment| {
        segment.routers.iter().flatten().map(|router| router.view(InstanceId(0)).transitions).collect::<Vec<_>>()
    };
    let before = transitions(&segment);
    segment.run_for(Duration::from_secs(10));
    assert_eq!(transitions(&segment), before);
}
