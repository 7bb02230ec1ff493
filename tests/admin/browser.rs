//! The page, in a real browser: Chromium, driven by WebDriver (<https://www.w3.org/TR/webdriver2/>).

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Token, admin_of};
use crate::harness::http::At;
use crate::harness::{
    Client, Done, HUP, Host, NEW, Place, again, guest, replace, scratch, tools::tool, until,
};

/// What WebDriver calls an element by.
const ELEMENT: &str = "element-6066-11e4-a52e-4f735466cecf";

/// A browser with one window. It is closed when this is dropped.
struct Browser {
    driver: Child,
    at: At,
    session: String,
}

impl Browser {
    /// Starts a browser, if there is one.
    fn start() -> Option<Self> {
        tool("chromium")?;
        let program = tool("chromedriver")?;
        let mut driver = Command::new(program)
            .arg("--port=0")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port = lines.by_ref().map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once("successfully on port ")?;
            port.trim_end_matches('.').parse::<u16>().ok()
        });
        // It would wait for who reads what it says.
        thread::spawn(move || lines.for_each(drop));
        let mut browser = Self {
            driver,
            at: At::Tcp(([127, 0, 0, 1], port.expect("chromedriver does not start")).into()),
            session: String::new(),
        };
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--window-size=1280,1480",
            "--hide-scrollbars",
            // It is to ask nobody else for anything.
            "--disable-background-networking",
            "--no-first-run",
        ];
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": arguments },
        } } });
        let session = browser.call("POST", "/session", &wanted);
        browser.session = format!("/session/{}", session["sessionId"].as_str().unwrap());
        Some(browser)
    }

    /// Has WebDriver do something.
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let request = self.at.request(method, path);
        let request = if method == "POST" {
            request.json(body)
        } else {
            request
        };
        let answer = request.answer();
        assert_eq!(answer.status, 200, "{method} {path}: {}", answer.body);
        answer.json()["value"].take()
    }

    /// The same in its session.
    fn post(&self, path: &str, body: &Value) -> Value {
        self.call("POST", &format!("{}{path}", self.session), body)
    }

    fn open(&self, url: &str) {
        self.post("/url", &json!({ "url": url }));
    }

    /// What an expression of JavaScript comes to in the page.
    fn says(&self, expression: &str) -> Value {
        self.post(
            "/execute/sync",
            &json!({ "script": format!("return {expression};"), "args": [] }),
        )
    }

    /// The text of the first element that `selector` finds.
    fn text(&self, selector: &str) -> String {
        let text = self.says(&format!(
            "document.querySelector({selector:?})?.textContent ?? ''"
        ));
        text.as_str().unwrap().to_owned()
    }

    /// The numbers of the rows that are seen, by the name that the page gives them.
    fn rows(&self, name: &str) -> Vec<u64> {
        let found = self.says(&format!(
            "[...document.querySelectorAll('tr[data-{name}]')].filter(row => !row.hidden).map(row => Number(row.dataset.{name}))"
        ));
        let mut rows: Vec<_> = found
            .as_array()
            .unwrap()
            .iter()
            .map(|row| row.as_u64().unwrap())
            .collect();
        rows.sort_unstable();
        rows
    }

    fn element(&self, selector: &str) -> String {
        let found = self.post("/element", &json!({ "using": "css selector", "value": selector }));
        format!("/element/{}", found[ELEMENT].as_str().unwrap())
    }

    /// Clicks as a person does: on what is seen, and nothing before it.
    fn click(&self, selector: &str) {
        self.post(&format!("{}/click", self.element(selector)), &json!({}));
    }

    fn write(&self, selector: &str, text: &str) {
        self.post(
            &format!("{}/value", self.element(selector)),
            &json!({ "text": text }),
        );
    }

    fn clear(&self, selector: &str) {
        self.post(&format!("{}/clear", self.element(selector)), &json!({}));
    }

    /// Has pages take the screen for a dark one, or a light one.
    fn prefers(&self, scheme: &str) {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.post(
            "/goog/cdp/execute",
            &json!({ "cmd": "Emulation.setEmulatedMedia", "params": { "features": features } }),
        );
    }

    /// A picture of the window, as a PNG in base64.
    fn picture(&self) -> Vec<u8> {
        let answer = self.call("GET", &format!("{}/screenshot", self.session), &Value::Null);
        base64(answer.as_str().unwrap())
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if !self.session.is_empty() {
            // With it goes the browser; without it that would outlive its driver.
            let _ = self.at.request("DELETE", &self.session).try_answer();
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}

/// What is written in base64 (RFC 4648).
fn base64(text: &str) -> Vec<u8> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let digits = text.bytes().filter(|digit| *digit != b'=');
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for digit in digits {
        let value = DIGITS.iter().position(|other| *other == digit).unwrap();
        bits = (bits << 6) | value as u32;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// The address of the page, with what comes after it.
fn page(admin: &At, after: &str) -> String {
    format!("http://{}/{after}", admin.tcp())
}

#[test]
fn a_connection_is_seen_found_and_closed_by_a_click() {
    let Some(browser) = Browser::start() else { return };
    let (place, token) = (Place::new("admin-page", "echo"), Token::new("page"));
    let host = place.serve(&["--admin", "0", "--admin-token", token.path(), "--name", "front"]);
    let admin = admin_of(&host);
    // One after the other: it is the one that comes in first that has the first number.
    let [first, second] = [(), ()].map(|()| {
        let client = host.connect();
        client.echo("hello\n");
        client
    });
    browser.open(&page(&admin, &format!("#token={}", token.text)));
    until("the connections are seen", || {
        browser.rows("connection") == [1, 2]
    });
    assert_eq!(browser.text("#live"), "live");
    assert_eq!(browser.text("#state"), "serving");
    assert_eq!(browser.text("#open"), "2");
    assert_eq!(browser.rows("generation"), [1]);
    // The token is not left where others see it.
    assert_eq!(browser.says("location.href"), page(&admin, ""));
    assert_eq!(browser.says("document.getElementById('token-form').hidden"), true);
    let row = browser.text("tr[data-connection='1']");
    let peer = first.0.local_addr().unwrap();
    for part in ["front", "streams", &peer.to_string(), &host.address().to_string()] {
        assert!(row.contains(part), "{part} is not in {row}");
    }

    // The port of one peer is found in one row.
    browser.write("#filter", &format!("front {peer}"));
    until("one of them is left", || browser.rows("connection") == [1]);
    assert!(
        browser.text("#shown").contains("1 of 2"),
        "{}",
        browser.text("#shown")
    );
    browser.clear("#filter");
    until("both are there again", || browser.rows("connection") == [1, 2]);

    browser.click("tr[data-connection='1'] button[data-action=close]");
    let mut rest = Vec::new();
    let _ = std::io::Read::read_to_end(&mut &first.0, &mut rest);
    assert_eq!(rest, b"");
    until("that is said", || {
        browser.text("#message").contains("Connection 1")
    });
    until("it is gone", || browser.rows("connection") == [2]);
    assert!(host.line("connection ended").contains("outcome=\"closed\""));
    second.echo("still here\n");

    // Another component, while a connection keeps what it has.
    place.put("lines-session");
    browser.click("button[data-action=reload][data-service=front]");
    host.line(NEW);
    until("two generations are seen", || {
        browser.rows("generation") == [1, 2]
    });
    let third = host.connect();
    third.echo("hello\n");
    until("the new one has a connection", || {
        browser.text("tr[data-connection='3']").contains("sessions")
    });
    second.echo("still here\n");
    browser.click("button[data-action=rollback][data-service=front]");
    host.line("rolled back to");
    until("that is seen", || {
        browser.text("tr[data-generation='2']").contains("ending")
    });
    drop(third);
    until("it ends with its last connection", || {
        browser.rows("generation") == [1]
    });
}

#[test]
fn without_a_token_nothing_can_be_clicked_and_a_wrong_one_is_said_so() {
    let Some(browser) = Browser::start() else { return };
    let token = Token::new("page-wrong");
    let host = Host::serving("echo", &["--admin", "0", "--admin-token", token.path()]);
    let admin = admin_of(&host);
    let client = host.connect();
    client.echo("hello");
    browser.open(&page(&admin, ""));
    until("the connection is seen", || browser.rows("connection") == [1]);
    let off = "[...document.querySelectorAll('button[data-action]')].every(button => button.disabled)";
    assert_eq!(browser.says(off), true);
    for wrong in ["\u{201c}0123456789abcdef\u{201d}", "two words, 0123456789"] {
        browser.write("#token", wrong);
        browser.click("#use-token");
        until("it is refused", || {
            browser
                .text("#message")
                .contains("token is wrong: a token has only visible ASCII")
        });
        assert_eq!(browser.says(off), true, "{wrong}");
        browser.click("#dismiss");
    }
    browser.write("#token", "a-wrong-token-and-a-long-one");
    browser.click("#use-token");
    until("it can be clicked", || browser.says(off) == false);
    browser.click("tr[data-connection='1'] button[data-action=close]");
    until("it is refused", || {
        browser.text("#message").contains("token is wrong")
    });
    assert_eq!(browser.says(off), true, "it is forgotten");
    client.echo("still here");
    browser.write("#token", &token.text);
    browser.click("#use-token");
    browser.click("tr[data-connection='1'] button[data-action=close]");
    until("it is closed", || browser.rows("connection").is_empty());
    assert!(host.line("connection ended").contains("outcome=\"closed\""));
}

#[test]
fn a_drain_is_asked_for_twice() {
    let Some(browser) = Browser::start() else { return };
    let token = Token::new("page-drain");
    let args = [
        "--admin",
        "0",
        "--admin-token",
        token.path(),
        "--drain-timeout",
        "1h",
    ];
    let mut host = Host::serving("lines", &args);
    let client = host.connect();
    client.echo("hello\n");
    browser.open(&page(&admin_of(&host), &format!("#token={}", token.text)));
    until("it is live", || browser.text("#live") == "live");
    browser.click("button[data-action=drain]");
    browser.click("#drain-cancel");
    client.echo("nothing has happened\n");
    assert_eq!(admin_of(&host).get("/readyz").status, 200);
    browser.click("button[data-action=drain]");
    browser.click("#drain-confirm");
    host.line("draining");
    until("that is seen", || browser.text("#state") == "draining");
    client.send("quit\n");
    assert_eq!(client.rest(), b"");
    drop(client);
    assert_eq!(host.wait().code(), Some(0));
    until("the page says that nobody answers", || {
        browser.text("#live").starts_with("reconnecting")
    });
}

#[test]
fn names_and_peers_are_text_whatever_they_are() {
    let Some(browser) = Browser::start() else { return };
    // Of all that the page shows, the path of a socket is what may have the most characters.
    let name = "<b>&amp;<img src=x onerror=alert(1)>";
    let dir = scratch("admin-hostile");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join(name);
    let component = guest("echo");
    let listen = format!("unix:{}", path.display());
    let args = [
        "--listen",
        &listen,
        "--component",
        component.to_str().unwrap(),
        "--admin",
        "0",
    ];
    let host = Host::start(&args);
    let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    browser.open(&page(&admin_of(&host), ""));
    until("the connection is seen", || browser.rows("connection") == [1]);
    assert!(browser.text("tr[data-connection='1']").contains(name));
    assert!(
        browser.text("#generations").contains(name),
        "the listener of the service"
    );
    assert_eq!(browser.says("document.querySelectorAll('img, b').length"), 0);
    assert_eq!(browser.says("document.title"), "wasm-inetd");
    // Nor could it run, or be sent anywhere, if it were more than text.
    let tried = browser.post(
        "/execute/async",
        &json!({ "args": [], "script": "
            const [tell] = arguments;
            const stopped = new Set();
            document.addEventListener('securitypolicyviolation', event => {
                stopped.add(event.effectiveDirective);
                if (stopped.has('require-trusted-types-for') && stopped.has('connect-src')) tell(document.title);
            });
            try { document.body.innerHTML = '<img src=x onerror=\"document.title = 1\">'; } catch {}
            const script = document.createElement('script');
            try { script.text = 'document.title = 2'; } catch {}
            document.body.append(script);
            fetch('http://127.0.0.1:1/').catch(() => {});
        " }),
    );
    assert_eq!(tried, "wasm-inetd");
    drop(client);
}

#[test]
fn a_row_shows_whose_connection_its_button_closes_at_any_width() {
    let Some(browser) = Browser::start() else { return };
    let dir = scratch("admin-widths");
    fs::create_dir_all(&dir).unwrap();
    let path = dir.join("a-socket-with-a-rather-long-name.sock");
    let listen = format!("unix:{}", path.display());
    let component = guest("echo");
    let component = component.to_str().unwrap();
    let host = Host::start(&["--listen", &listen, "--component", component, "--admin", "0"]);
    let client = std::os::unix::net::UnixStream::connect(&path).unwrap();
    browser.open(&page(&admin_of(&host), ""));
    until("the connection is seen", || browser.rows("connection") == [1]);
    for width in (320..=1600).step_by(40) {
        let screen = json!({
            "cmd": "Emulation.setDeviceMetricsOverride",
            "params": { "width": width, "height": 800, "deviceScaleFactor": 1, "mobile": false },
        });
        browser.post("/goog/cdp/execute", &screen);
        assert_eq!(browser.says("innerWidth"), width);
        // Every cell of the row is inside its region without scrolling, and none lies under
        // another.
        let covered = browser.says(
            "(() => {
                const region = document.getElementById('connections-region');
                const { left, right } = region.getBoundingClientRect();
                const cells = [...document.querySelector('tr[data-connection]').children];
                const boxes = cells.map(cell => cell.getBoundingClientRect());
                const outside = box => box.left < left || box.right > right + 1;
                const meet = (a, b) => a.left < b.right - 1 && b.left < a.right - 1
                    && a.top < b.bottom - 1 && b.top < a.bottom - 1;
                return cells.filter((_, index) => outside(boxes[index])
                    || boxes.some((box, other) => other !== index && meet(box, boxes[index])))
                    .map(cell => cell.textContent);
            })()",
        );
        assert_eq!(covered, json!([]), "at a width of {width}");
        // No text is cut off, such as the port of a peer with a long address.
        let cut = browser.says(
            "[...document.querySelector('tr[data-connection]').children]
                .filter(cell => cell.scrollWidth > cell.clientWidth + 1)
                .map(cell => cell.textContent)",
        );
        assert_eq!(cut, json!([]), "at a width of {width}");
    }
    drop(client);
}

/// Where pictures of the page are to be put, if anybody wants some.
fn pictures() -> Option<PathBuf> {
    let dir = std::env::var_os("WASM_INETD_SCREENSHOTS").map(PathBuf::from);
    if dir.is_none() {
        eprintln!("skipped, since WASM_INETD_SCREENSHOTS names no directory for pictures of the page");
    }
    dir
}

#[test]
fn the_page_has_its_picture_taken_for_who_asks() {
    let Some(dir) = pictures() else { return };
    let Some(browser) = Browser::start() else { return };
    fs::create_dir_all(&dir).unwrap();
    let services = scratch("admin-pictures");
    fs::create_dir_all(&services).unwrap();
    let component = |name: &str, from: &str| fs::copy(guest(from), services.join(name)).unwrap();
    component("lines.wasm", "lines-session");
    component("discard.wasm", "discard");
    let token = Token::new("pictures");
    let file = services.join("services.toml");
    let text = format!(
        "[admin]\nlisten = \"127.0.0.1:0\"\ntoken = \"{}\"\n\
         [[service]]\nname = \"lines\"\ncomponent = \"lines.wasm\"\nlisten = [\"127.0.0.1:0\"]\nlog-connections = \"none\"\n\
         [[service]]\nname = \"discard\"\ncomponent = \"discard.wasm\"\nlisten = [\"127.0.0.1:0\"]\nlog-connections = \"none\"\n",
        token.path()
    );
    fs::write(&file, text).unwrap();
    let host = Host::with_config(&file, 2);
    browser.open(&page(&admin_of(&host), &format!("#token={}", token.text)));
    let (done, open) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        let (done, open, _done) = (&done, &open, Done(&done));
        for (thread, address) in host.addresses().iter().cycle().take(4).copied().enumerate() {
            scope.spawn(move || visit(thread, address, done, open));
        }
        // As much of it as makes a line in the plots: this waits for no more than a nice picture.
        let start = Instant::now();
        let after = |seconds| {
            until("it has gone on for a while", || {
                start.elapsed() > Duration::from_secs(seconds)
            });
        };
        after(118);
        replace(&services.join("lines.wasm"), again("lines-session", 1));
        host.signal(HUP);
        host.line(NEW);
        assert!(open.load(Ordering::Relaxed) > 100);
        until("a third of them have the new generation", || {
            let shares = super::shares(&admin_of(&host));
            2 * shares[1].2 > shares[0].2
        });
        until("both generations are seen", || {
            browser.rows("generation").len() == 3
        });
        for scheme in ["light", "dark"] {
            browser.prefers(scheme);
            let dark = browser.says("matchMedia('(prefers-color-scheme: dark)').matches");
            assert_eq!(dark, scheme == "dark");
            put(&dir.join(format!("admin-{scheme}.png")), &browser.picture());
        }
    });
}

