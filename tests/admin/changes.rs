//! What can be changed, and by whom.

use super::*;
use crate::harness::tools::is_root;

/// Everything that can be changed, for a host whose service is `guest` and whose first connection is open.
const CHANGES: [&str; 4] = [
    "/connections/1/close",
    "/services/guest/reload",
    "/services/guest/rollback",
    "/drain",
];

/// A host at which each of [`CHANGES`] would change something, with a client of its first connection.
fn changeable(place: &Place, token: Option<&Token>) -> (Host, At, Client) {
    let mut args = vec!["--admin", "0"];
    args.extend(
        token
            .into_iter()
            .flat_map(|token| ["--admin-token", token.path()]),
    );
    let host = place.serve(&args);
    let admin = admin_of(&host);
    let client = host.connect();
    client.echo("hello\n");
    place.put("lines-session");
    host.signal(HUP);
    host.line(NEW);
    place.replace(again("echo", 1));
    (host, admin, client)
}

/// Nothing of [`CHANGES`] has been done.
fn has_not_changed(host: &Host, admin: &At, client: &Client) {
    client.echo("hello\n");
    assert_eq!(admin.get("/readyz").body, "serving\n");
    let expected = [(1, "previous".to_owned(), 1), (2, "current".to_owned(), 0)];
    assert_eq!(shares(admin), expected);
    assert!(!host.log().contains("requested"), "{}", host.log());
}

#[test]
fn who_may_not_change_anything_changes_nothing() {
    let (place, token) = (Place::new("admin-may-not", "echo"), Token::new("may-not"));
    let (host, admin, client) = changeable(&place, Some(&token));
    let address = admin.tcp();
    for path in CHANGES {
        let request = |method: &str| admin.request(method, path);
        let without = request("POST").answer();
        assert_eq!(
            (without.status, without.header("www-authenticate")),
            (401, Some("Bearer")),
            "{path}"
        );
        for wrong in ["", "x", "token-of-the-test-may-no", "token-of-the-test-may-not-x"] {
            assert_eq!(
                request("POST").bearing(wrong).answer().status,
                401,
                "{path} {wrong:?}"
            );
        }
        // It has to be where a browser puts it only if it is told to.
        let elsewhere = admin.request("POST", &format!("{path}?token={}", token.text));
        assert_eq!(elsewhere.answer().status, 401, "{path}");
        let basic = request("POST").with("Authorization", &format!("Basic {}", token.text));
        assert_eq!(basic.answer().status, 401, "{path}");
        for method in ["GET", "HEAD", "PUT", "DELETE", "OPTIONS"] {
            let answer = request(method).bearing(&token.text);
            let answer = if method == "HEAD" {
                answer.head()
            } else {
                answer.answer()
            };
            assert_eq!(
                (answer.status, answer.header("allow")),
                (405, Some("POST")),
                "{method} {path}"
            );
        }
        for origin in [
            "http://evil.example",
            "null",
            &format!("http://127.0.0.1:{}", address.port() ^ 1),
            &format!("http://localhost:{}", address.port()),
            "",
        ] {
            let answer = request("POST")
                .bearing(&token.text)
                .with("Origin", origin)
                .answer();
            assert_eq!(answer.status, 403, "{path} {origin:?}");
        }
        for site in ["cross-site", "same-site", "?"] {
            let answer = request("POST")
                .bearing(&token.text)
                .with("Sec-Fetch-Site", site)
                .answer();
            assert_eq!(answer.status, 403, "{path} {site}");
        }
        let named = request("POST")
            .bearing(&token.text)
            .with("Host", "rebound.example");
        assert_eq!(named.answer().status, 421, "{path}");
    }
    has_not_changed(&host, &admin, &client);
}

#[test]
fn without_a_token_of_its_own_a_host_cannot_be_changed() {
    let place = Place::new("admin-no-token", "echo");
    let (host, admin, client) = changeable(&place, None);
    for path in CHANGES {
        for request in [
            admin.request("POST", path),
            admin.request("POST", path).bearing("0123456789abcdef"),
        ] {
            let answer = request.answer();
            assert_eq!(answer.status, 403, "{path}");
            let error = answer.json();
            assert!(
                error["error"].as_str().unwrap().contains("--admin-token"),
                "{error}"
            );
        }
    }
    has_not_changed(&host, &admin, &client);
}

/// Has a change made by who may.
fn change(admin: &At, path: &str, token: &Token) {
    let answer = admin.request("POST", path).bearing(&token.text).answer();
    assert_eq!(answer.status, 202, "{path}: {answer:?}");
}

