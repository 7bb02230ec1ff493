//! Guests whose functions are of a contract and are typed or lifted in any way that the component
//! model has.
//!
//! Toolchains differ in both: a function of the type `async func` may be lifted as a plain call,
//! and a plain function may stand where WASI has an asynchronous one. The host serves with each
//! combination, or refuses it at the load. It refuses an `async func` where the contract has a
//! plain function.

use std::fs;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::Resolve;

use crate::harness::{Host, command, file};

/// How a function is lifted.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Lift {
    Sync,
    Callback,
    /// A callback whose task ends without a result.
    NoResult,
    Stackful,
}

const LIFTS: [Lift; 3] = [Lift::Sync, Lift::Callback, Lift::Stackful];

impl Lift {
    /// Exports the function `name` with these parameters. It passes its result with `task_return`
    /// if it is lifted asynchronously, and returns it with `sync` if not.
    fn export(self, name: &str, params: &str, sync: &str, task_return: &str) -> String {
        match self {
            Self::Sync => format!("(func (export \"{name}\") {params} (result i32) {sync})"),
            // A status of 0 says that the task is done.
            Self::NoResult => Self::Callback.export(name, params, sync, ""),
            Self::Callback => format!(
                "(func (export \"[async-lift]{name}\") {params} (result i32) {task_return} (i32.const 0))
                 (func (export \"[callback][async-lift]{name}\") (param i32 i32 i32) (result i32)
                    unreachable)"
            ),
            Self::Stackful => {
                format!("(func (export \"[async-lift-stackful]{name}\") {params} {task_return})")
            }
        }
    }

    /// Imports `[task-return]function` of `interface`, for a function that is lifted
    /// asynchronously.
    fn import(self, interface: &str, function: &str, params: &str) -> String {
        match self {
            Self::Sync => String::new(),
            Self::Callback | Self::NoResult | Self::Stackful => format!(
                "(import \"[export]{interface}\" \"[task-return]{function}\" (func $return {params}))"
            ),
        }
    }
}

/// Encodes a component of a world whose WIT is `wit`; `None` if the component model has no such
/// lift.
fn encode(wit: &str, world: &str, module: &str) -> Option<Vec<u8>> {
    let mut module = wat::parse_str(module).unwrap();
    let mut resolve = Resolve::default();
    let package = resolve.push_str("test.wit", wit).unwrap();
    let world = resolve.select_world(&[package], Some(world)).unwrap();
    embed_component_metadata(&mut module, &resolve, world, StringEncoding::UTF8).unwrap();
    // Validation is the host's.
    let encoder = ComponentEncoder::default().validate(false).module(&module);
    encoder.and_then(|mut encoder| encoder.encode()).ok()
}

/// The contracts of this project, in one text.
fn contracts() -> String {
    let mut wit = "package inet:service@0.1.0;\n".to_owned();
    for name in ["types", "handler", "sessions"] {
        let path = guest_builder::workspace().join(format!("wit/{name}.wit"));
        let text = fs::read_to_string(path).unwrap();
        wit += &text.replace("package inet:service@0.1.0;", "");
    }
    wit + "world service { export handler; }\nworld session-service { export sessions; }\n"
}

/// A streams guest that returns its inbound stream and its end.
fn streams(plain: bool, lift: Lift) -> Option<Vec<u8>> {
    let mut wit = contracts();
    if plain {
        wit = wit.replace("handle: async func(", "handle: func(");
    }
    let interface = "inet:service/handler@0.1.0";
    let (inbound, end) = (
        "(i32.load offset=80 (local.get $p))",
        "(i32.load offset=84 (local.get $p))",
    );
    let handle = lift.export(
        &format!("{interface}#handle"),
        "(param $p i32)",
        &format!("(i32.store (i32.const 0) {inbound}) (i32.store (i32.const 4) {end}) (i32.const 0)"),
        &format!("(call $return {inbound} {end})"),
    );
    let import = lift.import(interface, "handle", "(param i32 i32)");
    let module = format!(
        "(module {import} (memory (export \"memory\") 1)
            (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) i32.const 1024)
            {handle})"
    );
    encode(&wit, "service", &module)
}

