//! What is composed is refused, checked, kept and replaced as every component is.

use std::fs;
use std::path::Path;

use super::{behind, refusal, with};
use crate::harness::{HUP, Host, NEW, Place, again, command, field, file, guest, refused, replace, scratch};

#[test]
fn what_does_not_fit_is_refused_by_its_name() {
    let handler = "inet:service/handler@0.1.0";
    let imports_more = wat::parse_str(format!(
        r#"(component
            (import "acme:rocket/engine@1.0.0" (instance (export "launch" (func))))
            (import "{handler}" (instance $i))
            (export "{handler}" (instance $i)))"#
    ));
    let other_types = wat::parse_str(format!(
        r#"(component
            (import "{handler}" (instance $i (export "serve" (func))))
            (export "{handler}" (instance $i)))"#
    ));
    let other_version = wat::parse_str(format!(
        r#"(component
            (import "inet:service/handler@0.9.0" (instance $i))
            (export "{handler}" (instance $i)))"#
    ));
    let imports_more = file("imports-more.wasm", imports_more.unwrap());
    let other_types = file("other-types.wasm", other_types.unwrap());
    let other_version = file("other-version.wasm", other_version.unwrap());
    let missing = Path::new("/no/such/file.wasm").to_owned();
    let text = file("no-middleware.wasm", "#!/bin/sh\n");
    let module = file("middleware-module.wasm", wat::parse_str("(module)").unwrap());
    let (echo, upper_case) = (guest("echo"), guest("upper-case"));
    for (middlewares, service, at_fault, words) in [
        (
            vec![&missing],
            &echo,
            &missing,
            &["cannot read the middleware"][..],
        ),
        (vec![&upper_case, &text], &echo, &text, &["is not WebAssembly"]),
        (
            vec![&module],
            &echo,
            &module,
            &["is not a middleware", "is a core module"],
        ),
        (
            vec![&upper_case, &guest("copy")],
            &echo,
            &guest("copy"),
            &[
                "is not a middleware",
                "imports `inet:service/types@0.1.0` from `inet:service`",
                handler,
                "`--component`",
            ],
        ),
        (
            vec![&guest("lines-session")],
            &echo,
            &guest("lines-session"),
            &["is not a middleware", "exports `inet:service/sessions@0.1.0`"],
        ),
        (
            vec![&other_version],
            &echo,
            &other_version,
            &["is not a middleware", "imports `inet:service/handler@0.9.0`"],
        ),
        (
            vec![&upper_case],
            &guest("lines-session"),
            &guest("lines-session"),
            &[
                "cannot serve behind a middleware",
                "exports `inet:service/sessions@0.1.0`",
                handler,
            ],
        ),
        (
            vec![&upper_case],
            &guest("cat"),
            &guest("cat"),
            &["cannot serve behind a middleware", "exports `wasi:cli/run"],
        ),
        (
            vec![&upper_case],
            &module,
            &module,
            &["cannot serve behind a middleware", "is a core module"],
        ),
        (
            vec![&upper_case],
            &upper_case,
            &upper_case,
            &["imports `inet:service/handler@0.1.0`", "`--middleware`"],
        ),
        (
            vec![&other_types],
            &echo,
            &other_types,
            &["cannot be composed with `", "echo.wasm`", "`serve`", "wit/"],
        ),
        (
            vec![&imports_more, &upper_case],
            &echo,
            &imports_more,
            &["does not provide", "acme:rocket/engine@1.0.0"],
        ),
    ] {
        let flags = middlewares
            .iter()
            .flat_map(|path| ["--middleware", path.to_str().unwrap()]);
        let message = refusal(service, &flags.collect::<Vec<_>>());
        let lines: Vec<&str> = message.lines().filter(|line| line.contains("ERROR")).collect();
        let [line] = lines.as_slice() else {
            panic!("expected one line of error in {message}")
        };
        let fault = format!("`{}`", at_fault.display());
        assert!(line.contains(&fault), "{line:?} does not name {fault}");
        for word in words {
            assert!(line.contains(word), "{line:?} does not say {word:?}");
        }
    }
}