#[test]
fn one_connection_is_closed_and_no_other() {
    let token = Token::new("close");
    let (host, admin) = looked_at("lines-session", &["--admin-token", token.path()]);
    // One after the other: it is the one that comes in first that has the first number.
    let [first, second] = [(), ()].map(|()| {
        let client = host.connect();
        client.echo("hello\n");
        client
    });
    // As the page has it.
    let closed = admin
        .request("POST", "/connections/1/close")
        .bearing(&token.text)
        .with("Origin", &format!("http://{}", admin.tcp()))
        .with("Sec-Fetch-Site", "same-origin")
        .answer();
    assert_eq!(
        (closed.status, closed.json()["done"].as_str()),
        (202, Some("closing"))
    );
    let line = host.line("connection close requested");
    assert_eq!(field(&line, "service"), "lines-session");
    // With FIN if it was at rest for a while, and with a reset if it was not.
    let mut rest = Vec::new();
    let _ = (&first.0).read_to_end(&mut rest);
    assert_eq!(rest, b"");
    drop(first);
    let line = host.line("connection ended");
    assert_eq!(
        (field(&line, "connection"), field(&line, "outcome")),
        ("1".into(), "closed".into())
    );
    second.echo("still here\n");
    let gone = admin
        .request("POST", "/connections/1/close")
        .bearing(&token.text)
        .answer();
    assert_eq!(gone.status, 404, "{gone:?}");
    let metrics = openmetrics::parse(&admin.get("/metrics").body);
    let labels = [("service", "lines-session"), ("outcome", "closed")];
    assert_eq!(metrics.value("wasm_inetd_connections_ended_total", &labels), 1.0);
}

#[test]
fn members_of_a_shared_instance_that_are_closed_in_turn_get_fin() {
    let token = Token::new("close-members");
    let args = ["--isolation", "service", "--admin-token", token.path()];
    let (host, admin) = looked_at("chat", &args);
    let members = ["ann", "bob", "cy", "dan"].map(|name| {
        let member = host.connect();
        member.expect("Your name?\n");
        member.send(format!("{name}\n"));
        assert!(member.line().starts_with("* here: "));
        member
    });
    until("all are at rest", || {
        let seen = admin.json("/connections");
        let all = seen["connections"].as_array().unwrap();
        all.len() == 4 && all.iter().all(|one| one["idle_seconds"].as_f64().unwrap() > 0.6)
    });
    // The guest tells the others of each that leaves, which is no reason to reset them.
    for number in 1..=4 {
        change(&admin, &format!("/connections/{number}/close"), &token);
    }
    for member in &members {
        member.rest();
    }
}

#[test]
fn a_component_is_swapped_and_gone_back_from() {
    let (place, token) = (Place::new("admin-post-swap", "echo"), Token::new("swap"));
    let host = place.serve(&["--admin", "0", "--admin-token", token.path()]);
    let admin = admin_of(&host);
    place.put("lines-session");
    change(&admin, "/services/guest/reload", &token);
    assert_eq!(field(&host.line(NEW), "generation"), "2");
    let shown = || {
        shares(&admin)
            .into_iter()
            .map(|(number, state, _)| (number, state))
            .collect::<Vec<_>>()
    };
    assert_eq!(shown(), [(1, "previous".to_owned()), (2, "current".to_owned())]);
    change(&admin, "/services/guest/rollback", &token);
    let line = host.line("rolled back to");
    assert_eq!(
        (field(&line, "generation"), field(&line, "leaves")),
        ("1".into(), "2".into())
    );
    until("there is one again", || shown() == [(1, "current".to_owned())]);
    // It is not loaded again, unless an operator insists.
    change(&admin, "/services/guest/reload", &token);
    host.line("was rolled back");
    for query in ["force=0", "force=", "Force", "force&now"] {
        let path = format!("/services/guest/reload?{query}");
        let answer = admin.request("POST", &path).bearing(&token.text).answer();
        assert_eq!(answer.status, 400, "{query}");
        let error = answer.json()["error"].to_string();
        assert!(error.contains("force"), "{query}: {error}");
    }
    change(&admin, "/services/guest/reload?force=1", &token);
    assert_eq!(field(&host.line(NEW), "generation"), "3");
    change(&admin, "/services/guest/rollback", &token);
    host.line("rolled back to");
    until("the first one serves again", || {
        shown() == [(1, "current".to_owned())]
    });
    // There is nothing before it.
    let again = admin
        .request("POST", "/services/guest/rollback")
        .bearing(&token.text)
        .answer();
    assert_eq!(again.status, 409, "{again:?}");
    for path in [
        "/services/other/reload",
        "/services/other/rollback",
        "/services/%FF/reload",
    ] {
        let answer = admin.request("POST", path).bearing(&token.text).answer();
        assert_eq!(answer.status, 404, "{path}");
    }
    // What cannot serve is told in the log, and changes nothing.
    place.replace("not WebAssembly");
    change(&admin, "/services/guest/reload", &token);
    host.line("keeps serving");
    host.connect().echo("no line");
}

