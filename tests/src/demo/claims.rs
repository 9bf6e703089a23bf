//! What the demo promises, judged by what was recorded. Nothing here runs anything.

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    time::{Duration, Instant},
};

use crate::client::{EchoReport, Failure, Outcome};

/// A promise, whether it was kept, and the figures.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) holds: bool,
    pub(super) text: String,
}

/// What happened when.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moments {
    pub(super) killed: Instant,
    /// xvip's status said `down`.
    pub(super) noticed: Instant,
    /// The backend was started again and listened.
    pub(super) listening: Instant,
    /// xvip's status said `up`.
    pub(super) up: Instant,
    /// It had answered again.
    pub(super) back: Instant,
}

/// Who answered how many requests.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shares(pub(super) BTreeMap<String, usize>);

/// The requests of a demo, by its parts.
#[derive(Debug)]
pub(super) struct Record<'a> {
    outcomes: &'a [Outcome],
    victim: &'a str,
    moments: Moments,
}

impl Claim {
    pub(super) fn new(holds: bool, text: impl Into<String>) -> Self {
        Self { holds, text: text.into() }
    }
}

impl<'a> Record<'a> {
    pub(super) fn new(outcomes: &'a [Outcome], victim: &'a str, moments: Moments) -> Self {
        Self { outcomes, victim, moments }
    }

    pub(super) fn before(&self) -> impl Iterator<Item = &'a Outcome> + Clone {
        let killed = self.moments.killed;
        self.outcomes.iter().filter(move |outcome| outcome.ended() < killed)
    }

    /// Whatever the kill may have hit: under way then, or begun before xvip noticed.
    fn meanwhile(&self) -> impl Iterator<Item = &'a Outcome> + Clone {
        let Moments { killed, noticed, .. } = self.moments;
        self.outcomes.iter().filter(move |outcome| outcome.ended() >= killed && outcome.started <= noticed)
    }

    fn later(&self) -> impl Iterator<Item = &'a Outcome> + Clone {
        let noticed = self.moments.noticed;
        self.outcomes.iter().filter(move |outcome| outcome.started > noticed)
    }

    pub(super) fn during(&self) -> impl Iterator<Item = &'a Outcome> + Clone {
        let listening = self.moments.listening;
        self.later().filter(move |outcome| outcome.started < listening)
    }

    pub(super) fn after(&self) -> impl Iterator<Item = &'a Outcome> + Clone {
        let back = self.moments.back;
        self.outcomes.iter().filter(move |outcome| outcome.started > back)
    }

    /// Judges the requests. `allowed` is the time that xvip has to notice a death or a return.
    pub(super) fn claims(&self, backends: usize, allowed: Duration) -> Vec<Claim> {
        let Self { victim, moments, .. } = self;
        let (early, late) = (failures(self.before()), failures(self.later()));
        let owners = owners(self.before());
        let strangers = (self.meanwhile())
            .filter(|outcome| outcome.result.is_err())
            .filter(|outcome| outcome.source.and_then(|source| owners.get(&source).copied()) != Some(victim));
        let (lost, others) = (failures(self.meanwhile()), strangers.count());

        let moved = differing(&owners, &self::owners(self.during()));
        let own = owners.values().filter(|owner| *owner == victim).count();
        let displaced = differing(&owners, &self::owners(self.after()));
        let noticed = moments.noticed - moments.killed;
        let returned = moments.up - moments.listening;
        let served = Shares::of(self.before()).0.len();
        vec![
            Claim::new(
                early == 0 && served == backends,
                format!(
                    "before: {} requests, {early} failed{}; {served} backends answered",
                    self.before().count(),
                    kinds(self.before())
                ),
            ),
            Claim::new(
                noticed <= allowed,
                format!("{victim} killed: noticed after {:.1} s of {:.1} s", secs(noticed), secs(allowed)),
            ),
            Claim::new(
                others == 0 && self.meanwhile().next().is_some(),
                format!("until then {lost} requests failed, {others} of them of other backends' clients"),
            ),
            Claim::new(
                late == 0 && self.later().next().is_some(),
                format!(
                    "from then to the end: {} requests, {late} failed{}",
                    self.later().count(),
                    kinds(self.later())
                ),
            ),
            Claim::new(
                moved >= own && 10 * moved <= 11 * own,
                format!("{moved} of {} clients moved, {own} were {victim}'s (at most 1.1 times that)", owners.len()),
            ),
            Claim::new(
                returned <= allowed,
                format!("{victim} started again: in use after {:.1} s of {:.1} s", secs(returned), secs(allowed)),
            ),
            Claim::new(
                displaced == 0 && !owners.is_empty(),
                format!("then {} of {} clients were where they had been", owners.len() - displaced, owners.len()),
            ),
        ]
    }
}

/// Judges streams: each began at the backend that it was expected at, and nothing broke it.
pub(super) fn streams(what: &str, reports: &[Result<EchoReport, Failure>], expected: impl Fn(&str) -> bool) -> Claim {
    let whole = |report: &&EchoReport| report.failure.is_none() && report.echoed > 0 && expected(&report.backend);
    let intact: Vec<&EchoReport> = reports.iter().flatten().filter(whole).collect();
    let lines: u64 = intact.iter().map(|report| report.echoed).sum();
    let longest = intact.iter().map(|report| report.longest).max().unwrap_or_default();
    Claim::new(
        intact.len() == reports.len() && !reports.is_empty(),
        format!(
            "{} of {} {what} intact: {lines} lines, longest wait {} ms",
            intact.len(),
            reports.len(),
            longest.as_millis()
        ),
    )
}