/// A session that finishes at its first event.
fn sessions(plain: bool, lift: Lift) -> Option<Vec<u8>> {
    let mut wit = contracts();
    if !plain {
        wit = wit.replace("handle: func(event", "handle: async func(event");
    }
    let interface = "inet:service/sessions@0.1.0";
    let handle = lift.export(
        &format!("{interface}#[method]session.handle"),
        "(param i32 i32 i32 i32)",
        "(i32.store8 (i32.const 8) (i32.const 3)) (i32.const 0)",
        "(call $return (i32.const 0) (i32.const 0) (i32.const 3) (i64.const 0))",
    );
    let import = lift.import(interface, "[method]session.handle", "(param i32 i32 i32 i64)");
    let module = format!(
        "(module {import}
            (import \"[export]{interface}\" \"[resource-new]session\" (func $new (param i32) (result i32)))
            (memory (export \"memory\") 1)
            (func (export \"cabi_realloc\") (param i32 i32 i32 i32) (result i32) i32.const 1024)
            (func (export \"{interface}#[constructor]session\") (param i32) (result i32)
                (call $new (i32.const 1)))
            {handle})"
    );
    encode(&wit, "session-service", &module)
}

/// A program of a release of WASI that ends at once.
fn program(version: &str, plain: bool, lift: Lift) -> Option<Vec<u8>> {
    let function = if plain { "func" } else { "async func" };
    let wit = format!(
        "package wasi:cli@{version};
        interface run {{ run: {function}() -> result; }}
        world program {{ export run; }}"
    );
    let interface = format!("wasi:cli/run@{version}");
    let run = lift.export(
        &format!("{interface}#run"),
        "",
        "(i32.const 0)",
        "(call $return (i32.const 0))",
    );
    let import = lift.import(&interface, "run", "(param i32)");
    let module = format!("(module {import} (memory (export \"memory\") 1) {run})");
    encode(&wit, "program", &module)
}

/// Asserts that `component` serves a connection with this outcome, or that the host refuses it with
/// a reason. Returns whether it serves.
fn serves(name: &str, component: &[u8], outcome: &str) -> bool {
    let path = file(&format!("lift-{name}.wasm"), component);
    let check = command().arg("check").arg(&path).output().unwrap();
    if !check.status.success() {
        let complaint = String::from_utf8_lossy(&check.stderr);
        assert_eq!(check.status.code(), Some(1), "{name}: {complaint}");
        let reasons = [
            "types differ",
            "uses what this host does not offer",
            "not a valid component",
        ];
        assert!(
            reasons.iter().any(|reason| complaint.contains(reason)),
            "{name}: {complaint}"
        );
        return false;
    }
    let host = Host::with(&path, &[]);
    let client = host.connect();
    client.finish();
    if outcome == "finished" {
        assert_eq!(client.rest(), b"", "{name}");
    }
    assert_eq!(host.outcome(), outcome, "{name}: {}", host.log());
    true
}

/// A program of WASI 0.2, of which the function that `preinit` calls is of this type and lift.
fn initialised(plain: bool, lift: Lift) -> Option<Vec<u8>> {
    let function = if plain { "func" } else { "async func" };
    let wit = format!(
        "package wasi:cli@0.2.6;
        interface run {{ run: func() -> result; }}
        world program {{ export run; export wizer-initialize: {function}(); }}"
    );
    let run = Lift::Sync.export("wasi:cli/run@0.2.6#run", "", "(i32.const 0)", "");
    let initialise = match lift {
        Lift::Sync => "(func (export \"wizer-initialize\"))".to_owned(),
        other => other.export("wizer-initialize", "", "", "(call $return)"),
    };
    let import = match lift {
        Lift::Sync => "",
        _ => "(import \"[export]$root\" \"[task-return]wizer-initialize\" (func $return))",
    };
    let module = format!("(module {import} (memory (export \"memory\") 1) {run} {initialise})");
    encode(&wit, "program", &module)
}

/// A kind of guest: by the plainness of its type, and by its lift.
type Build<'a> = &'a dyn Fn(bool, Lift) -> Option<Vec<u8>>;

#[test]
fn each_type_and_lift_is_served_or_refused_at_the_load() {
    let program_2 = |plain, lift| program("0.2.6", plain, lift);
    let program_3 = |plain, lift| program("0.3.0", plain, lift);
    let contracts: [(&str, Build); 4] = [
        ("streams", &streams),
        ("sessions", &sessions),
        ("program-2", &program_2),
        ("program-3", &program_3),
    ];
    let mut served = Vec::new();
    for (contract, build) in contracts {
        for plain in [true, false] {
            for lift in LIFTS {
                let ty = if plain { "plain" } else { "async" };
                let name = format!("{contract} {ty} {lift:?}");
                let Some(component) = build(plain, lift) else {
                    continue;
                };
                if serves(&name.replace(' ', "-"), &component, "finished") {
                    served.push(name);
                }
            }
        }
    }
    let mut expected = Vec::new();
    for (contract, _) in contracts {
        // A plain function cannot be lifted by a callback, and no function without one.
        let lifts: &[&str] = match contract {
            "streams" | "program-3" => &["plain Sync", "async Sync", "async Callback"],
            _ => &["plain Sync"],
        };
        expected.extend(lifts.iter().map(|served| format!("{contract} {served}")));
    }
    assert_eq!(served, expected);
}

#[test]
fn a_task_that_ends_without_a_result_is_a_fault_of_the_guest() {
    let program_2 = |plain, lift| program("0.2.6", plain, lift);
    let program_3 = |plain, lift| program("0.3.0", plain, lift);
    let contracts: [(&str, Build, bool); 4] = [
        ("streams", &streams, true),
        ("sessions", &sessions, false),
        ("program-2", &program_2, false),
        ("program-3", &program_3, true),
    ];
    for (contract, build, is_served) in contracts {
        let component = build(false, Lift::NoResult).unwrap();
        let name = format!("{contract}-no-result");
        assert_eq!(serves(&name, &component, "guest-trap"), is_served, "{name}");
    }
}

#[test]
fn a_guest_is_initialised_by_a_plain_function() {
    for (plain, lift) in [
        (true, Lift::Sync),
        (false, Lift::Sync),
        (false, Lift::Callback),
        (false, Lift::NoResult),
    ] {
        let component = initialised(plain, lift).unwrap();
        let path = file(&format!("initialised-{plain}-{lift:?}.wasm"), &component);
        let check = command()
            .args(["check", "--preinit"])
            .arg(&path)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&check.stderr);
        assert_eq!(check.status.success(), plain, "{lift:?}: {said}");
        if !plain {
            assert!(
                said.contains("it is an `async func`, but the convention has a `func`"),
                "{lift:?}: {said}"
            );
        }
    }
}

/// A component that exports `run` of both releases; that of WASI 0.2 traps, as the stub of some
/// toolchains does.
fn program_of_both_releases() -> Vec<u8> {
    wat::parse_str(
        r#"(component
            (core module $m
                (memory (export "memory") 1)
                (func (export "run-2") (result i32) unreachable)
                (func (export "run-3") (result i32) (i32.const 0)))
            (core instance $i (instantiate $m))
            (func $run-2 (result (result)) (canon lift (core func $i "run-2")))
            (func $run-3 async (result (result)) (canon lift (core func $i "run-3")))
            (component $c2 (import "f" (func $f (result (result)))) (export "run" (func $f)))
            (component $c3 (import "f" (func $f async (result (result)))) (export "run" (func $f)))
            (instance $r2 (instantiate $c2 (with "f" (func $run-2))))
            (instance $r3 (instantiate $c3 (with "f" (func $run-3))))
            (export "wasi:cli/run@0.2.6" (instance $r2))
            (export "wasi:cli/run@0.3.0" (instance $r3))
            (export "extra" (instance $r2)))"#,
    )
    .unwrap()
}

#[test]
fn a_program_of_both_releases_of_wasi_is_run_by_the_later() {
    let path = file("both-releases.wasm", program_of_both_releases());
    let check = command().arg("check").arg(&path).output().unwrap();
    let said = String::from_utf8(check.stdout).unwrap();
    let lines: Vec<&str> = said.lines().skip(1).take(4).collect();
    assert_eq!(
        lines,
        [
            "contract   cli",
            "export     wasi:cli/run@0.3.0",
            "unused     wasi:cli/run@0.2.6",
            "           extra",
        ],
        "{said}"
    );
    let host = Host::with(&path, &[]);
    let client = host.connect();
    client.finish();
    assert_eq!(client.rest(), b"");
    assert_eq!(host.outcome(), "finished", "{}", host.log());
}
