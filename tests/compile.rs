//! Components are compiled in a process of its own, within bounds, and ahead if that is wanted.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::harness::{
    HOST, HUP, Host, NEW, Place, again, assert_errors, command, field, file, guest, refusal_of, refused,
    replace, scratch, until, with_cache,
};

/// The subcommand of the processes that compile.
const CHILD: &str = "compile-in-child";

/// A number as WebAssembly encodes it (LEB128).
fn number(mut number: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let low = number as u8 & 0x7f;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

/// A section of a module.
fn section(id: u8, content: &[u8]) -> Vec<u8> {
    [&[id][..], &number(content.len() as u32), content].concat()
}

/// The code of a function from a number to a number, with so many operations.
fn function(operations: u32) -> Vec<u8> {
    // No locals; then the parameter is multiplied, added to itself and stored again and again.
    let mut body = vec![0];
    for index in 0..operations {
        body.extend([0x20, 0, 0x41, (index % 64) as u8, 0x6c, 0x20, 0, 0x6a, 0x21, 0]);
    }
    body.extend([0x20, 0, 0x0b]);
    [number(body.len() as u32), body].concat()
}

/// A program for WASI preview 1 that does nothing. The compiler takes some time for `operations` in
/// a function that it never calls.
pub fn program(operations: u32) -> Vec<u8> {
    let code = [&[2][..], &function(operations), &[2, 0, 0x0b]].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        // One type, from a number to a number, and one from nothing to nothing.
        section(1, &[2, 0x60, 1, 0x7f, 1, 0x7f, 0x60, 0, 0]),
        section(3, &[2, 0, 1]),
        // A memory of one page.
        section(5, &[1, 0, 1]),
        section(7, b"\x02\x06memory\x02\0\x06_start\0\x01"),
        section(10, &code),
    ]
    .concat()
}

/// A module of `functions` equal functions, each with so many operations.
fn module(functions: u32, operations: u32) -> Vec<u8> {
    let body = function(operations);
    let code = [number(functions), body.repeat(functions as usize)].concat();
    [
        b"\0asm\x01\0\0\0".to_vec(),
        // One type, from a number to a number.
        section(1, &[1, 0x60, 1, 0x7f, 1, 0x7f]),
        section(3, &[number(functions), vec![0; functions as usize]].concat()),
        section(10, &code),
    ]
    .concat()
}

/// One function, for which the compiler takes much more memory than it may have here.
fn greedy() -> Vec<u8> {
    module(1, 300_000)
}

/// So many functions that compiling them takes minutes.
fn slow() -> Vec<u8> {
    module(40_000, 500)
}

/// The processes that compile for the process `parent`.
fn compilers(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let numbers = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers
        .filter(|&process| is_compiler(process) && parent_of(process) == Some(parent))
        .collect()
}

fn is_compiler(process: u32) -> bool {
    let line = fs::read(format!("/proc/{process}/cmdline")).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == 0).collect();
    words.contains(&CHILD.as_bytes()) && words.contains(&&b"compile"[..])
}

fn parent_of(process: u32) -> Option<u32> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_whitespace().nth(1)?.parse().ok()
}

/// Waits for the process that compiles for `host`.
fn compiler_of(host: &Host) -> u32 {
    let mut found = None;
    until("a process compiles", || {
        found = compilers(host.pid()).first().copied();
        found.is_some()
    });
    found.unwrap()
}

#[test]
fn a_component_that_takes_too_much_memory_is_refused_and_the_old_one_serves() {
    let place = Place::new("greedy", "echo");
    let host = place.serve(&["--max-compile-memory", "64MiB", "--cache", "off"]);
    let before = host.memory("VmHWM");
    place.replace(greedy());
    host.signal(HUP);
    let line = host.line("reload failed");
    for words in ["needs more memory", "64.0 MiB", "raise `--max-compile-memory`"] {
        assert!(line.contains(words), "{words}: {line}");
    }
    host.connect().echo("still there");
    let grown = host.memory("VmHWM").saturating_sub(before);
    assert!(grown < 40 << 10, "the host has grown by {grown} KiB");
    assert_eq!(compilers(host.pid()), Vec::<u32>::new());
    // The limit is that of one component at a time.
    place.replace(again("echo", 1));
    host.signal(HUP);
    host.line(NEW);
}