impl Shares {
    pub(super) fn of<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Self {
        let mut counts = BTreeMap::new();
        for name in outcomes.filter_map(|outcome| outcome.result.as_ref().ok()) {
            *counts.entry(name.clone()).or_default() += 1;
        }
        Self(counts)
    }

    /// Whole percent, and the count.
    pub(super) fn shown(&self, backend: &str) -> String {
        let all: usize = self.0.values().sum();
        let part = self.0.get(backend).copied().unwrap_or_default();
        format!("{:3} % {part:5}", (part * 100 + all / 2) / all.max(1))
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}  {}", if self.holds { "PASS" } else { "FAIL" }, self.text)
    }
}

fn secs(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn failures<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> usize {
    outcomes.filter(|outcome| outcome.result.is_err()).count()
}

/// Why requests failed, in parentheses; nothing where none did.
pub(super) fn kinds<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for failure in outcomes.filter_map(|outcome| outcome.result.as_ref().err()) {
        *counts.entry(failure.to_string()).or_default() += 1;
    }
    let kinds: Vec<String> = counts.iter().map(|(kind, count)| format!("{count} × {kind}")).collect();
    if kinds.is_empty() { String::new() } else { format!(" ({})", kinds.join(", ")) }
}

/// Who answered each source, the last one where they differ.
fn owners<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> BTreeMap<IpAddr, &'a str> {
    outcomes.filter_map(|outcome| Some((outcome.source?, outcome.result.as_deref().ok()?))).collect()
}

/// Sources of the first that another backend answered in the second, or nobody.
fn differing(first: &BTreeMap<IpAddr, &str>, second: &BTreeMap<IpAddr, &str>) -> usize {
    first.iter().filter(|(source, owner)| second.get(source) != Some(owner)).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::Stage;

    const ALLOWED: Duration = Duration::from_secs(2);

    /// Kill at 10 s, noticed at 11, listening at 20, up at 21, back at 22.
    fn moments(start: Instant) -> Moments {
        let at = |seconds| start + Duration::from_secs(seconds);
        Moments { killed: at(10), noticed: at(11), listening: at(20), up: at(21), back: at(22) }
    }

    /// Ten sources of `a`, ten of `b`, in each part of the demo; `b` is killed.
    fn good(start: Instant) -> Vec<Outcome> {
        let refused = || Err(Failure::Refused(Stage::Connect));
        let mut outcomes = Vec::new();
        for number in 0..20 {
            let home = if number < 10 { "a" } else { "b" };
            let meanwhile = if home == "b" { refused() } else { Ok("a") };
            for (tenths, result) in [(50, Ok(home)), (105, meanwhile), (150, Ok("a")), (250, Ok(home))] {
                outcomes.push(Outcome {
                    started: start + Duration::from_millis(tenths * 100),
                    latency: Duration::from_millis(1),
                    source: Some(IpAddr::from([10, 0, 0, number])),
                    result: result.map(str::to_owned),
                });
            }
        }
        outcomes
    }

    fn verdicts(outcomes: &[Outcome], moments: Moments) -> Vec<bool> {
        Record::new(outcomes, "b", moments).claims(2, ALLOWED).iter().map(|claim| claim.holds).collect()
    }

    #[test]
    fn a_good_demo_keeps_every_promise_and_each_can_be_broken() {
        let start = Instant::now();
        let all = moments(start);
        let good = good(start);
        assert_eq!(verdicts(&good, all), [true; 7]);

        // Position among the outcomes: four a source, in the order of the parts.
        let spoilt = |index: usize, result: Result<&str, Failure>| {
            let mut outcomes = good.clone();
            outcomes[index].result = result.map(str::to_owned);
            verdicts(&outcomes, all)
        };
        let failed = |index| spoilt(index, Err(Failure::Status(500)));
        assert!(!failed(0)[0], "a failure before");
        assert!(!failed(1)[2], "a failure of a client of another backend");
        assert!(!failed(2)[3], "a failure after detection");
        assert!(!spoilt(3, Ok("b"))[6], "a client that did not come home");
        let mut scattered = good.clone();
        for index in [2, 6] {
            scattered[index].result = Ok("c".to_owned());
        }
        assert!(!verdicts(&scattered, all)[4], "two clients too many moved");

        let late = |seconds| start + Duration::from_secs(seconds);
        assert!(!verdicts(&good, Moments { noticed: late(13), ..all })[1], "noticed too late");
        assert!(!verdicts(&good, Moments { up: late(23), ..all })[5], "back too late");
        assert!(verdicts(&[], all).contains(&false), "nothing happened");
    }

    #[test]
    fn a_stream_that_broke_or_began_elsewhere_or_never_is_counted() {
        let whole = EchoReport { backend: "a".to_owned(), echoed: 9, longest: Duration::from_millis(3), failure: None };
        let broken = EchoReport { failure: Some(Failure::Reset(Stage::Answer)), ..whole.clone() };
        let elsewhere = EchoReport { backend: "b".to_owned(), ..whole.clone() };
        let holds = |reports: &[_]| streams("streams", reports, |backend| backend == "a").holds;
        assert!(holds(&[Ok(whole.clone())]));
        for bad in [Ok(broken), Ok(elsewhere), Err(Failure::Refused(Stage::Connect))] {
            assert!(!holds(&[Ok(whole.clone()), bad]));
        }
        assert!(!holds(&[]));
    }
}
