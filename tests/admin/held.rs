//! Clients that try to hold the admin interface: it serves its operator all the same.

use std::os::unix::net::UnixStream;

use super::*;

/// Requests of which a client reads no answer, as often as they fit.
const PIPELINED: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

/// What a client sends who wants to hold a connection, and what it sends again and again.
const HELD: [(&str, &[u8]); 6] = [
    ("HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n", PIPELINED),
    ("GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n", PIPELINED),
    ("GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n", PIPELINED),
    (
        "GET /connections HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n",
        b"body",
    ),
    (
        "POST /drain HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"4\r\nbody\r\n",
    ),
    ("GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n"),
];

/// A connection to the admin interface from one of the addresses of the loopback, or to its socket.
trait Held: io::Read + io::Write + Send {}

impl<T: io::Read + io::Write + Send> Held for T {}

fn hold(admin: &At, number: usize) -> Box<dyn Held> {
    match admin {
        At::Tcp(address) => {
            let source = [127, 0, 1, (number % 250 + 1) as u8];
            let stream = Client::from(source, *address).0;
            stream.set_nonblocking(true).unwrap();
            Box::new(stream)
        }
        At::Unix(path) => {
            let stream = UnixStream::connect(path).unwrap();
            stream.set_nonblocking(true).unwrap();
            Box::new(stream)
        }
    }
}

/// Sends `head`, and then `more` as often as the kernel takes it, and reads nothing.
fn send_all(stream: &mut dyn Held, head: &str, more: &[u8]) {
    if stream.write_all(head.as_bytes()).is_err() {
        return;
    }
    let block = more.repeat(100);
    for _ in 0..100 {
        if stream.write_all(&block).is_err() {
            return;
        }
    }
}

/// Connections to a service, as many as an event shows: then events and `/connections` are large.
fn many(host: &Host) -> Vec<Client> {
    let clients: Vec<_> = (0..1000).map(|_| host.connect()).collect();
    clients.iter().for_each(|client| client.echo("hello\n"));
    clients
}

/// A raw connection to a TCP address.
fn connect(admin: &At) -> TcpStream {
    Client::connect(admin.tcp()).unwrap().0
}

/// What is answered to these bytes, up to the end of the connection.
fn answer_to(admin: &At, bytes: &[u8]) -> String {
    let mut stream = connect(admin);
    stream.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8(answer).unwrap()
}

/// The operator is answered while others hold what they can, in every way at once.
fn serves_its_operator(admin: &At, token: &Token, host: &Host) {
    let _clients = many(host);
    let mut held = Vec::new();
    for _ in 0..20 {
        for _ in 0..20 {
            let (head, more) = HELD[held.len() % HELD.len()];
            let mut stream = hold(admin, held.len());
            send_all(&mut *stream, head, more);
            held.push(stream);
        }
        assert_eq!(admin.get("/healthz").body, "alive\n");
        assert_eq!(admin.get("/readyz").body, "serving\n");
        openmetrics::parse(&admin.get("/metrics").body);
        let bearing = |method: &str, path: &str| admin.request(method, path).bearing(&token.text);
        assert_eq!(bearing("GET", "/generations").answer().status, 200);
        let close = bearing("POST", "/connections/999999/close").answer();
        assert_eq!(close.status, 404, "{close:?}");
        let (name, _) = bearing("GET", "/events").events().next();
        assert_eq!(name, "status");
    }
    assert!(
        host.log().contains("it has made room for another"),
        "{}",
        host.log()
    );
}

#[test]
fn an_operator_is_served_whatever_others_hold() {
    let token = Token::new("held");
    let (host, admin) = looked_at("lines", &["--admin-token", token.path(), "-v"]);
    serves_its_operator(&admin, &token, &host);
}

#[test]
fn an_operator_is_served_by_a_unix_socket_whatever_others_hold() {
    let dir = scratch("admin-held-unix");
    fs::create_dir_all(&dir).unwrap();
    let token = Token::new("held-unix");
    let socket = format!("unix:{}", dir.join("s").display());
    let host = Host::serving(
        "lines",
        &["--admin", &socket, "--admin-token", token.path(), "-v"],
    );
    serves_its_operator(&At::parse(&socket), &token, &host);
}

#[test]
fn a_head_of_events_is_answered_at_once_and_watches_nothing() {
    let (_host, admin) = looked_at("echo", &[]);
    for _ in 0..100 {
        let answer = answer_to(&admin, b"HEAD /events HTTP/1.1\r\nHost: localhost\r\n\r\n");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 200") && body.is_empty(), "{answer}");
        assert!(head.contains("content-type: text/event-stream"), "{head}");
    }
}

