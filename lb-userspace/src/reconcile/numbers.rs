//! Which number each virtual server and each backend has, for as long as a connection may carry it. Pure.
//!
//! ```text
//!             in the configuration                 taken out of it
//!  (free) ------------------------> configured <------------------> removed: its connections go on
//!     ^                                          named there again     |  the time for that has passed
//!     |                                                                v
//!     +---------------------------------------------------------- over: its connections are reset
//!         no connection in two sweeps, removed or over
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use lb_common::{
    abi::{Backend, BackendId, MAX_BACKENDS, MAX_RANGES, MAX_SERVICES, ServiceId, ServiceKey},
    address::{Address as _, V4, V6},
};

use super::TooMany;
use crate::config::model::{self, VirtualServer};

/// Sweeps that must find no connection of a backend before its number is free: the first may have passed the place of one that was
/// being made.
const QUIET_SWEEPS: u8 = 2;

/// For a backend that a former daemon had: as long as where the configuration does not say.
const DRAIN: Duration = Duration::from_secs(600);

/// What a backend is to its connections, whatever it is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Endpoint {
    service: ServiceKey,
    address: [u8; 16],
    port: [u8; 2],
}

/// A backend that is in the configuration no more.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removed {
    pub id: BackendId,
    /// Its virtual server as it was, with no other backend; `None` if a former daemon had it.
    pub was: Option<VirtualServer>,
    /// Counted as `now` is wherever it is asked for: from some moment on, by a clock that is never set.
    pub since: Duration,
    /// It takes new connections until one of those that are configured does.
    pub stands_in: bool,
    /// Its time has passed.
    pub over: bool,
    quiet: u8,
}

/// Numbers in use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    services: BTreeMap<ServiceKey, ServiceId>,
    backends: BTreeMap<Endpoint, BackendId>,
    removed: BTreeMap<Endpoint, Removed>,
}

impl Removed {
    /// How long its connections may go on.
    pub fn drain(&self) -> Duration {
        self.was.as_ref().map_or(DRAIN, |server| server.drain)
    }
}

impl Endpoint {
    pub fn of(server: &VirtualServer, backend: &model::Backend) -> Self {
        Self { service: service(server), address: mapped(backend.address), port: backend.port.to_be_bytes() }
    }

    pub fn service(&self) -> &ServiceKey {
        &self.service
    }

    /// The VIP.
    pub fn vip(&self) -> IpAddr {
        unmapped(self.service.address())
    }

    pub fn address(&self) -> IpAddr {
        unmapped(self.address)
    }

    pub fn port(&self) -> u16 {
        u16::from_be_bytes(self.port)
    }

    /// What comes from there is a reply.
    pub(super) fn replies(&self) -> ServiceKey {
        ServiceKey::new(self.address, self.port)
    }

    pub(super) fn entry(&self, flags: u8) -> Backend {
        Backend::new(self.address, self.port, flags).of(self.service)
    }
}

impl Numbers {
    /// The numbers of a former daemon: whatever the configuration does not name is removed.
    pub fn of_former(backends: &[(BackendId, Backend)], now: Duration) -> Self {
        let removed = backends.iter().map(|(id, backend)| {
            let endpoint = Endpoint { service: backend.service(), address: backend.mapped(), port: backend.port() };
            (endpoint, Removed { id: *id, was: None, since: now, stands_in: false, over: false, quiet: 0 })
        });
        Self { removed: removed.collect(), ..Self::default() }
    }

