use socket2::{Domain, SockAddr, SockRef, Type};

use super::*;
use crate::config::{Address, SocketOptions};
use crate::logging::captured::Log;

#[test]
fn a_dead_client_is_skipped_and_exhaustion_is_waited_out() {
    let remedy = |code| remedy(&io::Error::from_raw_os_error(code));
    for code in [libc::ECONNABORTED, libc::EINTR, libc::EPROTO] {
        assert_eq!(remedy(code), Remedy::Next, "{code}");
    }
    for code in [
        libc::EMFILE,
        libc::ENFILE,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::EINVAL,
    ] {
        assert_eq!(remedy(code), Remedy::BackOff, "{code}");
    }
}

/// Time stands still in this test, and advances to the next timer while the listener waits.
#[tokio::test(start_paused = true)]
async fn accept_recovers_within_a_second_from_every_error() {
    let mut listener = Listener::bind(&at(([127, 0, 0, 1], 0).into())).unwrap();
    let reached = address(&listener);
    let errors = Count::default();
    let mut count = 0;
    // Twice, since the pause after an error is short again once a connection was accepted.
    for (code, waits) in [
        (libc::ECONNABORTED, false),
        (libc::EINTR, false),
        (libc::EPROTO, false),
        (libc::EMFILE, true),
        (libc::ENFILE, true),
        (libc::ENOBUFS, true),
        (libc::ENOMEM, true),
        (libc::EINVAL, true),
    ]
    .repeat(2)
    {
        listener.failures = [code; 5].into();
        let client = std::net::TcpStream::connect(reached).unwrap();
        let start = tokio::time::Instant::now();
        let accepted = listener.accept(&errors, None).await;
        let took = start.elapsed();
        assert_eq!(accepted.remote, End::Tcp(client.local_addr().unwrap()));
        // The five pauses are 5, 10, 20, 40 and 80 ms.
        let expected = if waits {
            Duration::from_millis(155)..Duration::from_millis(200)
        } else {
            Duration::ZERO..Duration::from_millis(1)
        };
        assert!(expected.contains(&took), "{code}: {took:?}");
        count += 5;
        assert_eq!(errors.get(), count, "{code}");
    }
}

/// However long the errors last, the last pause is half a second. Dead connections make the
/// listener pause if there are too many of them in a row.
#[tokio::test(start_paused = true)]
async fn accept_pauses_for_half_a_second_at_most() {
    let mut listener = Listener::bind(&at(([127, 0, 0, 1], 0).into())).unwrap();
    let reached = address(&listener);
    let errors = Count::default();
    for (code, free) in [(libc::EMFILE, 0), (libc::ECONNABORTED, MAX_SKIPPED as usize)] {
        listener.failures = vec![code; free + 107].into();
        let _client = std::net::TcpStream::connect(reached).unwrap();
        let start = tokio::time::Instant::now();
        listener.accept(&errors, None).await;
        // 5, 10, 20, 40, 80, 160 and 320 ms, and then 100 times 500 ms.
        let took = start.elapsed().as_millis();
        assert!((50_635..50_835).contains(&took), "{code}: {took} ms");
    }
}

/// A host at a limit accepts a connection whenever another has ended.
#[tokio::test(start_paused = true)]
async fn errors_that_come_and_go_are_logged_once_a_minute() {
    let (log, _guard) = Log::start();
    let lines =
        || ["cannot accept connections", "accepting connections again"].map(|text| log.lines_with(text));
    let mut listener = Listener::bind(&at(([127, 0, 0, 1], 0).into())).unwrap();
    let reached = address(&listener);
    let errors = Count::default();
    let mut accept = async |failures: usize| {
        listener.failures = vec![libc::EMFILE; failures].into();
        let _client = std::net::TcpStream::connect(reached).unwrap();
        listener.accept(&errors, None).await;
    };
    for _ in 0..100 {
        accept(1).await;
    }
    assert_eq!(lines(), [1, 1]);
    // If no connection is accepted any more, the log has a warning in time.
    accept(1000).await;
    assert_eq!(lines(), [2, 2]);
}

fn at(address: SocketAddr) -> Listen {
    Listen::at(Address::Tcp(address))
}