#[test]
fn one_that_watches_and_does_not_read_is_closed_and_makes_room() {
    let (host, admin) = looked_at("lines", &["-v"]);
    let _clients = many(&host);
    let watch = || watch(&admin);
    let watchers: Vec<_> = (0..32).map(|_| watch()).collect();
    assert!(watchers.iter().all(|(_, status)| status == "HTTP/1.1 200"));
    // As soon as any of them does not take its events.
    until("one that does not read makes room", || {
        watch().1 == "HTTP/1.1 200"
    });
    // The others are closed though nobody wants their places.
    until("all of them are closed", || {
        host.log().matches("the peer does not read").count() >= 31
    });
}

#[test]
fn those_that_watch_too_many_are_told_and_the_token_has_its_own_slots() {
    let token = Token::new("watch");
    let (_host, admin) = looked_at("echo", &["--admin-token", token.path()]);
    let mut watchers: Vec<_> = (0..32)
        .map(|_| admin.request("GET", "/events").events())
        .collect();
    watchers.iter_mut().for_each(|watcher| drop(watcher.next()));
    let busy = admin.get("/events");
    assert_eq!((busy.status, busy.header("retry-after")), (503, Some("1")));
    let wrong = admin.request("GET", "/events").bearing("0123456789abcdef");
    assert_eq!(wrong.answer().status, 503);
    let (name, _) = admin
        .request("GET", "/events")
        .bearing(&token.text)
        .events()
        .next();
    assert_eq!(name, "status");
    // Those that read keep their places.
    watchers
        .iter_mut()
        .for_each(|watcher| assert_eq!(watcher.next().0, "status"));
}

#[test]
fn a_probe_gets_in_however_many_connections_have_sent_no_head() {
    let (host, admin) = looked_at("echo", &["-v"]);
    let idle: Vec<_> = (0..200).map(|number| hold(&admin, number)).collect();
    assert_eq!(admin.get("/healthz").body, "alive\n");
    // Those that came first have made room.
    host.line("it has made room for another");
    drop(idle);
}

#[test]
fn a_connection_answers_one_request() {
    let (_host, admin) = looked_at("echo", &[]);
    let request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let answer = answer_to(&admin, &request.repeat(3));
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(
        answer.contains("connection: close") && answer.ends_with("alive\n"),
        "{answer}"
    );
}

#[test]
fn a_body_that_never_ends_is_not_waited_for() {
    let token = Token::new("body");
    let (_host, admin) = looked_at("echo", &["--admin-token", token.path()]);
    for (authorization, expected) in [
        (String::new(), "HTTP/1.1 401"),
        (
            format!("Authorization: Bearer {}\r\n", token.text),
            "HTTP/1.1 404",
        ),
    ] {
        let head = format!(
            "POST /connections/1/close HTTP/1.1\r\nHost: localhost\r\n{authorization}\
             Content-Length: 1000000\r\n\r\npart of it"
        );
        let answer = answer_to(&admin, head.as_bytes());
        assert!(answer.starts_with(expected), "{answer}");
    }
}

#[test]
fn a_request_without_one_host_in_ascii_is_refused() {
    let (_host, admin) = looked_at("echo", &[]);
    for path in ["/healthz", "/metrics", "/", "/connections", "/drain", "/nowhere"] {
        for (headers, expected) in [
            (&b""[..], "Host"),
            (b"Host: localhost\r\nHost: localhost\r\n", "more than one"),
            (b"Host: localhost\r\nhOsT: 127.0.0.1\r\n", "more than one"),
            (b"Host: evil.ex\xe4mple\r\n", "ASCII"),
            ("Host: bücher.example\r\n".as_bytes(), "ASCII"),
        ] {
            let request = [format!("GET {path} HTTP/1.1\r\n").as_bytes(), headers, b"\r\n"].concat();
            let answer = answer_to(&admin, &request);
            let shown = String::from_utf8_lossy(headers);
            assert!(answer.starts_with("HTTP/1.1 400"), "{path} {shown}: {answer}");
            let (_, body) = answer.split_once("\r\n\r\n").unwrap();
            let body: Value = serde_json::from_str(body).unwrap();
            assert!(body["error"].as_str().unwrap().contains(expected), "{body}");
        }
    }
    // HTTP/1.0 does not know the header.
    let answer = answer_to(&admin, b"GET /healthz HTTP/1.0\r\n\r\n");
    assert!(answer.starts_with("HTTP/1.0 200"), "{answer}");
    // A name is refused in an absolute URI too, whatever the header says.
    let answer = answer_to(
        &admin,
        b"GET http://rebound.example/connections HTTP/1.1\r\nHost: localhost\r\n\r\n",
    );
    assert!(answer.starts_with("HTTP/1.1 421"), "{answer}");
}
