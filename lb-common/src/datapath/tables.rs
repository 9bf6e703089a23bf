//! What the data path asks of the tables, wherever they are kept.

use super::*;

/// The tables that do not depend on the address family.
pub trait Tables {
    /// `None` before the daemon has written any.
    fn settings(&self) -> Option<&Settings>;
    fn service(&self, key: &ServiceKey) -> Option<ServiceId>;
    /// Whether that source, IPv4 as `::ffff:a.b.c.d`, may not use the virtual server.
    fn denies(&self, service: ServiceId, source: &[u8; 16]) -> bool;
    /// The backend in a slot of a virtual server's selection table.
    fn slot(&self, service: ServiceId, slot: u32) -> Option<BackendId>;
    fn backend(&self, id: BackendId) -> Option<&Backend>;
    /// How a virtual server chooses a slot.
    fn policy(&self, service: ServiceId) -> Option<Policy>;
    /// Turns that a virtual server's backends have had.
    fn turn(&self, service: ServiceId) -> Option<&Tally>;
    /// Errors of this node's own that may be sent yet.
    fn allowance(&self) -> Option<&Allowance>;
    /// New connections of a virtual server in the last second.
    fn inflow(&self, service: ServiceId) -> Option<&Inflow>;
    /// The line of the sieve at a place: of as many as there are, whichever that hash leads to.
    fn sieve(&self, place: u32) -> Option<&Sieve>;
    /// Kernel ticks in a second.
    fn ticks_per_second(&self) -> u32;
    /// Connections that a backend has.
    fn load(&self, id: BackendId) -> Option<&Load>;
    fn count(&self, counter: Counter);
    /// Counts a packet of `bytes` bytes for a backend.
    fn traffic(&self, id: BackendId, sender: Sender, bytes: usize);
    /// Counts a new connection of a backend.
    fn connected(&self, id: BackendId);
    fn fence(&self) -> Fence;
    /// The lease of a VIP, IPv4 as `::ffff:a.b.c.d`.
    fn lease(&self, vip: &[u8; 16]) -> Option<Lease>;
    /// Tells the daemon that a backend has left a SYN unanswered or refused it, unless it was told so a moment ago.
    fn suspect(&self, id: BackendId, now: u64);
    /// See [`another`]; [`BackendId::NONE`] if there is none.
    #[inline(always)]
    fn another(&self, service: ServiceId, than: BackendId, seed: u32, shunned: u8) -> BackendId {
        another(self, service, than, seed, shunned)
    }
    /// Nanoseconds of `CLOCK_BOOTTIME`. Dear: for the few packets that depend on a lease.
    fn uptime(&self) -> u64;

    /// The backend for a new connection; [`BackendId::NONE`] if there is none. See [`selection::select`].
    #[inline(always)]
    fn select(&self, service: ServiceId, asker: &Asker) -> BackendId {
        BackendId(selection::select(self, service, asker) as u32)
    }
}

/// The tables of one address family.
pub trait Family<A: Address>: Tables + Sets<A> {
    type Sheet<'a>: DerefMut<Target = Draft<A>>
    where
        Self: 'a;

    /// Room to make new entries in; there is one.
    fn draft(&self) -> Option<Self::Sheet<'_>>;
    /// The way from `source` to `destination` for a packet that arrived by `from`.
    fn route(&self, from: Port, source: &A, destination: &A) -> Route;

    /// Tells the daemon that a connection has been established or has ended, by a packet of `key`. That nobody listens does not matter.
    fn tell(&self, key: &Key<A>, flow: &Flow<A>);

    /// See [`overdue()`].
    #[inline(always)]
    fn overdue(&self, key: &Key<A>) -> bool {
        overdue(self, key)
    }

    /// See [`turned()`].
    #[inline(always)]
    fn turned(&self, key: &Key<A>, sender: [u8; 6]) -> BackendId {
        turned(self, key, sender)
    }

    /// The entry may be given to another connection by any insertion.
    #[inline(always)]
    fn flow<'a>(&'a self, key: &Key<A>) -> Option<&'a Flow<A>> {
        table::find(self, key)
    }

    #[inline(always)]
    fn insert(&self, key: &Key<A>, flow: &Flow<A>, existing: Existing) -> Result<(), Refused> {
        match Inserted::from_raw(self.insert_as(key, flow, existing)) {
            Inserted::Free => {}
            Inserted::HalfOpen => self.count(Counter::EvictedHalfOpen),
            Inserted::Closing => self.count(Counter::EvictedClosing),
            Inserted::Idle => self.count(Counter::EvictedIdle),
            Inserted::Exists => return Err(Refused::Exists),
            Inserted::Full => return Err(Refused::Full),
        }
        Ok(())
    }

    /// Removes an entry; `now` is in kernel ticks.
    #[inline(always)]
    fn remove(&self, key: &Key<A>, now: u64) {
        self.remove_at(key, now as u32);
    }
}
