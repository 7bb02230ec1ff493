//! Slots for connections to the admin interface, shared fairly between sources.
//!
//! A connection enters as [`Class::Arriving`]. Its request then takes a slot of another class.
//! Where all slots of a class are taken, a connection that holds one without need makes room, or
//! the request is refused: none waits.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::half::Traffic;
use crate::peer::{ClientKey, End};

/// Connections of one source that may be arriving at once.
const ARRIVING_PER_SOURCE: usize = 32;

/// What a connection is doing. Each class has slots of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Has no request that takes a slot: it sends its head, is told that it is refused, or ends.
    Arriving,
    /// Is sent a health check or metrics.
    Probe,
    /// Is sent another answer.
    Read,
    /// Is sent events until it leaves.
    Watch,
    /// Has shown the token, and is sent an answer of any kind but events.
    Operator,
    /// Has shown the token, and is sent events until it leaves.
    OperatorWatch,
}

impl Class {
    const ALL: [Self; 6] = [
        Self::Arriving,
        Self::Probe,
        Self::Read,
        Self::Watch,
        Self::Operator,
        Self::OperatorWatch,
    ];

    /// Connections that may be of this class at once.
    const fn slots(self) -> usize {
        match self {
            Self::Arriving => 64,
            Self::Watch => 32,
            Self::Probe | Self::Read | Self::Operator | Self::OperatorWatch => 16,
        }
    }
}

/// Connections to the admin interface that may be open at once.
pub(super) const CONNECTIONS: usize = {
    let mut sum = 0;
    let mut class = 0;
    while class < Class::ALL.len() {
        sum += Class::ALL[class].slots();
        class += 1;
    }
    sum
};

/// All slots.
#[derive(Debug, Default)]
pub(super) struct Slots {
    /// Locked when a connection comes, changes its class, or goes.
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    /// The open connections, in the order in which they came.
    connections: BTreeMap<u64, Connection>,
    entered: u64,
}

struct Connection {
    source: ClientKey,
    class: Class,
    /// When it took a slot of its class.
    since: Instant,
    outbound: Arc<dyn Traffic>,
    evicted: CancellationToken,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, class, .. } = self;
        write!(f, "{class:?} from {source:?}")
    }
}

impl Slots {
    /// Enters a connection from `remote` that sends what passes through `outbound`. If there is no
    /// slot, the connection that has been arriving for the longest time makes room: one of the same
    /// source if that has [`ARRIVING_PER_SOURCE`], otherwise one of the source with the most.
    pub(super) fn enter(self: &Arc<Self>, remote: &End, outbound: Arc<dyn Traffic>) -> Slot {
        let source = source(remote);
        let evicted = CancellationToken::new();
        let mut table = self.table();
        table.make_room_to_arrive(source);
        let number = table.entered;
        table.entered += 1;
        let connection = Connection {
            source,
            class: Class::Arriving,
            since: Instant::now(),
            outbound,
            evicted: evicted.clone(),
        };
        table.connections.insert(number, connection);
        drop(table);
        Slot {
            slots: Arc::clone(self),
            number,
            evicted,
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing can panic while it is held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The connections of a class, with their numbers.
    fn of(&self, class: Class) -> impl Iterator<Item = (u64, &Connection)> {
        let all = self
            .connections
            .iter()
            .map(|(number, connection)| (*number, connection));
        all.filter(move |(_, connection)| connection.class == class)
    }

    /// How many connections of a class each source has.
    fn shares(&self, class: Class) -> HashMap<ClientKey, usize> {
        let mut shares = HashMap::new();
        for (_, connection) in self.of(class) {
            *shares.entry(connection.source).or_default() += 1;
        }
        shares
    }

    fn evict(&mut self, number: u64) {
        if let Some(connection) = self.connections.remove(&number) {
            connection.evicted.cancel();
        }
    }

    fn make_room_to_arrive(&mut self, source: ClientKey) {
        let shares = self.shares(Class::Arriving);
        let own = shares.get(&source).copied().unwrap_or_default();
        let full = shares.values().sum::<usize>() >= Class::Arriving.slots();
        let most = if own >= ARRIVING_PER_SOURCE {
            own
        } else if full {
            shares.values().copied().max().unwrap_or_default()
        } else {
            return;
        };
        let longest = self
            .of(Class::Arriving)
            .filter(|(_, connection)| match own >= ARRIVING_PER_SOURCE {
                true => connection.source == source,
                false => shares[&connection.source] == most,
            })
            .min_by_key(|(number, connection)| (connection.since, *number))
            .map(|(number, _)| number);
        if let Some(number) = longest {
            self.evict(number);
        }
    }

    /// Makes sure that `class` has a free slot, for a connection of `source`. Returns whether it
    /// has.
    fn make_room(&mut self, class: Class, source: ClientKey) -> bool {
        let shares = self.shares(class);
        if shares.values().sum::<usize>() < class.slots() {
            return true;
        }
        let share = |of: ClientKey| shares.get(&of).copied().unwrap_or_default();
        // A peer that reads its answer is hardly ever waited for.
        let stalled = self
            .of(class)
            .filter_map(|(number, connection)| {
                let since = connection.outbound.stalled_since()?;
                Some((number, connection, since))
            })
            .min_by_key(|(_, connection, since)| (usize::MAX - share(connection.source), *since));
        // Where all read, shares are evened out. The newest of the largest share goes, since those
        // before it came while there was room.
        let number = stalled.map(|(number, ..)| number).or_else(|| {
            let largest = self
                .of(class)
                .max_by_key(|(_, connection)| (share(connection.source), connection.since));
            let (number, connection) = largest?;
            (share(connection.source) > share(source) + 1).then_some(number)
        });
        if let Some(number) = number {
            self.evict(number);
        }
        number.is_some()
    }
}

/// The slot of one connection, free again when this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    number: u64,
    evicted: CancellationToken,
}

impl Slot {
    /// Exchanges the slot for one of `class`. Returns whether there was one.
    pub(super) fn take(&self, class: Class) -> bool {
        let mut table = self.slots.table();
        let Some(source) = table.connections.get(&self.number).map(|own| own.source) else {
            return false;
        };
        if !table.make_room(class, source) {
            return false;
        }
        table.change(self.number, class);
        true
    }

