//! An interpreter for Python as a guest, by the sessions contract: what a session answers is up to `lines.py`.
//!
//! Starting the interpreter and compiling the script takes far longer than answering a line. With `--preinit` that is done once,
//! when the host loads the guest, since the guest exports `wizer-initialize`.

wit_bindgen::generate!({
    path: "../../../wit",
    inline: "package guest:interpreter;
        world interpreter {
            include inet:service/session-service@0.1.0;
            /// Called once, before a snapshot is taken with which every connection begins.
            export wizer-initialize: func();
        }",
    world: "guest:interpreter/interpreter",
    generate_all,
});

use std::cell::OnceCell;

use exports::inet::service::sessions::{Answer, Event, Guest as Sessions, GuestSession, Next, Peer};
use rustpython_vm::builtins::{PyBytes, PyTuple};
use rustpython_vm::{AsObject, Interpreter, PyObjectRef, PyResult, VirtualMachine};

/// The script: a class `Session`, of which each connection gets an object.
const SCRIPT: &str = include_str!("../lines.py");

struct Python {
    interpreter: Interpreter,
    session: PyObjectRef,
}

thread_local! {
    static PYTHON: OnceCell<Python> = const { OnceCell::new() };
}

impl Python {
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

    /// Runs what needs the interpreter. An exception of the script is a trap.
    fn run<T>(run: impl FnOnce(&Self, &VirtualMachine) -> PyResult<T>) -> T {
        PYTHON.with(|python| {
            let python = python.get_or_init(Self::start);
            python.interpreter.enter(|vm| or_trap(run(python, vm), vm))
        })
    }
}

/// The trace goes to standard error, which is the host's log.
fn or_trap<T>(result: PyResult<T>, vm: &VirtualMachine) -> T {
    result.unwrap_or_else(|exception| {
        let mut trace = String::new();
        // A string takes all that is written to it.
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

struct Session(PyObjectRef);

impl GuestSession for Session {
    fn new(_peer: Peer) -> Self {
        Self(Python::run(|python, vm| python.session.call((), vm)))
    }

    fn handle(&self, event: Event) -> Answer {
        let answered = |method, arguments: Vec<PyObjectRef>| {
            Python::run(|_, vm| {
                let answer = vm.call_method(&self.0, method, arguments)?;
                understand(&answer, vm)
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

/// What the script answers is bytes, and whether that is the end.
fn understand(answer: &PyObjectRef, vm: &VirtualMachine) -> PyResult<Answer> {
    let parts = answer.downcast_ref::<PyTuple>().map(|tuple| tuple.as_slice());
    let Some([send, end]) = parts else {
        return Err(vm.new_type_error("a session answers (bytes, bool)".to_owned()));
    };
    let Some(send) = send.downcast_ref::<PyBytes>() else {
        return Err(vm.new_type_error("a session answers bytes first".to_owned()));
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
