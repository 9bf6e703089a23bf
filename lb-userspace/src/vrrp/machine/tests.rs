//! Every state with every event.

use super::*;
use crate::vrrp::{Condition, Version};

const SELF: [u8; 4] = [192, 0, 2, 2];
const LOWER: [u8; 4] = [192, 0, 2, 1];
const HIGHER: [u8; 4] = [192, 0, 2, 3];

fn at(milliseconds: u64) -> Moment {
    Moment(Duration::from_millis(milliseconds))
}

fn heard(source: [u8; 4], priority: u8, received: u64) -> Heard {
    Heard { source: source.into(), priority, interval: Duration::from_millis(100), received: at(received) }
}

/// Priority 100, each 100 ms; a backup has followed a master of equal priority; all began at 100 ms.
fn machine(letter: char) -> Machine {
    let mut machine = Machine::new(InstanceId(0), Settings::example(100, SELF.into()), false, at(100));
    let mut announcing = Announcing::begin(at(0));
    for moment in [0, 10, 50] {
        assert!(announcing.take(at(moment)));
    }
    machine.phase = match letter {
        'F' => Phase::Fault,
        'M' => Phase::Master(Reign { advertised: at(100), next: at(200), announcing }),
        'X' => Phase::Stopped,
        letter => Phase::Backup(kind(letter).since(at(100))),
    };
    if let Phase::Backup(wait) = machine.phase {
        machine.alarm = wait.alarm(at(100), machine.pace());
        machine.master = Some(heard(HIGHER, 100, 100));
    }
    machine
}

fn kind(letter: char) -> Kind {
    match letter {
        'L' => Kind::Listen,
        'D' => Kind::Down,
        'V' => Kind::Vacant,
        'S' => Kind::Skew,
        'K' => Kind::Look,
        'R' => Kind::Ready,
        other => panic!("no wait is called {other}"),
    }
}

fn letter(machine: &Machine) -> char {
    match machine.phase {
        Phase::Fault => 'F',
        Phase::Master(_) => 'M',
        Phase::Stopped => 'X',
        Phase::Backup(wait) => "LDVSKR".chars().find(|letter| kind(*letter) == wait.kind).expect("one of them"),
    }
}

/// What was done, and the state after it: `a` advertisement with a lease, `w` last words, `0` resignation, `h` hold,
/// `n` announcement, `y` yield. That a change of state is told is checked on the way.
fn outcome(mut machine: Machine, event: Event<'_>, now: Moment) -> String {
    let before = machine.state();
    let mut actions = Actions::new();
    machine.on(event, now, &mut actions);
    let mut told = before;
    let mut text = String::new();
    for (_, action) in actions {
        match action {
            Action::Advertise { priority: 100, lease: Some(lease) } => {
                assert_eq!(lease, now + Duration::from_millis(300));
                text.push('a');
            }
            Action::Advertise { priority: 100, lease: None } => text.push('w'),
            Action::Advertise { priority: 0, lease: None } => text.push('0'),
            Action::Advertise { .. } => panic!("{action:?}"),
            Action::Hold => text.push('h'),
            Action::Announce => text.push('n'),
            Action::Yield => text.push('y'),
            Action::Became(state) => told = state,
        }
    }
    assert_eq!(told, machine.state(), "{event:?}");
    format!("{text}{}", letter(&machine))
}

