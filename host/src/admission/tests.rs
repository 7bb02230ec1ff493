use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt as _;

use super::*;
use crate::logging::captured::Log;
use crate::peer::Process;

fn rate(connections: u32, per: Duration) -> Rate {
    Rate {
        connections: NonZeroU32::new(connections).unwrap(),
        per,
    }
}

fn admission(change: impl FnOnce(&mut Limits)) -> Admission {
    let mut limits = Limits::default();
    change(&mut limits);
    Admission::new(&limits)
}

fn address(text: &str) -> End {
    End::Tcp(SocketAddr::new(text.parse().unwrap(), 49152))
}

#[tokio::test]
async fn a_permit_that_is_dropped_lets_the_next_one_in() {
    let mut admission = admission(|limits| limits.max_connections = NonZeroUsize::MIN);
    let first = admission.permit("a").await;
    let mut second = pin!(admission.permit("a"));
    tokio::select! {
        biased;
        _ = second.as_mut() => panic!("two permits where there is one"),
        () = std::future::ready(()) => {}
    }
    drop(first);
    second.await;
}

#[test]
fn limits_for_each_source_apply_to_connections_that_wait_for_their_admission() {
    let mut admission = admission(|limits| limits.max_connections_per_source = None);
    // Connections that were accepted before the change hold these.
    let before = admission.sources().clone();
    let mut permits = (0..4)
        .map(|_| admission.permit("a").now_or_never().unwrap())
        .collect::<Vec<_>>();
    let mut limits = Limits {
        max_connections_per_source: NonZeroUsize::new(1),
        ..Limits::default()
    };
    let source = address("192.0.2.7");
    let first = before.admit(permits.pop().unwrap(), &source).unwrap();
    admission.change(&limits);
    let refused = before.admit(permits.pop().unwrap(), &source);
    assert_eq!(refused.err(), Some(Refused::SourceConnections));
    drop(first);
    limits.max_rate_per_source = Some(rate(1, Duration::from_secs(3600)));
    admission.change(&limits);
    drop(before.admit(permits.pop().unwrap(), &source).unwrap());
    let refused = before.admit(permits.pop().unwrap(), &source);
    assert_eq!(refused.err(), Some(Refused::SourceRate));
}

#[test]
fn a_limit_that_changes_counts_the_connections_that_are_open() {
    let mut limits = Limits::default();
    let mut to = |admission: &mut Admission, most| {
        limits.max_connections = NonZeroUsize::new(most).unwrap();
        admission.change(&limits);
    };
    let mut admission = admission(|limits| limits.max_connections = NonZeroUsize::new(3).unwrap());
    let next = |admission: &mut Admission| admission.permit("a").now_or_never();
    let mut open: Vec<_> = (0..3).map(|_| next(&mut admission).unwrap()).collect();
    to(&mut admission, 1);
    for _ in 0..2 {
        assert!(next(&mut admission).is_none());
        open.pop();
    }
    assert!(next(&mut admission).is_none());
    open.clear();
    open.extend(next(&mut admission));
    assert_eq!(open.len(), 1);
    assert!(next(&mut admission).is_none());
    to(&mut admission, 2);
    open.extend(next(&mut admission));
    assert_eq!(open.len(), 2);
    // Down and up again, while there are too many.
    to(&mut admission, 1);
    to(&mut admission, 3);
    open.extend(next(&mut admission));
    assert_eq!(open.len(), 3);
    assert!(next(&mut admission).is_none());
}

#[test]
fn what_a_source_may_have_changes_with_what_it_has() {
    let mut limits = Limits {
        max_connections_per_source: NonZeroUsize::new(1),
        ..Limits::default()
    };
    let mut admission = Admission::new(&limits);
    let source = address("192.0.2.1");
    let come = |admission: &mut Admission| {
        let permit = admission.permit("a").now_or_never().unwrap();
        admission.sources().admit(permit, &source)
    };
    let mut open = vec![come(&mut admission).unwrap()];
    for most in [1, 2, 1] {
        limits.max_connections_per_source = NonZeroUsize::new(most);
        admission.change(&limits);
        open.extend(come(&mut admission).ok());
    }
    assert_eq!(open.len(), 2);
    assert_eq!(come(&mut admission).unwrap_err(), Refused::SourceConnections);
}

#[test]
fn a_first_limit_for_a_source_counts_the_connections_that_are_open() {
    let mut limits = Limits::default();
    let mut admission = Admission::new(&limits);
    let source = address("192.0.2.1");
    let come = |admission: &mut Admission| {
        let permit = admission.permit("a").now_or_never().unwrap();
        admission.sources().admit(permit, &source)
    };
    let mut open: Vec<_> = (0..3).map(|_| come(&mut admission).unwrap()).collect();
    limits.max_connections_per_source = NonZeroUsize::new(2);
    admission.change(&limits);
    for _ in 0..2 {
        assert_eq!(come(&mut admission).unwrap_err(), Refused::SourceConnections);
        open.pop();
    }
    open.push(come(&mut admission).unwrap());
    assert_eq!(come(&mut admission).unwrap_err(), Refused::SourceConnections);
}

