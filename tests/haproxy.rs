//! Several hosts behind HAProxy, as `deploy/haproxy` has it.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;

use crate::harness::tools::tool;
use crate::harness::{Client, Host, TERM, guest, scratch, until};

/// HAProxy in front of three hosts. It is killed when this is dropped.
struct Proxy {
    child: Child,
    front: SocketAddr,
    stats: PathBuf,
}

impl Proxy {
    /// Starts it with the file that is there for it, and waits until it listens; `None` where it is not installed.
    fn start(name: &str, hosts: [SocketAddr; 3]) -> Option<Self> {
        let config = guest_builder::workspace().join("deploy/haproxy/haproxy.cfg");
        let dir = scratch(name);
        fs::create_dir_all(&dir).unwrap();
        let stats = dir.join("stats");
        let front = free_address();
        let mut command = Command::new(tool("haproxy")?);
        command.arg("-db").arg("-f").arg(config).stdout(Stdio::null());
        command.env("FRONT", front.to_string()).env("STATS", &stats);
        for (number, host) in (1..).zip(hosts) {
            command.env(format!("HOST_{number}"), host.to_string());
        }
        let child = command.spawn().unwrap();
        let proxy = Self { child, front, stats };
        until("HAProxy listens", || UnixStream::connect(&proxy.stats).is_ok());
        Some(proxy)
    }

    /// Whether it sends connections to the host of this number, counted from 0.
    fn uses(&self, host: usize) -> bool {
        let mut socket = UnixStream::connect(&self.stats).unwrap();
        socket.write_all(b"show servers state hosts\n").unwrap();
        let mut state = String::new();
        socket.read_to_string(&mut state).unwrap();
        let name = ["one", "two", "three"][host];
        let line = state
            .lines()
            .find(|line| line.split(' ').nth(3) == Some(name))
            .unwrap();
        // Its state of operation: 2 is running.
        line.split(' ').nth(5) == Some("2")
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that was free a moment ago.
fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// A host that believes what the balancer says of its clients.
fn host(component: &Path, address: &str) -> Host {
    let flags = ["--proxy-protocol-from", "127.0.0.0/8", "--drain-timeout", "3m"];
    let component = component.to_str().unwrap();
    Host::start(&[&["--listen", address, "--component", component], &flags[..]].concat())
}

#[test]
fn hosts_are_restarted_in_turn_and_no_client_notices() {
    let component = guest("lines");
    let mut hosts = [(); 3].map(|()| host(&component, "127.0.0.1:0"));
    let addresses = [0, 1, 2].map(|index| hosts[index].address());
    let Some(proxy) = Proxy::start("haproxy-roll", addresses) else {
        return;
    };
    let conversations: Vec<Client> = (0..12).map(|_| Client::connect(proxy.front).unwrap()).collect();
    let all_go_on = || conversations.iter().for_each(|client| client.echo("going on\n"));
    all_go_on();
    let (stop, served) = (AtomicBool::new(false), AtomicUsize::new(0));
    let front = proxy.front;
    let mut drained = Vec::new();
    thread::scope(|scope| {
        // Where anything fails the others have to stop too.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Relaxed);
            }
        }
        let stopping = Stop(&stop);
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let client = Client::connect(front).unwrap();
                    client.echo("hello\n");
                    client.finish();
                    assert_eq!(client.rest(), b"");
                    served.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        for index in 0..3 {
            let old = &hosts[index];
            old.signal(TERM);
            old.line("draining");
            all_go_on();
            let new = host(&component, &addresses[index].to_string());
            until("the host is used again", || proxy.uses(index));
            // A check sends nothing.
            new.line("bytes_in=6 ");
            all_go_on();
            drained.push(std::mem::replace(&mut hosts[index], new));
        }
        drop(stopping);
    });
    assert!(served.load(Ordering::Relaxed) > 0);
    let clients: Vec<String> = conversations
        .iter()
        .map(|client| format!("peer=\"{}\"", client.0.local_addr().unwrap()))
        .collect();
    for client in conversations {
        client.finish();
        assert_eq!(client.rest(), b"");
    }
    let mut log = String::new();
    for old in &mut drained {
        assert!(old.wait().success());
        let of_this = old.log();
        assert!(of_this.contains("drained closed=0"), "{of_this}");
        log.push_str(&of_this);
    }
    // The hosts know who the clients are, though all come by way of HAProxy.
    for client in clients {
        assert!(log.contains(&client), "{client}");
    }
}