/// Parts that import the same interface share that import when they are composed. A check and a start
/// name the part that is at fault, whatever its place.
#[test]
fn an_import_is_refused_of_the_part_that_has_it() {
    let service = |name: &str, imports: &str| {
        let text = format!(
            r#"(component {imports} (instance $i) (export "inet:service/handler@0.1.0" (instance $i)))"#
        );
        file(&format!("conflict-{name}.wasm"), wat::parse_str(text).unwrap())
    };
    let middleware = |name: &str, imports: &str| {
        let text = format!(
            r#"(component {imports}
                (import "inet:service/handler@0.1.0" (instance $i))
                (export "inet:service/handler@0.1.0" (instance $i)))"#
        );
        file(&format!("conflict-{name}.wasm"), wat::parse_str(text).unwrap())
    };
    let import =
        |interface: &str, function: &str| format!("(import \"{interface}\" (instance (export {function})))");
    let random = |function: &str| import("wasi:random/random@0.2.6", function);
    let right = random("\"get-random-u64\" (func (result u64))");
    let wrong = random("\"get-random-u64\" (func (result u32))");
    let older = import(
        "wasi:random/random@0.2.0",
        "\"get-random-u64\" (func (result u32))",
    );
    let unknown = random("\"frobnicate\" (func)");
    let named = |name: &str| {
        random(&format!(
            "\"get-random-bytes\" (func (param \"{name}\" u64) (result (list u8)))"
        ))
    };
    let engine = |result: &str| import("acme:rocket/engine@1.0.0", &format!("\"launch\" (func {result})"));
    let other_type = "imports `get-random-u64` of `wasi:random/random@0.2.6` as `func() -> u32`, and this \
                      host has another type for it (in the result, this host has `u64`, and the component \
                      has `u32`): build it against the published WIT of `wasi:random@0.2.6`";
    // The imports of two middlewares and a service, the key of the part at fault, and the message.
    for (number, (imports, key, words)) in [
        ([&right, &wrong, &right], "middleware[1]", other_type),
        ([&wrong, &right, &right], "middleware[0]", other_type),
        ([&right, &right, &wrong], "component", other_type),
        ([&wrong, &wrong, &wrong], "middleware[0]", other_type),
        (
            [&right, &older, &right],
            "middleware[1]",
            "imports `get-random-u64` of `wasi:random/random@0.2.0` as `func() -> u32`",
        ),
        (
            [&right, &right, &unknown],
            "component",
            "does not provide (`frobnicate` of `wasi:random/random@0.2.6`)",
        ),
        (
            [&right, &engine(""), &engine("(result u32)")],
            "middleware[1]",
            "does not provide (`launch` of `acme:rocket/engine@1.0.0`)",
        ),
        // The host accepts both, since names of parameters are nothing to it.
        (
            [&right, &named("len"), &named("size")],
            "middleware[1]",
            "imports `wasi:random/random@0.2.6` with another type than a part behind it (",
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let [first, second, last] = imports;
        let parts = [
            middleware(&format!("{number}-first"), first),
            middleware(&format!("{number}-second"), second),
            service(&format!("{number}-last"), last),
        ];
        let [first, second, last] = &parts;
        let services = file(
            &format!("conflict-{number}.toml"),
            format!(
                "[[service]]\nname = \"a\"\nlisten = [\"127.0.0.1:0\"]\ncomponent = {last:?}\n\
                 middleware = [{first:?}, {second:?}]\n"
            ),
        );
        let at_fault = match key {
            "middleware[0]" => first,
            "middleware[1]" => second,
            _ => last,
        };
        let expected = format!("service[0].{key}: service `a`: `{}` ", at_fault.display());
        for args in [&["check", "--config"][..], &["--config"]] {
            let message = refused(&[args, &[services.to_str().unwrap()]].concat()).message;
            assert!(
                message.contains(&expected),
                "{message:?} does not say {expected:?}"
            );
            assert!(message.contains(words), "{message:?} does not say {words:?}");
        }
    }
}

/// A host that serves with the embedded guest behind a middleware that changes.
fn behind_a_place(place: &Place, args: &[&str]) -> Host {
    let path = place.file();
    let first = ["--listen", "127.0.0.1:0", "--middleware", path.to_str().unwrap()];
    Host::start(&[&first, args].concat())
}

fn says(host: &Host) -> String {
    let client = host.connect();
    client.send("hello\n");
    client.line()
}

#[test]
fn a_middleware_that_changes_is_taken() {
    let place = Place::new("middleware-watch", "upper-case");
    let host = behind_a_place(&place, &["--watch"]);
    assert_eq!(says(&host), "HELLO");
    let old = host.connect();
    old.send("one\n");
    old.expect("ONE\n");
    place.put("line-limit");
    assert_eq!(field(&host.line(NEW), "generation"), "2");
    assert_eq!(says(&host), "hello");
    old.send("two\n");
    old.expect("TWO\n");
    // What does not fit changes nothing.
    place.put("echo");
    let line = host.line("keeps serving");
    assert!(
        line.contains("is not a middleware") && line.contains(place.file().to_str().unwrap()),
        "{line}"
    );
    assert_eq!(says(&host), "hello");
    fs::remove_file(place.file()).unwrap();
    host.line("cannot read");
    place.put("upper-case");
    host.line(NEW);
    assert_eq!(says(&host), "HELLO");
}

