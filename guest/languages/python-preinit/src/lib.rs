//! Runs the Python script `lines.py` in an embedded interpreter, with the sessions contract.
//!
//! The script computes the answers of a session. Starting the interpreter and compiling the script
//! takes far longer than answering a line. The guest exports `wizer-initialize`, so with
//! `--preinit` the host does this work only once, when it loads the guest.

wit_bindgen::generate!({
    path: "../../../wit",
    inline: "package guest:interpreter;
        world interpreter {
            include inet:service/session-service@0.1.0;
            /// The host calls this once and takes a snapshot. Each connection starts from it.
            export wizer-initialize: func();
        }",
    world: "guest:interpreter/interpreter",
    generate_all,
});

use std::cell::OnceCell;

use exports::inet::service::sessions::{Answer, Event, Guest as Sessions, GuestSession, Next, Peer};
use rustpython_vm::builtins::{PyBytes, PyTuple};
use rustpython_vm::{AsObject, Interpreter, PyObjectRef, PyResult, VirtualMachine};

/// The script. Each connection gets an object of its class `Session`.
const SCRIPT: &str = include_str!("../lines.py");

struct Python {
    interpreter: Interpreter,
    /// The class `Session` of the script.
    session: PyObjectRef,
}

thread_local! {
    static PYTHON: OnceCell<Python> = const { OnceCell::new() };
}

impl Python {
    /// Starts the interpreter and runs the script.
    fn start() -> Self {
        let interpreter = Interpreter::without_stdlib(Default::default());
        let session = interpreter.enter(|vm| {
            let scope = vm.new_scope_with_builtins();
            let ran = vm.run_string(scope.clone(), SCRIPT, "lines.py".to_owned());
            let session = ran.and_then(|_| scope.globals.get_item("Session", vm));
            or_trap(session, vm)
        });
        Self { interpreter, session }
    }

    /// Calls a function with the interpreter, starting it if necessary. An exception in the script
    /// is a trap.
    fn run<T>(run: impl FnOnce(&Self, &VirtualMachine) -> PyResult<T>) -> T {
        PYTHON.with(|python| {
            let python = python.get_or_init(Self::start);
            python.interpreter.enter(|vm| or_trap(run(python, vm), vm))
        })
    }
}

/// Returns the value, or traps after an exception. The traceback goes to standard error, which the
/// host logs.
fn or_trap<T>(result: PyResult<T>, vm: &VirtualMachine) -> T {
    result.unwrap_or_else(|exception| {
        let mut trace = String::new();
        // Writing to a string cannot fail.
        let _ = vm.write_exception(&mut trace, &exception);
        eprint!("{trace}");
        std::process::abort();
    })
}

struct Guests;

impl Guest for Guests {
    fn wizer_initialize() {
        Python::run(|_, _| Ok(()));
    }
}

impl Sessions for Guests {
    type Session = Session;
}

/// One connection: an object of the script's class `Session`.
struct Session(PyObjectRef);

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self(Python::run(|python, vm| python.session.call((), vm)))
    }

    fn handle(&self, event: Event) -> Answer {
        let answered = |method, arguments: Vec<PyObjectRef>| {
            Python::run(|_, vm| {
                let answer = vm.call_method(&self.0, method, arguments)?;
                parse_answer(&answer, vm)
            })
        };
        match event {
            Event::Received(chunk) => {
                let chunk = Python::run(|_, vm| Ok(vm.ctx.new_bytes(chunk).into()));
                answered("received", vec![chunk])
            }
            Event::Ended(_) => answered("ended", Vec::new()),
            Event::Opened | Event::Written | Event::Woken => Answer {
                send: Vec::new(),
                next: Next::GoOn,
            },
        }
    }
}

/// Converts an answer of the script: the bytes to send, and whether the connection ends after them.
fn parse_answer(answer: &PyObjectRef, vm: &VirtualMachine) -> PyResult<Answer> {
    let parts = answer.downcast_ref::<PyTuple>().map(|tuple| tuple.as_slice());
    let Some([send, end]) = parts else {
        return Err(vm.new_type_error("a method of Session must return (bytes, bool)".to_owned()));
    };
    let Some(send) = send.downcast_ref::<PyBytes>() else {
        return Err(vm.new_type_error("a method of Session must return bytes first".to_owned()));
    };
    let next = if end.is(&vm.ctx.true_value) {
        Next::Finish
    } else {
        Next::GoOn
    };
    Ok(Answer {
        send: send.as_bytes().to_vec(),
        next,
    })
}

export!(Guests);