/// Writes a services file for the services `first` and `second`, whose components are watched. Each
/// has a copy of the echo guest in `dir`.
fn two_services(dir: &Path, cache: &str) -> PathBuf {
    let mut text = format!("cache = {cache:?}\n");
    for name in ["first", "second"] {
        fs::copy(guest("echo"), dir.join(name)).unwrap();
        text += &format!(
            "[[service]]\nname = \"{name}\"\ncomponent = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\nwatch = true\n"
        );
    }
    let services = dir.join("services.toml");
    fs::write(&services, text).unwrap();
    services
}

/// Checks that `compiler`, which compiles for the service `first`, is the only process that compiles.
/// Kills it, and checks that the component of `second` is loaded then.
fn leaves_its_turn(host: &Host, compiler: u32) {
    assert_eq!(compilers(host.pid()), [compiler]);
    let killed = Command::new("kill")
        .args(["-KILL", &compiler.to_string()])
        .status();
    assert!(killed.unwrap().success());
    let line = host.line("reload failed");
    assert_eq!(field(&line, "service"), "first");
    let line = host.line(NEW);
    assert_eq!(field(&line, "service"), "second");
}

/// Each may take all the memory that is permitted.
#[test]
fn components_of_two_services_are_compiled_one_after_the_other() {
    let dir = scratch("compile-turns");
    fs::create_dir_all(&dir).unwrap();
    let services = two_services(&dir, "off");
    let host = Host::with_config(&services, 2);
    replace(&dir.join("first"), slow());
    let compiler = compiler_of(&host);
    replace(&dir.join("second"), again("echo", 1));
    let line = host.line("waits until another component is compiled");
    assert_eq!(field(&line, "service"), "second");
    leaves_its_turn(&host, compiler);
}

/// An entry that cannot be used, such as one of an earlier version, does not save the wait.
#[test]
fn a_component_whose_cache_entry_is_damaged_waits_for_its_turn() {
    let dir = scratch("compile-turns-damaged");
    let cache = dir.join("cache");
    fs::create_dir_all(&dir).unwrap();
    let services = two_services(&dir, "cache");
    let next = dir.join("next");
    fs::write(&next, again("echo", 1)).unwrap();
    let compiled = compile(&["--cache", cache.to_str().unwrap(), next.to_str().unwrap()]);
    assert!(compiled.status.success(), "{}", self::text(&compiled.stderr));
    let host = Host::with_config(&services, 2);
    for entry in fs::read_dir(&cache).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|end| end == "cwasm") {
            fs::write(path, "damaged").unwrap();
        }
    }
    replace(&dir.join("first"), slow());
    let compiler = compiler_of(&host);
    replace(&dir.join("second"), fs::read(&next).unwrap());
    let line = host.line_of(&["waits until another component is compiled", NEW]);
    assert!(line.contains("waits until"), "{line}");
    assert_eq!(field(&line, "service"), "second");
    leaves_its_turn(&host, compiler);
}

#[test]
fn a_limit_of_the_process_is_named_that_stops_the_compiler() {
    let cache = scratch("compile-ulimit");
    // Enough for the host, and too little for the compiler or for its threads.
    for limit in ["20000", "13000"] {
        let mut limited = Command::new("sh");
        let script = format!("ulimit -d {limit} && exec \"$0\" \"$@\"");
        limited.args([
            "-c",
            &script,
            HOST,
            "compile",
            "--max-compile-memory",
            "1GiB",
            "--cache",
        ]);
        let message = refusal_of(limited.arg(&cache).arg(guest("gzip"))).message;
        assert!(message.contains("`ulimit -d`"), "{limit}: {message}");
        assert!(!message.contains("--max-compile-memory"), "{limit}: {message}");
    }
}

