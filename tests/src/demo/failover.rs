//! The second act: the appliance that holds the VIP is lost, each time in another way, and a client tells how long it had to wait.

use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{NODE, PARTNER, PATIENCE, claims::Claim, show::Show, start_xvip};
use crate::{
    lab::Mac,
    topology::{CLIENT, Deployment},
    watch::{Echo, Prober, mac},
    xvip::Xvip,
};

/// Whose neighbour table nobody looks at.
const PROBER: &str = "worker-1";
/// What a silent death may cost: three advertisements of 100 ms and some, and as much again for a busy machine.
const SILENT: Duration = Duration::from_millis(800);
/// What everything else may cost, where the next holder is told, or the old one goes on until it takes over.
const TOLD: Duration = Duration::from_millis(200);
/// The one that has the VIP alone has had it for this long.
const STEADY: Duration = Duration::from_millis(300);
/// Long enough to see that it stays.
const HOLD: Duration = Duration::from_millis(1500);

/// The two appliances, and who watches them.
pub(super) struct Failover<'a> {
    deployment: &'a Deployment,
    /// On [`NODE`]; none while it is dead.
    first: &'a mut Option<Xvip>,
    macs: [Mac; 2],
    prober: Prober,
    echo: Echo,
}

impl<'a> Failover<'a> {
    pub(super) fn new(deployment: &'a Deployment, first: &'a mut Option<Xvip>) -> Result<Self> {
        let vip = deployment.vip();
        let macs = [mac(deployment.host(NODE)?)?, mac(deployment.host(PARTNER)?)?];
        let prober = Prober::start(deployment.host(PROBER)?, deployment.node(PROBER)?.v4, vip)?;
        let echo = Echo::start(deployment.host(CLIENT)?, vip)?;
        Ok(Self { deployment, first, macs, prober, echo })
    }

    /// Loses the first appliance in each way and takes it back. Gives what was promised, and whether it was kept.
    pub(super) fn perform(self, show: &mut Show<'_>) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        self.until_held_by(show, 0)?;

        let (host, begin) = (self.deployment.host(NODE)?, self.begin());
        show.screen.tell(&format!("{NODE} loses its power"));
        show.set_connected(NODE, false);
        host.unplug()?;
        claims.push(self.lost(show, begin, "power lost", SILENT)?);
        // With the power back it has to check its backends anew; behind a cut cable it must have found out that there are none.
        let first = self.first.as_ref().context("xvip runs")?;
        first.wait_for("it to know that it is alone", PATIENCE, |status| {
            status.vrrp.iter().all(|instance| instance.priority < instance.configured_priority)
        })?;
        let begin = self.begin();
        host.plug()?;
        show.set_connected(NODE, true);
        claims.push(self.regained(show, begin)?);

        let begin = self.begin();
        show.screen.tell(&format!("killing xvip on {NODE} (SIGKILL)"));
        self.first.take().context("xvip runs")?.process().kill();
        claims.push(self.lost(show, begin, "xvip killed", TOLD)?);
        let begin = self.begin();
        *self.first = Some(start_xvip(self.deployment, NODE)?);
        claims.push(self.regained(show, begin)?);

        let begin = self.begin();
        show.screen.tell(&format!("stopping xvip on {NODE} in order (SIGTERM)"));
        let first = self.first.take().context("xvip runs")?;
        first.process().signal(Signal::SIGTERM)?;
        claims.push(self.lost(show, begin, "xvip stopped", TOLD)?);
        let ended = first.process().wait(PATIENCE)?;
        ensure!(ended.success(), "xvip ended with {ended}");
        let begin = self.begin();
        *self.first = Some(start_xvip(self.deployment, NODE)?);
        claims.push(self.regained(show, begin)?);
        Ok(claims)
    }

    fn begin(&self) -> SystemTime {
        self.prober.forget();
        self.echo.forget();
        SystemTime::now()
    }

    fn lost(&self, show: &mut Show<'_>, begin: SystemTime, what: &str, allowed: Duration) -> Result<Claim> {
        self.until_held_by(show, 1)?;
        self.settle(show, begin, &format!("{what}: {PARTNER} took over"), allowed)
    }

    fn regained(&self, show: &mut Show<'_>, begin: SystemTime) -> Result<Claim> {
        self.until_held_by(show, 0)?;
        self.settle(show, begin, &format!("{NODE} came back"), TOLD)
    }

    /// One of the two alone answers for the VIP.
    fn until_held_by(&self, show: &mut Show<'_>, place: usize) -> Result<()> {
        let held = |_: &Show<'_>| {
            let owners = self.prober.owners(SystemTime::now() - STEADY, STEADY);
            owners.len() == 1 && owners.contains(&self.macs[place])
        };
        let what = format!("{} alone to answer for the VIP", [NODE, PARTNER][place]);
        show.until(&what, PATIENCE, held).map(drop)
    }

    fn settle(&self, show: &mut Show<'_>, begin: SystemTime, what: &str, allowed: Duration) -> Result<Claim> {
        show.hold(HOLD)?;
        let gap = self.echo.longest_wait(begin, SystemTime::now());
        let text = format!("{what}: a client waited {:.0} ms of {} ms", gap.as_secs_f64() * 1e3, allowed.as_millis());
        show.screen.tell(&text);
        Ok(Claim::new(gap <= allowed, text))
    }
}