#[test]
fn any_part_that_changes_is_taken() {
    let place = Place::new("middleware-parts", "copy");
    let path = place.0.join("before.wasm");
    fs::copy(guest("upper-case"), &path).unwrap();
    let host = place.serve(&["--watch", "--middleware", path.to_str().unwrap()]);
    assert_eq!(says(&host), "HELLO");
    place.put("lines");
    host.line(NEW);
    let client = host.connect();
    client.send("hello\nquit\n");
    assert_eq!(client.rest(), b"HELLO\n");
    replace(&path, fs::read(guest("line-limit")).unwrap());
    host.line(NEW);
    assert_eq!(says(&host), "hello");
}

#[test]
fn without_a_watch_a_signal_has_all_parts_read_again() {
    let place = Place::new("middleware-signal", "upper-case");
    let host = behind_a_place(&place, &[]);
    host.signal(HUP);
    host.line("component unchanged");
    place.replace(again("upper-case", 1));
    host.signal(HUP);
    host.line(NEW);
    place.put("line-limit");
    assert_eq!(says(&host), "HELLO", "nobody has asked");
    host.signal(HUP);
    host.line(NEW);
    assert_eq!(says(&host), "hello");
}

#[test]
fn a_service_is_initialised_before_it_is_composed() {
    let message = refusal(&guest("copy"), &with(&["upper-case"], &["--preinit"]));
    let copy = format!("`{}` exports no function", guest("copy").display());
    assert!(message.contains(&copy), "{message}");
}

#[test]
fn check_and_replay_compose_too() {
    let args = with(&["gzip", "upper-case"], &[]);
    let output = command()
        .arg("check")
        .args(&args)
        .arg(guest("echo"))
        .output()
        .unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    for name in ["echo", "gzip", "upper-case"] {
        assert!(said.contains(guest(name).to_str().unwrap()), "{said}");
    }
    let talks = scratch("middleware-talks");
    fs::create_dir_all(&talks).unwrap();
    fs::write(
        talks.join("1.conversation"),
        "> \"hello\\n\"\n< \"HELLO\\n\"\n> end\n< end\n",
    )
    .unwrap();
    for (middleware, same) in [("upper-case", true), ("line-limit", false)] {
        let mut replay = command();
        let replay = replay.arg("replay").args(with(&[middleware], &[]));
        let output = replay.arg(&talks).arg(guest("echo")).output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert_eq!(output.status.success(), same, "{said}");
    }
}

#[test]
fn a_check_that_panics_is_that_of_its_part() {
    let args = with(&["upper-case", "trap-middleware"], &["--env", "TRAP_CHECK=1"]);
    let message = refusal(&guest("echo"), &args);
    let part = guest("trap-middleware");
    let found = format!("`{}` cannot check its configuration", part.display());
    for words in [
        &*found,
        "its function `check` failed (wasm trap:",
        "; standard error: ",
        "trap-middleware/src/lib.rs:",
        " | the check was asked for a panic)",
    ] {
        assert!(message.contains(words), "no {words:?} in {message}");
    }
    assert!(!message.contains("wasm backtrace"), "{message}");
}

#[test]
fn check_shows_whether_the_configuration_is_accepted() {
    let line_limit = guest("line-limit");
    for (limit, accepted, words) in [
        (
            "LINE_LIMIT=10",
            true,
            format!("accepted by `{}`", line_limit.display()),
        ),
        ("LINE_LIMIT=1e3", false, "LINE_LIMIT is `1e3`".to_owned()),
    ] {
        let mut check = command();
        check
            .arg("check")
            .args(with(&["gzip", "line-limit"], &["--env", limit]));
        let output = check.arg(guest("echo")).output().unwrap();
        assert_eq!(output.status.success(), accepted);
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains(&words), "{said}");
    }
}

#[test]
fn a_reload_whose_configuration_is_rejected_changes_nothing() {
    let place = Place::new("middleware-configuration", "upper-case");
    let host = behind_a_place(&place, &["--env", "LINE_LIMIT=-1"]);
    place.put("line-limit");
    host.signal(HUP);
    let line = host.line("keeps serving");
    assert!(line.contains("LINE_LIMIT is `-1`"), "{line}");
    assert_eq!(says(&host), "HELLO");
}

#[test]
fn what_was_composed_is_kept_for_the_next_start() {
    let cache = scratch("middleware-cache");
    let flags = ["--cache", cache.to_str().unwrap(), "-v"];
    for (compiled, middlewares) in [
        ("compiled=true", ["upper-case", "line-limit"]),
        ("compiled=false", ["upper-case", "line-limit"]),
        ("compiled=true", ["line-limit", "upper-case"]),
    ] {
        let host = behind("echo", &middlewares, &flags);
        assert!(host.log().contains(compiled), "{}", host.log());
    }
}