#[test]
fn the_message_about_memory_names_the_setting() {
    let dir = scratch("compile-setting");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("greedy.wasm"), greedy()).unwrap();
    let services = dir.join("services.toml");
    let text = "max-compile-memory = \"64MiB\"\ncache = \"off\"\n\
                [[service]]\nname = \"a\"\ncomponent = \"greedy.wasm\"\nlisten = [\"127.0.0.1:0\"]\n";
    fs::write(&services, text).unwrap();
    let refusal = refused(&["--config", services.to_str().unwrap()]);
    assert_eq!(refusal.status, Some(1));
    let said = format!("`max-compile-memory` in {}", services.display());
    assert!(refusal.message.contains(&said), "{}", refusal.message);
    assert!(
        refusal.message.contains("services.toml:5:"),
        "{}",
        refusal.message
    );
}

#[test]
fn a_cache_and_a_limit_that_change_are_for_later_loads_and_replace_no_service() {
    let dir = scratch("compile-changes");
    fs::create_dir_all(&dir).unwrap();
    let (component, services) = (dir.join("guest.wasm"), dir.join("services.toml"));
    fs::copy(guest("moody"), &component).unwrap();
    let put = |top: &str| {
        let service = "name = \"a\"\ncomponent = \"guest.wasm\"\nisolation = \"service\"";
        let text = format!("{top}\n[[service]]\n{service}\nlisten = [\"127.0.0.1:0\"]\n");
        replace(&services, text);
    };
    put("");
    let host = Host::with_config(&services, 1);
    // The connections that the instance has had.
    let count = || {
        let client = host.connect();
        client.send("count\n");
        client.line()
    };
    assert_eq!(count(), "1");
    put("cache = \"/proc/x\"\n");
    host.signal(HUP);
    host.line("cannot cache compiled components in `/proc/x`");
    host.line("services reconfigured");
    put("cache = \"kept\"\nmax-compile-memory = \"64MiB\"\n");
    host.signal(HUP);
    host.line("services reconfigured");
    assert_eq!(count(), "2");
    assert!(!host.log().contains("service changed"), "{}", host.log());
    replace(&component, again("moody", 1));
    host.signal(HUP);
    host.line(NEW);
    assert_eq!(count(), "1");
    let kept = fs::read_dir(dir.join("kept")).unwrap().flatten();
    let kept = kept.filter(|entry| entry.path().extension().is_some_and(|end| end == "cwasm"));
    assert_eq!(kept.count(), 1);
    replace(&component, greedy());
    host.signal(HUP);
    let line = host.line("reload failed");
    assert!(
        line.contains("64.0 MiB") && line.contains("services.toml"),
        "{line}"
    );
    assert_eq!(count(), "2");
}

#[test]
fn a_large_component_is_announced_and_a_cache_advised_only_where_there_is_none() {
    let component = guest("primes");
    let component = component.to_str().unwrap();
    let cache = scratch("compile-announced");
    let announced = |args: &[&str]| {
        let output = command().args(args).arg(component).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        let line = said.lines().find(|line| line.contains("which takes a while"));
        line.unwrap_or_else(|| panic!("{said}")).to_owned()
    };
    let kept = announced(&["compile", "--preinit", "--cache", cache.to_str().unwrap()]);
    assert!(
        kept.ends_with("takes a while; the cache keeps its code"),
        "{kept}"
    );
    // This command uses no cache, whatever there is.
    let checked = announced(&["check", "--preinit"]);
    assert!(checked.ends_with("takes a while"), "{checked}");
}

#[test]
fn a_small_component_that_takes_long_is_announced() {
    let dir = scratch("compile-long");
    fs::create_dir_all(&dir).unwrap();
    let component = dir.join("long.wasm");
    fs::write(&component, program(100_000)).unwrap();
    let services = dir.join("services.toml");
    let text = "cache = \"kept\"\n[[service]]\nname = \"a\"\ncomponent = \"long.wasm\"\n\
                listen = [\"127.0.0.1:0\"]\n";
    fs::write(&services, text).unwrap();
    let (component, services) = (component.to_str().unwrap(), services.to_str().unwrap());
    for args in [
        &["check", component][..],
        &["check", "--config", services, "--compile"],
        &["compile", "--config", services],
    ] {
        let mut host = Host::launch(command().args(args));
        // Now it takes long on any machine.
        let compiler = Pid::from_raw(compiler_of(&host) as i32).unwrap();
        kill_process(compiler, Signal::STOP).unwrap();
        host.line("which takes a while");
        kill_process(compiler, Signal::CONT).unwrap();
        host.line("INFO compiled `");
        host.wait();
    }
}

