//! What a node knows of another's connections, in plain memory.

use lb_common::{
    address::V4,
    table::{Hashing, SECRET_WORDS, find},
};

use super::*;

const BACKEND: BackendId = BackendId(4);
const ACKNOWLEDGED: [u8; 4] = [0xde, 0xad, 0xbe, 0xef];
/// For so long, in ticks, what was told is not written again.
const FRESH: u64 = 1000;

/// A node's table, which is one set, and the time there.
struct Node {
    hashing: Hashing,
    sets: [Set<V4>; 1],
    now: u64,
}

impl Sets<V4> for Node {
    fn hashing(&self) -> Option<&Hashing> {
        Some(&self.hashing)
    }

    fn set(&self, number: u32) -> Option<&Set<V4>> {
        self.sets.get(number as usize)
    }
}

impl Node {
    fn new() -> Self {
        let secret =
            std::array::from_fn::<u32, SECRET_WORDS, _>(|number| (number as u32 + 1).wrapping_mul(0x9e37_79b9));
        Self { hashing: Hashing::new(secret, 0x9e37_79b9_7f4a_7c15, 1), sets: Default::default(), now: 50_000 }
    }

    /// Hears of a connection whose last packet was so many ticks ago.
    fn hear(&self, told: &Connection, idle: u64) -> Taken {
        self.hear_of(told, (BACKEND, false), idle)
    }

    fn hear_of(&self, told: &Connection, backend: (BackendId, bool), idle: u64) -> Taken {
        let known = self.client(told).cloned();
        take(self, known, told, backend, &Ticks { now: self.now, idle, fresh: FRESH })
    }

    /// The client's half.
    fn client(&self, told: &Connection) -> Option<&Flow<V4>> {
        find(self, &client_key(told))
    }

    /// The backend's half, which a direct connection has not.
    fn reply(&self, told: &Connection) -> Option<&Flow<V4>> {
        find(self, &key(told.backend, told.seen))
    }

    /// A packet of the client's passes.
    fn carry(&self, told: &Connection) {
        self.client(told).expect("a known connection").touch(self.now, 60, ACKNOWLEDGED);
    }

    /// What the others would be told now, on a walk.
    fn told(&self) -> Vec<Connection> {
        let mut all = Vec::new();
        let milliseconds = |ticks| Duration::from_millis(u64::from(ticks));
        tell(&self.sets, self.now as u32, milliseconds, |connection| all.push(connection));
        all
    }

    /// An entry as the data path makes it, of whatever role.
    fn begin(&self, told: &Connection, role: Role) {
        let (key, other) = (client_key(told), key::<V4>(told.backend, told.seen));
        let mut flow = Flow::default();
        flow.start(&key, &other, role, BACKEND, Phase::Established, self.now);
        flow.touch(self.now, 60, ACKNOWLEDGED);
        assert_eq!(Inserted::from_raw(self.insert_as(&key, &flow, Existing::Replaced)), Inserted::Free);
    }
}

fn socket(last: u8, port: u16) -> SocketAddr {
    SocketAddr::from(([192, 168, 2, last], port))
}

fn nat() -> Connection {
    Connection {
        client: socket(50, 40000),
        vip: socket(100, 16443),
        backend: socket(11, 6443),
        seen: socket(100, 41000),
        is_direct: false,
        phase: Phase::Established,
        idle: Duration::ZERO,
        acknowledged: ACKNOWLEDGED,
    }
}

fn direct() -> Connection {
    Connection { seen: nat().client, is_direct: true, ..nat() }
}

fn over(connection: Connection) -> Connection {
    Connection { phase: Phase::Closed, ..connection }
}

/// The backend's socket knows the client by the VIP, unless the connection is direct.
#[test]
fn a_backend_on_this_host_is_reached_by_the_loopback_interface() {
    for (connection, roles) in
        [(nat(), (Role::INHERITED_FORWARD, Some(Role::INHERITED_REPLY))), (direct(), (Role::DIRECT, None))]
    {
        let node = Node::new();
        assert_eq!(node.hear_of(&connection, (BACKEND, true), 0), Taken::In);
        let client = node.client(&connection).expect("the client's half").role;
        assert_eq!((client, node.reply(&connection).map(|flow| flow.role)), roles);
    }
}

#[test]
fn what_is_taken_in_is_a_copy_of_as_many_halves_as_pass_here() {
    for (connection, role) in [(nat(), Role::FORWARD), (direct(), Role::DIRECT)] {
        let node = Node::new();
        assert_eq!(node.hear(&connection, 0), Taken::In);
        let flow = node.client(&connection).expect("the client's half");
        assert_eq!((flow.role, flow.backend(), flow.phase()), (role, BACKEND, Phase::Established));
        assert!(flow.is_copy() && flow.generation == 0, "its way is looked up by the first packet");
        assert_eq!((flow.other, flow.acknowledged()), (key(connection.backend, connection.seen), ACKNOWLEDGED));
        let reply = node.reply(&connection).map(|reply| (reply.role, reply.other, reply.backend()));
        let whole = (Role::REPLY, client_key(&connection), BACKEND);
        assert_eq!(reply, (!connection.is_direct).then_some(whole), "replies of a direct one do not pass here");
        assert!(node.told().is_empty(), "copies are not told on");
        node.carry(&connection);
        assert_eq!(node.told(), [connection], "in the words in which it was heard");
    }
}

