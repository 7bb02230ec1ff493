use socket2::{Domain, SockAddr, SockRef, Type};

use super::*;
use crate::config::{Address, SocketOptions};

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
        let (accepted, client) = tokio::join!(listener.accept(&errors), TcpStream::connect(reached));
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
    let (accepted, client) = tokio::join!(listener.accept(&errors), TcpStream::connect(reached));
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
        let (accepted, _client) = tokio::join!(listener.accept(&errors), TcpStream::connect(reached));
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