#[test]
fn a_compiler_that_takes_too_long_is_killed() {
    let place = Place::new("slow", "echo");
    let component = place.file();
    let args = ["--listen", "127.0.0.1:0", "--cache", "off", "--component"];
    let mut command = command();
    command
        .args(args)
        .arg(&component)
        .env("WASM_INETD_COMPILE_MS", "4000");
    let host = Host::spawn(&mut command, &args);
    place.replace(slow());
    host.signal(HUP);
    let compiler = compiler_of(&host);
    let line = host.line("reload failed");
    assert!(line.contains("takes longer than 4s to compile"), "{line}");
    assert!(line.contains("wasm-inetd compile"), "{line}");
    assert!(!is_compiler(compiler), "it is left behind");
    host.connect().echo("still there");
}

#[test]
fn a_compiler_ends_with_its_host() {
    for (number, signal) in [("drained", 15), ("killed", 9)] {
        let place = Place::new(&format!("compiler-{number}"), "echo");
        let mut host = place.serve(&["--cache", "off"]);
        place.replace(slow());
        host.signal(HUP);
        let compiler = compiler_of(&host);
        host.signal(signal);
        host.wait();
        until("the compiler has ended", || !is_compiler(compiler));
    }
}

#[test]
fn a_compiler_ends_with_a_host_that_has_not_started() {
    let component = file("slow-start.wasm", slow());
    let mut command = command();
    command.args(["--listen", "127.0.0.1:0", "--cache", "off", "--component"]);
    let mut host = Host::launch(command.arg(component));
    let compiler = compiler_of(&host);
    host.signal(15);
    host.wait();
    until("the compiler has ended", || !is_compiler(compiler));
}

#[test]
fn a_compiler_has_nothing_but_its_pipes() {
    let component = file("slow-bare.wasm", slow());
    let mut command = Command::new("sh");
    // A descriptor that whoever starts the host has left open.
    let script = format!(
        "exec 9</dev/null && exec {} --listen 127.0.0.1:0 --cache off --component \"$0\"",
        crate::harness::HOST
    );
    command
        .args(["-c", &script])
        .arg(component)
        .env("SECRET", "in the environment");
    let mut host = Host::launch(&mut command);
    let compiler = compiler_of(&host);
    let directory = |name: &str| format!("/proc/{compiler}/{name}");
    until("it has closed the rest", || {
        fs::read_dir(directory("fd")).is_ok_and(|entries| entries.count() == 3)
    });
    let environment = fs::read(directory("environ")).unwrap();
    let environment = String::from_utf8_lossy(&environment);
    assert!(!environment.contains("SECRET"), "{environment}");
    let limit = |name: &str| {
        let limits = fs::read_to_string(directory("limits")).unwrap();
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        line[name.len()..].split_whitespace().next().unwrap().to_owned()
    };
    until("its memory is limited", || limit("Max data size") != "unlimited");
    assert_eq!(limit("Max core file size"), "0");
    assert_eq!(limit("Max file size"), "0");
    host.signal(9);
    host.wait();
}

