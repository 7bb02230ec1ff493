//! Whose connections may come in, by their networks.

use crate::harness::{Client, Host, command};

fn is_refused(host: &Host, source: [u8; 4]) {
    let client = Client::from(source, host.address());
    client.expect_reset();
    let line = host.line("connection refused");
    let [a, b, c, d] = source;
    assert!(
        line.contains("reason=\"access\"") && line.contains(&format!("peer=\"{a}.{b}.{c}.{d}:")),
        "{line}"
    );
}

#[test]
fn who_is_denied_is_reset_and_others_come_in() {
    let host = Host::serving("echo", &["--deny", "127.0.1.0/24", "--deny", "2001:db8::/32"]);
    for source in [[127, 0, 0, 1], [127, 0, 2, 1]] {
        Client::from(source, host.address()).echo("hello");
    }
    is_refused(&host, [127, 0, 1, 1]);
    Client::from([127, 0, 0, 1], host.address()).echo("hello");
}

#[test]
fn with_networks_that_are_allowed_nobody_else_comes_in() {
    let args = [
        "--allow",
        "127.0.1.0/24",
        "--deny",
        "127.0.1.7",
        "--allow",
        "127.0.2.2",
    ];
    let host = Host::serving("echo", &args);
    for source in [[127, 0, 1, 1], [127, 0, 2, 2]] {
        Client::from(source, host.address()).echo("hello");
    }
    for source in [[127, 0, 0, 1], [127, 0, 1, 7], [127, 0, 2, 3]] {
        is_refused(&host, source);
    }
}

#[test]
fn a_network_that_is_allowed_and_denied_is_refused() {
    let args = [
        "--allow",
        "192.0.2.0/24",
        "--deny",
        "192.0.2.7",
        "--deny",
        "192.0.2.0/24",
    ];
    let output = command().args(args).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert_eq!(
        String::from_utf8(output.stderr).unwrap(),
        "error: --deny: the network 192.0.2.0/24 is in `--allow` too; remove it from one of the two\n"
    );
}

#[test]
fn an_address_of_ipv4_that_comes_by_ipv6_is_the_same() {
    let args = [
        "--listen",
        "[::]:0",
        "--dual-stack",
        "on",
        "--deny",
        "127.0.1.0/24",
    ];
    let host = Host::start(&args);
    let mut address = host.address();
    address.set_ip([127, 0, 0, 1].into());
    Client::from([127, 0, 0, 1], address).echo("hello");
    let line = host.line("connection ended");
    assert!(line.contains("peer=\"127.0.0.1:"), "{line}");
    Client::from([127, 0, 1, 1], address).expect_reset();
    host.line("reason=\"access\"");
}

#[test]
fn without_dual_stack_there_is_none_by_ipv4() {
    let host = Host::start(&["--listen", "[::]:0", "--dual-stack", "off"]);
    let mut address = host.address();
    address.set_ip([127, 0, 0, 1].into());
    assert!(Client::connect(address).is_err());
    address.set_ip(std::net::Ipv6Addr::LOCALHOST.into());
    Client::connect(address).unwrap().echo("hello");
}
