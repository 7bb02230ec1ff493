//! Services that cannot be run beside each other.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::listen::place;
use super::{Address, Admin, Isolation, Listen, Service, Setting, Tls};

/// A setting that cannot be as it is, or not beside a service before it or the admin interface.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what}")]
pub struct Clash {
    /// The service, counted from 0; of no use for a setting of the admin interface.
    pub service: usize,
    /// What of it.
    pub at: At,
    what: String,
}

/// What of a service clashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Its listener of this number, counted from 0.
    Listener(usize),
    /// What is set by this key of the listener of this number.
    OfListener(usize, &'static str),
    /// What is set by this key, as the file names it.
    Key(&'static str),
    /// The limit of this key.
    Limit(&'static str),
    /// What is set by this key of the admin interface, as the file names it.
    Admin(&'static str),
}

/// Looks for services of one name, for listeners that exclude each other, for two things at one
/// path, and for settings that contradict each other or have no effect.
pub fn clashes(services: &[Service], admin: Option<&Admin>) -> Vec<Clash> {
    let mut clashes = Vec::new();
    for (index, service) in services.iter().enumerate() {
        let mut clash = |at, what| {
            clashes.push(Clash {
                service: index,
                at,
                what,
            });
        };
        if services[..index].iter().any(|before| before.name == service.name) {
            let what = format!(
                "another service is already named `{}`; choose a different name",
                service.name
            );
            clash(At::Key("name"), what);
        }
        for (key, what) in service.grants.repeated() {
            clash(At::Key(key), what);
        }
        for what in service.access.contradictions() {
            clash(At::Key("access.deny"), what);
        }
        for (at, what) in contradictions(service) {
            clash(at, what);
        }
        let before = services[..index]
            .iter()
            .flat_map(|before| before.listen.iter().map(move |l| (before, l)));
        let mut before: Vec<_> = before.collect();
        for (number, listen) in service.listen.iter().enumerate() {
            for (key, what) in listen.tls.iter().flat_map(Tls::repeated) {
                clash(At::OfListener(number, key), what);
            }
            if let Some(what) = listen.contradiction() {
                clash(At::OfListener(number, "socket.dual-stack"), what);
            }
            if let Some((other, taken)) = before.iter().find(|(_, taken)| excludes(taken, listen)) {
                let what = format!(
                    "{} conflicts with {} of service `{}`; choose another address",
                    listen.address, taken.address, other.name
                );
                clash(At::Listener(number), what);
            }
            before.push((service, listen));
        }
    }
    clashes.extend(admin.and_then(|admin| clash_of_admin(services, admin)));
    clashes.extend(clashes_of_paths(services, admin));
    clashes
}

/// Looks for a path that two of the sockets, the directories of records and the token file have.
/// Services may record to one directory.
fn clashes_of_paths(services: &[Service], admin: Option<&Admin>) -> Vec<Clash> {
    let mut taken = sockets(services, admin);
    let find = |taken: &[(PathBuf, String)], path: &Path| {
        let path = place(path);
        let (_, name) = taken.iter().find(|(taken, _)| *taken == path)?;
        Some(format!("the path conflicts with {name}; choose another path"))
    };
    let mut clashes = Vec::new();
    let mut records = Vec::new();
    for (index, service) in services.iter().enumerate() {
        let Some(dir) = &service.record else {
            continue;
        };
        clashes.extend(find(&taken, dir).map(|what| Clash {
            service: index,
            at: At::Key("record"),
            what,
        }));
        let name = format!("{} of service `{}`", Setting::of("record"), service.name);
        records.push((place(dir), name));
    }
    taken.extend(records);
    let token = admin.and_then(|admin| admin.token.as_deref());
    clashes.extend(token.and_then(|token| find(&taken, token)).map(|what| Clash {
        service: 0,
        at: At::Admin("admin.token"),
        what,
    }));
    clashes
}

/// The paths of all sockets, and how messages name each.
fn sockets(services: &[Service], admin: Option<&Admin>) -> Vec<(PathBuf, String)> {
    let of_services = services.iter().flat_map(|service| {
        let of = format!("of service `{}`", service.name);
        service
            .listen
            .iter()
            .map(move |listen| (&listen.address, of.clone()))
    });
    let of_admin = admin.map(|admin| (&admin.address, "of the admin interface".to_owned()));
    let addresses = of_services.chain(of_admin);
    let sockets = addresses.filter_map(|(address, of)| match address {
        Address::Unix(path) => Some((place(path), format!("{address} {of}"))),
        Address::Tcp(_) | Address::Abstract(_) | Address::Inherited(_) => None,
    });
    sockets.collect()
}

/// Looks for the first service that listens where the admin interface is to listen.
fn clash_of_admin(services: &[Service], admin: &Admin) -> Option<Clash> {
    let admin = Listen::at(admin.address.clone());
    services.iter().enumerate().find_map(|(index, service)| {
        let taken = service.listen.iter().find(|taken| excludes(taken, &admin))?;
        Some(Clash {
            service: index,
            at: At::Admin("admin.listen"),
            what: format!(
                "{} conflicts with {} of service `{}`; choose another address",
                admin.address, taken.address, service.name
            ),
        })
    })
}

/// What is set and cannot be where connections share instances.
fn contradictions(service: &Service) -> Vec<(At, String)> {
    let shared = Setting::to("isolation", "service");
    let mut found = Vec::new();
    if service.isolation == Isolation::Connection {
        return found;
    }
    if service.migrate {
        found.push((
            At::Key("migrate"),
            format!(
                "only a session with its own instance can move to another generation; remove this setting \
                 or {shared}"
            ),
        ));
    }
    if service.limits.max_cpu_time.is_some() {
        found.push((
            At::Limit("max-cpu-time"),
            format!(
                "the CPU time of one connection cannot be measured in a shared instance; remove this setting \
                 or {shared}"
            ),
        ));
    }
    if service.record.is_some() {
        found.push((
            At::Key("record"),
            format!(
                "a conversation with a shared instance depends on other connections and cannot be replayed; \
                 record without {shared}"
            ),
        ));
    }
    found
}

/// Whether only one of the two could be bound.
pub fn excludes(one: &Listen, other: &Listen) -> bool {
    match (&one.address, &other.address) {
        (Address::Tcp(a), Address::Tcp(b)) => {
            !one.address.is_any_port() && a.port() == b.port() && (covers(one, a, b) || covers(other, b, a))
        }
        (a, b) => a.is_same(b),
    }
}

/// Whether a listener at `address` takes what comes to `other`.
fn covers(listen: &Listen, address: &SocketAddr, other: &SocketAddr) -> bool {
    // An address of IPv4 can be written as one of IPv6, and is the same.
    let (ip, other_ip) = (address.ip().to_canonical(), other.ip().to_canonical());
    match ip {
        ip if ip == other_ip => is_of_one_link(address, other),
        // Unless it is told otherwise it may take what comes over IPv4 too, which is for the system to say.
        IpAddr::V6(Ipv6Addr::UNSPECIFIED) => other_ip.is_ipv6() || listen.socket.dual_stack != Some(false),
        ip => ip.is_unspecified() && other_ip.is_ipv4(),
    }
}

/// Whether two addresses that are the same may be on the same link: those of a link alone are on every one.
fn is_of_one_link(one: &SocketAddr, other: &SocketAddr) -> bool {
    match (one, other) {
        (SocketAddr::V6(one), SocketAddr::V6(other)) => {
            let (one, other) = (one.scope_id(), other.scope_id());
            one == other || one == 0 || other == 0
        }
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excludes(one: &str, other: &str, dual_stack: Option<bool>) -> bool {
        let [one, other] = [one, other].map(|address| {
            let mut listen = Listen::at(crate::values::address(address).unwrap());
            listen.socket.dual_stack = dual_stack;
            listen
        });
        let excluded = super::excludes(&one, &other);
        assert_eq!(super::excludes(&other, &one), excluded);
        excluded
    }

    #[test]
    fn only_one_of_two_listeners_at_one_address_can_be_bound() {
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:80"),
            ("0.0.0.0:80", "127.0.0.1:80"),
            ("[::]:80", "[::1]:80"),
            ("[::]:80", "0.0.0.0:80"),
            ("[::]:80", "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80", "0.0.0.0:80"),
            ("[fe80::1%1]:80", "[fe80::1%1]:80"),
            ("unix:/run/a", "unix:/run/a"),
            ("unix:/run/a", "unix:/run/./a"),
            ("unix:a", "unix:./a"),
            ("inherited:a", "inherited:a"),
        ] {
            assert!(excludes(one, other, None), "{one} {other}");
        }
        for (one, other) in [
            ("127.0.0.1:80", "127.0.0.1:81"),
            ("127.0.0.1:80", "127.0.0.2:80"),
            ("0.0.0.0:80", "[::1]:80"),
            ("[::ffff:127.0.0.1]:80", "127.0.0.2:80"),
            ("[fe80::1%1]:80", "[fe80::1%2]:80"),
            ("127.0.0.1:0", "127.0.0.1:0"),
            ("unix:/run/a", "unix:/run/b"),
            ("unix:/run/a", "inherited:a"),
        ] {
            assert!(!excludes(one, other, None), "{one} {other}");
        }
        assert!(!excludes("[::]:80", "0.0.0.0:80", Some(false)));
    }

    #[test]
    fn the_path_of_a_socket_is_that_of_its_directory() {
        let dir = std::env::temp_dir().join(format!("clash-{}", std::process::id()));
        let link = dir.join("link");
        std::fs::create_dir_all(dir.join("sub")).unwrap();
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(dir.join("sub"), &link).unwrap();
        let [sub, dir] = [dir.join("sub"), dir].map(|path| path.display().to_string());
        for other in [
            format!("unix:{sub}/../sub/u"),
            format!("unix:{dir}/link/u"),
            format!("unix:{dir}/./sub/u"),
        ] {
            assert!(excludes(&format!("unix:{sub}/u"), &other, None), "{other}");
        }
        // `..` is relative to where the link leads.
        assert!(excludes(
            &format!("unix:{dir}/u"),
            &format!("unix:{dir}/link/../u"),
            None
        ));
        assert!(!excludes(
            &format!("unix:{sub}/u"),
            &format!("unix:{dir}/u"),
            None
        ));
        std::fs::remove_dir_all(dir).unwrap();
    }

    #[test]
    fn the_admin_interface_needs_an_address_of_its_own() {
        let text = "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:7\", \"0.0.0.0:80\"]\n";
        let services = crate::file::parse(text, std::path::Path::new("/"))
            .unwrap()
            .services;
        let clash = |address: &str| {
            let address = crate::values::address(address).unwrap();
            let found = clashes(&services, Some(&Admin { address, token: None }));
            found.first().map(|clash| (clash.at, clash.to_string()))
        };
        let what = "127.0.0.1:80 conflicts with 0.0.0.0:80 of service `a`; choose another address";
        assert_eq!(
            clash("127.0.0.1:80"),
            Some((At::Admin("admin.listen"), what.to_owned()))
        );
        assert_eq!(clash("127.0.0.1:8"), None);
        assert_eq!(clash("127.0.0.1:0"), None);
    }
}