fn compile(args: &[&str]) -> Output {
    command().arg("compile").args(args).output().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// Removes write access from a directory and what is in it.
fn make_read_only(dir: &Path) -> Vec<PathBuf> {
    let entries: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    for entry in &entries {
        fs::set_permissions(entry, fs::Permissions::from_mode(0o400)).unwrap();
    }
    fs::set_permissions(dir, fs::Permissions::from_mode(0o500)).unwrap();
    entries
}

#[test]
fn a_start_uses_what_was_compiled_ahead() {
    let cache = scratch("compile-ahead");
    let dir = cache.to_str().unwrap();
    let (lines, echo) = (guest("lines-session"), guest("echo"));
    let compiled = compile(&["--cache", dir, lines.to_str().unwrap(), echo.to_str().unwrap()]);
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    let said = text(&compiled.stdout);
    assert_eq!(said.lines().count(), 2, "{said}");
    for line in said.lines() {
        assert!(line.contains("compiled in") && line.contains(dir), "{line}");
    }
    let entries = make_read_only(&cache);
    // The key, and an entry for each.
    assert_eq!(entries.len(), 3);
    let host = Host::with_no_privileges(&lines, &["-v", "--cache", dir]);
    host.connect().echo("hello\n");
    let log = host.log();
    assert!(
        log.contains("compiled=false") && !log.contains("process of its own"),
        "{log}"
    );
    assert!(!log.contains("WARN"), "{log}");
    drop(host);
    // It cannot be written, and does not matter for what is not there.
    let host = Host::with_no_privileges(&guest("upper"), &["-v", "--cache", dir]);
    host.connect().echo("HELLO\n");
    assert!(host.log().contains("compiled=true"), "{}", host.log());
    drop(host);
    let again = compile(&["--cache", dir, lines.to_str().unwrap()]);
    assert!(
        text(&again.stdout).contains("already compiled"),
        "{}",
        text(&again.stdout)
    );
    fs::set_permissions(&cache, fs::Permissions::from_mode(0o700)).unwrap();
}

#[test]
fn the_components_of_a_services_file_are_compiled_ahead() {
    let dir = scratch("compile-services");
    fs::create_dir_all(&dir).unwrap();
    fs::copy(guest("upper"), dir.join("upper.wasm")).unwrap();
    fs::copy(guest("upper-case"), dir.join("middleware.wasm")).unwrap();
    let services = dir.join("services.toml");
    let service = |name: &str, component: &str| {
        format!("[[service]]\nname = \"{name}\"\n{component}\nlisten = [\"127.0.0.1:0\"]\n")
    };
    let of_file = "component = \"upper.wasm\"";
    let behind = "component = \"upper.wasm\"\nmiddleware = [\"middleware.wasm\"]";
    let broken = "component = \"nothing.wasm\"";
    let good = [service("a", of_file), service("b", behind), service("c", "")].concat();
    let file = format!("cache = \"cache\"\nlog = {{ level = \"debug\" }}\n{good}");
    fs::write(&services, &file).unwrap();
    let compiled = compile(&["--config", services.to_str().unwrap()]);
    assert!(compiled.status.success(), "{}", text(&compiled.stderr));
    assert_eq!(text(&compiled.stdout).lines().count(), 3);
    let host = Host::with_config(&services, 3);
    let log = host.log();
    assert_eq!(log.matches("compiled=false").count(), 3, "{log}");
    assert!(!log.contains("compiled=true"), "{log}");
    // One that fails is named, and the others are compiled.
    fs::write(&services, format!("{file}{}", service("d", broken))).unwrap();
    let compiled = compile(&["--config", services.to_str().unwrap()]);
    assert_eq!(compiled.status.code(), Some(1));
    assert_eq!(text(&compiled.stdout).matches("already compiled").count(), 3);
    let said = text(&compiled.stderr);
    assert!(
        said.contains("services.toml:") && said.contains("nothing.wasm"),
        "{said}"
    );
    assert_eq!(compile(&["--config", "nothing.toml"]).status.code(), Some(2));
    assert_eq!(compile(&["--cache", "off", "x.wasm"]).status.code(), Some(2));
    assert_eq!(compile(&[]).status.code(), Some(2));
}

#[test]
fn errors_of_compile_have_the_keys_that_check_names() {
    let dir = scratch("compile-keys");
    fs::create_dir_all(&dir).unwrap();
    fs::copy(guest("upper"), dir.join("upper.wasm")).unwrap();
    fs::copy(guest("primes"), dir.join("primes.wasm")).unwrap();
    fs::copy(guest("upper-case"), dir.join("middleware.wasm")).unwrap();
    fs::write(dir.join("damaged.wasm"), "\0asm\x0d\0\x01\0damaged").unwrap();
    let services = dir.join("services.toml");
    let listen = "listen = [\"127.0.0.1:0\"]";
    let text = format!(
        "cache = \"cache\"\n\
         [[service]]\nname = \"a\"\n{listen}\ncomponent = \"upper.wasm\"\n\
         middleware = [\n\"middleware.wasm\",\n\"missing.wasm\"]\n\
         [[service]]\nname = \"b\"\n{listen}\ncomponent = \"upper.wasm\"\n\
         middleware = [\n\"damaged.wasm\"]\n\
         [[service]]\nname = \"c\"\n{listen}\ncomponent = \"primes.wasm\"\npreinit = true\n\
         [service.grants]\ndirs = [\"missing::/data\"]\nallow-outbound = [\"host.invalid:80\"]\n\
         [[service]]\nname = \"d\"\n{listen}\ncomponent = \"missing.wasm\"\n"
    );
    fs::write(&services, text).unwrap();
    let path = services.to_str().unwrap();
    let errors = |args: &[&str]| -> Vec<String> {
        let output = command().args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let said = self::text(&output.stderr).lines();
        said.filter(|line| line.starts_with("error: "))
            .map(str::to_owned)
            .collect()
    };
    let compiled = errors(&["compile", "--config", path]);
    let expected = [
        "8: service[0].middleware[1]: service `a`: cannot read the middleware `",
        "14: service[1].middleware[0]: service `b`: `",
        "21: service[2].grants.dirs[0]: service `c`: cannot open the granted directory `",
        "22: service[2].grants.allow-outbound[0]: service `c`: cannot resolve the granted destination `",
        "26: service[3].component: service `d`: cannot read the component `",
    ];
    let lines: Vec<_> = compiled.iter().map(String::as_str).collect();
    assert_errors(&lines, path, &expected);
    let mut checked = errors(&["check", "--config", path]);
    let mut compiled = compiled;
    checked.sort();
    compiled.sort();
    assert_eq!(compiled, checked);
}

#[test]
fn a_cache_that_cannot_be_filled_is_an_error_of_compile() {
    let open = scratch("compile-open");
    fs::create_dir_all(&open).unwrap();
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777)).unwrap();
    let echo = guest("echo");
    let compiled = compile(&["--cache", open.to_str().unwrap(), echo.to_str().unwrap()]);
    assert_eq!(compiled.status.code(), Some(1));
    assert!(
        text(&compiled.stderr).contains("ahead: cannot use the cache `")
            && text(&compiled.stderr).contains("chmod go-w"),
        "{}",
        text(&compiled.stderr)
    );
    assert_eq!(text(&compiled.stdout), "");
}