#[test]
fn transition_table() {
    let states = ['F', 'L', 'D', 'V', 'S', 'K', 'R', 'M', 'X'];
    let resigns = heard(HIGHER, 0, 150);
    let stranger_resigns = heard(LOWER, 0, 150);
    let lesser = heard(HIGHER, 50, 150);
    let other_lesser = heard(LOWER, 50, 150);
    let equal_below = heard(LOWER, 100, 150);
    let equal_above = heard(HIGHER, 100, 150);
    let better = heard(HIGHER, 200, 150);
    let history = heard(HIGHER, 200, 99);
    let own = heard(SELF, 200, 150);
    // What is in the first column happens at the time in the third, 50 ms or more after the state began.
    #[rustfmt::skip]
    let rows = [
        //                                                              fault list down vac  skew look redy mast stopped
        ("master resigns", Event::Heard(&resigns), 150, "F    V    V    V    V    V    R    anM  X"),
        ("another resigns", Event::Heard(&stranger_resigns), 150, "F    L    D    V    S    K    R    anM  X"),
        ("master is lesser", Event::Heard(&lesser), 150, "F    L    S    V    S    K    R    anM  X"),
        ("another is lesser", Event::Heard(&other_lesser), 150, "F    L    D    V    S    K    R    anM  X"),
        ("equal, lower address", Event::Heard(&equal_below), 150, "F    D    D    D    D    D    D    anM  X"),
        ("equal, higher address", Event::Heard(&equal_above), 150, "F    D    D    D    D    D    D    ywD  X"),
        ("better", Event::Heard(&better), 150, "F    D    D    D    D    D    D    ywD  X"),
        ("better, long ago", Event::Heard(&history), 150, "F    L    D    V    S    K    R    ywD  X"),
        ("own packet", Event::Heard(&own), 150, "F    L    D    V    S    K    R    M    X"),
        ("better, lease over", Event::Heard(&better), 401, "F    D    D    D    D    D    D    yL   X"),
        ("due, 112 ms", Event::Due, 112, "F    L    D    V    S    K    R    M    X"),
        ("due, 113 ms", Event::Due, 113, "F    L    D    R    S    K    R    M    X"),
        ("due, 150 ms", Event::Due, 150, "F    L    D    K    S    K    R    M    X"),
        ("due, 161 ms", Event::Due, 161, "F    L    D    K    R    K    R    M    X"),
        ("due, 200 ms", Event::Due, 200, "F    L    D    K    K    K    R    anM  X"),
        ("due, 310 ms", Event::Due, 310, "F    K    K    K    K    R    R    anM  X"),
        ("due, 400 ms", Event::Due, 400, "F    K    K    K    K    R    R    anM  X"),
        ("due, 401 ms", Event::Due, 401, "F    K    K    K    K    K    R    yL   X"),
        ("elected", Event::Elected, 150, "F    L    D    V    S    K    ahnM M    X"),
        ("sibling lost", Event::Lost { stay_away: false }, 150, "F    L    D    V    S    K    R    0yD  X"),
        ("sibling lost for long", Event::Lost { stay_away: true }, 150, "F    L    D    V    S    K    R    0yD  X"),
        ("able", Event::Able, 150, "L    L    D    V    S    K    R    M    X"),
        ("unable", Event::Unable, 150, "F    F    F    F    F    F    F    0yF  X"),
        ("changed", Event::Changed, 150, "F    D    D    D    D    D    D    aM   X"),
        ("contested", Event::Contested, 150, "F    L    D    V    S    K    R    nM   X"),
        ("release", Event::Release, 150, "F    L    D    V    S    K    R    0yD  X"),
        ("shutdown", Event::Shutdown, 150, "X    X    X    X    X    X    X    0yX  X"),
        ("shutdown, lease over", Event::Shutdown, 401, "X    X    X    X    X    X    X    yX   X"),
    ];
    for (name, event, now, expected) in rows {
        let cells: Vec<&str> = expected.split_whitespace().collect();
        assert_eq!(cells.len(), states.len(), "{name}");
        for (state, expected) in states.into_iter().zip(cells) {
            assert_eq!(outcome(machine(state), event, at(now)), expected, "{name} in {state}");
        }
    }
}

#[test]
fn deadlines() {
    for (letter, nanoseconds) in [
        // The end of the wait, or the next look at the clock.
        ('L', Some(200_000_000)),
        ('D', Some(200_000_000)),
        ('V', Some(112_187_500)),
        ('S', Some(160_937_500)),
        ('K', Some(200_000_000)),
        ('R', None),
        ('F', None),
        ('M', Some(200_000_000)),
        ('X', None),
    ] {
        assert_eq!(machine(letter).deadline(), nanoseconds.map(|n| Moment(Duration::from_nanos(n))), "{letter}");
    }
    for (letter, nanoseconds) in [('L', 460_937_500), ('D', 460_937_500), ('K', 260_937_500)] {
        let end = Moment(Duration::from_nanos(nanoseconds));
        let mut machine = machine(letter);
        machine.alarm = at(241);
        let looks = u64::try_from(end.0.as_millis()).unwrap();
        for moment in (241..=looks).step_by(100).map(at).chain([Moment(end.0 - Duration::from_nanos(1)), end]) {
            assert!(!machine.is_ready(), "{letter} at {moment:?}");
            machine.on(Event::Due, moment, &mut Actions::new());
        }
        assert!(machine.is_ready(), "{letter}");
    }
}