    /// Follows a change of the configuration from `before` to `after`.
    ///
    /// # Errors
    /// If there are not enough numbers; then nothing has changed.
    pub fn follow(&mut self, before: &[VirtualServer], after: &[VirtualServer], now: Duration) -> Result<(), TooMany> {
        let wanted: BTreeSet<Endpoint> = endpoints(after).map(|(endpoint, _, _)| endpoint).collect();
        let unwanted = |endpoint: &&Endpoint| !wanted.contains(endpoint);
        let draining = self.backends.keys().filter(unwanted).count() + self.removed.keys().filter(unwanted).count();
        if after.len() > MAX_SERVICES {
            return Err(TooMany::Services(after.len()));
        }
        let ranges = after.iter().map(|server| server.allow.len() + server.deny.len() + 1).sum();
        if ranges > MAX_RANGES {
            return Err(TooMany::Ranges(ranges));
        }
        if wanted.len() + draining > MAX_BACKENDS {
            return Err(TooMany::Backends { configured: wanted.len(), draining });
        }

        let services: BTreeSet<ServiceKey> = after.iter().map(service).collect();
        self.services.retain(|key, _| services.contains(key));
        let mut unused = free(self.services.values().map(|id| id.0).collect()).map(ServiceId);
        for key in after.iter().map(service) {
            self.services.entry(key).or_insert_with(|| unused.next().expect("numbers do not end"));
        }

        for (endpoint, server, backend) in endpoints(before).filter(|(endpoint, _, _)| !wanted.contains(endpoint)) {
            if let Some(id) = self.backends.remove(&endpoint) {
                let was = VirtualServer { backends: vec![backend.clone()], ..server.clone() };
                let removed = Removed { id, was: Some(was), since: now, stands_in: true, over: false, quiet: 0 };
                self.removed.insert(endpoint, removed);
            }
        }
        let back = wanted.iter().filter_map(|endpoint| Some((*endpoint, self.removed.remove(endpoint)?.id)));
        self.backends.extend(back.collect::<Vec<_>>());
        let used = self.backends.values().copied().chain(self.removed.values().map(|removed| removed.id));
        let mut unused = free(used.map(|id| id.0).collect()).map(BackendId);
        for (endpoint, _, _) in endpoints(after) {
            self.backends.entry(endpoint).or_insert_with(|| unused.next().expect("numbers do not end"));
        }
        Ok(())
    }

    /// The number of a virtual server that is configured.
    pub fn service(&self, server: &VirtualServer) -> Option<ServiceId> {
        self.services.get(&service(server)).copied()
    }

    /// The number of a backend that is configured.
    pub fn backend(&self, endpoint: &Endpoint) -> Option<BackendId> {
        self.backends.get(endpoint).copied()
    }

    pub fn removed(&self) -> impl Iterator<Item = (&Endpoint, &Removed)> {
        self.removed.iter()
    }

    /// Nobody stands in for the backends of virtual servers that are `served` by one of their own, or that are configured no more.
    pub fn relieve(&mut self, served: impl Fn(&ServiceKey) -> bool) {
        for (endpoint, removed) in &mut self.removed {
            removed.stands_in &= self.services.contains_key(&endpoint.service) && !served(&endpoint.service);
        }
    }

    /// Ends the time of those that were removed longer ago than may be; whether there were any.
    pub fn expire(&mut self, now: Duration) -> bool {
        let mut any = false;
        for removed in self.removed.values_mut() {
            let over = removed.over || now.saturating_sub(removed.since) >= removed.drain();
            any |= over != removed.over;
            removed.over = over;
        }
        any
    }

    /// Takes in what a sweep has counted, and frees the numbers that no connection carries. Which ones.
    pub fn swept(&mut self, connections: impl Fn(BackendId) -> u64) -> Vec<BackendId> {
        let mut freed = Vec::new();
        self.removed.retain(|_, removed| {
            let quiet = if connections(removed.id) == 0 { removed.quiet + 1 } else { 0 };
            removed.quiet = quiet.min(QUIET_SWEEPS);
            let stays = removed.stands_in || quiet < QUIET_SWEEPS;
            freed.extend((!stays).then_some(removed.id));
            stays
        });
        freed
    }
}

/// The address and port that a virtual server answers on.
pub fn service(server: &VirtualServer) -> ServiceKey {
    let (address, port) = (mapped(server.address), server.port.to_be_bytes());
    match server.address.is_loopback() {
        // Packets must not know it: from outside, nobody may reach a loopback address.
        true => ServiceKey::on_host(address, port),
        false => ServiceKey::new(address, port),
    }
}