#[test]
fn holder_and_backends_node_tell_of_a_direct_connection_in_the_same_words() {
    let (holder, turning) = (Node::new(), Node::new());
    holder.begin(&direct(), Role::DIRECT);
    // It may show the backend the client under another port.
    turning.begin(&Connection { seen: socket(50, 1055), ..direct() }, Role::TURNED_FORWARD);
    assert_eq!(holder.told(), [direct()]);
    assert_eq!(turning.told(), [direct()]);
    let local = Node::new();
    let seen = Connection { seen: socket(50, 1055), ..nat() };
    local.begin(&seen, Role::LOCAL_FORWARD);
    assert_eq!(local.told(), [seen], "a holder's own backend sees the client, and nobody else turns that");
}

#[test]
fn of_two_who_carry_a_connection_the_one_whose_packet_is_later_is_right() {
    let mut node = Node::new();
    assert_eq!(node.hear(&nat(), 0), Taken::In);
    node.carry(&nat());
    node.now += 10;
    let elsewhere = Connection { seen: socket(100, 42000), ..nat() };
    assert_eq!(node.hear(&elsewhere, 10), Taken::Known);
    assert_eq!(node.hear(&elsewhere, 9), Taken::In);
    assert!(node.client(&nat()).is_some_and(Flow::is_copy));
}

/// The backend's node goes on telling of what it turns, and its last packet may well be later: a reply.
#[test]
fn a_direct_connection_that_is_carried_here_is_no_copy_because_its_backends_node_tells_of_it_too() {
    let mut node = Node::new();
    assert_eq!(node.hear(&direct(), 0), Taken::In);
    node.carry(&direct());
    node.now += 10;
    assert_eq!(node.hear(&direct(), 0), Taken::Known);
    assert_eq!(node.told(), [Connection { idle: Duration::from_millis(10), ..direct() }], "it is still told");
    let elsewhere = Connection { backend: socket(12, 6443), ..direct() };
    assert_eq!(node.hear(&elsewhere, 0), Taken::In, "but another backend is another matter");
    assert_eq!(node.client(&direct()).map(|flow| flow.other), Some(key(elsewhere.backend, elsewhere.seen)));
}

#[test]
fn the_end_of_a_direct_connection_leaves_what_its_last_packets_go_by() {
    for carried in [false, true] {
        let node = Node::new();
        assert_eq!(node.hear(&direct(), 0), Taken::In);
        if carried {
            node.carry(&direct());
        }
        assert_eq!(node.hear(&over(direct()), 0), Taken::Out);
        let flow = node.client(&direct()).expect("it is there yet");
        assert_eq!((flow.phase(), flow.role, flow.backend()), (Phase::Closed, Role::DIRECT, BACKEND));
        assert!(node.told().is_empty() && flow.may_restart());
    }
    let node = Node::new();
    assert_eq!(node.hear(&over(direct()), 0), Taken::Known, "what nobody knew is not made for that");
    assert!(node.client(&direct()).is_none());
}

#[test]
fn the_end_of_a_connection_by_nat_takes_both_halves_of_its_copy_away() {
    let node = Node::new();
    assert_eq!(node.hear(&nat(), 0), Taken::In);
    assert_eq!(node.hear(&over(nat()), 0), Taken::Out);
    assert!(node.client(&nat()).is_none() && node.reply(&nat()).is_none());
    assert_eq!(node.hear(&nat(), 0), Taken::In);
    node.carry(&nat());
    assert_eq!(node.hear(&over(nat()), 1), Taken::Known, "its last packet passed here");
    assert!(node.client(&nat()).is_some() && node.reply(&nat()).is_some());
}

#[test]
fn a_copy_is_written_again_when_it_changes_or_gets_old() {
    for connection in [nat(), direct()] {
        let mut node = Node::new();
        assert_eq!(node.hear(&connection, 0), Taken::In);
        node.now += FRESH - 1;
        assert_eq!(node.hear(&connection, 0), Taken::Known);
        node.now += 1;
        assert_eq!(node.hear(&connection, 0), Taken::In);
        let further = Connection { acknowledged: [1, 2, 3, 4], ..connection };
        assert_eq!(node.hear(&further, 0), Taken::In);
        assert_eq!(node.client(&connection).map(Flow::acknowledged), Some([1, 2, 3, 4]));
    }
}

#[test]
fn whose_place_another_connection_has_is_refused_and_a_direct_one_asks_for_none() {
    let node = Node::new();
    assert_eq!(node.hear(&nat(), 0), Taken::In);
    let same_port = Connection { client: socket(51, 40000), ..nat() };
    assert_eq!(node.hear(&same_port, 0), Taken::Refused);
    assert!(node.client(&same_port).is_none());
    assert_eq!(node.reply(&nat()).map(|reply| reply.other), Some(client_key(&nat())), "and the other one is whole");
    assert_eq!(node.hear(&Connection { seen: same_port.client, is_direct: true, ..same_port }, 0), Taken::In);
}

#[test]
fn copies_of_a_vip_that_comes_are_this_nodes_own() {
    for connection in [nat(), direct()] {
        let mut node = Node::new();
        assert_eq!(node.hear(&connection, 0), Taken::In);
        node.now += 7;
        own(&node.sets, &BTreeSet::from([socket(101, 0).ip()]), node.now);
        assert!(node.told().is_empty(), "another VIP");
        own(&node.sets, &BTreeSet::from([connection.vip.ip()]), node.now);
        assert_eq!(node.told(), [connection], "as if its last packet had just passed");
    }
}
