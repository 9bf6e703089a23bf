//! The thread's loop: takes in what has arrived, asks the router what is due, and does it.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        mpsc::{Receiver, TryRecvError},
    },
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        epoll::{EpollEvent, EpollTimeout},
        eventfd::EventFd,
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};
use tokio::sync::mpsc;

use super::{
    Event, Instance, Options, StartError,
    claims::Claim,
    clock,
    journal::Journal,
    lease::Leases,
    network::{Network, wake_on},
    realtime::{self, Scheduling},
    running::{Running, Whose},
    socket::Datagram,
    view::Publisher,
};
use crate::vrrp::{
    Action, Condition, InstanceId, Router, Settings, State,
    packet::{self, Family},
    reception::Arrival,
};

/// Foreign claims that are taken in each time the thread wakes.
const CLAIMS: usize = 32;

/// After the data plane has not taken a lease, and between two tries.
const MEND: Duration = Duration::from_secs(1);

/// What other threads ask for.
#[derive(Debug)]
pub(super) enum Command {
    Condition(InstanceId, Condition),
    Neighbours(InstanceId, Vec<(IpAddr, [u8; 6])>),
    /// One instance with its group, or all.
    Release(Option<InstanceId>),
    End(End),
}

/// What becomes of the VIPs when the thread ends.
#[derive(Debug)]
pub(super) enum End {
    /// They are handed over.
    Stop,
    /// Those of these instances are handed over. The others stay for the thread that comes next, for as long as their leases run.
    Leave(Vec<InstanceId>),
}

pub(super) struct Driver {
    router: Router,
    instances: Vec<Running>,
    network: Network,
    timer: TimerFd,
    wake: Arc<EventFd>,
    commands: Receiver<Command>,
    leases: Leases,
    events: Option<mpsc::Sender<Event>>,
    publisher: Publisher,
    journal: Journal,
}

impl Driver {
    /// Opens everything in the calling thread, which is to run it, and takes left-over VIPs away.
    pub(super) fn open(
        instances: Vec<Instance>,
        options: Options,
        wake: Arc<EventFd>,
        commands: Receiver<Command>,
        publisher: Publisher,
    ) -> Result<(Self, Scheduling), StartError> {
        let scheduling = realtime::settle(options.realtime);
        let mut journal = Journal::start().map_err(StartError::Thread)?;
        scheduling.tell(&mut journal);
        let network = Network::open(&instances, &mut journal).map_err(StartError::Network)?;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)
            .map_err(|errno| StartError::Timer(errno.into()))?;
        wake_on(&network.epoll, &timer).and(wake_on(&network.epoll, &*wake)).map_err(StartError::Timer)?;