fn address(listener: &Listener) -> SocketAddr {
    match listener.local() {
        End::Tcp(address) => address,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_connection_knows_the_address_that_it_reached() {
    for bound in [[127, 0, 0, 2], [0, 0, 0, 0]] {
        let mut listener = Listener::bind(&at((bound, 0).into())).unwrap();
        let reached = SocketAddr::from(([127, 0, 0, 2], address(&listener).port()));
        let errors = Count::default();
        let (accepted, client) = tokio::join!(listener.accept(&errors, None), TcpStream::connect(reached));
        assert_eq!(accepted.local, End::Tcp(reached));
        assert_eq!(accepted.remote, End::Tcp(client.unwrap().local_addr().unwrap()));
    }
}

#[tokio::test]
async fn an_address_of_ipv4_is_one_however_it_came() {
    let mut config = at("[::]:0".parse().unwrap());
    config.socket.dual_stack = Some(true);
    let mut listener = Listener::bind(&config).unwrap();
    let reached = SocketAddr::from(([127, 0, 0, 1], address(&listener).port()));
    let errors = Count::default();
    let (accepted, client) = tokio::join!(listener.accept(&errors, None), TcpStream::connect(reached));
    assert_eq!(accepted.local, End::Tcp(reached));
    assert_eq!(accepted.remote, End::Tcp(client.unwrap().local_addr().unwrap()));
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let first = Listener::bind(&at(([127, 0, 0, 1], 0).into())).unwrap();
    let error = format!("{:#}", Listener::bind(&at(address(&first))).unwrap_err());
    assert!(error.contains(&first.local().to_string()), "{error}");
    assert!(error.contains("--listen"), "{error}");
}

#[tokio::test]
async fn connections_have_the_options_of_their_listener() {
    let options = |change: fn(&mut SocketOptions)| {
        let mut config = at(([127, 0, 0, 1], 0).into());
        change(&mut config.socket);
        config
    };
    for (config, nodelay, keepalive, buffers) in [
        (options(|_| {}), true, None, None),
        (options(|socket| socket.nodelay = false), false, None, None),
        (
            options(|socket| {
                socket.keepalive = Some(Duration::from_secs(7));
                (socket.receive_buffer, socket.send_buffer) = (Some(32 << 10), Some(64 << 10));
            }),
            true,
            Some(Duration::from_secs(7)),
            // Linux keeps as much again for its own books (socket(7)).
            Some((64 << 10, 128 << 10)),
        ),
    ] {
        let mut listener = Listener::bind(&config).unwrap();
        let reached = address(&listener);
        let errors = Count::default();
        let (accepted, _client) = tokio::join!(listener.accept(&errors, None), TcpStream::connect(reached));
        let Stream::Tcp(stream) = accepted.stream else {
            panic!("{:?}", accepted.stream);
        };
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_nodelay().unwrap(), nodelay);
        assert_eq!(socket.keepalive().unwrap(), keepalive.is_some());
        if let Some(time) = keepalive {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), time);
        }
        if let Some(buffers) = buffers {
            let found = (
                socket.recv_buffer_size().unwrap(),
                socket.send_buffer_size().unwrap(),
            );
            assert_eq!(found, buffers);
        }
    }
}

#[tokio::test]
async fn a_listener_that_closes_takes_as_many_as_can_have_waited() {
    let path = std::env::temp_dir().join(format!("wasm-inetd-closing-{}", std::process::id()));
    let mut config = Listen::at(Address::Unix(path.clone()));
    config.socket.backlog = 3;
    let mut closing = Listener::bind(&config).unwrap().close("service");
    let connects = || std::os::unix::net::UnixStream::connect(&path);
    let clients = (0..10).map(|_| connects().is_ok() && closing.next().is_some());
    assert_eq!(clients.take_while(|taken| *taken).count(), 4);
    assert!(closing.end().unwrap().await.is_ok());
    assert!(!path.exists());
}

#[tokio::test]
async fn no_more_wait_than_the_backlog_has_room_for() {
    let path = std::env::temp_dir().join(format!("wasm-inetd-backlog-{}", std::process::id()));
    for (backlog, expected) in [(1, 1..=2), (100, 100..=101)] {
        let mut config = Listen::at(Address::Unix(path.clone()));
        config.socket.backlog = backlog;
        let _listener = Listener::bind(&config).unwrap();
        let mut waiting = Vec::new();
        let address = SockAddr::unix(&path).unwrap();
        loop {
            let socket = socket2::Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            match socket.connect(&address) {
                Ok(()) => waiting.push(socket),
                Err(error) => break assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
            }
        }
        assert!(expected.contains(&waiting.len()), "{}", waiting.len());
    }
    assert!(!path.exists());
}