#[test]
fn who_gave_way_does_not_hurry_back() {
    for (event, released) in [(Event::Lost { stay_away: true }, false), (Event::Release, true)] {
        let mut machine = machine('M');
        machine.on(event, at(150), &mut Actions::new());
        let back = Moment(Duration::from_nanos(150_000_000 + 2 * 360_937_500));
        // The peer was master already, and resigns, too; or it is a lesser one.
        for priority in [100, 50, 0] {
            machine.on(Event::Heard(&heard(HIGHER, priority, 160)), at(160), &mut Actions::new());
            machine.alarm = at(10_000);
            assert_eq!((machine.deadline(), machine.released), (Some(back), released), "{event:?}, {priority}");
        }
    }
    let mut machine = machine('M');
    machine.on(Event::Lost { stay_away: false }, at(150), &mut Actions::new());
    machine.alarm = at(10_000);
    assert_eq!(machine.deadline(), Some(Moment(Duration::from_nanos(150_000_000 + 360_937_500))));
}

#[test]
fn a_live_master_ends_the_turn_of_who_may_not_preempt_it() {
    let after = |change: fn(&mut Machine), priority: u8| {
        let mut machine = machine('D');
        change(&mut machine);
        machine.on(Event::Heard(&heard(HIGHER, 0, 150)), at(150), &mut Actions::new());
        assert_eq!((letter(&machine), machine.deadline()), ('V', Some(at(150) + Duration::from_nanos(12_187_500))));
        // Another one was the first.
        machine.on(Event::Heard(&heard(LOWER, priority, 155)), at(155), &mut Actions::new());
        let Phase::Backup(wait) = machine.phase else { panic!("{machine:?}") };
        (letter(&machine), wait.since)
    };
    let (vacant, down) = (('V', at(150)), ('D', at(155)));
    assert_eq!(after(|_| (), 50), vacant);
    assert_eq!(after(|machine| machine.settings.preempt = false, 50), down);
    assert_eq!(after(|machine| machine.settings.preempt_delay = Duration::from_millis(1), 50), down);
    assert_eq!(after(|machine| machine.released = true, 50), down);
    assert_eq!((after(|_| (), 100), after(|_| (), 200)), (down, down));
}

/// What becomes of `D` when its master turns lesser.
fn after_lesser(change: impl FnOnce(&mut Machine)) -> char {
    let mut machine = machine('D');
    change(&mut machine);
    machine.on(Event::Heard(&heard(HIGHER, 50, 150)), at(150), &mut Actions::new());
    let Phase::Backup(wait) = machine.phase else { panic!("{machine:?}") };
    assert_eq!(wait.since, at(if wait == kind('D').since(at(100)) { 100 } else { 150 }));
    letter(&machine)
}

#[test]
fn who_preempts() {
    assert_eq!(after_lesser(|_| ()), 'S');
    assert_eq!(after_lesser(|machine| machine.settings.preempt = false), 'D');
    assert_eq!(after_lesser(|machine| machine.released = true), 'D');
    assert_eq!(after_lesser(|machine| machine.settings.preempt_delay = Duration::from_millis(1)), 'D');
    let delayed = |since: u64| {
        after_lesser(|machine| {
            machine.settings.preempt_delay = Duration::from_millis(20);
            machine.lower_since = Some(at(since));
        })
    };
    assert_eq!((delayed(130), delayed(131)), ('S', 'D'));
    // The owner does in any case.
    assert_eq!(
        after_lesser(|machine| {
            machine.settings.priority = OWNER;
            machine.settings.preempt = false;
            machine.released = true;
        }),
        'S'
    );
}

#[test]
fn the_preempt_delay_begins_again_after_an_equal() {
    let mut machine = machine('D');
    machine.settings.preempt_delay = Duration::from_millis(250);
    for (priority, moment, expected) in
        [(50, 150, 'D'), (100, 200, 'D'), (50, 300, 'D'), (50, 400, 'D'), (50, 549, 'D'), (50, 550, 'S')]
    {
        machine.on(Event::Heard(&heard(HIGHER, priority, moment)), at(moment), &mut Actions::new());
        assert_eq!(letter(&machine), expected, "{moment}");
    }
}