#[test]
fn the_embedded_guest_cannot_be_swapped() {
    let token = Token::new("embedded");
    let host = Host::start(&[
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "0",
        "--admin-token",
        token.path(),
    ]);
    let request = admin_of(&host).request("POST", "/services/echo/reload");
    assert_eq!(request.bearing(&token.text).answer().status, 409);
}

#[test]
fn the_embedded_guest_is_loaded_again_after_a_rollback_from_it() {
    let (place, token) = (
        Place::new("admin-from-embedded", "lines-session"),
        Token::new("from-embedded"),
    );
    let config = place.0.join("services.toml");
    let admin = format!(
        "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{}\"\n",
        token.path()
    );
    let put = |component: &str| {
        let listen = "listen = [\"127.0.0.1:0\"]";
        replace(
            &config,
            format!("[[service]]\nname = \"a\"\n{listen}\n{component}{admin}"),
        );
    };
    put("component = \"guest.wasm\"\n");
    let host = Host::with_config(&config, 1);
    let admin = admin_of(&host);
    let reload = |expected: u16| {
        let answer = admin
            .request("POST", "/services/a/reload")
            .bearing(&token.text)
            .answer();
        assert_eq!(answer.status, expected);
    };
    put("");
    host.signal(HUP);
    host.line("service changed");
    host.line("services reconfigured");
    reload(409);
    host.signal(USR2);
    host.line("rolled back to the previous generation");
    reload(202);
    let line = host.line("was rolled back");
    assert!(line.contains("the embedded echo guest"), "{line}");
    assert!(!line.contains("until it changes"), "{line}");
    // A second request insists.
    reload(202);
    assert_eq!(field(&host.line(NEW), "generation"), "3");
    let client = host.connect();
    client.send("no line");
    client.expect("no line");
    reload(409);
}

#[test]
fn a_drain_ends_the_host_when_its_connections_have_ended() {
    let token = Token::new("drain");
    let (mut host, admin) = looked_at("lines", &["--admin-token", token.path(), "--drain-timeout", "1h"]);
    let client = host.connect();
    client.echo("hello\n");
    change(&admin, "/drain", &token);
    host.line("draining");
    assert_eq!(admin.get("/readyz").body, "draining\n");
    let metrics = openmetrics::parse(&admin.get("/metrics").body);
    assert_eq!(metrics.value("wasm_inetd_draining", &[]), 1.0);
    client.echo("meanwhile\n");
    client.send("quit\n");
    assert_eq!(client.rest(), b"");
    drop(client);
    assert_eq!(host.outcome(), "finished");
    assert_eq!(host.wait().code(), Some(0));
}

#[test]
fn no_component_is_swapped_during_a_drain() {
    let (place, token) = (Place::new("admin-drain-swap", "echo"), Token::new("drain-swap"));
    let path = token.path();
    let args = [
        "--watch",
        "--admin",
        "0",
        "--admin-token",
        path,
        "--drain-timeout",
        "2s",
    ];
    let mut host = place.serve(&args);
    let admin = admin_of(&host);
    let client = host.connect();
    client.echo("hello");
    place.put("lines-session");
    host.line(NEW);
    change(&admin, "/drain", &token);
    host.line("draining: ");
    place.put("upper");
    for path in ["/services/guest/reload", "/services/guest/rollback"] {
        let answer = admin.request("POST", path).bearing(&token.text).answer();
        assert_eq!(answer.status, 409, "{path}");
        assert!(answer.json()["error"].to_string().contains("drains"), "{path}");
    }
    // The watch has two seconds for the change of the file.
    assert_eq!(host.wait().code(), Some(0));
    let log = host.log();
    assert_eq!(log.matches(NEW).count(), 1, "{log}");
    for change in ["reload requested", "rolled back"] {
        assert!(!log.contains(change), "{log}");
    }
}