#[test]
fn every_command_compiles_within_the_limit() {
    let greedy = file("greedy-everywhere.wasm", greedy());
    let dir = scratch("compile-conversations");
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("one.conversation"), "> \"a\"\n").unwrap();
    let limit = ["--max-compile-memory", "64MiB"];
    let conversations = dir.to_str().unwrap();
    for before in [
        &["check"][..],
        &["replay", conversations],
        &["profile", conversations],
        &["compile"],
    ] {
        let mut command = command();
        let refusal = refusal_of(command.args(before).arg(&greedy).args(limit));
        assert_eq!(refusal.status, Some(1), "{before:?}: {}", refusal.message);
        assert!(
            refusal.message.contains("needs more memory"),
            "{before:?}: {}",
            refusal.message
        );
    }
}

/// A component that imports so many functions and passes them to an inner component nearly a
/// thousand times. The validator compares each function each time.
fn comparing(functions: usize) -> Vec<u8> {
    let functions: String = (0..functions)
        .map(|number| {
            format!("(export \"f{number}\" (func (param \"a\" (tuple string u32)) (result (list u8))))")
        })
        .collect();
    let instances = "(instance (instantiate $c (with \"i\" (instance $i))))".repeat(998);
    let text = format!(
        "(component (import \"i\" (instance $i {functions}))
            (component $c (import \"i\" (instance {functions}))) {instances})"
    );
    wat::parse_str(text).unwrap()
}

#[test]
fn a_component_that_takes_long_to_examine_is_refused_and_the_old_one_serves() {
    let place = Place::new("comparing", "echo");
    let component = place.file();
    let args = ["--listen", "127.0.0.1:0", "--cache", "off", "--component"];
    let bounded = || {
        let mut command = command();
        command.env("WASM_INETD_EXAMINE_S", "1");
        command
    };
    let host = Host::spawn(bounded().args(args).arg(&component), &args);
    let before = host.processor_time();
    place.replace(comparing(5000));
    host.signal(HUP);
    let line = host.line("reload failed");
    let said = "takes longer than 1s to be examined";
    assert!(line.contains(said), "{line}");
    host.connect().echo("still there");
    let took = host.processor_time() - before;
    assert!(took < Duration::from_millis(500), "{took:?}");
    let listen = ["--listen", "127.0.0.1:0"];
    for command in [
        &["check"][..],
        &["check", "--preinit"],
        &["compile", "--cache", scratch("comparing").to_str().unwrap()],
        // In front of the embedded component.
        &[&listen[..], &["--cache", "off", "--middleware"]].concat(),
    ] {
        let refusal = refusal_of(bounded().args(command).arg(&component));
        assert!(refusal.message.contains(said), "{command:?}: {}", refusal.message);
    }
    // The kernel would keep no status of the compiler.
    let mut ignoring = with_cache(Command::new("env"));
    ignoring.env("WASM_INETD_EXAMINE_S", "1");
    ignoring.args(["--ignore-signal=CHLD", HOST, "check"]);
    let refusal = refusal_of(ignoring.arg(&component));
    assert!(refusal.message.contains(said), "{}", refusal.message);
}

/// A component with a type of so many types, each in the next.
fn deep_type(depth: usize) -> Vec<u8> {
    let instance = [b"\x42\x01\x01".repeat(depth), b"\x42\0".to_vec()].concat();
    let section = [&[1][..], &instance].concat();
    [
        b"\0asm\x0d\0\x01\0\x07",
        &number(section.len() as u32)[..],
        &section,
    ]
    .concat()
}

/// Parsers call themselves for each level, and a stack that overflows ends its process.
#[test]
fn types_that_are_nested_deeply_are_refused_and_the_host_goes_on() {
    let place = Place::new("deep-type", "echo");
    let host = place.serve(&["--cache", "off"]);
    for depth in [200, 400, 600, 800, 1000, 1500, 2000, 100_000] {
        place.replace(deep_type(depth));
        host.signal(HUP);
        let line = host.line("reload failed");
        assert!(line.contains("exceeds a bound"), "{depth}: {line}");
    }
    host.connect().echo("still there");
    let services = scratch("deep-type.toml");
    let text = format!(
        "[[service]]\nname = \"a\"\ncomponent = {:?}\nlisten = [\"127.0.0.1:0\"]\n",
        place.file()
    );
    fs::write(&services, text).unwrap();
    let refusal = refusal_of(command().args(["check", "--config"]).arg(services));
    assert_eq!(refusal.status, Some(1), "{}", refusal.message);
    assert!(
        refusal.message.contains("nested too deeply"),
        "{}",
        refusal.message
    );
}

/// A type of so many types with 100,000 types each. The parser takes some 50 times their bytes.
fn wide_type(types: u32) -> Vec<u8> {
    const INNER: u32 = 100_000;
    let inner = [
        &b"\x01\x42"[..],
        &number(INNER),
        &b"\x01\x7f".repeat(INNER as usize),
    ]
    .concat();
    let outer = [&b"\x01\x42"[..], &number(types), &inner.repeat(types as usize)].concat();
    [b"\0asm\x0d\0\x01\0\x07", &number(outer.len() as u32)[..], &outer].concat()
}

#[test]
fn a_component_that_takes_much_memory_to_examine_is_refused_and_the_old_one_serves() {
    let place = Place::new("wide-type", "echo");
    let host = place.serve(&["--cache", "off"]);
    let before = host.memory("VmHWM");
    place.replace(wide_type(20));
    host.signal(HUP);
    let line = host.line("reload failed");
    assert!(line.contains("of memory to be examined"), "{line}");
    host.connect().echo("still there");
    let grown = host.memory("VmHWM").saturating_sub(before);
    assert!(grown < 40 << 10, "the host has grown by {grown} KiB");
}

#[test]
fn a_component_of_nothing_but_aliases_takes_little_memory_of_the_host() {
    const MIB: usize = 20;
    let place = Place::new("aliases", "echo");
    let host = place.serve(&["--cache", "off"]);
    let before = host.memory("VmHWM");
    // Each is another name of the only module.
    let aliases = MIB * (1 << 20) / 5;
    let aliases = [number(aliases as u32), [0, 0x11, 2, 0, 0].repeat(aliases)].concat();
    let module = b"\x01\x08\0asm\x01\0\0\0";
    let header = [b"\0asm\x0d\0\x01\0", &module[..], &[6]].concat();
    place.replace([header, number(aliases.len() as u32), aliases].concat());
    host.signal(HUP);
    let line = host.line("reload failed");
    assert!(line.contains("modules count exceeds limit"), "{line}");
    let grown = host.memory("VmHWM").saturating_sub(before);
    assert!(grown < 3 * MIB as u64 * 1024, "the host has grown by {grown} KiB");
}

#[test]
fn a_reason_that_is_long_is_cut() {
    let name = "\\01".repeat(99_000);
    let text = format!("(module (func (export \"{name}\")) (func (export \"{name}\")))");
    let component = file("long-reason.wasm", wat::parse_str(text).unwrap());
    let refusal = refused(&[
        "--listen",
        "127.0.0.1:0",
        "--component",
        component.to_str().unwrap(),
    ]);
    let said = refusal.message;
    assert!(
        said.contains("duplicate export name") && said.contains("is not a valid component"),
        "{said}"
    );
    assert!(said.len() < 32 << 10, "{}", said.len());
}

/// So many components, each in the next.
fn nested(depth: u32) -> Vec<u8> {
    const HEADER: &[u8] = b"\0asm\x0d\0\x01\0";
    let mut sections = Vec::new();
    let mut size = HEADER.len() as u32;
    for _ in 0..depth {
        let section = [HEADER, &[4], &number(size)].concat();
        size += section.len() as u32;
        sections.push(section);
    }
    sections.reverse();
    [sections.concat(), HEADER.to_vec()].concat()
}

#[test]
fn components_that_are_nested_too_deeply_are_refused_at_once() {
    let component = file("nested.wasm", nested(20_000));
    for before in [&["check"][..], &["--listen", "127.0.0.1:0", "--component"]] {
        let refusal = refusal_of(command().args(before).arg(&component));
        assert_eq!(refusal.status, Some(1), "{}", refusal.message);
        let said = "more than 4000 components and modules in one file";
        assert!(refusal.message.contains(said), "{}", refusal.message);
    }
}

/// The code has what memories contain at the start, and what is between their data.
#[test]
fn a_small_component_is_compiled_to_little() {
    let component = |name: &str, modules: usize| {
        let data = "x".repeat(6000);
        // Each is another, so that they are compiled apart.
        let modules: String = (0..modules)
            .map(|number| {
                format!(
                    "(core module (memory 256) (data (i32.const 0) \"{number:04}{data}\")
                        (data (i32.const 16700000) \"x\"))"
                )
            })
            .collect();
        file(name, wat::parse_str(format!("(component {modules})")).unwrap())
    };
    let refusal = refused(&["compile", component("compile-gaps.wasm", 12).to_str().unwrap()]);
    let said = "for its size: build a smaller component, split it, or leave fewer gaps";
    assert!(refusal.message.contains(said), "{}", refusal.message);
}