fn endpoints(servers: &[VirtualServer]) -> impl Iterator<Item = (Endpoint, &VirtualServer, &model::Backend)> {
    let of = |server| move |backend| (Endpoint::of(server, backend), server, backend);
    servers.iter().flat_map(move |server| server.backends.iter().map(of(server)))
}

/// Numbers that are not used, the lowest first.
fn free(used: BTreeSet<u32>) -> impl Iterator<Item = u32> {
    (0..).filter(move |number| !used.contains(number))
}

pub(super) fn mapped(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => V4(v4.octets()).mapped(),
        IpAddr::V6(v6) => V6(v6.octets()).mapped(),
    }
}

fn unmapped(address: [u8; 16]) -> IpAddr {
    IpAddr::from(address).to_canonical()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reconcile::desired::tests::server;

    fn numbered(numbers: &Numbers, servers: &[VirtualServer]) -> Vec<(String, u32)> {
        let of = |(endpoint, server, backend): (Endpoint, &VirtualServer, &model::Backend)| {
            (format!("{}/{}", server.name, backend.name), numbers.backend(&endpoint).unwrap().0)
        };
        endpoints(servers).map(of).collect()
    }

    fn without(server: &VirtualServer, backend: &str) -> VirtualServer {
        let mut server = server.clone();
        server.backends.retain(|candidate| candidate.name != backend);
        server
    }

    fn begun(servers: &[VirtualServer]) -> (Numbers, Duration) {
        let (mut numbers, now) = (Numbers::default(), Duration::from_secs(1000));
        numbers.follow(&[], servers, now).unwrap();
        (numbers, now)
    }

    fn expected(list: &[(&str, u32)]) -> Vec<(String, u32)> {
        list.iter().map(|(name, number)| ((*name).to_owned(), *number)).collect()
    }

    #[test]
    fn a_number_stays_whatever_is_moved_renamed_or_added() {
        let before = [server("a", 100, 2), server("b", 101, 1)];
        let (mut numbers, now) = begun(&before);
        assert_eq!(numbered(&numbers, &before), expected(&[("a/m1", 0), ("a/m2", 1), ("b/m1", 2)]));
        let [mut a, mut b] = before.clone();
        a.backends.reverse();
        b.name = "renamed".to_owned();
        b.backends[0].name = "other".to_owned();
        let after = [server("c", 102, 1), b, a];
        numbers.follow(&before, &after, now).unwrap();
        let all = [("c/m1", 3), ("renamed/other", 2), ("a/m2", 1), ("a/m1", 0)];
        assert_eq!(numbered(&numbers, &after), expected(&all));
        let services = after.iter().map(|server| numbers.service(server).unwrap().0);
        assert_eq!(services.collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!(numbers.removed().count(), 0);
    }

    #[test]
    fn the_number_of_a_removed_backend_is_nobody_elses_while_a_connection_may_carry_it() {
        let before = [server("a", 100, 2)];
        let (mut numbers, now) = begun(&before);
        let mut moved = without(&before[0], "m1");
        moved.backends.push(model::Backend { address: [192, 168, 2, 99].into(), ..before[0].backends[0].clone() });
        let after = [moved];
        numbers.follow(&before, &after, now).unwrap();
        assert_eq!(numbered(&numbers, &after), expected(&[("a/m2", 1), ("a/m1", 2)]), "the name alone is not it");
        numbers.relieve(|_| true);

        let carried = |numbers: &mut Numbers, count| numbers.swept(|id| if id.0 == 0 { count } else { 9 });
        for count in [3, 0, 1, 0] {
            assert_eq!(carried(&mut numbers, count), [], "{count}");
        }
        assert_eq!(numbers.removed().next().unwrap().1.id, BackendId(0));
        assert_eq!(carried(&mut numbers, 0), [BackendId(0)], "quiet in two sweeps in a row");
        let again = [after[0].clone(), server("b", 101, 1)];
        numbers.follow(&after, &again, now).unwrap();
        assert_eq!(numbered(&numbers, &again), expected(&[("a/m2", 1), ("a/m1", 2), ("b/m1", 0)]));
    }

    #[test]
    fn a_backend_that_returns_gets_its_number_back() {
        let before = [server("a", 100, 2)];
        let (mut numbers, now) = begun(&before);
        let after = [without(&before[0], "m1")];
        numbers.follow(&before, &after, now).unwrap();
        numbers.follow(&after, &before, now).unwrap();
        assert_eq!(numbers, begun(&before).0);
    }

    #[test]
    fn the_time_of_a_removed_backend_passes() {
        let before = [server("a", 100, 1), server("b", 101, 1)];
        let (mut numbers, now) = begun(&before);
        numbers.follow(&before, &before[..1], now).unwrap();
        assert!(!numbers.expire(now + DRAIN / 2));
        assert!(numbers.expire(now + DRAIN));
        assert!(!numbers.expire(now + DRAIN * 2), "told once");
        assert!(numbers.removed().all(|(_, removed)| removed.over));
    }

    #[test]
    fn one_that_was_removed_stands_in_until_there_is_another() {
        let before = [server("a", 100, 1), server("b", 101, 1)];
        let (mut numbers, now) = begun(&before);
        let mut after = [server("a", 100, 2)];
        after[0].backends.remove(0);
        numbers.follow(&before, &after, now).unwrap();
        let standing = |numbers: &Numbers| -> Vec<bool> { numbers.removed().map(|(_, it)| it.stands_in).collect() };
        numbers.relieve(|_| false);
        assert_eq!(standing(&numbers), [true, false], "nobody is asked for b any more");
        for _ in 0..3 {
            numbers.swept(|_| 0);
        }
        assert_eq!(numbers.removed().count(), 1, "it may get a connection at any time");
        numbers.relieve(|_| true);
        numbers.relieve(|_| false);
        assert_eq!(standing(&numbers), [false], "once relieved, for good");
    }

    #[test]
    fn a_new_daemon_goes_on_with_the_numbers_of_the_former_one() {
        let servers = [server("a", 100, 3), server("b", 101, 3)];
        let (first, now) = begun(&servers);
        let former: Vec<_> = first.backends.iter().map(|(endpoint, id)| (*id, endpoint.entry(0))).collect();
        let mut second = Numbers::of_former(&former, now);
        let after = [servers[1].clone(), without(&servers[0], "m2")];
        second.follow(&[], &after, now).unwrap();
        let all = [("b/m1", 3), ("b/m2", 4), ("b/m3", 5), ("a/m1", 0), ("a/m3", 2)];
        assert_eq!(numbered(&second, &after), expected(&all));
        let (gone, removed) = second.removed().next().unwrap();
        assert_eq!(
            (removed.id, gone.vip(), gone.address()),
            (BackendId(1), [192, 168, 2, 100].into(), [192, 168, 2, 12].into())
        );
    }

    #[test]
    fn too_many_are_refused_and_nothing_changes() {
        let before = [server("a", 100, 2)];
        let (mut numbers, now) = begun(&before);
        let unchanged = numbers.clone();
        let many = vec![server("a", 100, 1); MAX_SERVICES + 1];
        assert_eq!(numbers.follow(&before, &many, now), Err(TooMany::Services(MAX_SERVICES + 1)));
        let mut wide = server("b", 101, 1);
        let more = (0..MAX_BACKENDS as u16 - 1).map(|port| model::Backend { port, ..wide.backends[0].clone() });
        wide.backends = more.collect();
        let error = numbers.follow(&before, &[wide], now).unwrap_err();
        assert_eq!(error, TooMany::Backends { configured: MAX_BACKENDS - 1, draining: 2 });
        let mut listed = server("a", 100, 2);
        listed.deny = (0..MAX_RANGES as u32).map(|number| IpAddr::V4(number.into()).into()).collect();
        let error = numbers.follow(&before, &[listed], now).unwrap_err();
        assert_eq!(error, TooMany::Ranges(MAX_RANGES + 1), "and one for everybody else");
        assert_eq!(numbers, unchanged);
    }
}