#[test]
fn the_first_signal_after_a_request_to_drain_goes_on_draining() {
    let token = Token::new("drain-signal");
    for signals in [1, 2] {
        let args = ["--admin-token", token.path(), "--drain-timeout", "1h"];
        let (mut host, admin) = looked_at("lines", &args);
        let client = host.connect();
        client.echo("hello\n");
        change(&admin, "/drain", &token);
        host.line("draining: ");
        host.signal(TERM);
        let line = host.line_of(&["draining already", "at once"]);
        assert!(line.contains("draining already"), "{line}");
        assert_eq!(field(&line, "signal"), "SIGTERM");
        client.echo("meanwhile\n");
        if signals == 1 {
            client.send("quit\n");
            assert_eq!(client.rest(), b"");
            drop(client);
            assert_eq!(host.wait().code(), Some(0));
        } else {
            host.signal(INT);
            assert_eq!(field(&host.line("second signal"), "signal"), "SIGINT");
            assert_eq!(host.wait().code(), Some(1));
        }
    }
}

#[test]
fn sighup_takes_the_token_that_the_file_has_then() {
    for by_file in [false, true] {
        let token = Token::new(&format!("rotated-{by_file}"));
        let host = if by_file {
            let services = format!(
                "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{}\"\n\
                 [[service]]\nname = \"echo\"\nlisten = [\"127.0.0.1:0\"]\n",
                token.path()
            );
            Host::with_config(&file("admin-rotated.toml", services), 1)
        } else {
            let args = [
                "--listen",
                "127.0.0.1:0",
                "--admin",
                "0",
                "--admin-token",
                token.path(),
            ];
            Host::start(&args)
        };
        let admin = admin_of(&host);
        // The embedded guest cannot be reloaded, so nothing changes.
        let accepts = |token: &str| {
            let request = admin.request("POST", "/services/echo/reload");
            match request.bearing(token).answer().status {
                409 => true,
                401 => false,
                other => panic!("{other}"),
            }
        };
        assert!(accepts(&token.text));
        fs::write(&token.path, "another-token-of-the-test\n").unwrap();
        assert!(accepts(&token.text));
        host.signal(HUP);
        host.line("admin token has changed");
        assert!(accepts("another-token-of-the-test") && !accepts(&token.text));
        // One that cannot be used changes nothing.
        fs::write(&token.path, "short").unwrap();
        host.signal(HUP);
        host.line("is not valid");
        assert!(accepts("another-token-of-the-test") && !accepts("short"));
        // A missing one is created.
        fs::remove_file(&token.path).unwrap();
        host.signal(HUP);
        host.line("admin token has changed");
        let created = fs::read_to_string(&token.path).unwrap();
        assert!(accepts(created.trim()) && !accepts("another-token-of-the-test"));
    }
}

#[test]
fn sighup_takes_the_token_whatever_the_services_file_says() {
    let token = Token::new("rotated-alone");
    let services = format!(
        "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{}\"\n\
         [[service]]\nname = \"echo\"\nlisten = [\"127.0.0.1:0\"]\n",
        token.path()
    );
    let path = file("admin-rotated-alone.toml", &services);
    let host = Host::with_config(&path, 1);
    let admin = admin_of(&host);
    let status = |token: &str| {
        let request = admin.request("POST", "/services/echo/reload");
        request.bearing(token).answer().status
    };
    for (number, text) in ["no TOML", "[[service]]\nname = \"echo\"\n", ""]
        .into_iter()
        .enumerate()
    {
        let leaked = fs::read_to_string(&token.path).unwrap();
        let new = format!("token-number-{number}-of-the-test");
        fs::write(&token.path, &new).unwrap();
        fs::write(&path, text).unwrap();
        host.signal(HUP);
        host.line("admin token has changed");
        host.line("reconfiguration failed");
        // The embedded guest has no file.
        assert_eq!((status(&new), status(&leaked)), (409, 401), "{text}");
    }
}

#[test]
fn a_token_that_others_can_read_is_refused_at_the_start() {
    for mode in [0o644, 0o640, 0o602] {
        let token = Token::new("open");
        fs::set_permissions(&token.path, fs::Permissions::from_mode(mode)).unwrap();
        let refusal = refused(&[
            "--listen",
            "127.0.0.1:0",
            "--admin",
            "0",
            "--admin-token",
            token.path(),
        ]);
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        let remedy = format!("chmod 600 {}", token.path());
        assert!(
            refusal.message.contains(&remedy) && refusal.message.contains(&format!("{mode:04o}")),
            "{}",
            refusal.message
        );
        assert!(!refusal.message.contains(&token.text), "{}", refusal.message);
    }
}