fn put(path: &Path, picture: &[u8]) {
    assert!(picture.starts_with(b"\x89PNG\r\n"));
    fs::write(path, picture).unwrap();
}

/// Clients as they come in the world: most of them short, some that stay, and not evenly.
fn visit(thread: usize, address: std::net::SocketAddr, done: &AtomicBool, open: &AtomicUsize) {
    let mut clients = std::collections::VecDeque::new();
    let start = Instant::now();
    let mut number = 0_usize;
    // The second service throws away what it is sent.
    let answers = thread.is_multiple_of(2);
    while !done.load(Ordering::Relaxed) {
        number += 1;
        let wave = (start.elapsed().as_secs_f64() / 9.0 + thread as f64).sin();
        let source = [10, 40, 7, 21][thread] as u8;
        let client = Client::from(
            [127, source, (number / 200) as u8, (number % 200) as u8 + 1],
            address,
        );
        for line in 0..number % 7 + 1 {
            client.send(format!(
                "{line} {}\n",
                "a line of some length ".repeat(number % 40)
            ));
            if answers {
                client.line();
            }
        }
        if number.is_multiple_of(3) {
            clients.push_back(client);
            open.fetch_add(1, Ordering::Relaxed);
        }
        if clients.len() > (60.0 + 25.0 * wave) as usize {
            clients.pop_front();
        }
        if let Some(talks) = clients.get(number % (clients.len().max(1))) {
            talks.send("hello again\n");
            if answers {
                talks.line();
            }
        }
        // They come by the hour and not as fast as they can.
        thread::sleep(Duration::from_millis((30.0 - 20.0 * wave) as u64));
    }
}