    /// Exchanges the slot for one of those that arrive, when the answer has been written.
    pub(super) fn leave(&self) {
        let mut table = self.slots.table();
        let own = table.connections.get(&self.number);
        if let Some(source) = own
            .filter(|own| own.class != Class::Arriving)
            .map(|own| own.source)
        {
            table.make_room_to_arrive(source);
            table.change(self.number, Class::Arriving);
        }
    }

    /// Whether the connection may last for ever.
    pub(super) fn watches(&self) -> bool {
        let table = self.slots.table();
        let own = table.connections.get(&self.number);
        own.is_some_and(|own| matches!(own.class, Class::Watch | Class::OperatorWatch))
    }

    /// Waits until the connection has to make room.
    pub(super) async fn evicted(&self) {
        self.evicted.cancelled().await;
    }
}

impl Table {
    fn change(&mut self, number: u64, class: Class) {
        if let Some(own) = self.connections.get_mut(&number) {
            own.class = class;
            own.since = Instant::now();
        }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.table().connections.remove(&self.number);
    }
}

/// Whom a connection counts for. A machine has 16 million loopback addresses, all of them its own.
fn source(remote: &End) -> ClientKey {
    match remote {
        End::Tcp(address) if address.ip().is_loopback() => ClientKey::Address(Ipv4Addr::LOCALHOST.into()),
        other => ClientKey::of(other),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;
    use crate::peer::Process;

    /// A peer that reads, or does not.
    #[derive(Debug)]
    struct Peer {
        start: Instant,
        stalls: AtomicBool,
    }

    impl Traffic for Peer {
        fn bytes(&self) -> u64 {
            0
        }

        fn moved(&self) -> Instant {
            self.start
        }

        fn first(&self) -> Option<std::time::Duration> {
            None
        }

        fn stalled_since(&self) -> Option<Instant> {
            self.stalls.load(Ordering::Relaxed).then_some(self.start)
        }

        fn refused(&self) -> Option<(Instant, Duration)> {
            None
        }
    }

    fn peer() -> Arc<Peer> {
        Arc::new(Peer {
            start: Instant::now(),
            stalls: AtomicBool::new(false),
        })
    }

    fn tcp(address: &str) -> End {
        End::tcp(SocketAddr::new(address.parse().unwrap(), 1))
    }

    /// Enters so many connections from an address.
    fn enter(slots: &Arc<Slots>, address: &str, count: usize) -> Vec<Slot> {
        (0..count).map(|_| slots.enter(&tcp(address), peer())).collect()
    }

    fn is_open(slot: &Slot) -> bool {
        !slot.evicted.is_cancelled()
    }

    #[test]
    fn a_source_has_half_of_the_slots_to_arrive_and_its_oldest_makes_room() {
        let slots = Arc::new(Slots::default());
        let first = enter(&slots, "192.0.2.1", ARRIVING_PER_SOURCE);
        assert!(first.iter().all(is_open));
        let more = enter(&slots, "192.0.2.1", 2);
        assert!(more.iter().all(is_open));
        let gone: Vec<_> = first.iter().map(|slot| !is_open(slot)).collect();
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 2);
        assert!(gone[0] && gone[1], "{gone:?}");
    }

    #[test]
    fn a_connection_can_always_arrive_and_the_source_with_the_most_makes_room() {
        let slots = Arc::new(Slots::default());
        let greedy = enter(&slots, "192.0.2.1", ARRIVING_PER_SOURCE);
        let others: Vec<_> = (0..ARRIVING_PER_SOURCE)
            .flat_map(|number| enter(&slots, &format!("198.51.100.{number}"), 1))
            .collect();
        let fresh = enter(&slots, "2001:db8::1", 3);
        assert!(others.iter().chain(&fresh).all(is_open));
        let gone: Vec<_> = greedy.iter().map(|slot| !is_open(slot)).collect();
        assert!(gone[..3].iter().all(|gone| *gone) && gone[3..].iter().all(|gone| !gone));
        assert_eq!(slots.table().connections.len(), Class::Arriving.slots());
    }

    #[test]
    fn a_site_of_ipv6_and_the_loopback_are_one_source_each() {
        assert_eq!(source(&tcp("2001:db8::1")), source(&tcp("2001:db8::ffff:2")));
        assert_ne!(source(&tcp("2001:db8::1")), source(&tcp("2001:db8:0:1::1")));
        assert_eq!(source(&tcp("127.0.0.1")), source(&tcp("127.9.8.7")));
        assert_eq!(source(&tcp("127.0.0.1")), source(&tcp("::1")));
        assert_ne!(source(&tcp("192.0.2.1")), source(&tcp("192.0.2.2")));
        let user = |uid| {
            End::Process(Process {
                uid,
                gid: 0,
                pid: None,
            })
        };
        assert_eq!(source(&user(1)), source(&user(1)));
        assert_ne!(source(&user(1)), source(&user(2)));
    }

    #[test]
    fn one_whose_peer_does_not_read_makes_room() {
        let slots = Arc::new(Slots::default());
        let peers: Vec<_> = (0..Class::Probe.slots()).map(|_| peer()).collect();
        let held: Vec<_> = peers
            .iter()
            .map(|peer| {
                let slot = slots.enter(&tcp("127.0.0.1"), Arc::clone(peer) as _);
                assert!(slot.take(Class::Probe));
                slot
            })
            .collect();
        let fresh = slots.enter(&tcp("127.0.0.1"), peer());
        assert!(!fresh.take(Class::Probe), "all of them are read");
        peers[3].stalls.store(true, Ordering::Relaxed);
        assert!(fresh.take(Class::Probe));
        let open: Vec<_> = held.iter().map(is_open).collect();
        assert_eq!(open.iter().filter(|open| !**open).count(), 1);
        assert!(!open[3]);
        assert!(!held[3].take(Class::Read), "it has made room, and takes none");
    }

    #[test]
    fn each_class_has_slots_of_its_own() {
        let slots = Arc::new(Slots::default());
        let mut held = Vec::new();
        for class in Class::ALL.into_iter().skip(1) {
            for _ in 0..class.slots() {
                let slot = slots.enter(&tcp("127.0.0.1"), peer());
                assert!(slot.take(class), "{class:?}");
                held.push(slot);
            }
            assert!(!slots.enter(&tcp("127.0.0.1"), peer()).take(class), "{class:?}");
        }
        assert_eq!(held.len() + Class::Arriving.slots(), CONNECTIONS);
        assert!(held.iter().all(is_open));
        drop(held);
        assert!(slots.table().connections.is_empty());
    }

    #[test]
    fn sources_that_watch_come_to_even_shares() {
        let slots = Arc::new(Slots::default());
        let watch = |address: &str, count: usize| {
            let watchers = enter(&slots, address, count);
            let watching = watchers.iter().filter(|slot| slot.take(Class::Watch)).count();
            (watchers, watching)
        };
        let all = Class::Watch.slots();
        let (first, watching) = watch("192.0.2.1", all);
        assert_eq!(watching, all);
        let (second, watching) = watch("192.0.2.2", all);
        assert_eq!(watching, all / 2);
        assert_eq!(first.iter().filter(|slot| is_open(slot)).count(), all / 2);
        // The first half stays.
        assert!(first[..all / 2].iter().all(is_open));
        let (_third, watching) = watch("192.0.2.1", 1);
        assert_eq!(watching, 0, "none is taken from an even share");
        drop(second);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_answered_is_the_last_to_make_room_among_those_that_arrive() {
        let slots = Arc::new(Slots::default());
        let answered = slots.enter(&tcp("127.0.0.1"), peer());
        assert!(answered.take(Class::Probe));
        tokio::time::advance(Duration::from_secs(1)).await;
        let silent = enter(&slots, "127.0.0.1", ARRIVING_PER_SOURCE);
        tokio::time::advance(Duration::from_secs(1)).await;
        answered.leave();
        assert!(is_open(&answered) && !is_open(&silent[0]));
    }
}