#[test]
fn a_token_of_another_user_is_refused_at_the_start() {
    if !is_root() {
        return;
    }
    let token = Token::new("of-another");
    std::os::unix::fs::chown(&token.path, Some(65_534), None).unwrap();
    let args = [
        "--listen",
        "127.0.0.1:0",
        "--admin",
        "0",
        "--admin-token",
        token.path(),
    ];
    let refusal = refused(&args);
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    for part in [token.path(), "65534", "chown"] {
        assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
    }
}

/// Another user could put a file of root with a known content there.
#[test]
fn a_token_that_others_can_replace_is_refused_at_the_start() {
    let dir = scratch("admin-replaced");
    fs::create_dir_all(&dir).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    let token = dir.join("token");
    let path = token.to_str().unwrap();
    let services = dir.join("services.toml");
    let text = format!(
        "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{path}\"\n\
         [[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n"
    );
    fs::write(&services, text).unwrap();
    let services = services.to_str().unwrap();
    let refuses = || {
        for args in [
            &["--listen", "127.0.0.1:0", "--admin", "0", "--admin-token", path][..],
            &["--config", services],
            &["check", "--config", services],
        ] {
            let refusal = refused(args);
            assert_eq!(refusal.status, Some(1), "{args:?}: {}", refusal.message);
            for part in [path, "other users can write", "chmod go-w"] {
                assert!(refusal.message.contains(part), "{part}: {}", refusal.message);
            }
            let named = format!("`{path}`");
            assert_eq!(refusal.message.matches(&named).count(), 1, "{}", refusal.message);
        }
    };
    refuses();
    assert!(!token.exists());
    fs::write(&token, "0123456789abcdef\n").unwrap();
    fs::set_permissions(&token, fs::Permissions::from_mode(0o600)).unwrap();
    refuses();
}

#[test]
fn a_token_with_the_path_of_a_directory_is_found_by_check() {
    let dir = scratch("admin-token-directory");
    fs::create_dir_all(&dir).unwrap();
    let services = dir.join("services.toml");
    for token in ["missing/", "missing/."] {
        let text = format!(
            "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{token}\"\n\
             [[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\n"
        );
        fs::write(&services, text).unwrap();
        let services = services.to_str().unwrap();
        for args in [&["check", "--config", services][..], &["--config", services]] {
            let refusal = refused(args);
            assert_eq!(refusal.status, Some(1), "{args:?}: {}", refusal.message);
            for part in [
                "3: admin.token: cannot create the token file `",
                "choose the path of a file",
            ] {
                assert!(refusal.message.contains(part), "{token}: {}", refusal.message);
            }
        }
    }
}

#[test]
fn a_token_at_the_path_of_a_socket_or_of_records_is_refused_and_not_made() {
    let dir = scratch("admin-token-conflict");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("x");
    let path = path.to_str().unwrap();
    let (unix, anywhere) = (format!("unix:{path}"), "127.0.0.1:0");
    for (args, expected) in [
        (
            &["--listen", anywhere, "--admin", &unix, "--admin-token", path][..],
            format!("--admin-token: the path conflicts with {unix} of the admin interface"),
        ),
        (
            &["--listen", &unix, "--admin", "0", "--admin-token", path],
            format!("--admin-token: the path conflicts with {unix} of service `echo`"),
        ),
        (
            &["record", "--to", path, "--listen", &unix],
            format!("--to: the path conflicts with {unix} of service `echo`"),
        ),
        (
            &[
                "record",
                "--to",
                path,
                "--listen",
                anywhere,
                "--admin",
                "0",
                "--admin-token",
                path,
            ],
            "--admin-token: the path conflicts with `--to` of service `echo`".to_owned(),
        ),
    ] {
        let refusal = refused(args);
        assert_eq!(refusal.status, Some(2), "{args:?}: {}", refusal.message);
        assert!(
            refusal.message.contains(&expected),
            "{expected}: {}",
            refusal.message
        );
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
    }
}

#[test]
fn a_token_is_made_for_its_owner_where_there_is_none() {
    let dir = scratch("admin-made");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("token");
    let start = || looked_at("echo", &["--admin-token", path.to_str().unwrap()]);
    let (host, _) = start();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    let token = fs::read_to_string(&path).unwrap();
    assert!(
        !host.log().contains(token.trim()),
        "a log is read by more than who may"
    );
    drop(host);
    // It is kept for the next start.
    let (mut host, admin) = start();
    assert_eq!(fs::read_to_string(&path).unwrap(), token);
    let drain = admin.request("POST", "/drain").bearing(token.trim()).answer();
    assert_eq!(drain.status, 202, "{drain:?}");
    assert_eq!(host.wait().code(), Some(0));
}
