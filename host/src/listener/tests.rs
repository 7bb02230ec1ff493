use tokio::net::TcpStream;

use super::*;
use crate::config::Address;

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
        let (accepted, client) = tokio::join!(listener.accept(), TcpStream::connect(reached));
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
    let (accepted, client) = tokio::join!(listener.accept(), TcpStream::connect(reached));
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