#[test]
fn the_interval_of_the_master_counts_for_who_follows_it() {
    let mut machine = machine('D');
    let slow = Heard { interval: Duration::from_secs(1), ..heard(HIGHER, 200, 150) };
    machine.on(Event::Heard(&slow), at(150), &mut Actions::new());
    machine.alarm = at(4000);
    assert_eq!(machine.deadline(), Some(Moment(Duration::from_nanos(3_759_375_000))));
    // Zero would make us master at once.
    let nonsense = Heard { interval: Duration::ZERO, ..heard(HIGHER, 200, 150) };
    machine.on(Event::Heard(&nonsense), at(150), &mut Actions::new());
    assert_eq!(machine.deadline(), Some(Moment(Duration::from_nanos(3_759_375_000))));
    // A lesser one is not followed.
    let lesser = Heard { interval: Duration::from_millis(10), ..heard(LOWER, 50, 151) };
    machine.on(Event::Heard(&lesser), at(151), &mut Actions::new());
    assert_eq!(machine.master_interval, Duration::from_secs(1));
    machine.on(Event::Unable, at(160), &mut Actions::new());
    assert_eq!(machine.master_interval, Duration::from_millis(100));
}

#[test]
fn a_change_of_priority_moves_a_running_timer() {
    let mut machine = machine('V');
    machine.alarm = at(200);
    for (priority, nanoseconds) in [(100, 12_187_500), (200, 4_375_000), (1, 19_921_875)] {
        machine.settings.priority = priority;
        assert_eq!(machine.deadline(), Some(at(100) + Duration::from_nanos(nanoseconds)));
    }
    // The turns of both versions are the same, their skew times are not.
    machine.settings.version = Version::V2;
    machine.alarm = at(2000);
    assert_eq!(machine.deadline(), Some(at(100) + Duration::from_nanos(19_921_875)));
    machine.phase = Phase::Backup(Kind::Down.since(at(100)));
    assert_eq!(machine.deadline(), Some(at(400) + Duration::from_nanos(996_093_750)));
}

#[test]
fn hostile_advertisements_are_answered_once_in_a_millisecond() {
    let mut machine = machine('M');
    let mut actions = Actions::new();
    for microsecond in 150_000..160_000 {
        let now = Moment(Duration::from_micros(microsecond));
        let lesser = Heard { received: now, ..heard(LOWER, 50, 0) };
        machine.on(Event::Heard(&lesser), now, &mut actions);
    }
    let count = |wanted: fn(&Action) -> bool| actions.iter().filter(|(_, action)| wanted(action)).count();
    assert_eq!(count(|action| matches!(action, Action::Advertise { .. })), 10);
    assert_eq!(count(|action| *action == Action::Announce), 1);
    // The last ones are answered later.
    assert_eq!(machine.deadline(), Some(at(160)));
}

#[test]
fn a_member_of_a_group_resigns_when_it_is_beaten() {
    let mut machine = machine('M');
    machine.has_siblings = true;
    assert_eq!(outcome(machine, Event::Heard(&heard(HIGHER, 200, 150)), at(150)), "y0D");
}

#[test]
fn a_priority_below_zero_is_still_not_a_resignation() {
    let mut machine = machine('M');
    machine.settings.condition = Condition { adjustment: i16::MIN, fault: false };
    let mut actions = Actions::new();
    machine.on(Event::Changed, at(150), &mut actions);
    assert_eq!(actions[0].1, Action::Advertise { priority: 1, lease: Some(at(450)) });
}

#[test]
fn a_member_that_is_ready_compares_again_when_its_priority_falls() {
    let mut machine = machine('D');
    machine.on(Event::Heard(&heard(HIGHER, 50, 150)), at(150), &mut Actions::new());
    machine.on(Event::Due, at(215), &mut Actions::new());
    assert_eq!(letter(&machine), 'R');
    machine.settings.condition = Condition { adjustment: -60, fault: false };
    machine.on(Event::Changed, at(220), &mut Actions::new());
    assert_eq!(machine.phase, Phase::Backup(kind('D').since(at(150))));
}

#[test]
fn who_looks_for_a_slow_master_is_as_patient() {
    let mut machine = machine('K');
    machine.settings.interval = Duration::from_millis(10);
    machine.on(Event::Due, at(250), &mut Actions::new());
    assert_eq!(machine.phase, Phase::Backup(kind('K').since(at(100))));
    machine.on(Event::Due, at(261), &mut Actions::new());
    assert!(machine.is_ready());
}
