//! Wakes one connection from another in the same instance.

use std::cell::Cell;
use std::future::Future;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Waker};

use wit_bindgen::{StreamReader, StreamWriter};

use super::bindings;

/// Creates a bell: [`Ringer::ring`] wakes the connection that waits in [`Bell::rung`].
///
/// Use it between connections that share an instance (`--isolation service`). To the host, each
/// connection is a task of its own. A channel from another crate makes a future in the other task
/// ready, but the host does not notice. A bell goes through the host, which then runs the task.
pub fn bell() -> (Ringer, Bell) {
    let (writer, reader) = bindings::wit_stream::new();
    let state = Rc::<State>::default();
    let ringer = Ringer {
        writer,
        state: Rc::clone(&state),
    };
    (ringer, Bell { reader, state })
}

#[derive(Default)]
struct State {
    rung: Cell<bool>,
    waiting: Cell<bool>,
}

/// The half of a [`bell()`] that rings.
pub struct Ringer {
    writer: StreamWriter<u8>,
    state: Rc<State>,
}

impl Ringer {
    /// Wakes the connection that waits, or makes the next wait return at once.
    ///
    /// Several calls before the next wait have the same effect as one.
    pub fn ring(&mut self) {
        if self.state.rung.replace(true) || !self.state.waiting.replace(false) {
            return;
        }
        // The other half is reading, so the write completes in one poll. If the reader has given
        // up, the write is given up too.
        let ringing = pin!(self.writer.write(vec![0]));
        let _ = ringing.poll(&mut Context::from_waker(Waker::noop()));
    }
}

/// The half of a [`bell()`] that waits.
pub struct Bell {
    reader: StreamReader<u8>,
    state: Rc<State>,
}

impl Bell {
    /// Waits until the bell rings. Returns at once if it has rung since the last call.
    pub async fn rung(&mut self) {
        if !self.state.rung.replace(false) {
            self.state.waiting.set(true);
            self.reader.read(Vec::with_capacity(1)).await;
            self.state.waiting.set(false);
            self.state.rung.set(false);
        }
    }
}