        let mut instances: Vec<Running> = instances.into_iter().map(Running::new).collect();
        let settings = instances.iter_mut().map(|running| {
            let source = running.find_source(&network);
            Settings { source, ..running.instance.settings.clone() }
        });
        let router = Router::new(settings.collect(), clock::now());
        let (leases, events) = (Leases::new(options.lease), options.events);
        let mut driver = Self { router, instances, network, timer, wake, commands, leases, events, publisher, journal };
        // First: VIPs whose lease still runs stay where they are.
        driver.act();
        driver.remove_left_overs();
        driver.publish();
        Ok((driver, scheduling))
    }

    /// Until it is told to end: then the VIPs that do not stay are off, and priority 0 is out.
    pub(super) fn run(mut self) {
        loop {
            if let Err(errno) = self.sleep() {
                // It must not go round without: nobody else would get the processor.
                self.journal.warn(format!("waiting for sockets and timer: {errno}. VRRP ends here"));
                return;
            }
            let end = self.take_commands();
            self.look_at_interfaces();
            // Whoever takes a VIP over advertises first and claims it then: with the claim, the advertisement is there to be read.
            let claims = self.hear_claims();
            self.receive();
            self.act();
            self.answer(claims);
            if let Some(end) = end {
                match end {
                    End::Stop => self.router.on_shutdown(clock::now()),
                    End::Leave(resigning) => self.router.on_shutdown_of(&resigning, clock::now()),
                }
                self.act();
                return self.publish();
            }
            self.mend();
            self.router.on_timeout(clock::now());
            self.act();
            self.probe();
            self.publish();
        }
    }

    /// Takes VIPs away that a former process has left.
    fn remove_left_overs(&mut self) {
        let (network, journal) = (&mut self.network, &mut self.journal);
        for (interface, net) in network.marked() {
            let of = |running: &Running| {
                running.instance.interface == interface && running.vips().any(|vip| vip == net.addr())
            };
            if !self.instances.iter().any(of) {
                match network.remove(&interface, net) {
                    Ok(_) => journal.info(format!("{net} was left on {interface} by a former configuration: removed")),
                    Err(e) => {
                        journal.warn(format!("removing {net}, left on {interface} by a former configuration: {e}"))
                    }
                }
            }
        }
        for running in self.instances.iter_mut().filter(|running| running.held.is_none()) {
            running.clear(network, Whose::Anybodys, journal);
        }
    }

    /// Until something arrives or is due.
    fn sleep(&mut self) -> nix::Result<()> {
        let probes = self.instances.iter().filter_map(|running| running.probe);
        let mends = self.instances.iter().filter_map(|running| running.unfenced);
        let others = [self.router.next_deadline(), self.network.deadline(), self.publisher.deadline()];
        // Setting it makes it silent, too, if it has gone off.
        match others.into_iter().flatten().chain(probes).chain(mends).min() {
            Some(deadline) => {
                // Zero would be no timer at all.
                let at = TimeSpec::from(deadline.0.max(Duration::from_nanos(1)));
                self.timer.set(Expiration::OneShot(at), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            }
            None => self.timer.unset()?,
        }
        match self.network.epoll.wait(&mut [EpollEvent::empty(); 1], EpollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    /// How the thread is to end, if it is.
    fn take_commands(&mut self) -> Option<End> {
        // It says only that there is something; nothing there is no error.
        let _ = self.wake.read();
        loop {
            match self.commands.try_recv() {
                Ok(Command::Condition(id, condition)) => {
                    let running = &mut self.instances[id.0];
                    running.told = condition;
                    self.router.on_condition(id, running.condition(), clock::now());
                }
                Ok(Command::Neighbours(id, neighbours)) => self.instances[id.0].neighbours.set(neighbours),
                Ok(Command::Release(None)) => self.router.on_release(clock::now()),
                Ok(Command::Release(Some(id))) => self.router.on_release_of(id, clock::now()),
                Ok(Command::End(end)) => return Some(end),
                Err(TryRecvError::Disconnected) => return Some(End::Stop),
                Err(TryRecvError::Empty) => return None,
            }
            self.publisher.touch();
        }
    }

    /// Follows links and addresses: who can send, and whether VIPs are where they belong.
    fn look_at_interfaces(&mut self) {
        let now = clock::now();
        let Some(renewed) = self.network.update(now, &mut self.journal) else { return };
        for (index, running) in self.instances.iter_mut().enumerate() {
            let id = InstanceId(index);
            let source = running.find_source(&self.network);
            self.router.on_link(id, source, now);
            let missing =
                running.held.is_some() && source.is_some() && running.restore(&mut self.network, &mut self.journal);
            if missing || renewed.contains(&running.instance.interface) {
                self.router.on_contest(id, now);
            }
            if running.held.is_none() {
                running.clear(&mut self.network, Whose::Ours, &mut self.journal);
            }
        }
        self.publisher.touch();
    }

    /// Every advert that arrived before this call: later ones can wait, and a flood would not end.
    fn receive(&mut self) {
        let begun = clock::now();
        for (interface, port) in self.network.ports() {
            for (socket, family) in port.sockets() {
                loop {
                    match socket.receive() {
                        Ok(Some(datagram)) => {
                            let of = (interface.as_str(), family);
                            hear(&datagram, of, &mut self.instances, &mut self.router, &mut self.journal);
                            self.publisher.touch();
                            if datagram.received > begun {
                                break;
                            }
                        }
                        Ok(None) => break,
                        // Such as a link that went down; the error is taken by this, and what comes after it is read next time.
                        Err(e) => {
                            self.journal.debug(|| format!("receiving on {interface}: {e}"));
                            break;
                        }
                    }
                }
            }
        }
    }

    /// What others claim, by interface.
    fn hear_claims(&mut self) -> Vec<(String, Claim)> {
        let mut all = Vec::new();
        for (interface, port) in self.network.ports() {
            let Some(claims) = &port.claims else { continue };
            if let Err(e) = claims.drain(CLAIMS, |claim| all.push((interface.clone(), claim))) {
                self.journal.debug(|| format!("listening on {interface}: {e}"));
            }
        }
        all
    }

    /// Contradicts claims to VIPs that are here.
    fn answer(&mut self, heard: Vec<(String, Claim)>) {
        let now = clock::now();
        for (on, claim) in heard {
            let concerned =
                |running: &&mut Running| running.instance.interface == on && running.vips().any(|vip| vip == claim.vip);
            for running in self.instances.iter_mut().filter(concerned) {
                let claims = self.network.ports().find(|(interface, _)| **interface == on);
                if running.claimed(claim, now, &mut self.journal)
                    && let Some(claims) = claims.and_then(|(_, port)| port.claims.as_ref())
                {
                    running.note("answering a claim", claims.announce(claim.vip), &mut self.journal);
                }
                self.publisher.touch();
            }
        }
    }

    /// Does what the router says, in its order.
    fn act(&mut self) {
        while let Some((id, action)) = self.router.next_action() {
            let running = &mut self.instances[id.0];
            match action {
                Action::Advertise { priority, lease: Some(until) } => {
                    if running.held.is_none() {
                        // First: with this advert switches begin to send here.
                        running.listen(&mut self.network, &mut self.journal);
                    }
                    let sent = running.advertise(priority, true, &self.network);
                    if sent.is_ok() && !self.leases.renew(running, until, &mut self.journal) {
                        let now = clock::now();
                        running.unfenced = Some(now + MEND);
                        self.router.on_condition(id, running.condition(), now);
                    }
                    running.note("sending an advert", sent, &mut self.journal);
                    self.publisher.touch();
                }
                Action::Advertise { priority, lease: None } => {
                    self.leases.revoke(running, &mut self.journal);
                    let sent = running.advertise(priority, false, &self.network);
                    running.note("sending an advert", sent, &mut self.journal);
                }
                Action::Hold => running.hold(&mut self.network, &mut self.journal),
                Action::Announce => running.announce(&mut self.network, &mut self.journal),
                Action::Yield => {
                    self.leases.revoke(running, &mut self.journal);
                    running.release(&mut self.network, &mut self.journal);
                }
                Action::Became(state) => self.tell(id, state),
            }
        }
    }

    fn tell(&mut self, id: InstanceId, state: State) {
        let name = &self.instances[id.0].instance.name;
        let view = self.router.view(id);
        let master = match (state, view.master) {
            (State::Backup, Some((master, priority))) => format!(", master is {master} with priority {priority}"),
            _ => String::new(),
        };
        self.journal.info(format!("{name}: {state:?}, priority {}{master}", view.priority));
        let event = Event { id, state, priority: view.priority };
        if let Some(Err(e)) = self.events.as_ref().map(|events| events.try_send(event)) {
            self.journal.warn(format!("{name}: the change to {state:?} is not told to the hooks: {e}"));
        }
        self.publisher.hurry();
    }

    /// Tries again whether the data plane takes leases.
    fn mend(&mut self) {
        let now = clock::now();
        for (index, running) in self.instances.iter_mut().enumerate() {
            if running.unfenced.is_none_or(|due| now < due) {
                continue;
            }
            running.unfenced = Some(now + MEND);
            if self.leases.revoke(running, &mut self.journal) {
                running.unfenced = None;
                self.router.on_condition(InstanceId(index), running.condition(), now);
            }
            self.publisher.touch();
        }
    }

    fn probe(&mut self) {
        let now = clock::now();
        for running in &mut self.instances {
            let asked = running.probe(&self.network, now);
            running.note("asking who has the VIPs", asked, &mut self.journal);
        }
    }

    fn publish(&mut self) {
        let (now, router) = (clock::now(), &self.router);
        let views = self.instances.iter().enumerate();
        self.publisher
            .publish(now, || views.map(|(index, running)| running.view(router.view(InstanceId(index)), now)).collect());
    }
}

/// Hands an advert to the instance that it is for.
fn hear(
    datagram: &Datagram<'_>,
    (interface, family): (&str, Family),
    instances: &mut [Running],
    router: &mut Router,
    journal: &mut Journal,
) {
    let vrid = packet::vrid(datagram.payload);
    let of = |running: &Running| {
        let instance = &running.instance;
        Some(instance.vrid) == vrid && instance.interface == interface && instance.family() == family
    };
    let Some(index) = instances.iter().position(of) else { return };
    let running = &mut instances[index];
    let Datagram { source, destination, ttl, received, .. } = *datagram;
    let now = clock::now();
    let wall = clock::time_of_day().saturating_sub(now - received);
    let arrival = Arrival { source, destination, ttl, received, wall };
    // Why it was discarded is counted and reported by the reception itself.
    if let Ok(heard) = running.reception.judge(datagram.payload, &arrival) {
        router.on_advertisement(InstanceId(index), &heard, now);
    }
    while let Some(line) = running.reception.next_line() {
        journal.warn(format!("{}: {line}", running.instance.name));
    }
}