#[tokio::test(start_paused = true)]
async fn a_rate_lets_its_number_in_at_once_and_then_evenly() {
    let mut admission = admission(|limits| limits.max_rate = Some(rate(10, Duration::from_secs(1))));
    let start = Instant::now();
    for _ in 0..10 {
        admission.permit("a").await;
        admission.count();
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    for number in 1..=20 {
        admission.permit("a").await;
        admission.count();
        let expected = Duration::from_millis(100) * number;
        assert!(start.elapsed() >= expected, "{number}: {:?}", start.elapsed());
        assert!(start.elapsed() < expected + Duration::from_millis(3 * u64::from(number)));
    }
    tokio::time::advance(Duration::from_secs(10)).await;
    let later = Instant::now();
    for _ in 0..10 {
        admission.permit("a").await;
        admission.count();
    }
    assert_eq!(
        later.elapsed(),
        Duration::ZERO,
        "what was not used for long is there again"
    );
}

#[tokio::test(start_paused = true)]
async fn a_permit_that_no_connection_uses_takes_nothing_of_the_rate() {
    let mut admission = admission(|limits| limits.max_rate = Some(rate(1, Duration::from_secs(3600))));
    let start = Instant::now();
    for _ in 0..10 {
        drop(admission.permit("a").await);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    admission.count();
    admission.permit("a").await;
    assert!(start.elapsed() >= Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn a_connection_that_is_refused_for_its_source_gives_the_rate_back() {
    let mut admission = admission(|limits| limits.max_rate = Some(rate(1, Duration::from_secs(3600))));
    let sources = admission.sources().clone();
    let start = Instant::now();
    for reason in Refused::ALL.into_iter().filter(|reason| !reason.counts()) {
        admission.permit("a").await;
        admission.count();
        // It is refused while the next one waits.
        let next = async { admission.permit("a").await };
        let refused = async { sources.refuse(reason) };
        tokio::join!(next, refused);
    }
    assert_eq!(start.elapsed(), Duration::ZERO);
    admission.permit("a").await;
    admission.count();
    sources.refuse(Refused::TlsHandshake);
    admission.permit("a").await;
    assert!(start.elapsed() >= Duration::from_secs(3600));
}

#[tokio::test(start_paused = true)]
async fn a_rate_that_is_reached_again_and_again_is_logged_once() {
    let (log, _guard) = Log::start();
    let reached = || log.lines_with("max-rate is reached");
    let minute = Duration::from_secs(60);
    let mut admission = admission(|limits| limits.max_rate = Some(rate(1, 60 * minute)));
    let sources = admission.sources().clone();
    // Each connection waits until the one before it is refused.
    let refuse = async |admission: &mut Admission, waiting: Duration| {
        admission.permit("a").await;
        admission.count();
        let next = async { admission.permit("a").await };
        let refused = async {
            tokio::time::sleep(waiting).await;
            sources.refuse(Refused::SourceRate);
        };
        tokio::join!(next, refused);
    };
    for _ in 0..100 {
        refuse(&mut admission, Duration::from_secs(1)).await;
        tokio::time::advance(minute / 2).await;
    }
    assert_eq!(reached(), 1);
    // A wait can be longer than the time after which the line is repeated.
    refuse(&mut admission, 2 * minute).await;
    refuse(&mut admission, 2 * minute).await;
    assert_eq!(reached(), 1);
    tokio::time::advance(minute).await;
    refuse(&mut admission, Duration::from_secs(1)).await;
    assert_eq!(reached(), 2);
}

#[test]
fn what_is_given_back_late_does_not_overfill_a_rate() {
    let (rate, start) = (rate(2, Duration::from_secs(2)), Instant::now());
    let mut bucket = Bucket::default();
    bucket.take(rate, start).unwrap();
    let later = start + Duration::from_secs(60);
    bucket.put_back(rate);
    for _ in 0..2 {
        bucket.take(rate, later).unwrap();
    }
    assert!(bucket.take(rate, later).is_err());
}

#[test]
fn a_faster_rate_does_not_wait_for_a_slower_one() {
    let (slow, fast) = (
        rate(5, Duration::from_secs(3600)),
        rate(10, Duration::from_secs(1)),
    );
    let mut bucket = Bucket::default();
    let now = Instant::now();
    while bucket.take(slow, now).is_ok() {}
    let tenth = Duration::from_millis(100);
    bucket.fill_by(fast, now);
    assert_eq!(bucket.take(fast, now), Err(now + tenth));
    assert_eq!(bucket.take(fast, now + tenth), Ok(()));
    // A slower rate counts what was used.
    let mut bucket = Bucket::default();
    while bucket.take(fast, now).is_ok() {}
    bucket.fill_by(slow, now);
    assert_eq!((0..6).filter(|_| bucket.take(slow, now).is_ok()).count(), 4);
}

#[test]
fn a_rate_that_does_not_divide_its_time_lets_its_number_in() {
    let (rate, now) = (rate(7, Duration::from_nanos(100)), Instant::now());
    let mut bucket = Bucket::default();
    for _ in 0..7 {
        bucket.take(rate, now).unwrap();
    }
    let next = bucket.take(rate, now).unwrap_err();
    assert!(bucket.take(rate, next).is_ok());
}

#[tokio::test]
async fn one_source_has_no_more_than_its_share_and_others_do_not_notice() {
    let mut admission = admission(|limits| limits.max_connections_per_source = NonZeroUsize::new(2));
    let (one, other) = (address("192.0.2.1"), address("192.0.2.2"));
    let mut open = Vec::new();
    for source in [&one, &one, &other, &other] {
        let permit = admission.permit("a").await;
        open.push(admission.sources().admit(permit, source).unwrap());
    }
    let permit = admission.permit("a").await;
    let refused = admission.sources().admit(permit, &one);
    assert_eq!(refused.unwrap_err(), Refused::SourceConnections);
    open.remove(0);
    let permit = admission.permit("a").await;
    open.push(admission.sources().admit(permit, &one).unwrap());
    open.clear();
    assert!(admission.sources.shares.table().sources.is_empty());
}

#[tokio::test(start_paused = true)]
async fn one_source_comes_no_faster_than_its_rate() {
    let rate = rate(3, Duration::from_secs(60));
    let mut admission = admission(|limits| limits.max_rate_per_source = Some(rate));
    let source = address("192.0.2.1");
    let mut outcomes = Vec::new();
    for _ in 0..5 {
        let permit = admission.permit("a").await;
        outcomes.push(admission.sources().admit(permit, &source).map(drop));
    }
    let refused = Err(Refused::SourceRate);
    assert_eq!(outcomes, [Ok(()), Ok(()), Ok(()), refused, refused]);
    tokio::time::advance(Duration::from_secs(20)).await;
    for expected in [Ok(()), refused] {
        let permit = admission.permit("a").await;
        assert_eq!(admission.sources().admit(permit, &source).map(drop), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn sources_are_forgotten() {
    let rate = rate(1, Duration::from_secs(1));
    let mut admission = admission(|limits| limits.max_rate_per_source = Some(rate));
    for round in 0..5_u8 {
        for number in 0..SOURCES {
            let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
            let permit = admission.permit("a").await;
            let source = End::Tcp(([10, round, high, low], 49152).into());
            admission.sources().admit(permit, &source).unwrap();
        }
        tokio::time::advance(Duration::from_secs(2)).await;
    }
    let kept = admission.sources.shares.table().sources.len();
    assert!(kept <= SOURCES + 1, "{kept}");
}

#[tokio::test(start_paused = true)]
async fn sources_that_have_used_their_rate_are_bounded() {
    let rate = rate(10, Duration::from_secs(3600));
    let admission = admission(|limits| limits.max_rate_per_source = Some(rate));
    let sources = admission.sources();
    let network = |number: usize| {
        let bits = (0x2001_0db8_u128 << 96) + ((number as u128) << 64);
        ClientKey::Address(std::net::Ipv6Addr::from_bits(bits).into())
    };
    // One has an open connection, and one has used its rate.
    let open = sources.share(network(0), Instant::now()).unwrap();
    for _ in 0..10 {
        sources.share(network(1), Instant::now()).unwrap();
    }
    for number in 2..5 * MAX_IDLE {
        if number % 1000 == 0 {
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        sources.share(network(number), Instant::now()).unwrap();
        let kept = sources.shares.table().sources.len();
        assert!(kept <= 1 + MAX_IDLE, "{kept}");
    }
    assert!(sources.shares.table().sources.contains_key(&network(0)));
    let refused = sources.share(network(1), Instant::now());
    assert_eq!(refused.err(), Some(Refused::SourceRate));
    drop(open);
    let table = sources.shares.table();
    // A table of the standard library grows to the next power of two above 8/7 of its entries.
    let entry = size_of::<(ClientKey, Has)>() + 1;
    let bytes = table.sources.capacity() * 8 / 7 * entry;
    assert!(bytes <= 8 << 20, "{bytes}");
}

#[test]
fn a_source_is_an_address_or_a_prefix_or_a_user() {
    let same = |one, other| ClientKey::of(&address(one)) == ClientKey::of(&address(other));
    assert!(same("192.0.2.1", "::ffff:192.0.2.1"));
    assert!(!same("192.0.2.1", "192.0.2.2"));
    assert!(same("2001:db8:1:2::3", "2001:db8:1:2:ffff::4"));
    assert!(!same("2001:db8:1:2::3", "2001:db8:1:3::3"));
    let user = |uid, pid| {
        let pid = Some(pid);
        ClientKey::of(&End::Process(Process { uid, gid: 1000, pid }))
    };
    assert_eq!(user(1000, 1), user(1000, 2));
    assert_ne!(user(1000, 1), user(1001, 1));
}
